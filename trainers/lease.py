"""Who holds a run directory: one live process at a time, known by its heartbeat.

Looking and writing are one step, under a lock on `lease.lock` that the kernel frees when a process dies.
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

import psutil

from trainers.errors import RunBusyError

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0
_LOOK_AGAIN_SECONDS = 0.05
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


class Lease:
    """Exclusive hold of a run directory, renewed by a thread until released.

    `run_id` names the run over its restarts: a worker group that is started again takes over from the one that died. Another run's lease is
    respected until its process is seen dead on this machine, or it has not beaten for EXPIRY_SECONDS.
    """

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self._run_dir = run_dir
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
        """Raises RunBusyError when another live run holds the directory."""
        with _locked(self._run_dir):
            check_free(self._run_dir, self._me.run_id)
            self._beat()
        time.sleep(_LOOK_AGAIN_SECONDS)  # where the file system has no locks, the later of two writers wins and the other sees it here
        if other := self._other_holder():
            raise _busy(self._run_dir, other)
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
        with contextlib.suppress(FileNotFoundError), _locked(self._run_dir):  # not there: nobody's
            if self._other_holder() is None:
                (self._run_dir / "lease.json").unlink()

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError), _locked(self._run_dir):  # a file system that stalls gets the next beat
                self._taken_by = self._other_holder()
                if self._taken_by is not None:
                    return
                self._beat()

    def _other_holder(self) -> _Holder | None:
        holder = _read(self._run_dir)
        return None if holder is None or holder.owner == self._me.owner else holder

    def _beat(self) -> None:
        temporary = self._run_dir / f"lease.{self._me.owner}"
        temporary.write_text(json.dumps(asdict(replace(self._me, beat=time.time()))))
        temporary.rename(self._run_dir / "lease.json")


def check_free(run_dir: Path, run_id: str = "") -> None:
    """Raises RunBusyError when a live run other than `run_id` holds the directory."""
    holder = _read(run_dir)
    if holder is not None and holder.run_id != run_id and _alive(holder):
        raise _busy(run_dir, holder)


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    with (run_dir / "lease.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        yield


def _read(run_dir: Path) -> _Holder | None:
    """What the lease says; None when there is none, or it is not one."""
    try:
        holder = _Holder(**json.loads((run_dir / "lease.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
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


def _busy(run_dir: Path, holder: _Holder) -> RunBusyError:
    return RunBusyError(
        f"{run_dir} is held by a live run (process {holder.pid} on {holder.host})",
        f"wait for it, or give this one another name; a dead run's hold ends after {EXPIRY_SECONDS:.0f} s",
    )
