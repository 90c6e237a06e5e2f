"""A federation in one process, for planning: the coordinator and the banks as they are, with keys, roster, policies, ledgers and vaults
of their own, and nothing between them but memory. What a model makes of the rows, and what it costs in epsilon, is what it would be.

    coordinator/              the coordinator's folder; its one run is called RUN
    banks/NAME/               a bank's, with bank.yaml, rows.jsonl and ledger.db
    jobs/NAME/RUN/            its training job: configuration, prepared rows, events

Seconds are this machine's, which does the work of all, and no bank is late.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

import yaml

from cluster.job import write_job
from federation import bundle, drafts
from federation.base_model import base_model_hash
from federation.config import BankConfig, FederationConfig, Timeouts, TrainingConfig, check_federation, load_bank
from federation.dossier.report import budget_of
from federation.enrolment.home import Home
from federation.enrolment.member import Known
from federation.enrolment.registry import Registry
from federation.enrolment.roster import SignedRoster
from federation.errors import FactsError, FolderError
from federation.files import read, write, write_bytes
from federation.partition import Share
from federation.rounds import coordinator
from federation.rounds.aggregate import Adapter
from federation.rounds.bank import Bank
from federation.rounds.budget import plan_round
from federation.rounds.coordinator import Reply
from federation.rounds.journal import Journal
from federation.rounds.local import Task, Train, Work, job_of, order_of, work_of
from federation.sides import begin_run
from privacy.ledger import Ledger
from privacy.secagg.fixed_point import fit
from privacy.secagg.rules import least_threshold
from trainers.data.prepare import describe_file
from trainers.orders import Evaluation, Order

RUN = "simulation"
Take = Callable[[Path, bytes], bytes]
"""Answers a training job's order: trainers.rounds.Rounds.take, wherever it runs"""
_PATIENCE = 1e7  # seconds: a machine that does the work of all banks is no reason for one to be late
_MOST = 2.0**40  # examples that an evaluation can count


@dataclass(frozen=True)
class Spending:
    """What a bank has brought, and what it has cost."""

    bank: str
    rows: int
    units: int
    epsilon: float | None
    """The ledger's; None without privacy"""


def fitted(config: FederationConfig, banks: int) -> tuple[FederationConfig, list[str]]:
    """The federation with so many banks, all of them in every round; and what had to be changed for it, each in a line.

    Raises FactsError without a training block, or with fewer banks than it takes; ConfigError for more than it can have.
    """
    if (training := config.training) is None:
        raise FactsError(f"{config.name} has no training block yet", "consortium federation draft-training writes one")
    if banks < config.colluders + 2:
        raise FactsError(f"{banks} banks of which {config.colluders} may collude: expected {config.colluders + 2} or more",
                         "or a sum could be one honest bank's update")  # fmt: skip
    least = least_threshold(banks, config.colluders)
    threshold = training.threshold if least <= training.threshold <= banks else least
    encoding = training.encoding
    bits = min(encoding.fraction_bits, fit(banks, encoding.clip, encoding.modulus_bits).fraction_bits)
    wanted: dict[str, Any] = {
        "cohort": banks,
        "threshold": threshold,
        "quorum": min(banks, max(threshold, training.quorum)),
        "encoding": encoding.model_copy(update={"fraction_bits": bits}),
        "timeouts": Timeouts(**dict.fromkeys(Timeouts.model_fields, _PATIENCE)),
    }
    changes = [
        f"{name}: {getattr(training, name)} in federation.yaml, {wanted[name]} for {banks} banks"
        for name in ("cohort", "quorum", "threshold")
        if getattr(training, name) != wanted[name]
    ]
    if bits != encoding.fraction_bits:
        changes.append(f"encoding.fraction_bits: {encoding.fraction_bits} in federation.yaml, {bits}, or {banks} updates could overflow")
    values = config.model_copy(update={"training": training.model_copy(update=wanted)}).model_dump(mode="json")
    return check_federation(values, source=f"{config.name} with {banks} banks"), changes


def enrol(
    home: Path, config: FederationConfig, base_model: Path, shares: Sequence[Share], *, unit: str | None, test: Path | None, seed: int
) -> None:
    """Everybody's folders, in a new one: all have signed the roster, and the run is ready to begin, with an adapter by the seed.

    A bank's policy allows what the federation asks, and no more; its budget is what the federation's privacy costs. `test` is public.
    Raises ConsortiumError.
    """
    assert config.training is not None
    if home.exists():
        raise FolderError(f"{home}: is there already", "name a new folder: nothing of yours is to be written over")
    if config.training.evaluation == "public_data" and test is None:
        raise FactsError("evaluation: public_data, and no public rows", "name them with --test")
    names = [f"bank-{number:0{len(str(len(shares)))}d}" for number in range(1, len(shares) + 1)]
    try:
        registry = _sign(home, config, names)
        begin_run(home / "coordinator", RUN, base_model, seed)
        for name, share in zip(names, shares, strict=True):
            _furnish(home / "banks" / name, registry.config, base_model, share, unit, test)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)  # or the next try would find it there
        raise


def _sign(home: Path, config: FederationConfig, names: Sequence[str]) -> Registry:
    folder, now = home / "coordinator", datetime.now(UTC)
    Registry.create(folder, config.name, config.hosts, now)
    write_bytes(folder / "federation.yaml", yaml.safe_dump(config.model_dump(mode="json")).encode())
    registry, homes = Registry(folder), {name: Home(home / "banks" / name) for name in names}
    keys = {name: bank.make_keys(name, rotate=False) for name, bank in homes.items()}
    told = Known(fingerprints={name: each.member.fingerprint for name, each in keys.items()})
    for bank in homes.values():
        registry.approve(bank.request(), told, now)
    signed = read(SignedRoster, registry.propose()[0])
    for _ in range(2):  # the first time for the signatures, the second to have them all
        for bank in homes.values():
            signed = bank.sign(signed, told)
    write(home / "roster.json", signed)
    registry.gather([home / "roster.json"])
    return registry


def _furnish(folder: Path, federation: FederationConfig, base_model: Path, share: Share, unit: str | None, test: Path | None) -> None:
    """A bank's rows, bank.yaml and ledger."""
    assert federation.training is not None
    rows, training = folder / "rows.jsonl", federation.training
    write_bytes(rows, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in share.rows).encode())
    text = drafts.draft_bank(
        federation, bank=folder.name, base_model=base_model.resolve(), train=rows.resolve(), unit=unit or "record", units=share.units,
        bundle=bundle.sha256(bundle.build()), coordinator=f"{federation.hosts[0]}:9443",
    )  # fmt: skip
    values = drafts.parsed(text)
    if training.evaluation == "public_data":
        values["data"]["validation"] = str(test and test.resolve())
    write_bytes(folder / "bank.yaml", yaml.safe_dump(values, sort_keys=False).encode())
    if training.privacy is not None:
        bank = load_bank(folder / "bank.yaml")
        with Ledger.create(bank.ledger) as ledger:
            ledger.grant(bank.population, training.privacy.epsilon, training.privacy.delta)
            ledger.attach(bank.population, describe_file(rows)["sha256"], str(rows), share.units)
        plan_round(training, bank, "train")  # once for all banks of one size, before they plan at the same time


def run(home: Path, take: Take, workers: int) -> None:
    """The run to its end, with so many banks at work at once. Raises RunFailed, ConsortiumError."""
    banks = banks_of(home)
    base_model = base_model_hash(next(iter(banks.values())).base_model)
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(_open(home, bank, base_model, take)) for name, bank in banks.items()}
        transport = stack.enter_context(_Memory(opened, max(workers, os.cpu_count() or 1)))
        coordinator.run(home / "coordinator", RUN, transport)


def _open(home: Path, bank: BankConfig, base_model: str, take: Take) -> Bank:
    folder = home / "banks" / bank.bank
    return Bank(folder, partial(load_bank, folder / "bank.yaml"), base_model, trainer_of(home, bank, take))


def accuracies(home: Path, take: Take, test: Path, *, every: int = 1) -> dict[int, float]:
    """Of the global model on public rows after every so many rounds and after the last, by round; 0 is what the run began with."""
    judge, last = judge_of(home, take, test), training_of(home).rounds
    with Journal(home / "coordinator" / "runs" / RUN) as journal:
        return {round: judge(journal.adapter(round)) for round in (*range(0, last, every), last)}


def judge_of(home: Path, take: Take, test: Path) -> Callable[[Adapter], float]:
    """The accuracy of adapters on public rows: of classes, or of tokens."""
    bank, training = next(iter(banks_of(home).values())), training_of(home)
    judged = training.model_copy(update={"evaluation": "public_data", "metrics": ["accuracy"]})
    data = bank.data.model_copy(update={"validation": [test.resolve()]})
    spec = job_of("test", judged, bank.model_copy(update={"data": data, "unit": "record"}), home.resolve() / "jobs")
    write_job(spec)

    def judge(adapter: Adapter) -> float:
        order = Order(1, 1, 0, training.local.learning_rate, adapter, evaluation=Evaluation(_MOST))
        right, count = work_of(Task("test", 1, 1, "evaluate", judged, adapter, None), take(spec.run_dir, order.pack())).metrics
        return right / count

    return judge


def spendings(home: Path) -> list[Spending]:
    """Of all banks, as they stand."""
    found = []
    for name, bank in banks_of(home).items():
        rows = (home / "banks" / name / "rows.jsonl").read_bytes().count(b"\n")
        epsilon = budget_of(bank)["proven"] if bank.ledger.exists() else None
        found.append(Spending(name, rows, bank.units, epsilon))
    return found


@contextlib.contextmanager
def trainings(workers: int, address: str | None, home: Path) -> Iterator[Take]:
    """Whoever trains: so many Ray workers, each with one model for all banks, or for 0 of them this process. Raises ConsortiumError."""
    from trainers.rounds import Rounds

    if workers:
        from cluster.pool import pooled

        with pooled(Rounds, "take", workers, address, home.resolve()) as take:
            yield take
        return
    rounds = Rounds()
    with ThreadPoolExecutor(1, "training") as alone:
        yield lambda run_dir, order: alone.submit(rounds.take, run_dir, order).result()


def trainer_of(home: Path, bank: BankConfig, take: Take) -> Train:
    """What a bank trains with."""

    def train(task: Task) -> Work:
        spec = job_of(task.run, task.training, bank, home.resolve() / "jobs" / bank.bank)
        write_job(spec)
        return work_of(task, take(spec.run_dir, order_of(task, bank).pack()))

    return train


def banks_of(home: Path) -> dict[str, BankConfig]:
    """By name."""
    return {path.name: load_bank(path / "bank.yaml") for path in sorted((home / "banks").iterdir())}


def training_of(home: Path) -> TrainingConfig:
    """What is asked of them."""
    training = Registry(home / "coordinator").config.training
    assert training is not None
    return training


class _Memory:
    """A coordinator.Transport to banks of this process. They answer in threads, each bank one letter after the other."""

    def __init__(self, banks: Mapping[str, Bank], threads: int) -> None:
        self._banks, self._locks = banks, {name: Lock() for name in banks}
        self._threads = ThreadPoolExecutor(threads, "bank")
        self._replies: SimpleQueue[Reply] = SimpleQueue()

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def reachable(self) -> frozenset[str]:
        return frozenset(self._banks)

    def send(self, bank: str, content: bytes) -> None:
        self._threads.submit(self._answer, bank, content, self._replies)

    def _answer(self, bank: str, content: bytes, replies: "SimpleQueue[Reply]") -> None:
        try:
            with self._locks[bank]:
                replies.put(Reply(bank, self._banks[bank].on(content), ""))
        except Exception as error:  # a bank that cannot even write down what went wrong
            replies.put(Reply(bank, None, repr(error)))

    def receive(self, timeout: float) -> list[Reply]:
        found: list[Reply] = []
        with contextlib.suppress(Empty):
            found.append(self._replies.get(timeout=max(0.0, timeout)))
            while True:
                found.append(self._replies.get_nowait())
        return found

    def forget(self) -> None:
        self._replies = SimpleQueue()  # what comes late goes to the old one
