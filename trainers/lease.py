"""Who holds a run directory, or a run's place in a store: one live process at a time, known by its heartbeat.

In a directory looking and writing are one step, under a lock on `lease.lock` that the kernel frees when a process dies. A store has no
locks: of two that write, the later one wins, and the other sees it when it looks again, at the latest with its next heartbeat.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import psutil

from trainers.errors import CheckpointError, RunBusyError
from trainers.storage import Store

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
_NAME = "lease.json"
_CLOCK_SET_SECONDS = 60.0
"""A process's start is counted from a boot time that moves when the clock is set."""
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class _Holder:
    run_id: str
    owner: str
    host: str
    machine: str
    pid: int
    born: float
    beat: float


class _Place(Protocol):
    """Where a lease is written."""

    look_again: float
    """Seconds after which another's writing at the same time is seen"""

    def __str__(self) -> str: ...
    def locked(self) -> contextlib.AbstractContextManager[None]: ...
    def read(self) -> bytes | None: ...
    def write(self, content: str, owner: str) -> None: ...
    def remove(self) -> None: ...


class _Folder:
    look_again = 0.05

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self._folder / "lease.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    raise
            yield

    def read(self) -> bytes | None:
        try:
            return (self._folder / _NAME).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, content: str, owner: str) -> None:
        temporary = self._folder / f"lease.{owner}"
        temporary.write_text(content)
        temporary.rename(self._folder / _NAME)

    def remove(self) -> None:
        (self._folder / _NAME).unlink()


class _InStore:
    look_again = 0.5

    def __init__(self, store: Store) -> None:
        self._store = store

    def __str__(self) -> str:
        return self._store.url

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def read(self) -> bytes | None:
        content = self._store.read(_NAME)
        if content == b"":  # some stores show a file while it is written
            time.sleep(self.look_again)
            content = self._store.read(_NAME)
        return content

    def write(self, content: str, owner: str) -> None:
        self._store.write(_NAME, content.encode())

    def remove(self) -> None:
        self._store.remove(_NAME)


class Lease:
    """Exclusive hold of a run's directory, or of its place in `store` if there is one, renewed by a thread until released.

    `run_id` names the run over its restarts: a worker group that is started again takes over from the one that died. Another run's lease is
    respected until its process is seen dead on this machine, or it has not beaten for EXPIRY_SECONDS.
    """

    def __init__(self, run_dir: Path, run_id: str, store: Store | None = None) -> None:
        self._place = _place(run_dir, store)
        self._me = _Holder(
            run_id=run_id,
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            born=_born(os.getpid()) or 0.0,
            beat=0.0,
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._taken_by: _Holder | None = None

    def acquire(self) -> None:
        """Raises RunBusyError when another live run holds the place, CheckpointError when a store does not answer."""
        with self._place.locked():
            _check_free(self._place, self._me.run_id)
            self._beat()
        time.sleep(self._place.look_again)  # where there are no locks, the later of two writers wins and the other sees it here
        if other := self._other_holder():
            raise _busy(self._place, other)
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the lease was taken over: whoever has it now writes the run directory."""
        return self._taken_by is not None

    def release(self) -> None:
        """Give up the lease, if it is still one's own; no heartbeat comes after this."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError, CheckpointError), self._place.locked():  # not there: nobody's; no answer: it expires
            if self._other_holder() is None:
                self._place.remove()

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError), self._place.locked():  # a file system or a store that stalls gets the next beat
                self._taken_by = self._other_holder()
                if self._taken_by is not None:
                    return
                self._beat()

    def _other_holder(self) -> _Holder | None:
        holder = _read(self._place)
        return None if holder is None or holder.owner == self._me.owner else holder

    def _beat(self) -> None:
        self._place.write(json.dumps(asdict(replace(self._me, beat=time.time()))), self._me.owner)


def check_free(run_dir: Path, store: Store | None = None) -> None:
    """Raises RunBusyError when a live run holds the directory, or the place in the store."""
    _check_free(_place(run_dir, store), run_id="")


def _check_free(place: _Place, run_id: str) -> None:
    holder = _read(place)
    if holder is not None and holder.run_id != run_id and _alive(holder):
        raise _busy(place, holder)


def _place(run_dir: Path, store: Store | None) -> _Place:
    return _Folder(run_dir) if store is None else _InStore(store)


def _read(place: _Place) -> _Holder | None:
    """What the lease says; None when there is none, or it is not one."""
    try:
        holder = _Holder(**json.loads(place.read() or b"null"))
    except (ValueError, TypeError):
        return None
    return holder if all(isinstance(getattr(holder, field.name), field.type) for field in fields(holder)) else None  # type: ignore[arg-type]


def _alive(holder: _Holder) -> bool:
    if holder.machine == _machine():
        born = _born(holder.pid)
        if born is None or abs(born - holder.born) > _CLOCK_SET_SECONDS:
            return False
    return time.time() - holder.beat < EXPIRY_SECONDS


def _machine() -> str:
    """Where process ids mean the same: this boot, this container. Host names are not enough, containers and clones share them."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> float | None:
    """When the process started (process ids are used again); None when it is gone, reaped or not."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None


def _busy(place: _Place, holder: _Holder) -> RunBusyError:
    return RunBusyError(
        f"{place} is held by a live run (process {holder.pid} on {holder.host})",
        f"wait for it, or give this one another name; a dead run's hold ends after {EXPIRY_SECONDS:.0f} s",
    )
