"""Private runs: the step against one worker alone, the ledger, the statement, and what stays with the bank."""

import json
import math
import re
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cluster.job import load_job, write_job
from privacy.accountant import epsilon
from privacy.dp_full import GhostGradients
from privacy.dp_lora import UnitGradients
from privacy.errors import BudgetRefused, LedgerError, PlanError, PromiseBroken
from privacy.ledger import Ledger, Reservation
from privacy.noise import GaussianNoise
from privacy.plan import batch_cap
from privacy.sampling import UnitSampler
from privacy.stream import Stream
from tests import helpers
from tests.trainers import plain
from tests.trainers.jobs import write_labelled_rows
from trainers import private, worker
from trainers import promise as promises
from trainers.config import ModelConfig, read_config
from trainers.data.prepare import describe_file
from trainers.defaults import Hardware, Shape, resolve
from trainers.errors import ConfigError
from trainers.footprint import measure
from trainers.loop import Run
from trainers.memory import memory_of_job
from trainers.model import freeze_tables, shape_of
from trainers.private_work import PrivateWork
from trainers.promise import make_promise
from trainers.world import World

UNITS, BATCH, STEPS, RATE, DELTA = 40, 10, 6, 1e-2, 1e-3
NOISE, CLIP, SEED = 0.7, 0.05, 7
TABLES = {"model.embed_tokens.weight", "lm_head.weight"}


def _make_rows(folder: Path, *, customers: int = UNITS, each: int = 2) -> Path:
    rows = [
        {"prompt": f"customer {customer} asks {question}", "completion": f" answer {customer * question}", "customer": f"c{customer}"}
        for question in range(each)
        for customer in range(customers)
    ]
    return helpers.write_jsonl(folder / "rows.jsonl", rows)


def _make_ledger(folder: Path, rows: Path, *, budget: float = 20.0) -> Path:
    path = folder / "ledger.db"
    with Ledger.create(path) as ledger:
        ledger.grant("customers", budget, DELTA)
        ledger.attach("customers", describe_file(rows)["sha256"], str(rows), UNITS)
    return path


def _make_run(folder: Path, llama: Path, rows: Path, ledger: Path, /, **changes: Any) -> Path:
    privacy = {"noise_multiplier": 1.0, "delta": DELTA, "clip_norm": 0.5, "unit": {"column": "customer", "max_records": 2}, "units": UNITS,
               "ledger": ledger, "restarts": 1} | changes.pop("privacy", {})  # fmt: skip
    train = {"max_steps": STEPS, "global_batch_size": BATCH, "learning_rate": RATE, "micro_batch_tokens": 128} | changes.pop("train", {})
    blocks: dict[str, Any] = {
        "task": "sft",
        "model": {"path": str(llama), "dtype": "float32"},
        "method": {"lora": {"rank": 4}},
        "data": {"train": str(rows), "validation_fraction": 0.1, "max_length": 64},
        "train": train,
        "checkpoint": {"every": 2},
        "tracking": {"tensorboard": False},
        "privacy": privacy,
    }
    return helpers.make_run(folder, **blocks | changes)


@pytest.fixture(scope="module")
def finished(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run on two workers, ZeRO-2."""
    folder = tmp_path_factory.mktemp("private")
    rows = _make_rows(folder)
    run_dir = _make_run(folder / "runs" / "run", llama_dir, rows, _make_ledger(folder, rows), zero=2)
    helpers.train(run_dir, workers=2)
    return run_dir


def test_a_run_ends_with_a_statement_whose_figures_are_the_ledgers(finished: Path) -> None:
    statement = json.loads((finished / "dp_statement.json").read_text())

    assert statement["private"] is True
    assert statement["mechanism"]["steps_charged"] == statement["mechanism"]["steps_in_the_model"] == 6
    assert statement["claim"]["unit"] == "customer"
    assert set(statement["self_tests"].values()) == {True}
    assert statement["claim"]["epsilon"] == pytest.approx(statement["history"]["population_charged_epsilon"], abs=0.01)
    assert json.loads((finished / "adapter" / "dp_statement.json").read_text()) == statement
    assert "Trained with differential privacy: epsilon" in (finished / "adapter" / "README.md").read_text()


def test_losses_norms_and_batches_stay_in_a_file_of_the_banks_own(finished: Path) -> None:
    private = [json.loads(line) for line in (finished / "private.jsonl").read_text().splitlines()]
    steps = [event for event in private if event["event"] == "step"]
    assert len(steps) == 6 and all({"loss", "grad_norm", "units", "seconds"} <= event.keys() for event in steps)
    assert any(event["event"] == "eval" for event in private)
    assert stat.S_IMODE((finished / "private.jsonl").stat().st_mode) == 0o600

    for shown in (finished / "events.jsonl", finished / "report.json", finished / "adapter" / "README.md"):
        text = shown.read_text()
        assert not any(str(event["loss"]) in text for event in steps)
        assert '"units": ' not in text or shown.name == "report.json"
    for manifest in finished.glob("checkpoints/*/manifest.json"):
        assert json.loads(manifest.read_text())["progress"] == {
            "step": int(manifest.parent.name.removeprefix("step-")), "best_step": None, "best_value": None, "evaluations_without_gain": 0
        }  # fmt: skip
    assert all(event.keys() == {"time", "event", "step", "epoch", "learning_rate"} for event in helpers.events(finished, "step"))
    assert "data" not in helpers.events(finished, "start")[0] and "peak_memory_bytes" not in helpers.events(finished, "end")[0]
    digest = describe_file(finished.parents[1] / "rows.jsonl")["sha256"]
    assert digest in (finished / "private.jsonl").read_text() and digest not in (finished / "report.html").read_text()
    report = json.loads((finished / "report.json").read_text())
    assert report["train_loss"] == [] and report["privacy"].startswith("Trained with differential privacy: epsilon")


def test_the_budget_that_was_not_used_is_given_back(finished: Path) -> None:
    with Ledger.open(finished.parents[1] / "ledger.db") as ledger:
        (held,) = ledger.status("customers").reservations

    assert held.event.steps == 6 + 2  # one restart from a checkpoint every second step
    assert held.closed and held.charged == 6


@pytest.mark.parametrize(
    ("model", "task", "changes", "method"),
    [
        ("bert_dir", "classify", {}, {"lora": {"rank": 4}}),
        ("bert_dir", "classify", {}, "full"),
        ("llama_dir", "sft", {"quantization": "nf4"}, {"lora": {"rank": 4}}),
        ("llama_dir", "sft", {"dtype": "bfloat16"}, {"lora": {"rank": 4}}),
    ],
)
def test_classifiers_and_bases_in_other_precisions_keep_the_promise(
    tmp_path: Path, request: pytest.FixtureRequest, model: str, task: str, changes: dict[str, str], method: Any
) -> None:
    """Every record a unit of its own; the self-tests have to pass, among them the replay of a step."""
    rows = write_labelled_rows(tmp_path) if task == "classify" else _make_rows(tmp_path, each=1)
    folder = request.getfixturevalue(model)
    base = {"path": str(folder), "dtype": "float32"} | changes
    blocks = {"model": base, "task": task, "method": method, "privacy": {"unit": "record"}}
    run_dir = _make_run(tmp_path / "run", folder, rows, _make_ledger(tmp_path, rows), **blocks)

    worker.train(run_dir, run_id="test")

    statement = json.loads((run_dir / "dp_statement.json").read_text())
    assert statement["claim"]["unit"] == "record" and statement["mechanism"]["steps_charged"] == STEPS
    assert statement["self_tests"]["sensitivity"] and not {False} & set(statement["self_tests"].values())
    saved = _saved(run_dir)
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert any("classifier" in name for name in saved) == (task == "classify")


def _saved(run_dir: Path) -> dict[str, torch.Tensor]:
    """The adapter or the model."""
    (path,) = run_dir.glob("*/*model.safetensors")
    return load_file(path)


def test_a_whole_model_is_trained_privately_from_its_job_file(llama_dir: Path, tmp_path: Path) -> None:
    rows = _make_rows(tmp_path, each=1)
    _make_ledger(tmp_path, rows)
    job_file = tmp_path / "job.yaml"
    job_file.write_text(f"""
name: whole
output: {tmp_path}/runs
task: sft
model: {llama_dir}
method: full
data: {{train: rows.jsonl, max_length: 64}}
train: {{max_steps: 4, global_batch_size: {BATCH}, learning_rate: 1.0e-2, activation_checkpointing: true}}
privacy: {{noise_multiplier: 1.0, delta: {DELTA}, clip_norm: 0.5, unit: record, units: {UNITS}, ledger: ledger.db}}
""")
    run_dir = write_job(load_job(job_file))

    worker.train(run_dir, run_id="test")

    statement, card = json.loads((run_dir / "dp_statement.json").read_text()), (run_dir / "model" / "README.md").read_text()
    assert statement["private"] and statement["mechanism"]["steps_charged"] == 4
    assert statement["self_tests"]["sensitivity"] and not {False} & set(statement["self_tests"].values())
    assert statement["claim"]["released"].startswith("the model (") and "embeddings" in statement["mechanism"]["trained"][0]
    assert "Trained with differential privacy: epsilon" in card and (run_dir / "model" / "dp_statement.json").exists()
    loaded, base = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (run_dir / "model", llama_dir))
    assert {name for name in base if torch.equal(base[name], loaded[name])} == TABLES


def _train_seeded(run_dir: Path) -> dict[str, torch.Tensor]:
    """A private run whose samples and noise come from a seed; what it ends with."""
    whole = private.begin
    private.begin = lambda *arguments: whole(*arguments, seed=SEED)  # type: ignore[assignment]
    try:
        worker.train(run_dir, run_id="test")
    finally:
        private.begin = whole
    return _saved(run_dir)


def _train_all_seeded(run_dirs: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [_train_seeded(run_dir) for run_dir in run_dirs]


def _reference(model: Any, llama: Path, rows: Path, *, workers: int) -> dict[str, torch.Tensor]:
    """The same steps written plainly: one record at a time, ordinary layers, torch.optim."""
    examples = plain.read_examples(rows, llama)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), betas=(0.9, 0.999), weight_decay=0.0)
    rate = plain.cosine(peak=RATE, steps=STEPS, warmup_steps=2)
    size = sum(p.numel() for p in trained.values())
    each = math.ceil(size / workers)
    noises = [GaussianNoise(NOISE * CLIP, Stream(seed=SEED + 1 + rank)) for rank in range(workers)]
    sampler = UnitSampler(UNITS, BATCH / UNITS, batch_cap(UNITS, BATCH), Stream(seed=SEED))
    for step in range(STEPS):
        total = torch.zeros(size)
        for unit in sampler.draw():
            records = examples[unit::UNITS]
            loss = sum(plain.summed_loss(model, record) / record.targets for record in records) / len(records)
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(trained.values()))])
            total += gradient * min(1.0, CLIP / float(gradient.norm()))
        total += torch.cat([torch.from_numpy(n.draw(min(each, size - each * rank))) for rank, n in enumerate(noises)])
        for p, g in zip(trained.values(), (total / BATCH).split([p.numel() for p in trained.values()]), strict=True):
            p.grad = g.view(p.shape)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
    return {name.replace(".default", ""): p.detach() for name, p in trained.items()}


def _plain_model(llama: Path, method: str) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    if method == "full":
        freeze_tables(model)
        return model.train()
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).train()


@pytest.mark.parametrize(
    ("method", "workers", "stages"),
    [
        pytest.param("lora", 1, (1, 2, 3), marks=pytest.mark.slow),
        ("lora", 2, (1, 2, 3)),
        pytest.param("lora", 3, (1, 2, 3), marks=pytest.mark.slow),
        ("full", 2, (2,)),
        pytest.param("full", 1, (1, 2), marks=pytest.mark.slow),
        pytest.param("full", 2, (1,), marks=pytest.mark.slow),
    ],
)
def test_every_stage_on_any_number_of_workers_takes_the_steps_of_the_reference(
    llama_dir: Path, tmp_path: Path, method: str, workers: int, stages: tuple[int, ...]
) -> None:
    full = method == "full"
    rows = _make_rows(tmp_path, each=1 if full else 2)
    ledger = _make_ledger(tmp_path, rows, budget=30.0)
    privacy: dict[str, Any] = {"unit": "record"} if full else {}
    changes = {
        "method": "full" if full else {"lora": {"rank": 4}},
        "privacy": {"noise_multiplier": NOISE, "clip_norm": CLIP} | privacy,
        "data": {"train": str(rows), "validation_fraction": 0.0, "max_length": 64},
    }
    runs = [
        _make_run(tmp_path / f"{workers}-{stage}", llama_dir, rows, ledger, zero=stage, **changes | {"train": {"warmup": 2} | units})
        for stage in stages
        for units in [{"units_at_once": 1} if stage == 1 else {}]
    ]

    trained = helpers.run_distributed(_train_all_seeded, workers, runs)[0]

    expected = _reference(_plain_model(llama_dir, method), llama_dir, rows, workers=workers)
    allowed = (1e-3 if full else 1e-4) * RATE * STEPS  # Adam divides by sizes, and of 100,000 numbers some are near zero
    for found in trained:
        assert found.keys() - expected.keys() == (TABLES if full else set())
        assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= allowed
    statement = json.loads((runs[0] / "dp_statement.json").read_text())
    assert statement["private"] is False and "NOT PRIVATE" in statement["mechanism"]["randomness"]


@pytest.mark.slow
def test_a_run_killed_three_times_is_charged_for_every_step_it_took(
    llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _make_rows(tmp_path)
    ledger_path = _make_ledger(tmp_path, rows)
    run_dir = _make_run(tmp_path / "run", llama_dir, rows, ledger_path, train={"max_steps": 24}, privacy={"restarts": 3})
    for wanted in (5, 9, 17):
        _kill_after(run_dir, wanted)
        with Ledger.open(ledger_path) as ledger:
            (held,) = ledger.status("customers").reservations
        assert held.charged >= len(_private_steps(run_dir))

    helpers.train(run_dir)

    statement = json.loads((run_dir / "dp_statement.json").read_text())
    with Ledger.open(ledger_path) as ledger:
        (held,) = ledger.status("customers").reservations
    assert statement["mechanism"]["steps_charged"] == held.charged >= len(_private_steps(run_dir)) > 24
    assert statement["mechanism"]["steps_in_the_model"] == 24
    assert held.charged <= held.event.steps == 24 + 3 * 2
    with capsys.disabled():
        print(f"\nkilled after steps 5, 9 and 17 of 24: {held.charged} steps charged of {held.event.steps} reserved, epsilon "
              f"{statement['claim']['epsilon']} by what was charged, {epsilon([held.event], DELTA):.4f} by what was reserved")  # fmt: skip


@pytest.mark.slow
def test_a_run_whose_reserve_is_spent_ends_at_the_promise_it_made(llama_dir: Path, tmp_path: Path) -> None:
    rows = _make_rows(tmp_path)
    run_dir = _make_run(tmp_path / "run", llama_dir, rows, _make_ledger(tmp_path, rows), train={"max_steps": 24}, privacy={"restarts": 0})
    _kill_after(run_dir, 5)  # step 5, after the checkpoint of step 4, has to be taken again

    output = helpers.train(run_dir)

    statement, report = (json.loads((run_dir / name).read_text()) for name in ("dp_statement.json", "report.json"))
    assert "the run ends here, at the promise it made" in output
    assert report["status"] == "stopped_early"
    assert statement["mechanism"]["steps_charged"] == 24 > statement["mechanism"]["steps_in_the_model"] == report["steps"]
    assert (run_dir / "adapter" / "adapter_model.safetensors").exists()


def _kill_after(run_dir: Path, steps: int) -> None:
    """SIGKILL the run once it has taken so many steps in all attempts' furthest."""
    (process,) = helpers.start_workers(run_dir)
    deadline = time.monotonic() + 120
    while max((event["step"] for event in _private_steps(run_dir)), default=0) < steps:
        assert time.monotonic() < deadline and process.is_alive
        time.sleep(0.01)
    process.kill()


def _private_steps(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "private.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["event"] == "step"]


def _clip_a_little_too_far_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = UnitGradients.clip_into
    monkeypatch.setattr(UnitGradients, "clip_into", lambda units, total, clip_norm: whole(units, total, 1.05 * clip_norm))


def _find_norms_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GhostGradients._norms
    monkeypatch.setattr(GhostGradients, "_norms", lambda ghosts, summed: whole(ghosts, summed) / 2)


def _draw_too_little_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GaussianNoise.draw
    monkeypatch.setattr(GaussianNoise, "draw", lambda noise, count: np.float32(0.97) * whole(noise, count))


def _take_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = UnitSampler.__init__
    monkeypatch.setattr(UnitSampler, "__init__", lambda self, units, rate, cap, stream: whole(self, units, 1.0, cap, stream))


def _charge_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reservation, "charge", lambda *_: None)


@pytest.mark.parametrize(
    ("fault", "found", "blocks"),
    [
        (_clip_a_little_too_far_out, "sensitivity", {}),
        (_find_norms_too_small, "sensitivity", {"method": "full", "privacy": {"unit": "record"}}),
        (_draw_too_little_noise, "noise_scale", {}),
        (_take_everybody, "inclusions", {}),
        (_charge_nothing, "charges", {}),
    ],
)
def test_a_faulty_mechanism_ends_without_a_statement(
    llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    found: str,
    blocks: dict[str, Any],
) -> None:
    rows = _make_rows(tmp_path, each=1)
    privacy = {"clip_norm": 10.0} | blocks.get("privacy", {})  # no gradient is as long: tests have to bite nevertheless
    run_dir = _make_run(tmp_path / "run", llama_dir, rows, _make_ledger(tmp_path, rows), **blocks | {"privacy": privacy})
    fault(monkeypatch)

    with pytest.raises(PromiseBroken, match=f"the run's own tests failed: {found}$"):
        worker.train(run_dir, run_id="test")

    assert not (run_dir / "dp_statement.json").exists() and not list(run_dir.glob("*/*model.safetensors"))
    assert "must not leave the bank" in json.loads((run_dir / "report.json").read_text())["failure"]["hint"]

    monkeypatch.undo()  # going on, at the last step and with nothing left to test, does not mend it
    with pytest.raises(PromiseBroken, match=f"the run's own tests failed: {found}$"):
        worker.train(run_dir, run_id="again")
    assert not list(run_dir.glob("*/*model.safetensors"))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (
            {"privacy": {}},
            "privacy.unit: customer: with method: full norms are taken row by row, so that a unit is a record: set method: lora",
        ),
        ({"zero": 3}, "zero.stage: 3: with privacy and method: full every worker needs whole weights: set zero.stage: 2"),
        ({"zero": {"offload_params": "cpu"}}, "zero.stage: 3: with privacy and method: full"),
        (
            {"data": {"train": "rows.jsonl", "packing": True}},
            "data.packing: true: with privacy and method: full a row has to be one record",
        ),
        ({"model": {"path": "m", "dtype": "bfloat16"}}, "model.dtype: bfloat16: with privacy and method: full weights are float32"),
        ({"model": {"path": "m", "from_scratch": True}}, "privacy: model.from_scratch: embeddings are not trained, and would stay random"),
    ],
)
def test_what_cannot_be_trained_in_full_privately_is_refused_with_the_reason(tmp_path: Path, blocks: dict[str, Any], said: str) -> None:
    rows = _make_rows(tmp_path)
    blocks = {"method": "full", "privacy": {"unit": "record"}} | blocks
    run_dir = _make_run(tmp_path / "run", tmp_path, rows, tmp_path / "ledger.db", **blocks)

    with pytest.raises(ConfigError, match=re.escape(said)):
        read_config(run_dir / "config.json")


def test_what_is_not_said_is_chosen_for_whole_layers(tmp_path: Path) -> None:
    run_dir = _make_run(tmp_path / "run", tmp_path, _make_rows(tmp_path), tmp_path / "ledger.db", method="full",
                        privacy={"unit": "record"}, model="m", data="rows.jsonl")  # fmt: skip
    small = Hardware("cuda", workers=2, memory_bytes=2**20)

    config, _ = resolve(read_config(run_dir / "config.json"), small, Shape(10**9, 10**9, 2, 64, 128, 64, 256))

    assert (config.model.dtype, config.zero.stage) == ("float32", 2)


def test_what_dropout_draws_in_a_private_run_follows_from_nothing_public(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, seeds = _make_rows(tmp_path), []
    ledger, whole = _make_ledger(tmp_path, rows), private.clipped_sum

    def listen(run: Run, state: private.Private, work: PrivateWork, seed: int, **how: Any) -> tuple[torch.Tensor, float]:
        seeds.append(seed)
        return whole(run, state, work, seed, **how)

    monkeypatch.setattr(private, "clipped_sum", listen)
    method = {"lora": {"rank": 4, "dropout": 0.1}}
    for name in ("once", "again"):
        worker.train(_make_run(tmp_path / name, llama_dir, rows, ledger, method=method, train={"max_steps": 2}), run_id="test")

    drawn = [seed for seed in seeds if seed]  # a replay is without dropout, and has none
    assert len(set(drawn)) == len(drawn) == 2 * 2


def test_a_job_over_budget_is_refused_before_a_row_is_read(llama_dir: Path, tmp_path: Path) -> None:
    rows = _make_rows(tmp_path)
    run_dir = _make_run(tmp_path / "run", llama_dir, rows, _make_ledger(tmp_path, rows, budget=0.5))

    output = helpers.train(run_dir, expect=3)

    assert "error: the budget of customers (epsilon 0.5, delta 0.001) does not allow 8 steps" in output
    assert not (run_dir / "data").exists()


def test_units_that_do_not_fit_are_refused_before_a_budget_is_reserved(llama_dir: Path, tmp_path: Path) -> None:
    rows = _make_rows(tmp_path)
    ledger_path = _make_ledger(tmp_path, rows)
    run_dir = _make_run(tmp_path / "run", llama_dir, rows, ledger_path, train={"units_at_once": 10**9})

    with pytest.raises(ConfigError, match="the gradients of 1000000000 units take"):
        worker.train(run_dir, run_id="test")

    with Ledger.open(ledger_path) as ledger:
        assert not ledger.status("customers").reservations


def test_an_adapter_on_the_head_is_refused_before_a_budget_is_reserved(llama_dir: Path, tmp_path: Path) -> None:
    rows = _make_rows(tmp_path)
    ledger_path = _make_ledger(tmp_path, rows)
    run_dir = _make_run(tmp_path / "run", llama_dir, rows, ledger_path, method={"lora": {"targets": ["q_proj", "lm_head"]}})

    with pytest.raises(PlanError, match="the head is trained, which sees some of the tokens only"):
        worker.train(run_dir, run_id="test")

    with Ledger.open(ledger_path) as ledger:
        assert not ledger.status("customers").reservations


def _hardware_here() -> Hardware:
    """Of a rank with as many GiB of main memory as its number, from 1 on."""
    world = World.from_environment()
    psutil.virtual_memory = lambda: SimpleNamespace(total=(1 + world.rank) * 2**30)
    return worker._hardware(world)


def test_workers_with_unlike_memory_decide_by_the_least() -> None:
    assert helpers.run_distributed(_hardware_here, 2) == [Hardware("cpu", 2, 2**30)] * 2


def _height(run_dir: Path) -> int:
    """Train; the largest resident size of this process, in bytes."""
    worker.train(run_dir, run_id="test")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


@pytest.mark.slow
def test_a_private_run_takes_what_is_planned_for_its_units(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system
    rows = _make_rows(tmp_path)
    ledger = _make_ledger(tmp_path, rows, budget=30.0)
    peaks, planned = [], []
    for rank, units in ((4, 1), (2048, 8)):
        run_dir = _make_run(tmp_path / f"{rank}-{units}", llama_dir, rows, ledger, zero=1, method={"lora": {"rank": rank}},
                            train={"units_at_once": units, "max_steps": 3, "global_batch_size": 16})  # fmt: skip
        peaks += helpers.run_distributed(_height, 1, run_dir)
        config, _ = resolve(read_config(run_dir / "config.json"), Hardware("cpu", 1), shape_of(ModelConfig(path=str(llama_dir)), "sft"))
        footprint = measure(config, "cpu")
        assert footprint is not None
        planned.append(memory_of_job(config, footprint, workers=1).total)

    assert peaks[1] - peaks[0] == pytest.approx(planned[1] - planned[0], rel=0.15)


def test_a_changed_file_is_another_file(llama_dir: Path, tmp_path: Path) -> None:
    rows = _make_rows(tmp_path)
    ledger = _make_ledger(tmp_path, rows)
    _make_rows(tmp_path, each=3)

    output = helpers.train(_make_run(tmp_path / "run", llama_dir, rows, ledger), expect=2)

    assert "attached to no population" in output and "consortium privacy ledger attach" in output


@pytest.mark.parametrize("change", ["rows", "unit"])
def test_a_run_that_goes_on_keeps_to_what_it_has_its_budget_for(finished: Path, tmp_path: Path, change: str) -> None:
    config = read_config(finished / "config.json")
    assert config.privacy is not None
    shutil.copy(finished / "privacy.json", tmp_path)
    assert make_promise(config, tmp_path).population == "customers"
    if change == "unit":
        config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"unit": "record"})})
    else:
        others = helpers.write_jsonl(tmp_path / "others.jsonl", [{"prompt": "a", "completion": " b", "customer": "c"}])
        with Ledger.open(config.privacy.ledger) as ledger:
            ledger.grant("others", 5.0, DELTA)
            ledger.attach("others", describe_file(others)["sha256"], str(others), UNITS)
        config = config.model_copy(update={"data": config.data.model_copy(update={"train": [others]})})

    with pytest.raises(LedgerError, match="others than this run has its budget for"):
        make_promise(config, tmp_path)


def test_rows_that_changed_after_the_promise_are_refused(finished: Path) -> None:
    config = read_config(finished / "config.json")
    promise = make_promise(config, finished)

    promises.check_files(promise, config, [describe_file(config.data.train[0])["sha256"]])
    with pytest.raises(LedgerError, match="attached to no population"):
        promises.check_files(promise, config, ["0" * 64])


def test_a_promise_with_less_noise_than_the_ledger_reckons_with_is_refused(finished: Path) -> None:
    config = read_config(finished / "config.json")
    promise = make_promise(config, finished)
    changed = replace(promise, plan=replace(promise.plan, noise_multiplier=0.5))

    with pytest.raises(PromiseBroken, match="other steps than the ledger has reserved"), promises.held(changed, config, steps=0):
        pass


def test_steps_charged_to_another_reservation_are_not_gone_on_with(finished: Path, tmp_path: Path) -> None:
    config = read_config(finished / "config.json")

    promise = make_promise(config, tmp_path)  # as where the run's checkpoints were copied here without its privacy.json

    with promises.held(promise, config, steps=0):
        pass
    with (
        pytest.raises(PromiseBroken, match="the run's checkpoint has 4 steps, of which 0 were charged"),
        promises.held(promise, config, steps=4),
    ):
        pass


def test_errors_of_the_ledger_have_their_exit_codes() -> None:
    assert (BudgetRefused.exit_code, LedgerError.exit_code) == (3, 2)
