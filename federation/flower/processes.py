"""Processes of one machine: started together, watched, and ended with the one that started them, however that ends.

Linux only: a child asks its kernel to be killed when its parent dies (prctl(2), PR_SET_PDEATHSIG).
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Self

from federation.errors import ProcessError
from federation.files import translated

LOOPBACK = "127.0.0.1"
_SOURCES = Path(__file__).parents[2]
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_GRACE = 10.0
_LOOK_SECONDS = 0.1
_AGAIN_SECONDS = 2.0
_LAST_LINES = 10


@dataclass(frozen=True)
class Command:
    """A process to be started."""

    name: str
    """Of its log file too"""
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside what `environment` gives to all"""
    port: int | None = None
    """On loopback; it is ready when it listens there"""
    again: bool = False
    """Whether it is started again when it ends: its end is no error"""


class Children:
    """Processes that are stopped in reverse order at the end of the `with` block, which SIGTERM ends as SIGINT does.

    Each has a process group of its own, so that a Ctrl-C reaches this process alone, and is killed by the kernel when the thread that
    started it has ended: start them from the main thread. Logs are added to, mode 0600, in `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[_Child] = []

    def __enter__(self) -> Self:
        with translated(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._before = signal.signal(signal.SIGTERM, _interrupted)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows ends by itself
        self.stop()
        signal.signal(signal.SIGTERM, self._before)

    def start(self, command: Command, within: float = 60.0) -> int:
        """Its process id, when it is ready. ProcessError with its last lines if it ends before, or is not ready within so many seconds."""
        child = _Child(command, self._folder / f"{command.name}.log")
        self._running.append(child)
        deadline = time.monotonic() + within
        while command.port is not None and not listens(command.port):
            child.check()
            if time.monotonic() > deadline:
                raise child.error(f"is not ready after {within:g} s")
            time.sleep(_LOOK_SECONDS)
        child.check()
        return child.process.pid

    @property
    def pids(self) -> dict[str, int]:
        """Of those that were started and not stopped, by name."""
        return {child.command.name: child.process.pid for child in self._running}

    def check(self) -> None:
        """To be called now and then. ProcessError for the first that has ended, unless it is to be started again: then it is."""
        for place, child in enumerate(self._running):
            if child.process.poll() is None:
                continue
            if not child.command.again:
                child.check()
            elif time.monotonic() > child.started + _AGAIN_SECONDS:
                child.end_group(signal.SIGKILL)
                self._running[place] = _Child(child.command, child.log)

    def kill(self, name: str) -> None:
        """One of them with SIGKILL, as if its machine had died."""
        [child] = [child for child in self._running if child.command.name == name]
        self._running.remove(child)
        child.end_group(signal.SIGKILL)
        child.process.wait()

    def stop(self) -> None:
        """All that run, the last one first: SIGTERM to its group, and SIGKILL to what is left of it."""
        while self._running:
            child = self._running.pop()
            if child.process.poll() is None:
                child.end_group(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(_GRACE)
            child.end_group(signal.SIGKILL)
            child.process.wait()


class _Child:
    """One of them, started."""

    def __init__(self, command: Command, log: Path) -> None:
        self.command, self.log, self.started = command, log, time.monotonic()
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        with _private(log) as file:
            self._began = file.tell()
            try:
                self.process = subprocess.Popen(
                    command.arguments, env={**environment(), **command.environment}, cwd=log.parent, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=die_with_parent,
                )  # fmt: skip
            except OSError as error:
                raise ProcessError(
                    f"{command.name}: {command.arguments[0]} cannot be started: {error.strerror}", "is it installed where consortium is?"
                ) from error

    def check(self) -> None:
        """ProcessError if it has ended."""
        if (code := self.process.poll()) is not None:
            raise self.error(f"has ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")

    def error(self, what: str) -> ProcessError:
        text = self.log.read_bytes()[self._began :].decode(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
        return ProcessError(f"{self.command.name} {what}", "\n".join([f"the end of {self.log}:", *lines]))

    def end_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def environment() -> dict[str, str]:
    """What every child gets: this process's, without proxies and what would set Flower up otherwise; nothing reports to anybody."""
    inherited = {name: value for name, value in os.environ.items() if not _is_proxy(name) and not name.startswith("FLWR_")}
    return inherited | {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_SOURCES), os.environ.get("PYTHONPATH")])),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


@contextmanager
def without_proxies() -> Iterator[None]:
    """For what reads them from the environment when it is made, and speaks to this machine only."""
    taken = {name: os.environ.pop(name) for name in [*os.environ] if _is_proxy(name)}
    try:
        yield
    finally:
        os.environ.update(taken)


def _is_proxy(name: str) -> bool:
    return name.lower().endswith("_proxy")


def listens(port: int) -> bool:
    """Whether somebody does, on loopback."""
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return connection.connect_ex((LOOPBACK, port)) == 0


def free_ports(count: int) -> list[int]:
    """That nobody listens on now, on loopback."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """A lock on a folder that is there: it says that this process serves it, and ends with it. ProcessError while another has it."""
    path = folder / "lock"
    with _private(path) as file:
        deadline = time.monotonic() + 1.0  # `is_held` has it for a moment
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ProcessError(f"{folder}: another process serves it", "one at a time: end the other first")
            time.sleep(_LOOK_SECONDS)
        yield


def is_held(folder: Path) -> bool:
    """Whether some process is `holding` it."""
    try:
        with (folder / "lock").open("rb") as file:
            return not _locked(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _private(path: Path) -> BinaryIO:
    """To be added to, for its owner only. Raises FolderError."""
    with translated(path):
        return open(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab")


def _locked(file: BinaryIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
