"""What survives the coordinator: its run, every round and attempt, the global adapter and the server's momentum.

    lock                          held by the one process that coordinates the run
    journal.jsonl                 chained lines: the run, then each attempt that began and each round that was aggregated
    0000.safetensors ...          the global adapter after so many rounds
    0000.velocity.safetensors     the momentum after the newest

A round is aggregated when its line is on disk, and its files were there before. So a process killed at any moment leaves the state before
or after; files without a line are written over. An attempt is begun on disk before banks hear of it: one that failed is never taken up
again, and no sum of it is accepted.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.numpy import load, save

from federation.errors import JournalError
from federation.rounds.aggregate import Adapter, State
from privacy import chain, disk

_FORMAT = 1


@dataclass(frozen=True)
class Round:
    """One that was aggregated; round 0 is the state the run began with."""

    round: int
    attempt: int
    banks: tuple[str, ...]
    """Whose updates are in the sum"""
    metrics: Mapping[str, float]
    adapter: str
    """SHA-256 of the adapter's file: the model that the next round's header names"""
    velocity: str


class Journal:
    """An open one, of one run; to be closed, or used in a `with`. Every method may raise JournalError."""

    run: str
    config: str
    """The configuration's hash"""

    def __init__(self, folder: Path) -> None:
        """Opens it. Raises JournalError where there is none, another process has it, or it is damaged."""
        self.folder, self._end = folder, chain.START
        self.rounds: list[Round] = []
        self.attempt = 0
        """The last that began of the round to come; 0 before the first"""
        with _translated(folder):
            self._lock = os.fdopen(os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600))
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, run: str, config: str, state: State) -> Self:
        """A new run's. Raises JournalError where the folder has one."""
        with _translated(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if chain.follow(_file(folder), JournalError)[0]:
                raise JournalError(f"{folder} holds a run already", "resume it, or name another folder")
            began = Round(0, 0, (), {}, *_write(folder, 0, _files(state)))
            first = {"kind": "run", "format": _FORMAT, "run": run, "config": config}
            chain.add(_file(folder), chain.START, [first | asdict(began)])
        return cls(folder)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def round(self) -> int:
        """The one to come or going on, from 1."""
        return len(self.rounds)

    def state(self) -> State:
        """What that round starts from."""
        return State(self.adapter(self.round - 1), self._load(_velocity(self.folder, self.round - 1), self.rounds[-1].velocity)["velocity"])

    def adapter(self, round: int) -> Adapter:
        """The global adapter after a round."""
        return self._load(_adapter(self.folder, round), self.rounds[round].adapter)

    def begin_round(self, round: int, attempt: int) -> None:
        """An attempt that banks are about to be asked for; on disk when this returns. The one going on may be begun again."""
        assert attempt >= 1
        if (round, attempt) == (self.round, self.attempt):
            return
        if (round, attempt) != (self.round, self.attempt + 1):
            raise JournalError(
                f"attempt {attempt} of round {round} cannot begin: attempt {self.attempt + 1} of round {self.round} is next",
                "a round that was aggregated is over, and an attempt that failed is not taken up again",
            )
        with _translated(self.folder):
            self._end = chain.add(_file(self.folder), self._end, [{"kind": "begin", "round": round, "attempt": attempt}])
        self.attempt = attempt

    def close_round(self, round: int, attempt: int, state: State, banks: Sequence[str], metrics: Mapping[str, float]) -> None:
        """What the attempt going on has made; on disk when this returns. The same once more is nothing, another is refused."""
        assert attempt >= 1
        last, files = self.rounds[-1], _files(state)
        if (round, attempt, *map(_sha256, files)) == (last.round, last.attempt, last.adapter, last.velocity):
            return
        if (round, attempt) != (self.round, self.attempt):
            raise JournalError(
                f"attempt {attempt} of round {round} is not going on: {last.round} rounds are aggregated",
                "no round is aggregated twice; what comes late is dropped",
            )
        with _translated(self.folder):
            closed = Round(round, attempt, tuple(banks), dict(metrics), *_write(self.folder, round, files))
            self._end = chain.add(_file(self.folder), self._end, [{"kind": "close"} | asdict(closed)])
            self.rounds.append(closed)
            self.attempt = 0
            _velocity(self.folder, last.round).unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalError(
                f"{self.folder}: another process has it open", "one process coordinates a run: end the other first"
            ) from error
        rows, self._end = chain.follow(_file(self.folder), JournalError)
        if not rows:
            raise JournalError(f"{self.folder} holds no run", "give the folder of one, or create it")
        for number, row in enumerate(rows, 1):
            try:
                self._take(row.pop("kind"), row)
            except (KeyError, TypeError, ValueError) as error:
                raise JournalError(f"{_file(self.folder)}, line {number}: {error!r}", "written by another version?") from error

    def _take(self, kind: str, row: chain.Row) -> None:
        match kind:
            case "run":
                if row.pop("format") != _FORMAT:
                    raise ValueError("another format")
                self.run, self.config = row.pop("run"), row.pop("config")
                self.rounds = [_round(row)]
            case "begin":
                self.attempt = row["attempt"]
            case "close":
                self.rounds.append(_round(row))
                self.attempt = 0
            case _:
                raise ValueError(kind)

    def _load(self, path: Path, sha256: str) -> dict[str, Any]:
        with _translated(path):
            data = path.read_bytes()
        if _sha256(data) != sha256:
            raise JournalError(f"{path} is not what the journal has of it", "no crash does this: restore it from a copy of the same run")
        return load(data)


def rounds_of(folder: Path) -> tuple[str, str, list[Round]]:
    """The run, its configuration's hash and the rounds, for who only reads: while another process has it open, too. Raises JournalError."""
    rows, _ = chain.follow(_file(folder), JournalError)
    if not rows:
        raise JournalError(f"{folder} holds no run", "give the folder of one")
    try:
        names = set(Round.__dataclass_fields__)
        kept = [_round({name: row[name] for name in names}) for row in rows if row["kind"] != "begin"]
        return rows[0]["run"], rows[0]["config"], kept
    except (KeyError, TypeError) as error:
        raise JournalError(f"{_file(folder)}: {error!r}", "written by another version?") from error


def _round(row: chain.Row) -> Round:
    return Round(**row | {"banks": tuple(row["banks"])})


def _write(folder: Path, round: int, files: tuple[bytes, bytes]) -> tuple[str, str]:
    """A state's files; their hashes."""
    adapter, velocity = files
    disk.write(_adapter(folder, round), [adapter])
    disk.write(_velocity(folder, round), [velocity])
    return _sha256(adapter), _sha256(velocity)


def _files(state: State) -> tuple[bytes, bytes]:
    return save(dict(state.adapter)), save({"velocity": state.velocity})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file(folder: Path) -> Path:
    return folder / "journal.jsonl"


def _adapter(folder: Path, round: int) -> Path:
    return folder / f"{round:04}.safetensors"


def _velocity(folder: Path, round: int) -> Path:
    return folder / f"{round:04}.velocity.safetensors"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"{error.filename or path}: {error.strerror}", "the journal needs a local disk with room, and its owner"
        ) from error
