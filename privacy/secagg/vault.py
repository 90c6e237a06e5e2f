"""What a bank must not lose or do twice in a session, on a disk of its own: written, synced and renamed before anything leaves the bank.

    lock               held by the one process that runs the bank
    roster             version and hash of the newest roster seen
    transcript.jsonl   see transcript.py
    live/              the session going on, at most one
        secrets, share     its private keys and self-mask seed; its own share of the latter
        0 1 2 ...          of each exchange the message received and the answer given: a resend is these bytes
    ended/SESSION      empty: one that is over, and can never be taken up again
    used/DIGEST        an update that was masked, and in which session

Directories 0700, files 0600. A session is first marked as ended, then erased; a crash in between is made good when the vault is opened.
Erased means unlinked: a disk may keep what was there, so keep the vault on an encrypted one. Restoring it from a backup undoes its memory:
never do.
"""

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from privacy.errors import ProtocolError, Refused, VaultError
from privacy.secagg.codec import Buffer
from privacy.secagg.identity import Roster
from privacy.secagg.messages import Message
from privacy.secagg.transcript import Transcript

_SECRET = ("secrets", "share")


@dataclass(frozen=True)
class Step:
    """One exchange: what was asked and what was answered. Vectors are views of the file."""

    received: Message
    sent: Message | None


class Vault:
    """An open vault; to be closed, or used in a `with`. Every method may raise VaultError."""

    def __init__(self, folder: Path, bank: str) -> None:
        """Opens or makes it. VaultError if another process has it, others may read it, or it is another bank's."""
        self._folder = folder
        with self._translated():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_mode & 0o077:
                raise VaultError(f"{folder}: others than its owner may look into it", f"chmod 700 {folder}")
            self._lock = os.fdopen(os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600))
            try:
                self._open(bank)
            except BaseException:
                self.close()
                raise

    def _open(self, bank: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VaultError(f"{self._folder}: another process has it open", "one process runs a bank; end the other first") from error
        for name in ("live", "ended", "used"):
            (self._folder / name).mkdir(mode=0o700, exist_ok=True)
            _sync(self._folder / name)  # what is relied on may have been renamed by a process that was killed before it synced
        _sync(self._folder)
        if not (self._live / "0").exists() or self.ended(self._load(0).received.digest):
            _empty(self._live)
        self._transcript = Transcript(self._folder / "transcript.jsonl", bank)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_roster(self, roster: Roster) -> None:
        """Refused for an older one than was seen before, or another of the same version."""
        path, new = self._folder / "roster", roster.version.to_bytes(8, "big") + roster.hash
        with self._translated():
            old = path.read_bytes() if path.exists() else bytes(8)
            if old[:8] > new[:8] or (old[:8] == new[:8] and old[8:] not in (b"", new[8:])):
                raise Refused(
                    f"a roster of version {roster.version}, but this bank has seen version {int.from_bytes(old[:8], 'big')}"
                    + (", which is another" if old[:8] == new[:8] else ""),
                    "versions rise, and each stands for one roster",
                )
            if old != new:
                _write(path, [new])

    def keep(self, name: str, secret: bytes) -> None:
        """A secret of the live session, on disk when this returns."""
        assert name in _SECRET
        with self._translated():
            _write(self._live / name, [secret])

    def secret(self, name: str) -> bytes:
        with self._translated():
            return (self._live / name).read_bytes()

    def forget_secrets(self) -> None:
        """Those of the live session; they have served."""
        with self._translated():
            for name in _SECRET:
                (self._live / name).unlink(missing_ok=True)
            _sync(self._live)

    def claim(self, update: bytes, session: bytes) -> None:
        """Remember for ever that this update, known by its digest, is masked in this session. Refused if it was in another."""
        path = self._folder / "used" / update.hex()
        with self._translated():
            if path.exists() and path.read_bytes() != session:
                raise Refused(
                    "this update has been masked in another session: the difference of two sums would show it",
                    "contribute a fresh update, or sit this session out",
                )
            _write(path, [session])

    def check_next(self, exchange: int) -> None:
        """VaultError where the live session is at another exchange: somebody else with this vault has answered."""
        if self._lock.closed or self._answered != exchange:
            raise VaultError(
                f"{self._folder}: the session has gone on without this client", "what the vault holds counts: open it again, for one client"
            )

    def store(self, exchange: int, step: Step) -> Step:
        """One exchange, on disk when this returns; as it lies there."""
        received = step.received.pieces()
        size = sum(len(piece) for piece in received).to_bytes(8, "big")
        with self._translated():
            _write(self._live / str(exchange), [size, *received, *(step.sent.pieces() if step.sent else [])])
        stored = self._load(exchange)
        return Step(stored.received.known_from(step.received), stored.sent and step.sent and stored.sent.known_from(step.sent))

    def note(self, session: bytes, step: Step) -> None:
        """A step in the transcript, on disk when this returns."""
        with self._translated():
            self._transcript.note(session, *(message for message in (step.received, step.sent) if message))

    def steps(self) -> list[Step]:
        """Of the live session, from exchange 0 on."""
        return [self._load(exchange) for exchange in range(self._answered)]

    def _load(self, exchange: int) -> Step:
        path = self._live / str(exchange)
        try:
            with self._translated(), path.open("rb") as file:
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            received, sent = whole[8 : (end := 8 + int.from_bytes(whole[:8], "big"))], whole[end:]
            return Step(Message.from_bytes(received), Message.from_bytes(sent) if len(sent) else None)
        except (ProtocolError, ValueError) as error:  # ValueError: an empty file
            raise VaultError(f"{path}: {error}", "no crash does this: find out who wrote to it, and use a new vault") from error

    def ended(self, session: bytes) -> bool:
        return (self._folder / "ended" / session.hex()).exists()

    def end(self, session: bytes) -> None:
        """The live session is over for ever, and erased."""
        with self._translated():
            _write(self._folder / "ended" / session.hex(), [])
            _empty(self._live)

    @property
    def _answered(self) -> int:
        """Exchanges of the live session."""
        return len([*self._live.glob("[0-9]")])

    @property
    def _live(self) -> Path:
        return self._folder / "live"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise VaultError(
                f"{error.filename or self._folder}: {error.strerror}", "the vault needs a local disk with room, and its owner"
            ) from error


def _write(path: Path, pieces: Iterable[Buffer]) -> None:
    """Whole or not at all, and on disk when this returns."""
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    _sync(path.parent)


def _empty(folder: Path) -> None:
    if paths := [*folder.iterdir()]:
        for path in paths:
            path.unlink()
        _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
