"""A bank's training job: what it is told, a round end to end in a process of its own, and what becomes of it when somebody dies."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from federation.config import BankConfig, TrainingConfig
from federation.errors import FolderError, TrainingFailed
from federation.rounds.aggregate import Layout
from federation.rounds.budget import RoundBudget, reserve
from federation.rounds.local import LocalTrainer, Task, job_of, order_of, write_start
from federation.rounds.personal import personalise
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from tests import helpers
from tests.federation.runs import start_of
from tests.helpers import REPOSITORY
from tests.trainers.jobs import make_job, write_labelled_rows, write_rows
from trainers import worker
from trainers.data.prepare import describe_file
from trainers.errors import ConfigError, DataError
from trainers.lease import check_free
from trainers.orders import Evaluation

UNITS, DELTA = 40, 1e-3
LABELS = ["cash", "branch", "card", "account", "balance"]


def _training(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "task": "classify",
        "base_model": {"name": "tiny", "sha256": "a" * 64},
        "adapter": {"rank": 4, "alpha": 8, "targets": "all-linear"},
        "labels": LABELS,
        "local": {"steps": 12, "batch": 10, "learning_rate": 1e-2, "clip_norm": 0.5, "max_length": 32},
        "rounds": 3,
        "cohort": 4,
        "quorum": 4,
        "threshold": 3,
        "privacy": {"epsilon": 8, "epsilon_round": 8, "delta": DELTA},
        "encoding": {"clip": 1.0, "fraction_bits": 20},
        "evaluation": "noised",
        "metrics": ["accuracy"],
    }
    return TrainingConfig.model_validate(values | changes)


def _bank(folder: Path, model: Path, data: Any, **changes: Any) -> BankConfig:
    policy = {"base_models": [], "bundles": [], "tasks": [], "aggregation": [], "adapters": [], "least_members": 1, "least_in_sum": 1,
              "least_honest_in_sum": 0, "least_threshold": 1, "most_clip": 1, "most_rounds": 9, "most_attempts": 9,
              "most_epsilon_round": None, "most_epsilon": None, "evaluation": "off", "metrics": [], "hours": None}  # fmt: skip
    return BankConfig.model_validate(
        {"bank": "alder", "base_model": model, "data": data, "unit": "record", "units": UNITS, "population": "retail",
         "ledger": folder / "bank.ledger", "policy": policy, "cluster": {"workers": 1}} | changes
    )  # fmt: skip


def _grant(bank: BankConfig) -> None:
    with Ledger.create(bank.ledger) as ledger:
        ledger.grant("retail", 30.0, DELTA)
        for path in bank.data.train:
            ledger.attach("retail", describe_file(path)["sha256"], str(path), UNITS)


def _task(bank: BankConfig, training: TrainingConfig, adapter: Any, *, round: int = 1, **changes: Any) -> Task:
    """With its budget reserved."""
    local = training.local
    plan = PrivacyPlan(UNITS, local.batch, local.steps, 0, local.clip_norm, noise_multiplier=2.0, delta=DELTA)
    with Ledger.open(bank.ledger) as ledger:
        budget = reserve(RoundBudget(plan, None, 5.0, None, UNITS), ledger, "retail", f"run, round {round}")
    return replace(Task("run", round, 1, "train", training, adapter, budget), **changes)


def _charged(bank: BankConfig) -> list[int]:
    with Ledger.open(bank.ledger) as ledger:
        return [held.charged for held in ledger.book().reservations("retail")]


def _wait_for_step(run_dir: Path, step: int) -> None:
    path, until = run_dir / "private.jsonl", time.monotonic() + 200
    while not path.exists() or not any(json.loads(line)["event"] == "step" and json.loads(line)["step"] >= step
                                       for line in path.read_text().splitlines() if line.endswith("}")):  # fmt: skip
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_killed_job_is_started_again_and_a_killed_bank_finds_its_job(bert_dir: Path, tmp_path: Path) -> None:
    """Kill -9 in the middle of a private round: it begins again with the steps that are left; nothing is charged beyond the reservation."""
    bank = _bank(tmp_path, bert_dir, {"train": write_labelled_rows(tmp_path, count=UNITS)})
    _grant(bank)
    training, run_dir = _training(), tmp_path / "runs" / "run"
    start = start_of(training, bert_dir, 1, tmp_path / "start")
    first, second, answers = _task(bank, training, start), _task(bank, training, start, round=2), []
    trainer = LocalTrainer(lambda: bank, tmp_path / "runs")
    asking = threading.Thread(target=lambda: answers.append(trainer(first)))
    asking.start()
    _wait_for_step(run_dir, 2)
    os.kill(json.loads((run_dir / "lease.json").read_text())["pid"], signal.SIGKILL)
    asking.join()

    (work,) = answers
    assert 0 < work.facts["steps"] == work.facts["charged"] <= 10 and _charged(bank)[:2] == [12, 1]
    assert work.metrics == (0.0, 0.0)  # its evaluation was charged, and not answered before the kill
    pid = json.loads((run_dir / "lease.json").read_text())["pid"]

    after = LocalTrainer(lambda: bank, tmp_path / "runs")  # as of a bank's process that was killed and started again
    more = after(second)
    assert json.loads((run_dir / "lease.json").read_text())["pid"] == pid
    assert (more.facts["steps"], _charged(bank)) == (12, [12, 1, 12, 1]) and not {False} & set(more.facts["verdicts"].values())
    assert len(more.metrics) == 2 and all(0 <= number <= 1 for number in more.metrics)
    last = LocalTrainer(lambda: bank, tmp_path / "runs")  # as of one that was killed with the answer in its hand
    again = last(second)
    assert again.facts["steps"] == 12 and _charged(bank) == [12, 1, 12, 1]
    assert all(np.array_equal(again.adapter[name], more.adapter[name]) for name in start)
    changed = {name for name in start if not np.array_equal(start[name], more.adapter[name])}
    assert changed == {name for name in start if "lora_A" not in name}
    last.close()
    check_free(run_dir)
    after.close()
    trainer.close()
    kept = {path.name.rsplit("-", 1)[0] for path in (run_dir / "rounds").rglob("*") if path.is_file()}
    assert kept == {"owner", "000002-0001-train"}
    assert stat.S_IMODE((run_dir / "job.log").stat().st_mode) == 0o600
    assert "loss" not in (run_dir / "job.log").read_text().replace("losses are private", "")


def test_a_job_that_is_late_is_ended_and_the_next_round_has_another(
    bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.rounds.local._STOP_SECONDS", 0.5)
    bank = _bank(tmp_path, bert_dir, {"train": write_labelled_rows(tmp_path, count=UNITS)})
    training = _training(privacy=None, evaluation="off", metrics=[], timeouts={"update": 1.5})
    patient = _training(privacy=None, evaluation="off", metrics=[])
    start, lease = start_of(training, bert_dir, 1, tmp_path / "start"), tmp_path / "runs" / "run" / "lease.json"
    trainer = LocalTrainer(lambda: bank, tmp_path / "runs")
    trainer.start("run", training)
    slow = json.loads(lease.read_text())["pid"]
    os.kill(slow, signal.SIGSTOP)
    with pytest.raises(TrainingFailed, match=r"^training took longer than its round waits for it$"):
        trainer(Task("run", 1, 1, "train", training, start, None))
    with pytest.raises(ProcessLookupError):
        os.kill(slow, 0)
    work = trainer(Task("run", 2, 1, "train", patient, start, None))
    assert work.facts["steps"] == 12 and json.loads(lease.read_text())["pid"] != slow
    trainer.close()


def test_what_ends_the_job_is_told_with_its_last_words(llama_dir: Path, tmp_path: Path) -> None:
    rows = helpers.write_jsonl(tmp_path / "rows.jsonl", [{"text": f"card {i}", "label": "loan"} for i in range(30)])
    training = _training(privacy=None, evaluation="off", metrics=[])
    trainer = LocalTrainer(partial(_bank, tmp_path, llama_dir, rows), tmp_path / "runs")
    with pytest.raises(TrainingFailed, match=r"^the training job has ended$") as caught:  # no more is for the coordinator
        trainer.start("run", training)
    trainer.close()
    assert "its last words: error: 20 or more bad rows: / " in caught.value.hint and "rows.jsonl:1: unknown label" in caught.value.hint
    assert (tmp_path / "runs" / "run" / "job.log").read_text().count("rows.jsonl:1: unknown label") == 1  # it was not tried again


def test_the_first_adapter_is_the_one_that_an_ordinary_run_begins_with(bert_dir: Path, tmp_path: Path) -> None:
    rows = write_labelled_rows(tmp_path)
    still = {"max_steps": 1, "learning_rate": 1e-30, "seed": 3}
    run_dir = make_job(tmp_path / "run", bert_dir, rows, task="classify", method={"lora": {"rank": 4, "alpha": 8}}, train=still,
                       data={"labels": LABELS})  # fmt: skip
    worker.train(run_dir, run_id="test")
    expected = load_file(run_dir / "adapter" / "adapter_model.safetensors")

    found = start_of(_training(), bert_dir, 3, tmp_path / "start")

    assert found.keys() == expected.keys() and all(np.allclose(found[name], expected[name], atol=1e-12) for name in found)
    assert json.loads((run_dir / "adapter" / "labels.json").read_text()) == LABELS
    assert Layout.of(found, "ffa").length > 0 and any("classifier" in name for name in found)
    assert any(not np.array_equal(found[name], tensor) for name, tensor in start_of(_training(), bert_dir, 4, tmp_path / "other").items())


def test_a_row_of_another_class_is_named_by_its_place(bert_dir: Path, tmp_path: Path) -> None:
    rows = write_labelled_rows(tmp_path)
    run_dir = make_job(tmp_path / "run", bert_dir, rows, task="classify", data={"labels": ["account", "balance"]})
    with pytest.raises(DataError, match=r"labelled.jsonl:\d+: unknown label: it is none of data.labels"):
        worker.train(run_dir, run_id="test")


def test_the_federation_says_what_is_learnt_and_the_bank_on_what(tmp_path: Path) -> None:
    unit = {"column": "customer", "max_records": 4}
    data = {"train": tmp_path / "rows.jsonl", "columns": {"text": "query"}, "max_length": 999, "labels": ["mine"]}
    bank = _bank(tmp_path, tmp_path / "model", data, unit=unit, units=8)
    job = job_of("run", _training(), bank, tmp_path / "runs")

    assert job.run_dir == tmp_path / "runs" / "run" and job.model.path == str(tmp_path / "model")
    assert job.data.labels == LABELS and job.data.max_length == 32 and job.data.columns == {"text": "query"}
    assert job.data.group_by == "customer" and job.data.validation_fraction == 0.1 and job.data.over_length == "truncate"
    assert job.train.global_batch_size == 8 and job.train.schedule == "constant" and job.train.learning_rate == 1e-2
    assert job.privacy is not None and job.privacy.unit == bank.unit and job.train.max_grad_norm == 0
    assert job.method.type == "lora" and not job.method.train_a
    averaged = _training(aggregation={"method": "fedavg"}, privacy=None, evaluation="off", metrics=[])
    plain = job_of("run", averaged, bank, tmp_path)
    assert plain.method.type == "lora" and plain.method.train_a and plain.train.max_grad_norm == 0.5
    assert plain.data.validation_fraction == 0 and plain.privacy is None


def test_what_an_evaluation_is_on_is_said_in_bank_yaml(tmp_path: Path) -> None:
    public = _training(evaluation="public_data")
    with pytest.raises(ConfigError, match=r"evaluation: public_data: data\.validation names no files"):
        job_of("run", public, _bank(tmp_path, tmp_path, "rows.jsonl"), tmp_path)
    with_files = _bank(tmp_path, tmp_path, {"train": "rows.jsonl", "validation": "public.jsonl"})
    assert job_of("run", public, with_files, tmp_path).data.validation == [Path("public.jsonl")]
    own_share = _bank(tmp_path, tmp_path, {"train": "rows.jsonl", "validation_fraction": 0.3})
    assert job_of("run", _training(), own_share, tmp_path).data.validation_fraction == 0.3


def test_another_base_model_than_the_one_whose_hash_is_known_is_not_trained(tmp_path: Path) -> None:
    written = [_bank(tmp_path, tmp_path / name, "rows.jsonl") for name in ("model", "other")]
    trainer = LocalTrainer(lambda: written.pop(0), tmp_path / "runs")
    with pytest.raises(ConfigError, match="names another base model"):
        trainer.start("run", _training())


def test_nothing_private_is_ordered_without_a_reservation(tmp_path: Path) -> None:
    bank, plan = _bank(tmp_path, tmp_path, "rows.jsonl"), PrivacyPlan(UNITS, 10, 12, 0, 0.5, 2.0, DELTA)
    for budget in (None, RoundBudget(plan, None, 5.0, None, UNITS), RoundBudget(plan, "id", 5.0, None, UNITS)):
        with pytest.raises(ConfigError, match="without a reservation"):
            order_of(Task("run", 1, 1, "train", _training(), {}, budget), bank)
    order = order_of(Task("run", 4, 1, "evaluate", _training(), {}, RoundBudget(None, None, 5.0, "id", UNITS)), bank)
    assert order.steps == 0 and order.private is None and order.evaluation is not None
    assert (order.evaluation.most_units, order.evaluation.noise_multiplier, order.evaluation.reservation) == (UNITS, 5.0, "id")
    scaled = _training(aggregation={"most_units": 500}, evaluation="public_data")
    assert order_of(Task("run", 4, 1, "evaluate", scaled, {}, None), bank).evaluation == Evaluation(most_units=500)


def test_the_learning_rate_falls_round_by_round_unless_it_is_to_be_constant(tmp_path: Path) -> None:
    bank = _bank(tmp_path, tmp_path, "rows.jsonl")

    def rates(schedule: str) -> list[float]:
        local = {**_training().local.model_dump(), "learning_rate": 0.08, "schedule": schedule}
        training = _training(local=local, rounds=4, privacy=None, evaluation="off", metrics=[])
        return [order_of(Task("run", round, 1, "train", training, {}, None), bank).learning_rate for round in (1, 2, 3, 4)]

    assert rates("linear") == pytest.approx([0.08, 0.06, 0.04, 0.02])
    assert rates("constant") == [0.08] * 4


def test_asking_for_rounds_takes_no_torch() -> None:
    code = "import sys, federation.rounds.local; print({'torch', 'ray', 'flwr', 'transformers', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_a_bank_with_two_workers_takes_rounds_on_ray(llama_dir: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    local = _training().local.model_dump() | {"max_length": 96}
    training = _training(task="sft", labels=[], local=local, privacy=None, evaluation="off", metrics=[])
    start = start_of(training, llama_dir, 1, tmp_path / "start")
    works = []
    for workers in (1, 2):
        trainer = LocalTrainer(partial(_bank, tmp_path, llama_dir, rows, cluster={"workers": workers}), tmp_path / f"runs-{workers}")
        works.append(trainer(Task("run", 1, 1, "train", training, start, None)))
        trainer.close()
    one, two = works
    assert max(float(np.abs(one.adapter[name] - two.adapter[name]).max()) for name in start) < 1e-5
    assert any(not np.array_equal(one.adapter[name], start[name]) for name in start)


@pytest.mark.slow
def test_a_bank_trains_the_adapter_further_for_itself_and_its_ledger_has_the_steps(tmp_path: Path, llama_dir: Path) -> None:
    bank = _bank(tmp_path, llama_dir, {"train": write_labelled_rows(tmp_path)})
    _grant(bank)
    training, start = _training(), tmp_path / "global"
    write_start(training, llama_dir, 0, start)

    facts = personalise(training, bank, start, tmp_path / "own", tmp_path / "runs", steps=5)

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (start, tmp_path / "own"))
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {n for n in before if "lora_A" not in n}
    assert _charged(bank) == [5] == [facts["steps"]]
    assert 0 < facts["epsilon"] <= 8
    assert (tmp_path / "own" / "adapter_config.json").exists()
    with pytest.raises(FolderError, match="is there already"):
        personalise(training, bank, start, tmp_path / "own", tmp_path / "runs", steps=5)
