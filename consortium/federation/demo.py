"""`consortium federation demo`: a coordinator and its banks on this machine, as real processes over TLS, on generated data."""

import contextlib
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from federation.base_model import base_model_hash
from federation.config import load_federation
from federation.drafts import draft_bank, draft_training, parsed
from federation.enrolment.home import Home
from federation.enrolment.member import Known
from federation.enrolment.registry import Registry
from federation.enrolment.roster import SignedRoster
from federation.errors import FactsError, ProcessError
from federation.files import read, write, write_bytes
from federation.flower.processes import Children, Command, free_ports

NAMES = ("ulm", "lyon", "porto", "turku", "ghent", "graz", "lund", "siena")
RUN = "demo"
DELTA = 1e-5
_TICKETS, _DOCUMENTS = 32000, 1100
_COMPARED = 1000
"""Messages of customers held out"""
_OWN_SEGMENT = 0.7
"""Share of a bank's customers that are of the segment it is for; the others are of any"""
_UNIT = {"column": "customer_id", "max_records": 8}
_TERMS: dict[str, Any] = {
    "adapter": {"rank": 16, "alpha": 32, "targets": "all-linear"},
    "rounds": 3,
    "local": {"steps": 6, "batch": 100, "learning_rate": 3e-2, "clip_norm": 0.1, "max_length": 64},
    "privacy": {"epsilon": 8, "epsilon_round": 8, "delta": DELTA},
    "timeouts": {"keys": 120, "shares": 120, "update": 600, "view": 20, "reveal": 20, "receipt": 20},
}
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Bank:
    name: str
    home: Path
    rows: Path
    units: int

    @property
    def file(self) -> Path:
        return self.home / "bank.yaml"


def run_demo(folder: Path, count: int) -> dict[str, Any]:
    """Make data, a model and a federation in `folder`, run it while a bank dies and comes back, and compare what came of it.

    The data, the model and what was compared are kept for another time. Raises ProcessError, RunFailed, FactsError.
    """
    from trainers.data.synthetic import write_demo_data

    began, folder = time.monotonic(), folder.resolve()
    if not 4 <= count <= len(NAMES):
        raise FactsError(f"{count} banks: expected 4 to {len(NAMES)}", "with fewer none may vanish from a round")
    console.print("[bold]1. data[/]  customers of each bank, most of them of one segment; policy documents")
    data = write_demo_data(folder / "data", tickets=_TICKETS, documents=_DOCUMENTS)
    console.print("[bold]2. base model[/]  a small Llama, trained from random on the policy documents")
    base = _base_model(folder, data.policies)
    console.print("[bold]3. enrolment[/]  keys, certificates, fingerprints told by telephone, a roster that all sign, budgets")
    home, [port] = folder / "coordinator", free_ports(1)
    for old in (home, folder / "banks", folder / "logs"):
        shutil.rmtree(old, ignore_errors=True)
    banks = _split(data.intents_train, folder / "banks", NAMES[:count])
    _enrol(home, banks)
    labels = sorted({row["label"] for row in csv.DictReader(data.intents_train.open())})
    _write_terms(home, banks, base, labels)
    _write_banks(home, banks, base, f"127.0.0.1:{port}")
    console.print(f"[bold]4. run[/]  {_TERMS['rounds']} rounds of {count} banks; {banks[2].name} is killed in the second, and comes back")
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # banks have a machine each elsewhere: here all train at the same time
    everybody = Bank("pooled", folder, data.intents_train, sum(bank.units for bank in banks))
    with _trained_aside(folder / "alone", [*banks, everybody], base, data.intents_test) as aside:
        with Children(folder / "logs") as children:
            _federate(children, home, banks, base, port)
            _show("status", "--home", home, "--once")
            _show("status", "--home", banks[0].home)
        console.print("[bold]5. audit[/]  the banks' transcripts compared; dossiers of coordinator and bank")
        _audit(folder, home, banks)
        console.print("[bold]6. compare[/]  on customers of all banks held out: federated, each bank alone, all rows in one place")
        *alone, pooled = [accuracy.result() for accuracy in aside]
    federated = _accuracy(home / "runs" / RUN / "result", base, data.intents_test)
    results = {"federated": federated, "alone": dict(zip([bank.name for bank in banks], alone, strict=True)), "pooled": pooled}
    _table(results, home, banks, time.monotonic() - began)
    return results


def _base_model(folder: Path, policies: Path) -> Path:
    from consortium.demo import make_shape, pretrain_job, run_once

    make_shape(folder / "shape", policies)
    return run_once(pretrain_job(folder, policies)) / "model"


def _split(rows: Path, folder: Path, names: Sequence[str]) -> list[Bank]:
    """Customers to banks: a bank is for a segment, and most of its customers are of that; nobody has two banks."""
    with rows.open(newline="", encoding="utf-8") as stream:
        all_rows = list(csv.DictReader(stream))
    segments, rng, bank_of = sorted({row["segment"] for row in all_rows}), random.Random(0), dict[str, int]()
    for row in all_rows:
        if row["customer_id"] not in bank_of:
            fitting = [place for place in range(len(names)) if segments[place % len(segments)] == row["segment"]]
            bank_of[row["customer_id"]] = rng.choice(fitting) if rng.random() < _OWN_SEGMENT else rng.randrange(len(names))
    banks = []
    for place, name in enumerate(names):
        mine = [row for row in all_rows if bank_of[row["customer_id"]] == place]
        home = folder / name
        home.mkdir(mode=0o700, parents=True)
        with (home / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, [*all_rows[0]])
            writer.writeheader()
            writer.writerows(mine)
        banks.append(Bank(name, home, home / "rows.csv", len({row["customer_id"] for row in mine})))
    return banks


def _enrol(home: Path, banks: Sequence[Bank]) -> None:
    """What takes people and telephones elsewhere."""
    now = datetime.now(UTC)
    registry = Registry.create(home, "demo", ["127.0.0.1", "localhost"], now)
    homes = {bank.name: Home(bank.home) for bank in banks}
    told = Known(fingerprints={name: own.make_keys(name, rotate=False).member.fingerprint for name, own in homes.items()})
    for own in homes.values():
        own.accept(registry.approve(own.request(), told, now), now)
    path, _ = registry.propose()
    for _ in range(2):  # the second time it is complete, and in force
        for own in homes.values():
            write(path, own.sign(read(SignedRoster, path), told))


def _write_terms(home: Path, banks: Sequence[Bank], base: Path, labels: Sequence[str]) -> None:
    path = home / "federation.yaml"
    most = max(bank.units for bank in banks)
    draft = draft_training(
        task="classify", labels=labels, base_model=base, sha256=base_model_hash(base), banks=len(banks), colluders=1, units=most
    )
    values = yaml.safe_load(path.read_text() + draft)
    values["training"] |= _TERMS
    write_bytes(path, yaml.safe_dump(values, sort_keys=False).encode())


def _write_banks(home: Path, banks: Sequence[Bank], base: Path, coordinator: str) -> None:
    from federation.bundle import build, sha256
    from privacy.ledger import Ledger
    from trainers.data.prepare import describe_file

    federation = load_federation(home / "federation.yaml")
    for bank in banks:
        text = draft_bank(
            federation, bank=bank.name, base_model=base, train=bank.rows, unit="customer_id", units=bank.units,
            bundle=sha256(build()), coordinator=coordinator,
        )  # fmt: skip
        values = parsed(text) | {"unit": _UNIT}
        write_bytes(bank.file, yaml.safe_dump(values, sort_keys=False).encode())
        with Ledger.create(bank.home / "ledger.db") as ledger:
            ledger.grant("customers", 2 * _TERMS["privacy"]["epsilon"], DELTA, by="the demo's officer")
            ledger.attach("customers", describe_file(bank.rows)["sha256"], str(bank.rows), bank.units)


def _federate(children: Children, home: Path, banks: Sequence[Bank], base: Path, port: int) -> None:
    """Start both sides, and a run; kill a bank in the second round when its vector is on its way, and start it again in the third."""
    children.start(_command("coordinator", "--home", home, "--port", port, name="coordinator"))
    _wait_for(children, home.parent / "logs" / "coordinator.log", "banks reach this side")
    for bank in banks:
        children.start(_of_bank(bank))
    for bank in banks:
        _wait_for(children, home.parent / "logs" / f"{bank.name}.log", "takes part")
    victim, plan = banks[2], [(2, 3, "is killed"), (3, 0, "is started again")]
    with _shown("run", RUN, "--home", home, "--base-model", base) as run:
        while run.poll() is None:
            time.sleep(0.1)
            children.check()
            if plan and _reached(home / "runs" / RUN / "status.json") >= plan[0][:2]:
                *_, what = plan.pop(0)
                if plan:
                    children.kill(victim.name)
                else:
                    children.start(_of_bank(victim))
                print(f"{time.strftime('%H:%M:%S')}    {victim.name} {what}", flush=True)


def _of_bank(bank: Bank) -> Command:
    return _command("bank", bank.file, "--home", bank.home, name=bank.name)


def _reached(status: Path) -> tuple[int, int]:
    """Round and exchange."""
    if not status.exists():
        return 0, -1
    shown: dict[str, Any] = json.loads(status.read_bytes())
    return shown["round"], -1 if shown["exchange"] is None else shown["exchange"]["number"]


def _wait_for(children: Children, log: Path, text: str, seconds: float = 180.0) -> None:
    """Until it says so. Raises ProcessError."""
    until = time.monotonic() + seconds
    while text not in log.read_text(errors="replace"):
        children.check()
        if time.monotonic() > until:
            raise ProcessError(f"{log.stem} has not come up in {seconds:.0f} s", f"{log} says where it is")
        time.sleep(0.2)


def _command(*arguments: object, name: str) -> Command:
    return Command(name, (sys.executable, "-m", "consortium", "federation", *map(str, arguments)))


def _audit(folder: Path, home: Path, banks: Sequence[Bank]) -> None:
    exported = [str(folder / "transcripts" / bank.name) for bank in banks]
    shutil.rmtree(folder / "transcripts", ignore_errors=True)
    (folder / "transcripts").mkdir()
    for bank, path in zip(banks, exported, strict=True):
        _show("export-transcript", path, "--home", bank.home, quiet=True)
    _show("verify-transcripts", *exported, "--home", banks[0].home)
    given = [part for path in exported for part in ("--transcript", path)]
    _show("report", "--home", home, "--run", RUN, *given)
    _show("report", "--home", banks[0].home, *given)


@contextlib.contextmanager
def _shown(*arguments: object, quiet: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A command, its output shown, waited for at the end. Raises ProcessError unless its exit code is 0."""
    told = [str(argument) for argument in arguments]
    if not quiet:
        console.print(f"[dim]$ consortium federation {' '.join(told[:5])}{' ...' if told[5:] else ''}[/]")
    with subprocess.Popen(_command(*told, name="").arguments, stdout=subprocess.DEVNULL if quiet else None) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise ProcessError(f"consortium federation {told[0]} has ended with exit code {process.returncode}", "its last lines say why")


def _show(*arguments: object, quiet: bool = False) -> None:
    with _shown(*arguments, quiet=quiet):
        pass


@contextlib.contextmanager
def _trained_aside(folder: Path, banks: Sequence[Bank], base: Path, test: Path) -> Iterator[list[Future[float]]]:
    """Accuracies, on customers of all banks, of what each makes of its own rows: run on what the federation leaves of the processors."""
    judging = Lock()

    def accuracy(bank: Bank) -> float:
        adapter = _train_alone(folder, bank, base)
        with judging:
            return _accuracy(adapter, base, test)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            yield [pool.submit(accuracy, bank) for bank in banks]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _train_alone(folder: Path, bank: Bank, base: Path) -> Path:
    """What an ordinary private job makes of these rows, of as many steps as a bank takes in all rounds, at the same epsilon."""
    from privacy.ledger import Ledger
    from trainers.data.prepare import describe_file

    run_dir, local, adapter = folder / bank.name, _TERMS["local"], _TERMS["adapter"]
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    with Ledger.create(run_dir / "ledger.db") as ledger:
        ledger.grant("customers", 2 * _TERMS["privacy"]["epsilon"], DELTA)
        ledger.attach("customers", describe_file(bank.rows)["sha256"], str(bank.rows), bank.units)
    config = {
        "name": bank.name,
        "output": str(folder),
        "task": "classify",
        "model": str(base),
        "method": {"lora": adapter | {"train_a": False}},
        "data": {"train": str(bank.rows), "validation_fraction": 0.0, "max_length": local["max_length"], "over_length": "truncate"},
        "train": {
            "max_steps": local["steps"] * _TERMS["rounds"], "global_batch_size": local["batch"], "learning_rate": local["learning_rate"],
            "schedule": "linear", "warmup": 0,
        },
        "tracking": {"tensorboard": False},
        "privacy": {
            "epsilon": _TERMS["privacy"]["epsilon"], "delta": DELTA, "clip_norm": local["clip_norm"], "units": bank.units, "restarts": 0,
            "unit": _UNIT, "ledger": str(run_dir / "ledger.db"),
        },
    }  # fmt: skip
    (run_dir / "config.json").write_text(json.dumps(config))
    with (run_dir / "log").open("wb") as log:
        command = ["nice", "-n", "19", sys.executable, "-m", "trainers", str(run_dir / "config.json")]
        if subprocess.run(command, check=False, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
            raise ProcessError(f"training {bank.name} alone has failed", f"{run_dir / 'log'} says why")
    return run_dir / "adapter"


def _accuracy(adapter: Path, base: Path, test: Path) -> float:
    import torch

    from trainers.config import DataConfig, ModelConfig
    from trainers.evaluate import read_items, score, summarise
    from trainers.model import load_finetuned
    from trainers.worker import quiet

    quiet()
    torch.set_num_threads(1)
    loaded = load_finetuned(adapter, ModelConfig(path=str(base), dtype="float32"), "classify", device=torch.device("cpu"))
    items = read_items(DataConfig(train=[test]), "classify", test, limit=_COMPARED)
    return float(summarise(score(loaded, "classify", items, max_length=_TERMS["local"]["max_length"]))["accuracy"])


def _table(results: dict[str, Any], home: Path, banks: Sequence[Bank], seconds: float) -> None:
    out = Console(highlight=False, soft_wrap=True)
    epsilon = _TERMS["privacy"]["epsilon"]
    table = Table("held-out customers", "accuracy", f"epsilon {epsilon:g} for", box=None, padding=(0, 2))
    table.add_row("federated", f"{results['federated']:.3f}", "each bank's own, at home")
    for bank in banks:
        table.add_row(f"{bank.name} alone", f"{results['alone'][bank.name]:.3f}", f"its own: {bank.units:,}")
    table.add_row("all in one place", f"{results['pooled']:.3f}", f"all: {sum(bank.units for bank in banks):,}")
    out.print(table)
    out.print(f"  adapter  {home / 'runs' / RUN / 'result'}\n  dossier  {home / 'report' / RUN / 'dossier.html'}")
    out.print(f"  of {banks[0].name}   {banks[0].home / 'report' / 'dossier.html'}\n  in {seconds:.0f} s")
