"""What runs at a coordinator and at a bank, started together and ended together; and a run, ordered from beside the coordinator's.

    coordinator   SuperLink, what starts its ServerApps, gateway
    bank          gateway, SuperNode, what starts its ClientApps, and the bank's own process (rounds/bank.py), which starts the training job

Each side holds a lock in its folder. Logs are in `logs/` there, mode 0600.
"""

import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from federation import bundle
from federation.base_model import base_model_hash
from federation.config import load_bank
from federation.enrolment.home import Home
from federation.enrolment.registry import Registry
from federation.enrolment.roster import Roster
from federation.errors import FactsError, FolderError, NotTrusted, ProcessError
from federation.files import translated
from federation.flower import commands
from federation.flower.processes import LOOPBACK, Children, Command, free_ports, holding, is_held
from federation.flower.traffic import trouble

if TYPE_CHECKING:
    from federation.rounds.local import Train

Tell = Callable[[str], None]
_LOOK_SECONDS = 0.5
_QUIET = timedelta(minutes=1)
"""After what a bank's person is told, in which the same may happen again and again"""
_LOADED_SECONDS = 600.0
"""For a bank's process to read its base model whole, from a slow disk"""


def coordinate(home: Path, *, host: str, port: int, tell: Tell) -> None:
    """The coordinator's side, until SIGTERM or SIGINT. Banks whose roster comes into force meanwhile are let in.

    Raises ProcessError where something does not start or ends, NotTrusted without a roster in force, FolderError, CertificateError.
    """
    from federation.flower.server import SuperLink

    registry = Registry(home)
    roster = _in_force(registry, home)
    [own] = [port] if port else free_ports(1)
    _check_address(host, own)
    with holding(home), Children(home / "logs") as children:
        tell("starting")
        superlink = SuperLink.launch(children, home, roster, datetime.now(UTC))
        superlink.allow_runs(children)
        upstream, authority = f"{LOOPBACK}:{superlink.port}", home / "flower" / "ca.pem"
        children.start(_gateway("coordinator", home, upstream, authority, "--host", host, port=own, shown=_is_local(host)))
        tell(f"banks reach this side at {host}:{own}; version {roster.version} of the roster: {', '.join(roster.names)}")
        if host in (LOOPBACK, "localhost"):
            tell("that is for banks of this machine only; --host 0.0.0.0 listens for others")
        while True:
            time.sleep(_LOOK_SECONDS)
            children.check()
            if (newer := _in_force(registry, home)).hash != roster.hash:
                superlink.let_in(newer, roster)
                roster = newer
                tell(f"version {roster.version} of the roster is in force: {', '.join(roster.names)}")


def take_part(home: Path, config: Path, *, tell: Tell, module: str = "federation.sides") -> None:
    """The bank's side, until SIGTERM or SIGINT. `module` is run as the bank's own process.

    Raises ProcessError where something does not start or ends, and what is wrong with bank.yaml, keys or certificates as they say it.
    """
    bank, kept = load_bank(config), Home(home)
    if bank.coordinator is None:
        raise FactsError(f"{config}: no coordinator", "where it is: coordinator: HOST:PORT")
    if (name := kept.keys_in(kept.roster_in_force).name) != bank.bank:
        raise NotTrusted(f"{config} is {bank.bank}'s, and {home} has the keys of {name}", "each bank has a folder and a file of its own")
    spool = home / "spool"
    with holding(home), Children(home / "logs") as children:
        tell("starting; the base model is read whole, to know that it is the right one")
        process = children.start(Command("bank", (sys.executable, "-m", module, str(home), str(config))))
        _wait(children, lambda: is_held(spool), _LOADED_SECONDS)
        gateway, node = free_ports(2)  # only now: what is free is not kept, and the base model may take minutes
        children.start(_gateway("bank", home, config, bank.coordinator, port=gateway))
        flower, authority, key = home / "flower", home / "loopback" / "ca.pem", kept.tls_files(kept.roster_in_force)[1].with_name("node")
        commands.prepare(flower, datetime.now(UTC))
        children.start(commands.supernode(flower, node, gateway, authority, key, spool))
        children.start(commands.clientapps(flower, node))
        tell(f"{name} takes part, by {bank.coordinator}; process {process} answers")
        if not bank.ledger.exists():
            tell(f"no ledger at {bank.ledger}: private rounds are refused until the officer has made it: consortium privacy ledger create")
        if (ours := bundle.sha256(bundle.build())) not in bank.policy.bundles:
            tell(f"its policy does not list the bundle of the code that is installed here, {ours}: invitations of this version are refused")
        since = datetime.now(UTC)
        while True:
            time.sleep(_LOOK_SECONDS)
            children.check()
            if why := trouble(home, since):
                tell(f"a request to the coordinator came to nothing: {why}")
                since = datetime.now(UTC) + _QUIET


def answer(home: Path, config: Path, train: "Train") -> None:
    """The bank's own process: every letter is answered in its turn, until SIGTERM; asked again where there is no room for an answer."""
    from federation.rounds.bank import Bank
    from trainers.spool import Spool

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    spool, base_model = Spool(home / "spool"), base_model_hash(load_bank(config).base_model)
    with Bank(home, lambda: load_bank(config), base_model, train) as bank, holding(home / "spool"):
        while True:
            found = spool.next()
            assert found is not None
            name, request = found
            try:
                spool.answer(name, bank.on(request))
            except OSError as error:
                print(f"an answer cannot be kept: {error}", file=sys.stderr, flush=True)
                time.sleep(_LOOK_SECONDS)


def begin_run(home: Path, run: str, base_model: Path, seed: int) -> None:
    """A new run's folder, with the adapter it starts from: in `adapter`, as Hugging Face lays it out. Raises FactsError, FolderError,
    ModelError."""
    from federation.rounds.local import write_start

    registry = Registry(home)
    if (training := registry.config.training) is None:
        raise FactsError(f"{home / 'federation.yaml'} has no training block", "consortium federation draft-training writes one")
    if (found := base_model_hash(base_model)) != training.base_model.sha256:
        raise FactsError(f"{base_model} holds a model of hash {found[:16]}..., federation.yaml names {training.base_model.sha256[:16]}...",
                         "is it the right directory?")  # fmt: skip
    folder = home / "runs" / run
    if folder.exists():
        raise FolderError(f"{folder}: is there already", "`consortium federation resume` goes on with a run; a new one has a new name")
    new = folder.with_name(f".{run}.new")
    with translated(new):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700, parents=True)
        write_start(training, base_model, seed, new / "adapter")
        shutil.copyfile(new / "adapter" / "adapter_model.safetensors", new / "start.safetensors")
        (new / "start.safetensors").chmod(0o600)
        os.rename(new, folder)


def check_running(home: Path) -> None:
    """ProcessError unless the coordinator's side is there."""
    if not is_held(home):
        raise ProcessError(f"{home}: no coordinator runs here", f"start it beside this: consortium federation coordinator --home {home}")


@contextmanager
def ordered(home: Path, run: str) -> Iterator[Callable[[], str]]:
    """Start a run, or go on with it, on the coordinator that runs; a function that says how Flower sees it.

    Raises ProcessError, FolderError where no such run was begun.
    """
    from federation.flower.server import Running, SuperLink

    check_running(home)
    if not (folder := home / "runs" / run).is_dir():
        raise FolderError(f"{home}: has no run {run!a}", "consortium federation run begins one")
    (folder / "stop").unlink(missing_ok=True)
    superlink = SuperLink(home, Running.at(home).port)
    number = superlink.start(run)
    yield lambda: superlink.status(number)


def _in_force(registry: Registry, home: Path) -> Roster:
    if (roster := registry.in_force) is None:
        raise NotTrusted(f"{home}: no roster is in force", "all banks have to sign it: consortium federation roster")
    return roster


def _gateway(side: str, *arguments: object, port: int, shown: bool = True) -> Command:
    """`shown`: whether it can be seen on this machine's loopback that it is up."""
    line = (sys.executable, "-m", "federation.flower.gateway", side, *map(str, arguments), "--port", str(port))
    return Command("gateway", line, port=port if shown else None)


def _check_address(host: str, port: int) -> None:
    """FactsError unless this machine can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise FactsError(f"nothing can listen at {host}:{port}: {error.strerror}",
                         "--host is an address of this machine, 0.0.0.0 for all it has; --port one that is free") from error  # fmt: skip


def _is_local(host: str) -> bool:
    return host in (LOOPBACK, "localhost", "0.0.0.0")


def _wait(children: Children, ready: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready():
        children.check()
        if time.monotonic() > until:
            raise ProcessError(f"the bank's process is not ready after {seconds:.0f} s", "its log says where it is")
        time.sleep(_LOOK_SECONDS)


def main() -> None:
    """`python -m federation.sides HOME BANK.yaml`: the bank's own process."""
    from federation.rounds.local import LocalTrainer
    from privacy.errors import ConsortiumError

    logging.disable(logging.INFO)
    home, config = map(Path, sys.argv[1:])
    try:
        with closing(LocalTrainer(lambda: load_bank(config), home / "runs")) as trainer:
            answer(home, config, trainer)
    except ConsortiumError as error:
        print(f"error: {error}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
