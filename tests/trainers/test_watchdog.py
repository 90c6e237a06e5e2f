import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import helpers
from tests.trainers import jobs
from trainers import checkpoint
from trainers.watchdog import EXIT_CODE, watching


def test_a_process_without_progress_ends_and_says_why() -> None:
    program = "import time\nfrom trainers.watchdog import watching\n" \
              "with watching(lambda: 0.0, limit=0.2, report=lambda message: print('reported', message)): time.sleep(60)\n"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, cwd=helpers.REPOSITORY)
    assert done.returncode == EXIT_CODE and "error: no progress for" in done.stderr


def test_a_process_with_progress_is_left_alone() -> None:
    with watching(time.monotonic, limit=0.05, report=lambda message: None):
        time.sleep(0.3)


def test_a_worker_that_writes_what_it_has_trained_is_left_alone(tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes: a store may be slow."""
    save = checkpoint.save

    def slow_save(*given: Any) -> int:
        time.sleep(3.0)
        return save(*given)

    monkeypatch.setattr(checkpoint, "save", slow_save)
    run_dir = jobs.make_job(tmp_path / "run", llama_dir, jobs.write_rows(tmp_path), train={"max_steps": 2, "hang_after": 2})
    jobs.train_here(run_dir)
    assert [event["step"] for event in helpers.events(run_dir, "end")] == [2]


def test_a_worker_does_not_wait_for_ever_for_one_that_is_stuck(tmp_path: Path, llama_dir: Path) -> None:
    run_dir = jobs.make_job(tmp_path / "run", llama_dir, jobs.write_rows(tmp_path), train={"max_steps": 100_000, "hang_after": 3})
    waiting, stuck = helpers.start_workers(run_dir, workers=2)
    events, deadline = run_dir / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"step"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)

    stuck.send_signal(signal.SIGSTOP)
    ended = waiting.finish(timeout=60)
    stuck.kill()

    assert ended.returncode == EXIT_CODE and "no progress for" in ended.stderr
    assert "no progress for" in events.read_text()
