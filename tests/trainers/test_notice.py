import signal
import time
from pathlib import Path

import torch

from tests import helpers
from tests.trainers import jobs
from trainers.checkpoint import find
from trainers.notice import Notice
from trainers.worker import train
from trainers.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_the_notice_is_heard_once() -> None:
    notice = Notice(lambda: True, ALONE)
    assert notice.is_due and notice.heard()
    assert not notice.is_due


def test_nobody_is_asked_again_at_once() -> None:
    notice = Notice(lambda: False, ALONE)
    assert not notice.heard()
    assert not notice.is_due


def test_a_checkpoint_is_written_at_once_when_a_machine_leaves(tmp_path: Path, llama_dir: Path) -> None:
    run_dir = jobs.make_job(
        tmp_path / "run", llama_dir, jobs.write_rows(tmp_path), train={"max_steps": 4}, checkpoint={"every": 100, "keep": 5}
    )

    train(run_dir, run_id="test", leaving=lambda: True)

    assert [checkpoint.step for checkpoint in find(run_dir / "checkpoints")] == [1, 4]


def test_a_worker_without_ray_takes_the_notice_as_a_signal(tmp_path: Path, llama_dir: Path) -> None:
    run_dir = jobs.make_job(
        tmp_path / "run", llama_dir, jobs.write_rows(tmp_path), train={"max_steps": 100_000}, checkpoint={"every": 100_000}
    )
    (worker,) = helpers.start_workers(run_dir)
    events, deadline = run_dir / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"step"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)

    worker.send_signal(signal.SIGUSR1)
    while not find(run_dir / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.1)

    worker.kill()
    assert find(run_dir / "checkpoints")


def _hear() -> bool:
    world = World.from_environment()
    return Notice(lambda: world.rank == 1, world).heard()


def test_all_workers_hear_what_one_was_told() -> None:
    assert helpers.run_distributed(_hear, 2) == [True, True]
