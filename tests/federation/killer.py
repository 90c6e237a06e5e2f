"""Work on a journal that is killed at every moment: `python -m tests.federation.killer create|round FOLDER`.

A process of its own, as it forks and a process of tests has threads. The n-th work is done on FOLDER/n and gets SIGKILL as it is about to
touch the disk for the n-th time; the last is not killed any more. FOLDER/n.told has a byte for every call that had returned.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from federation.rounds.aggregate import State
from federation.rounds.journal import Journal

BANKS = ("bank-a", "bank-b")
_DISK_CALLS = ("open", "write", "flush", "fsync", "truncate", "rename", "unlink", "close")


def state(number: int) -> State:
    """What round `number` makes."""
    draw = np.random.default_rng(number)
    return State({"b": draw.normal(size=(3, 2)).astype(np.float32)}, draw.normal(size=6).astype(np.float32))


def make_journal(folder: Path, rounds: int = 0) -> Journal:
    journal = Journal.create(folder, "intents", "c" * 64, state(0))
    for round in range(1, rounds + 1):
        journal.begin_round(round, 1)
        journal.close_round(round, 1, state(round), BANKS, {"accuracy": 0.5})
    return journal


def _create(folder: Path, tell: Callable[[], object]) -> None:
    make_journal(folder).close()
    tell()


def _round(folder: Path, tell: Callable[[], object]) -> None:
    with Journal(folder) as journal:
        journal.begin_round(2, 1)
        tell()
        journal.close_round(2, 1, state(2), BANKS, {})
        tell()
        journal.begin_round(3, 1)
        tell()


_WORKS = {"create": _create, "round": _round}


def _killed_at(moment: int, work: Callable[[], None]) -> bool:
    """Whether it came to that."""
    child = os.fork()
    if child == 0:
        touched = 0

        def count(frame: FrameType, event: str, called: Any) -> None:
            nonlocal touched
            if event == "c_call" and called.__name__ in _DISK_CALLS:
                touched += 1
                if touched == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def main(what: str, place: Path) -> None:
    killed, moment = True, 0
    while killed:
        moment += 1
        folder = place / str(moment)
        if what == "round":
            shutil.copytree(place / "made", folder)
        with (place / f"{moment}.told").open("wb") as told:
            killed = _killed_at(moment, partial(_WORKS[what], folder, partial(os.writev, told.fileno(), [b"."])))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
