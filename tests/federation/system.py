"""A coordinator and four banks as processes with TLS, as their commands start them; the training is a toy (toy_bank.py)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from federation.base_model import base_model_hash
from federation.dossier.report import transcript_of
from federation.dossier.verify import Check, check, export, identities, read_exports
from federation.flower.processes import free_ports
from tests.federation.enrolment import BANKS, NOW, make_federation
from tests.federation.loopback import RUN, World, make_world
from tests.helpers import REPOSITORY

COORDINATOR = "coordinator"
CONSORTIUM = (sys.executable, "-m", "consortium", "federation")
EXCHANGES = ("keys", "shares", "update", "view", "reveal", "receipt", "receipts")
"""The last brings receipts, and a bank's word that they came; the round is aggregated before it"""


@dataclass
class System:
    """Folders, and the processes of sides that were started."""

    world: World
    home: Path
    """The coordinator's"""
    host: str
    port: int
    """Where its gateway listens"""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def run_folder(self) -> Path:
        return self.home / "runs" / RUN

    def start(self, *sides: str, env: Mapping[str, str] = {}) -> None:
        """Banks, by their names, or the coordinator; when this returns they say that they are up. `env` comes to their environment."""
        for side in sides:
            if side == COORDINATOR:
                command = (*CONSORTIUM, "coordinator", "--home", str(self.home), "--host", self.host, "--port", str(self.port))
            else:
                home = self.world.bank_folder(side)
                command = (sys.executable, "-m", "tests.federation.toy_bank", str(home), str(home / "bank.yaml"), "side")
            with self.log(side).open("ab") as log:
                self.running[side] = subprocess.Popen(
                    command, cwd=REPOSITORY, env=os.environ | env, stdout=log, stderr=log, start_new_session=True
                )
        for side in sides:
            up = "banks reach this side" if side == COORDINATOR else "takes part"
            until(lambda side=side, up=up: self.said(side).count(up) or not self.alive(side), f"{side} is up")  # type: ignore[misc]
            assert self.alive(side), self.said(side)

    def log(self, side: str) -> Path:
        return self.world.made.folder / f"{side}.log"

    def said(self, side: str) -> str:
        return self.log(side).read_text()

    def alive(self, side: str) -> bool:
        return self.running[side].poll() is None

    def kill(self, side: str) -> None:
        """All its processes at once, as when its machine loses power."""
        process = self.running.pop(side)
        below = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in below:
            os.kill(each.pid, signal.SIGKILL)
        process.wait()
        psutil.wait_procs(below, timeout=10)
        self.log(side).rename(self.log(side).with_suffix(f".{time.time_ns()}"))

    def stop(self, side: str) -> int:
        """In order; its exit code. Nothing of it is left."""
        process = self.running.pop(side)
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(60)
            left = psutil.wait_procs(below, timeout=10)[1]
            assert not left, f"{side} has left {left}"
        finally:
            for each in (process, *below):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        return process.returncode

    def move(self) -> None:
        """The coordinator's machine is lost, and another has a copy of its folder."""
        self.home = shutil.copytree(self.home, self.home.with_name("another machine") / COORDINATOR)

    def order(self) -> subprocess.Popen[str]:
        """`consortium federation resume`, which begins a run too whose folder is there and has no journal yet."""
        command = (*CONSORTIUM, "resume", RUN, "--home", str(self.home))
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def command(self, *arguments: object) -> str:
        """What `consortium federation ...` prints, whatever its exit code."""
        done = subprocess.run([*CONSORTIUM, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout + done.stderr

    @property
    def status(self) -> dict[str, Any]:
        path = self.run_folder / "status.json"
        return dict(json.loads(path.read_bytes())) if path.exists() else {"state": "", "exchange": None, "updated": 0.0}

    def reaches(self, exchange: int, since: float) -> bool:
        """Whether the run is in it now, or beyond."""
        shown = self.status
        return shown["updated"] > since and bool(shown["exchange"]) and shown["exchange"]["number"] == exchange

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        lines = (self.run_folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] in kinds]

    def transcripts(self, folder: Path) -> Check:
        """What banks export, compared."""
        paths = [folder / f"{bank}.jsonl" for bank in BANKS]
        roster = self.world.made.registry.in_force
        assert roster
        folder.mkdir()
        for bank, path in zip(BANKS, paths, strict=True):
            home = self.world.made.homes[bank]
            export(transcript_of(self.world.bank_folder(bank)), path, home.keys_in(roster).identity)
        keys = identities([roster])
        return check(read_exports(paths, keys), keys)


@contextmanager
def system(folder: Path, host: str = "127.0.0.1", **asked: Any) -> Iterator[System]:
    """Folders of a federation that asks for this in its training block. Nothing runs yet; what was started is ended with the block."""
    world = make_world(make_federation(folder, BANKS, host))
    [port] = free_ports(1)
    for bank in BANKS:
        home = world.bank_folder(bank)
        world.made.homes[bank].accept(folder / COORDINATOR / "members" / f"{bank}.pem", NOW)
        (home / "model").mkdir()
        (home / "model" / "config.json").write_text("{}")
        path = home / "bank.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"coordinator": f"{host}:{port}"}))
        world.allow(bank, base_models=[base_model_hash(home / "model")])
    world.ask(base_model={"name": "tiny", "sha256": base_model_hash(world.bank_folder(BANKS[0]) / "model")}, **asked)
    made = System(world, folder / COORDINATOR, host, port)
    with ExitStack() as stack:
        stack.callback(lambda: [made.kill(side) for side in [*made.running] if made.alive(side)])
        yield made


def until(true: Callable[[], object], what: str, within: float = 300.0) -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not true():
        if time.monotonic() > began + within:
            raise AssertionError(f"not within {within:.0f} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """In columns."""
    lines = [tuple(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
