"""A training process that takes rounds: against ordinary runs, and what it says when something is wrong with a round."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from privacy import evaluation
from privacy.ledger import Ledger
from privacy.noise import GaussianNoise
from privacy.plan import PrivacyPlan
from tests import helpers
from tests.trainers import plain
from tests.trainers.jobs import make_job, write_labelled_rows, write_rows
from trainers import moments, worker
from trainers.data.prepare import describe_file
from trainers.errors import ConfigError
from trainers.orders import STOP, Done, Evaluation, Failed, Order, PrivateSteps, unpack_answer
from trainers.rounds import Rounds, round_seed, train_rounds
from trainers.spool import Spool

RATE = 2e-3
CONSTANT = {"schedule": "constant", "warmup": 0}


def _take_rounds(run_dir: Path, spool: Path) -> None:
    train_rounds(run_dir, run_id="test", spool=spool)


def _order(**changes: Any) -> Order:
    return replace(Order(round=1, attempt=1, steps=5, learning_rate=RATE, adapter={}), **changes)


def _serve(run_dir: Path, orders: list[Order], *, workers: int = 1) -> list[Done | Failed]:
    """All rounds put into the spool beforehand, then taken, in this process or in a group."""
    spool = Spool(run_dir / "rounds")
    for number, order in enumerate(orders):
        spool.ask(f"{number:04d}", order.pack(), waiting=lambda: False)
    spool.ask(STOP, b"", waiting=lambda: False)
    if workers == 1:
        _take_rounds(run_dir, run_dir / "rounds")
    else:
        helpers.run_distributed(_take_rounds, workers, run_dir, run_dir / "rounds")
    assert spool.ask(STOP, b"", waiting=lambda: False) == b""
    answers = [spool.ask(f"{number:04d}", b"", waiting=lambda: False) for number in range(len(orders))]
    for name in (STOP, *(f"{number:04d}" for number in range(len(orders)))):
        spool.withdraw(name)
    return [unpack_answer(answer) for answer in answers if answer is not None]


def _adapter(run_dir: Path) -> dict[str, np.ndarray]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


def test_a_round_takes_the_steps_of_an_ordinary_run(llama_dir: Path, tmp_path: Path) -> None:
    rows, seed = write_rows(tmp_path), round_seed(0, 1, 1)
    once, run = (
        make_job(tmp_path / name, llama_dir, rows, train={"max_steps": steps, "learning_rate": rate, "seed": seed} | CONSTANT)
        for name, steps, rate in (("once", 1, 1e-30), ("run", 5, RATE))
    )
    for run_dir in (once, run):
        worker.train(run_dir, run_id="test")
    job = make_job(tmp_path / "rounds", llama_dir, rows, train={"max_steps": 1} | CONSTANT)
    start = _adapter(once)

    first, again, second = _serve(job, [_order(adapter=start), _order(adapter=start), _order(adapter=start, round=2)])

    assert isinstance(first, Done) and isinstance(again, Done) and isinstance(second, Done)
    expected = _adapter(run)
    assert first.adapter.keys() == expected.keys() and first.steps == 5
    assert max(float(np.abs(first.adapter[name] - expected[name]).max()) for name in expected) < 1e-7
    assert all(np.array_equal(first.adapter[name], again.adapter[name]) for name in expected)  # nothing is left of the round before
    assert any(not np.array_equal(first.adapter[name], second.adapter[name]) for name in expected)


@pytest.mark.parametrize(("stage", "workers"), [(1, 1), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_rounds_that_keep_moments_are_a_longer_round_cut_in_two(llama_dir: Path, tmp_path: Path, stage: int, workers: int) -> None:
    """Steps over all rows, which do not depend on their order; the second round is another process's, on other workers."""
    rows = write_rows(tmp_path, count=16)
    train = {"max_steps": 1, "global_batch_size": 16} | CONSTANT
    whole, job = (make_job(tmp_path / name, llama_dir, rows, train=train, zero=stage) for name in ("whole", "rounds"))
    start = _start(llama_dir, tmp_path, rows)
    begun = _order(adapter=start, steps=3, keep_moments=True)

    [first] = _serve(job, [begun], workers=workers)
    assert isinstance(first, Done)
    then = _order(adapter=first.adapter, round=2, steps=3, keep_moments=True)
    [second] = _serve(job, [then])
    [uncut] = _serve(whole, [_order(adapter=start, steps=6)])

    assert isinstance(second, Done) and isinstance(uncut, Done)
    expected = uncut.adapter
    assert _distance(second.adapter, expected) < 1e-5 < _distance(first.adapter, expected)
    left = [path for path in job.iterdir() if path.name.startswith("moments")]
    assert sorted(path.name for path in left) == ["moments-000001.safetensors", "moments-000002.safetensors"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in left)


def test_a_round_tried_again_goes_on_from_the_round_before_and_not_from_the_attempt(llama_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, count=16)
    job = make_job(tmp_path / "rounds", llama_dir, rows, train={"max_steps": 1, "global_batch_size": 16} | CONSTANT)
    first = _order(adapter=_start(llama_dir, tmp_path, rows), steps=3, keep_moments=True)

    one, again = _serve(job, [first, replace(first, attempt=2)])
    assert isinstance(one, Done) and isinstance(again, Done)
    assert _distance(one.adapter, again.adapter) < 1e-5
    then = _order(adapter=one.adapter, round=3, steps=3, keep_moments=True)
    looked, kept, new = _serve(job, [replace(then, round=2, steps=0, evaluation=None), then, replace(then, keep_moments=False)])
    assert isinstance(looked, Done) and isinstance(kept, Done) and isinstance(new, Done)
    assert _distance(kept.adapter, new.adapter) > 1e-4
    (job / "moments-000003.safetensors").write_bytes(b"torn")
    [refused] = _serve(job, [replace(then, round=4)])
    assert isinstance(refused, Failed) and "moments-000003" in refused.message and "without the file" in refused.hint


def test_moments_of_rounds_without_privacy_are_none_of_a_private_one_s(tmp_path: Path) -> None:
    shapes = {"weight": torch.Size([2, 3])}
    found = moments.Moments(7, {"weight": torch.ones(2, 3)}, {"weight": torch.full((2, 3), 2.0)})
    moments.write(tmp_path, 1, found, private=False)
    assert moments.read(tmp_path, 2, shapes, private=True) is None
    assert moments.read(tmp_path, 1, shapes, private=False) is None
    read = moments.read(tmp_path, 5, shapes, private=False)
    assert read is not None and read.steps == 7 and torch.equal(read.second["weight"], found.second["weight"])
    with pytest.raises(ConfigError, match="another adapter"):
        moments.read(tmp_path, 2, {"weight": torch.Size([3, 3])}, private=False)


def test_a_disk_that_is_full_costs_the_moments_and_not_the_round(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    rows = write_rows(tmp_path, count=16)
    job = make_job(tmp_path / "rounds", llama_dir, rows, train={"max_steps": 1} | CONSTANT)
    monkeypatch.setattr(moments, "write", full)
    [done] = _serve(job, [_order(adapter=_start(llama_dir, tmp_path, rows), keep_moments=True)])
    assert isinstance(done, Done) and done.steps == 5
    assert "moments are not kept: [Errno 28]" in (job / "events.jsonl").read_text()


def _distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_jobs_that_share_a_model_take_the_rounds_they_would_take_alone(bert_dir: Path, tmp_path: Path) -> None:
    """Each with its own rows, batch and classes met; in turns, and as if the other had never been."""
    files = [write_labelled_rows(tmp_path, count=count, seed=seed, name=f"{seed}.jsonl") for seed, count in ((1, 40), (2, 30))]
    start = _start(bert_dir, tmp_path, files[0], task="classify")
    jobs = [
        make_job(tmp_path / f"job-{batch}", bert_dir, rows, task="classify", data={"labels": ["account", "balance", "branch"]},
                 train={"max_steps": 1, "global_batch_size": batch} | CONSTANT)
        for rows, batch in zip(files, (6, 10), strict=True)
    ]  # fmt: skip
    order, together = _order(adapter=start), Rounds()

    shared = [unpack_answer(together.take(job, order.pack())) for job in (*jobs, *jobs)]
    alone = [unpack_answer(Rounds().take(job, order.pack())) for job in jobs]

    for ours, theirs in zip(shared, alone * 2, strict=True):
        assert isinstance(ours, Done) and isinstance(theirs, Done)
        assert all(np.array_equal(ours.adapter[name], theirs.adapter[name]) for name in start)
    assert any(not np.array_equal(shared[0].adapter[name], shared[1].adapter[name]) for name in start)  # type: ignore[union-attr]


def test_populations_that_share_a_model_pay_for_themselves(llama_dir: Path, tmp_path: Path) -> None:
    """The model's hooks are those of the first; each round is tested, and charged to its own bank's ledger."""
    for bank in ("alder", "birch"):
        (tmp_path / bank).mkdir()
    jobs = [_make_private(tmp_path / bank, llama_dir, write_rows(tmp_path, count=UNITS, seed=seed, name=f"{bank}.jsonl"))
            for seed, bank in enumerate(("alder", "birch"))]  # fmt: skip
    start, together = _start(llama_dir, tmp_path, tmp_path / "alder.jsonl"), Rounds()

    for job, count in zip(jobs, (3, 4), strict=True):
        steps = _reserve(job, count)
        done = unpack_answer(together.take(job, _order(adapter=start, steps=count, private=steps).pack()))
        assert isinstance(done, Done) and (done.charged, _charged(job, steps.reservation)) == (count, count)
        assert done.verdicts["sensitivity"] and done.verdicts["noise_scale"] and not {False} & set(done.verdicts.values())


def _huge(adapter: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One whose loss is not finite."""
    return {name: np.full_like(tensor, 1e30) for name, tensor in adapter.items()}


@pytest.mark.slow
def test_every_stage_on_two_workers_takes_the_round_of_one(llama_dir: Path, tmp_path: Path) -> None:
    """B alone is trained, and A is another in each round."""
    rows, method = write_rows(tmp_path), {"lora": {"rank": 4, "train_a": False}}
    start = _start(llama_dir, tmp_path, rows, method=method)
    turned = {name: -2 * tensor if "lora_A" in name else tensor for name, tensor in start.items()}
    answers = []
    for stage, count in ((1, 1), (1, 2), (2, 2), (3, 2)):
        job = make_job(tmp_path / f"{stage}-{count}", llama_dir, rows, method=method, zero=stage, train={"max_steps": 1} | CONSTANT)
        orders = [_order(adapter=start, round=2), _order(adapter=_huge(start)), _order(adapter=turned)]
        _, failed, done = _serve(job, orders, workers=count)  # the last one finds the state of the others
        assert isinstance(failed, Failed)
        answers.append(done)

    first, *others = answers
    assert isinstance(first, Done)
    for other in others:
        assert isinstance(other, Done)
        assert max(float(np.abs(first.adapter[name] - other.adapter[name]).max()) for name in start) < 1e-5
    assert all(np.array_equal(first.adapter[name], turned[name]) == ("lora_A" in name) for name in start)


def _start(model: Path, folder: Path, rows: Path, **blocks: Any) -> dict[str, np.ndarray]:
    """An adapter that a job may begin with; B small and not zero."""
    run_dir = make_job(folder / "start", model, rows, **{"train": {"max_steps": 2, "learning_rate": 1e-3}} | blocks)
    worker.train(run_dir, run_id="test")
    return _adapter(run_dir)


UNITS, BATCH, DELTA = 30, 10, 1e-3


def _make_private(folder: Path, model: Path, rows: Path, **blocks: Any) -> Path:
    """A private job and its ledger, to which the rows are attached."""
    path = folder / "ledger.db"
    with Ledger.create(path) as ledger:
        ledger.grant("customers", 30.0, DELTA)
        ledger.attach("customers", describe_file(rows)["sha256"], str(rows), UNITS)
    privacy = {"epsilon": 1.0, "delta": DELTA, "clip_norm": 0.5, "unit": "record", "units": UNITS, "ledger": path, "restarts": 0}
    return make_job(folder / "private", model, rows, privacy=privacy, train={"max_steps": 4, "global_batch_size": BATCH} | CONSTANT,
                    checkpoint={"best_by": None}, **blocks)  # fmt: skip


def _reserve(run_dir: Path, steps: int) -> PrivateSteps:
    plan = PrivacyPlan(UNITS, BATCH, steps, 0, clip_norm=0.5, noise_multiplier=1.5, delta=DELTA)
    with Ledger.open(run_dir.parent / "ledger.db") as ledger:
        return PrivateSteps(plan, ledger.reserve("customers", plan.event, "round").id)


def _reserve_evaluation(run_dir: Path, noise: float) -> Evaluation:
    with Ledger.open(run_dir.parent / "ledger.db") as ledger:
        id = ledger.reserve("customers", evaluation.event(noise, UNITS), "round").id
    return Evaluation(most_units=UNITS, noise_multiplier=noise, reservation=id)


def _charged(run_dir: Path, id: str) -> int:
    with Ledger.open(run_dir.parent / "ledger.db") as ledger:
        return ledger.reservation(id).held.charged


def test_a_private_round_charges_its_steps_and_no_more(bert_dir: Path, tmp_path: Path) -> None:
    """Only B is trained, A and B come anew each round; evaluated before, on what is held out."""
    rows, method = write_labelled_rows(tmp_path, count=UNITS), {"lora": {"rank": 4, "train_a": False}}
    start = _start(bert_dir, tmp_path, rows, task="classify", method=method)
    job = _make_private(tmp_path, bert_dir, rows, task="classify", method=method, data={"validation_fraction": 0.3})
    steps, more, measured = _reserve(job, 4), _reserve(job, 4), _reserve_evaluation(job, 5.0)
    turned = {name: 2 * tensor if "lora_A" in name else tensor for name, tensor in start.items()}
    orders = [_order(adapter=start, steps=4, private=steps, evaluation=measured),
              _order(adapter=turned, steps=4, private=more, round=2)]  # fmt: skip

    first, second = _serve(job, orders)

    assert isinstance(first, Done) and isinstance(second, Done)
    assert (first.steps, first.charged, second.steps, second.charged) == (4, 4, 4, 4)
    assert [_charged(job, id) for id in (steps.reservation, more.reservation, measured.reservation or "")] == [4, 4, 1]
    assert len(first.metrics) == 2 and all(0 <= number <= 1 for number in first.metrics) and second.metrics == ()
    assert first.verdicts["sensitivity"] and second.verdicts["sensitivity"] and not {False} & set(second.verdicts.values())
    assert first.verdicts["noise_scale"] and first.verdicts["charges"]
    for name in start:
        assert np.array_equal(second.adapter[name], turned[name]) == ("lora_A" in name)
    shown = helpers.events(job, "round")
    assert [(event["round"], event["steps"]) for event in shown] == [(1, 4), (2, 4)] and "seconds" not in shown[0]
    assert not list(job.glob("checkpoints/*"))


@pytest.mark.slow
def test_two_workers_take_private_rounds_together(llama_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, count=UNITS)
    start = _start(llama_dir, tmp_path, rows)
    job = _make_private(tmp_path, llama_dir, rows, zero=3, data={"validation_fraction": 0.3})
    steps, more, measured = _reserve(job, 4), _reserve(job, 4), _reserve_evaluation(job, 5.0)
    orders = [_order(adapter=start, steps=4, private=steps),
              _order(adapter=start, steps=4, private=more, round=2, evaluation=measured)]  # fmt: skip

    for done in _serve(job, orders, workers=2):
        assert isinstance(done, Done) and (done.steps, done.charged) == (4, 4)
        assert done.verdicts["independence"] and done.verdicts["sensitivity"] and not {False} & set(done.verdicts.values())
    assert [_charged(job, id) for id in (steps.reservation, more.reservation, measured.reservation or "")] == [4, 4, 1]


def test_a_round_begun_again_takes_the_steps_that_are_left(llama_dir: Path, tmp_path: Path) -> None:
    """As after a process was killed in the middle of it: charged steps stay charged, and an evaluation is not made twice."""
    rows = write_rows(tmp_path, count=UNITS)
    start = _start(llama_dir, tmp_path, rows)
    job = _make_private(tmp_path, llama_dir, rows)
    steps, measured = _reserve(job, 5), _reserve_evaluation(job, 5.0)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.reservation(steps.reservation).charge(3)
        ledger.reservation(measured.reservation or "").charge()
    order = _order(adapter=start, steps=5, private=steps, evaluation=measured)

    again, once_more = _serve(job, [order, order])

    assert isinstance(again, Done) and (again.steps, again.charged, again.metrics) == (2, 2, (0.0, 0.0))
    assert isinstance(once_more, Failed) and once_more.error == "BudgetRefused"
    assert _charged(job, steps.reservation) == 5 and _charged(job, measured.reservation or "") == 1


def test_a_round_that_goes_wrong_is_answered_with_the_reason_and_the_next_one_is_right(llama_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    start = _start(llama_dir, tmp_path, rows)
    job = make_job(tmp_path / "rounds", llama_dir, rows, train={"max_steps": 1} | CONSTANT)
    name = min(name for name in start if "lora_B" in name)
    nan = {**start, name: np.full_like(start[name], np.nan)}
    missing = {other: tensor for other, tensor in start.items() if other != name}
    private = PrivateSteps(PrivacyPlan(UNITS, BATCH, 5, 0, 0.5, 1.0, DELTA), "none")

    right, *wrong, after = _serve(job, [
        _order(adapter=start), _order(adapter=_huge(start)), _order(adapter=nan), _order(adapter=missing),
        _order(adapter=start, private=private), _order(adapter=start),
    ])  # fmt: skip

    assert isinstance(right, Done) and isinstance(after, Done)
    assert [type(answer) for answer in wrong] == [Failed] * 4
    said = [answer.message for answer in wrong if isinstance(answer, Failed)]
    assert said[0].startswith("the loss became nan") and "NaN or infinity" in said[1] and f"{name} is missing in the adapter" in said[2]
    assert "private steps are for a job with a privacy block" in said[3]
    assert all(np.array_equal(right.adapter[name], after.adapter[name]) for name in start)


def test_public_rows_are_evaluated_customer_by_customer(llama_dir: Path, tmp_path: Path) -> None:
    """Against one row at a time in an ordinary model: the share of tokens that are the likeliest, a customer's mean, the sum of these."""
    public, own = _write_customers(tmp_path), _write_customers(tmp_path, name="own.jsonl", first=100)
    start = _start(llama_dir, tmp_path, public, train={"max_steps": 12, "learning_rate": 1e-2})
    data = {"validation": public, "group_by": "customer", "packing": True, "max_length": 64}
    job = make_job(tmp_path / "rounds", llama_dir, own, data=data, train={"max_steps": 1} | CONSTANT)

    (done,) = _serve(job, [_order(adapter=start, steps=0, evaluation=Evaluation(most_units=50))])

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32), tmp_path / "start" / "adapter")
    shares = [_share_right(model.eval(), example) for example in plain.read_examples(public, llama_dir)]
    expected = [np.mean(shares[customer::5]) for customer in range(5)]
    assert isinstance(done, Done) and (done.steps, done.adapter) == (0, {})
    assert done.metrics == (pytest.approx(sum(expected) / 50, abs=1e-6), 5 / 50)
    assert 0 < sum(expected) < 5


def _write_customers(folder: Path, *, name: str = "public.jsonl", first: int = 0) -> Path:
    """Five customers, two or three rows each."""
    rows = [{"prompt": f"Customer {i}: card", "completion": " fee fee card" * (1 + i % 3), "customer": first + i % 5} for i in range(13)]
    return helpers.write_jsonl(folder / name, rows)


@torch.no_grad()
def _share_right(model: Any, example: plain.Example) -> float:
    likeliest = model(input_ids=torch.tensor([example.ids])).logits[0, :-1].argmax(-1)
    learnt = torch.tensor(example.learnt)[1:]
    return float((likeliest == torch.tensor(example.ids)[1:])[learnt].float().mean())


def test_a_class_is_right_or_not(bert_dir: Path, tmp_path: Path) -> None:
    rows, public = write_labelled_rows(tmp_path), write_labelled_rows(tmp_path, count=30, seed=1, name="public.jsonl")
    blocks: dict[str, Any] = {"task": "classify", "data": {"validation": public}}
    start = _start(bert_dir, tmp_path, rows, **blocks)
    told = helpers.events(tmp_path / "start", "end")[0]["metrics"]["accuracy"]
    job = make_job(tmp_path / "rounds", bert_dir, rows, train={"max_steps": 1} | CONSTANT, **blocks)

    (done,) = _serve(job, [_order(adapter=start, steps=0, evaluation=Evaluation(most_units=30))])

    assert isinstance(done, Done) and done.metrics == (pytest.approx(told), 1.0)


def test_a_faulty_mechanism_s_round_is_an_error(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = write_rows(tmp_path, count=UNITS)
    start = _start(llama_dir, tmp_path, rows)
    job = _make_private(tmp_path, llama_dir, rows)
    whole = GaussianNoise.draw
    monkeypatch.setattr(GaussianNoise, "draw", lambda noise, count: np.float32(0.97) * whole(noise, count))

    (failed,) = _serve(job, [_order(adapter=start, steps=4, private=_reserve(job, 4))])

    assert isinstance(failed, Failed) and failed.error == "PromiseBroken" and failed.message.endswith("failed: noise_scale")


def test_nothing_is_done_with_private_rows_that_is_not_paid_for(llama_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, count=UNITS)
    start = _start(llama_dir, tmp_path, rows)
    job = _make_private(tmp_path, llama_dir, rows, data={"validation_fraction": 0.3})
    steps, measured = _reserve(job, 4), _reserve_evaluation(job, 5.0)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.grant("others", 30.0, DELTA)
        others = ledger.reserve("others", steps.plan.event, "round").id
    order = _order(adapter=start, steps=4)
    refused = {
        "ConfigError": order,
        "PromiseBroken": replace(order, private=replace(steps, plan=replace(steps.plan, noise_multiplier=1.4))),
        "LedgerError": replace(order, private=replace(steps, reservation=others)),
        "PlanError": replace(order, steps=0, evaluation=Evaluation(most_units=UNITS)),
    }
    unpaid = [replace(order, steps=0, evaluation=replace(measured, reservation=None)),
              replace(order, steps=0, evaluation=replace(measured, noise_multiplier=4.0))]  # fmt: skip

    answers = _serve(job, [*refused.values(), *unpaid])

    assert [answer.error for answer in answers if isinstance(answer, Failed)] == [*refused, "ConfigError", "PromiseBroken"]
    assert [_charged(job, id) for id in (steps.reservation, measured.reservation or "")] == [0, 0]


def test_files_of_a_population_are_not_evaluated_without_noise(llama_dir: Path, tmp_path: Path) -> None:
    """Attached to whichever population, and even where the bank calls them public; other files are taken for what they are called."""
    rows, named = write_rows(tmp_path, count=UNITS), write_rows(tmp_path, count=9, seed=1, name="named-public.jsonl")
    start = _start(llama_dir, tmp_path, rows)
    job = _make_private(tmp_path, llama_dir, rows, data={"validation": named})
    order = _order(adapter=start, steps=0, evaluation=Evaluation(most_units=UNITS))

    (public,) = _serve(job, [order])
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.grant("others", 30.0, DELTA)
        ledger.attach("others", describe_file(named)["sha256"], str(named), 9)
    (refused,) = _serve(job, [replace(order, attempt=2)])

    assert isinstance(public, Done) and public.metrics[1] == 9 / UNITS
    assert isinstance(refused, Failed) and refused.error == "ConfigError"
    assert refused.message == "named-public.jsonl: its rows are attached to others, and would be evaluated without noise"


def test_what_is_not_an_order_is_said_to_be_none(tmp_path: Path) -> None:
    order = _order(adapter={"a": np.ones(3, np.float32)}, private=PrivateSteps(PrivacyPlan(9, 3, 2, 0, 1.0, 1.0, 1e-3), "id"),
                   evaluation=Evaluation(5.0, 1.0, "other"))  # fmt: skip
    packed = order.pack()
    found = Order.unpack(packed)
    assert found.adapter["a"].tolist() == [1, 1, 1] and replace(found, adapter={}) == replace(order, adapter={})
    for content in (b"", b"{}", packed[:-1], Failed("a", "b", "c").pack()):
        with pytest.raises(ConfigError, match="not a round as this version writes it"):
            Order.unpack(content)
    assert unpack_answer(Failed("a", "b", "c").pack()) == Failed("a", "b", "c")
