"""Nodes that die under a run: a real cluster of two raylets, one of which is removed, or announced to be."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import helpers
from tests.cluster.raylets import Raylets
from trainers.data.synthetic import DemoData, write_demo_data

STEPS, EVERY, LOST_AT = 40, 5, 12
SAME = 1e-4
"""Of two float32 curves on one and on two workers: sums in another order"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("data"), tickets=300, documents=10)


def _write_job(
    folder: Path, model: Path, data: DemoData, cluster: Raylets, workers: str, *, steps: int = STEPS, every: int = EVERY
) -> Path:
    path = folder / "job.yaml"
    path.write_text(
        f"task: sft\nmodel: {model}\ndata: {{train: {data.tickets_train}, over_length: truncate, max_length: 256}}\n"
        f"train: {{max_steps: {steps}, global_batch_size: 16, learning_rate: 1.0e-3, eval_every: {steps}}}\n"
        f"checkpoint: {{every: {every}, best_by: null}}\ntracking: {{tensorboard: false}}\nzero: 2\n"
        f"cluster: {{address: '{cluster.address}', workers: {workers}}}\noutput: {folder}/runs\n"
    )
    return path


def _start(cluster: Raylets, job: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "consortium", "train", str(job)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=helpers.REPOSITORY, env=cluster.environment,
    )  # fmt: skip


def _end_well(running: subprocess.Popen[str]) -> None:
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said


def _events(job: Path) -> list[dict[str, Any]]:
    path = job.parent / "runs" / "job" / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _wait_for(job: Path, kind: str, step: int = 0) -> dict[str, Any]:
    """The first such event of the run at `step` or later."""
    deadline = time.monotonic() + 180
    while True:
        found = [event for event in _events(job) if event["event"] == kind and event["step"] is not None and event["step"] >= step]
        if found:
            return found[0]
        assert time.monotonic() < deadline, f"the run did not come to a {kind} at step {step}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(cluster: Raylets, llama_dir: Path, data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    job = _write_job(tmp_path_factory.mktemp("whole"), llama_dir, data, cluster, "2")
    _end_well(_start(cluster, job))
    return helpers.losses(job.parent / "runs" / "job")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["{min: 1, max: 2}", "2"], ids=["elastic", "fixed"])
def test_a_run_whose_node_is_lost_has_the_losses_of_one_that_kept_it(
    cluster: Raylets,
    uninterrupted: list[float],
    llama_dir: Path,
    data: DemoData,
    tmp_path: Path,
    workers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = _write_job(tmp_path, llama_dir, data, cluster, workers)
    running = _start(cluster, job)
    _wait_for(job, "step", LOST_AT)

    cluster.do("remove")
    if workers == "2":  # it waits for the node
        time.sleep(10)
        cluster.do("add")

    _end_well(running)
    if workers != "2":
        cluster.do("add")
    report = json.loads((job.parent / "runs" / "job" / "report.json").read_text())
    losses = helpers.losses(job.parent / "runs" / "job")
    difference = max(abs(mine - whole) for mine, whole in zip(losses, uninterrupted, strict=True))
    attempts = [(attempt["step"], attempt["workers"]) for attempt in report["attempts"]]
    with capsys.disabled():
        print(f"\nworkers {workers}: attempts (from step, workers) {attempts}, steps repeated {report['steps_repeated']}, "
              f"final loss {losses[-1]:.6f} beside {uninterrupted[-1]:.6f}, largest difference {difference:.1e}")  # fmt: skip
    assert report["restarts"] >= 1 and report["steps_repeated"] <= EVERY * report["restarts"]
    assert difference <= SAME
    assert attempts[-1][1] == (2 if workers == "2" else attempts[-1][1])


@pytest.mark.slow
def test_word_that_a_node_will_go_is_answered_with_a_checkpoint_at_once(
    cluster: Raylets, llama_dir: Path, data: DemoData, tmp_path: Path
) -> None:
    job = _write_job(tmp_path, llama_dir, data, cluster, "{min: 1, max: 2}", steps=10 * STEPS, every=10 * STEPS)
    running = _start(cluster, job)
    _wait_for(job, "step", LOST_AT)

    cluster.do("drain")
    saved = _wait_for(job, "checkpoint")
    cluster.do("remove")
    again = _wait_for(job, "start", 1)

    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    cluster.do("add")
    assert running.returncode == 130, said
    assert LOST_AT <= saved["step"] < 10 * STEPS  # of its own accord it would have been the last
    assert (again["step"], again["workers"]) == (saved["step"], 1)
