"""A trial of a search that has several workers: a Ray driver of its own, `python -m cluster.trial RUN_DIR ADDRESS`.

When it ends, however it ends, Ray takes away what it has started. A worker group started from within Ray Tune's trial outlives the trial
that is stopped, and keeps the cores the next one waits for.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

from cluster.job import read_job
from cluster.launch import connected, launch
from privacy.errors import ConsortiumError
from trainers.events import Event


class _Nobody:
    """What is to be told is read from the run's events."""

    def on_event(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


def main(run_dir: Path, address: str) -> int:
    """Launch the job of a run directory on the cluster at `address`; 0 when it ended for good, with or without an error of the user's."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with connected(address, cpus=0), contextlib.suppress(ConsortiumError):
        launch(read_job(run_dir), _Nobody())
    return 0


def _end_with_parent() -> None:
    """Standard input ends when the process that holds its other end does."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
