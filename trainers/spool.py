"""Requests and answers between two processes of one machine, or of one file system: files in a folder, whole or not there.

    inbox/NAME     a request, until it is answered
    outbox/NAME    its answer, until it is withdrawn
    owner          locked by whoever asks, for as long as its process lives

Files 0600 in folders 0700. Both sides may be killed and go on: a request that was not answered is still there, and who asks again under
the same name gets the answer that is there. So a name stands for one request and what it says. Imports no torch.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from privacy import disk

_LOOK_SECONDS = 0.05


class Spool:
    """Either side's view of the folder. Every method may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._inbox, self._outbox, self._owner = folder / "inbox", folder / "outbox", folder / "owner"
        for place in (folder, self._inbox, self._outbox):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def claim(self) -> BinaryIO:
        """The lock of who asks; it is given up when the file is closed."""
        file = os.fdopen(os.open(self._owner, os.O_CREAT | os.O_RDWR, 0o600), "rb")
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    @property
    def is_abandoned(self) -> bool:
        """Whether it was claimed once and nobody has it now."""
        if not self._owner.exists():
            return False
        with self._owner.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def ask(self, name: str, request: bytes, *, waiting: Callable[[], bool] = lambda: True) -> bytes | None:
        """The answer, which stays there until it is withdrawn; None when `waiting` has become false before there was one."""
        answer = self._outbox / name
        if not answer.exists():
            disk.write(self._inbox / name, [request])
        while not answer.exists():
            if not waiting():
                return None
            time.sleep(_LOOK_SECONDS)
        return answer.read_bytes()

    def next(self, *, waiting: Callable[[], bool] = lambda: True) -> tuple[str, bytes] | None:
        """The name and content of a request to be answered, by name the first of those there; None when `waiting` has become false."""
        while True:
            if names := sorted(path.name for path in self._inbox.iterdir() if path.suffix != ".new"):
                return names[0], (self._inbox / names[0]).read_bytes()
            if not waiting():
                return None
            time.sleep(_LOOK_SECONDS)

    def answer(self, name: str, content: bytes) -> None:
        """On disk when this returns, and the request gone."""
        disk.write(self._outbox / name, [content])
        (self._inbox / name).unlink(missing_ok=True)

    def keep_only(self, name: str) -> None:
        """Withdraw all other answers."""
        for path in self._outbox.iterdir():
            if path.name != name:
                path.unlink(missing_ok=True)

    def withdraw(self, name: str) -> None:
        """Take a request back, and its answer if there is one."""
        for place in (self._inbox, self._outbox):
            (place / name).unlink(missing_ok=True)
