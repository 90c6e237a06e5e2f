"""Who holds a run directory: one live process at a time, known by its heartbeat."""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from trainers.errors import RunBusyError

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0


class Lease:
    """Exclusive hold of a run directory, renewed by a thread until released.

    `run_id` names the run over its restarts: a worker group that is started again takes over from the one that died. Another run's lease is
    respected until its process is seen dead on this machine, or it has not beaten for EXPIRY_SECONDS.
    """

    def __init__(self, run_dir: Path, run_id: str) -> None:
        self._path = run_dir / "lease.json"
        self._run_dir = run_dir
        self._run_id = run_id
        self._me = {
            "run_id": run_id,
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
        }
        self._stop = threading.Event()
        self._lost = False

    def acquire(self) -> None:
        """Raises RunBusyError when another live run holds the directory."""
        check_free(self._run_dir, self._run_id)
        self._beat()
        time.sleep(0.05)  # of two that find it free at once, the later writer wins and the other sees it here
        if (holder := _read(self._path)) is None or holder["owner"] != self._me["owner"]:
            raise _busy(self._run_dir, holder or self._me)
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def check(self) -> None:
        """Raises RunBusyError when the lease was taken over: whoever has it now writes the run directory."""
        if self._lost:
            raise _busy(self._run_dir, _read(self._path) or self._me)

    def release(self) -> None:
        self._stop.set()
        if (holder := _read(self._path)) is not None and holder["owner"] == self._me["owner"]:
            self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            holder = _read(self._path)
            if holder is not None and holder["owner"] != self._me["owner"]:
                self._lost = True
                return
            self._beat()

    def _beat(self) -> None:
        temporary = self._path.with_suffix(f".{self._me['owner']}")
        temporary.write_text(json.dumps({**self._me, "beat": time.time()}))
        temporary.rename(self._path)


def check_free(run_dir: Path, run_id: str = "") -> None:
    """Raises RunBusyError when a live run other than `run_id` holds the directory."""
    holder = _read(run_dir / "lease.json")
    if holder is not None and holder["run_id"] != run_id and _alive(holder):
        raise _busy(run_dir, holder)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text())
        return holder if {"run_id", "owner", "host", "pid", "born", "beat"} <= set(holder) else None
    except (OSError, ValueError):
        return None


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname() and _born(holder["pid"]) != holder["born"]:
        return False
    return time.time() - float(holder["beat"]) < EXPIRY_SECONDS


def _born(pid: int) -> float | None:
    """When the process started: process ids are used again, starts are not."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _busy(run_dir: Path, holder: dict[str, Any]) -> RunBusyError:
    return RunBusyError(f"{run_dir} is held by a live run (process {holder['pid']} on {holder['host']})",
                        f"wait for it, or give this one another name; a dead run's hold ends after {EXPIRY_SECONDS:.0f} s")  # fmt: skip
