"""A coordinator and four banks in one process: everything is real but the training, which is a few numbers, and the network.

`Loopback` gives the banks their letters at once and keeps its own time, which passes when nothing comes; it can lose a bank, or kill the
coordinator, at any exchange.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from federation import bundle
from federation.config import BankConfig, TrainingConfig, check_federation, load_bank
from federation.rounds import coordinator, letters
from federation.rounds.aggregate import Adapter, Layout, advance, begin, contribution, mean
from federation.rounds.bank import Bank
from federation.rounds.budget import Kind, RoundBudget
from federation.rounds.coordinator import Reply
from federation.rounds.letters import Close, Invitation
from federation.rounds.local import Task, Work
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.secagg.messages import Message
from tests.federation.enrolment import BANKS, Federation

RUN = "intents-1"
MODEL = "a" * 64
BUNDLE = bundle.sha256(bundle.build())
INVITE, UPDATE, CLOSE = 0, 2, 7
TRAINING: dict[str, Any] = {
    "task": "classify",
    "base_model": {"name": "tiny", "sha256": MODEL},
    "adapter": {"rank": 2, "alpha": 4, "targets": "all-linear"},
    "labels": ["card", "loan"],
    "local": {"steps": 3, "batch": 10, "learning_rate": 0.1, "clip_norm": 1.0, "max_length": 8},
    "rounds": 2,
    "spare_rounds": 20,
    "cohort": 4,
    "quorum": 3,
    "threshold": 3,
    "aggregation": {"method": "ffa", "momentum": 0.5, "most_units": 2000},
    "privacy": {"epsilon": 8, "epsilon_round": 4, "delta": 1e-5},
    "encoding": {"clip": 4.0, "fraction_bits": 26},
    "evaluation": "noised",
    "metrics": ["accuracy"],
}
POLICY: dict[str, Any] = {
    "base_models": [MODEL],
    "bundles": [BUNDLE],
    "tasks": [{"task": "classify", "labels": ["card", "loan"], "max_length": 8}],
    "aggregation": ["ffa", "fedsvd", "fedavg"],
    "adapters": [TRAINING["adapter"]],
    "least_members": 3,
    "least_in_sum": 3,
    "least_honest_in_sum": 2,
    "least_threshold": 3,
    "most_clip": 4.0,
    "most_rounds": 3,
    "most_attempts": 20,
    "most_epsilon_round": 4,
    "most_epsilon": 50,
    "evaluation": "noised",
    "metrics": ["accuracy"],
    "hours": None,
}
UNITS = {"alder": 2000, "birch": 1500, "cedar": 1000, "dogwood": 500}
START = {
    "layer.lora_A.weight": np.arange(10, dtype=np.float32).reshape(2, 5) / 10,
    "layer.lora_B.weight": np.zeros((4, 2), np.float32),
    "head.weight": np.ones((2, 3), np.float32),
}


class Killed(BaseException):
    """As by SIGKILL: nothing runs after it but what closes files."""


@dataclass
class Toy:
    """What a bank trains with: an update that is the bank's own in every attempt; and what it was asked."""

    bank: str
    ledger: Path
    asked: list[tuple[int, int, str]] = field(default_factory=list)
    fails: BaseException | None = None
    """What it raises when it is asked next"""
    fails_late: bool = False
    """After its steps have been charged"""

    def __call__(self, task: Task) -> Work:
        self.asked.append((task.round, task.attempt, task.kind))
        if self.fails and not self.fails_late:
            self._fail()
        if task.budget:
            with Ledger.open(self.ledger) as ledger:
                if task.budget.evaluation:
                    ledger.reservation(task.budget.evaluation).charge()
                if task.budget.training and task.budget.plan:
                    ledger.reservation(task.budget.training).charge(task.budget.plan.steps)
        if self.fails:
            self._fail()
        count = UNITS[self.bank] / 8000
        metrics = (0.8 * count, count) if task.training.metrics else ()
        trains_a = task.training.aggregation.method == "fedavg"
        moved = {
            name: tensor + step(self.bank, task.round, task.attempt, name).reshape(tensor.shape)
            if trains_a or "lora_A" not in name
            else tensor
            for name, tensor in task.adapter.items()
        }
        return Work(moved if task.kind == "train" else task.adapter, metrics, {"steps": 3})

    def _fail(self) -> None:
        error, self.fails = self.fails, None
        assert error
        raise error


def step(bank: str, round: int, attempt: int, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    seed = int.from_bytes(hashlib.sha256(f"{bank} {round} {attempt} {name}".encode()).digest()[:4], "big")
    return np.random.default_rng(seed).normal(size=START[name].size).astype(np.float32)


def in_the_clear(world: "World", rounds: list[dict[str, Any]]) -> Adapter:
    """What the run makes of the same updates, added up by anybody."""
    training = world.training
    layout, clip = Layout.of(START, training.aggregation.method), training.encoding.clip
    state = begin(layout, START)
    for round in rounds:
        deltas = {
            bank: np.concatenate([step(bank, round["round"], round["attempt"], name) for name in layout.sent]) for bank in round["banks"]
        }
        total = sum(contribution(delta, clip, UNITS[bank] / 2000).astype(np.float64) for bank, delta in deltas.items())
        state = advance(layout, state, mean(layout, np.asarray(total), clip).delta, training.aggregation.momentum)
    return state.adapter


def planned(training: TrainingConfig, bank: BankConfig, kind: Kind) -> RoundBudget:
    """In place of `plan_round`, whose calibration takes seconds: some noise."""
    plan = PrivacyPlan(bank.units, training.local.batch, training.local.steps, 0, training.local.clip_norm, 8.0, 1e-5)
    return RoundBudget(plan if kind == "train" else None, None, 20.0 if training.evaluation == "noised" else None, None, bank.units)


@dataclass
class World:
    """The folders, the banks that are open, and what is done to them."""

    made: Federation
    toys: dict[str, Toy]
    banks: dict[str, Bank] = field(default_factory=dict)
    now: Callable[[], datetime] = datetime.now

    @property
    def run_folder(self) -> Path:
        return self.made.folder / "coordinator" / "runs" / RUN

    def bank_folder(self, bank: str) -> Path:
        return self.made.folder / bank

    def config(self, bank: str) -> BankConfig:
        return load_bank(self.bank_folder(bank) / "bank.yaml")

    def allow(self, bank: str, **changes: Any) -> None:
        """Other words in its bank.yaml."""
        path = self.bank_folder(bank) / "bank.yaml"
        written = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(written | {"policy": written["policy"] | changes}))

    def ask(self, **changes: Any) -> None:
        """Other words in federation.yaml."""
        path = self.made.folder / "coordinator" / "federation.yaml"
        written = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(written | {"training": written["training"] | changes}))

    def bank(self, name: str) -> Bank:
        if name not in self.banks:
            self.banks[name] = Bank(self.bank_folder(name), lambda: self.config(name), MODEL, self.toys[name], lambda: self.now())
        return self.banks[name]

    def answer(self, name: str, request: bytes) -> bytes:
        """A bank's, which is started again as often as it dies."""
        while True:
            try:
                return self.bank(name).on(request)
            except Killed:
                self.restart(name)

    def restart(self, name: str) -> None:
        """Killed and started again: only its folder is left."""
        if name in self.banks:
            self.banks.pop(name).close()

    def close(self) -> None:
        for name in (*self.banks,):
            self.restart(name)

    @property
    def training(self) -> TrainingConfig:
        path = self.made.folder / "coordinator" / "federation.yaml"
        training = check_federation(yaml.safe_load(path.read_text()), source=str(path)).training
        assert training
        return training

    def held(self, bank: str) -> list[tuple[str, int, bool]]:
        """Of each reservation the attempt, the steps charged and whether it is closed."""
        with Ledger.open(self.config(bank).ledger) as ledger:
            return [(each.run, each.charged, each.closed) for each in ledger.book().reservations("retail")]

    def invite(self, **changes: Any) -> bytes:
        """What the coordinator may send at the beginning of a run."""
        roster = self.made.registry.in_force
        assert roster
        content = save(START)
        invitation = Invitation(
            federation=roster.federation,
            version=roster.version,
            roster=roster.hash,
            run=RUN,
            round=1,
            attempt=1,
            before=0,
            training=self.training,
            bundle=BUNDLE,
            model=hashlib.sha256(content).digest(),
            nonce=bytes(16),
            deadline=0,
        )
        return letters.seal(invitation.model_copy(update=changes).signed(self.made.registry.identity), content)


def make_world(made: Federation) -> World:
    made.sign(made.propose())
    home = made.folder / "coordinator"
    federation = {"name": "orchard", "hosts": ["localhost"], "colluders": 1, "training": TRAINING}
    (home / "federation.yaml").write_text(yaml.safe_dump(federation))
    (home / "runs" / RUN).mkdir(parents=True, mode=0o700)
    (home / "runs" / RUN / "start.safetensors").write_bytes(save(START))
    for name in BANKS:
        bank = {
            "bank": name,
            "base_model": "model",
            "data": {"train": "rows.jsonl"},
            "unit": "record",
            "units": UNITS[name],
            "population": "retail",
            "ledger": "bank.ledger",
            "policy": POLICY,
        }
        (made.folder / name / "bank.yaml").write_text(yaml.safe_dump(bank))
        with Ledger.create(made.folder / name / "bank.ledger") as ledger:
            ledger.grant("retail", 10, 1e-5)
    return World(made, {name: Toy(name, made.folder / name / "bank.ledger") for name in BANKS})


@dataclass
class Loopback:
    """A coordinator.Transport."""

    world: World
    lose: Callable[[str, int], bool] = lambda bank, exchange: False
    """Whether the bank is gone from this exchange on, until the attempt is over; its letter does not arrive"""
    kill: Callable[[str, int], bool] = lambda bank, exchange: False
    """Whether the coordinator dies as it sends this"""
    restart: bool = False
    """Whether every bank is killed after every answer, and before it has left"""
    echo: bool = False
    """Whether every letter comes twice, every reply once more and again with the next, and replies in another order"""
    change: Callable[[str, bytes], bytes] = lambda bank, content: content
    """What becomes of a letter on its way"""
    lie: Callable[[str, bytes], bytes] = lambda bank, content: content
    """And of an answer, before it leaves the bank"""
    clock: float = 0.0
    gone: set[str] = field(default_factory=set)
    replies: list[Reply] = field(default_factory=list)
    last: list[Reply] = field(default_factory=list)
    sent: list[tuple[str, int]] = field(default_factory=list)

    def reachable(self) -> frozenset[str]:
        return frozenset(self.world.toys) - self.gone

    def send(self, bank: str, content: bytes) -> None:
        exchange = exchange_of(content)
        if self.kill(bank, exchange):
            raise Killed
        if self.lose(bank, exchange):
            self.gone.add(bank)
        self.sent.append((bank, exchange))
        if bank in self.gone:
            self.replies.append(Reply(bank, None, "gone"))
            return
        content = self.change(bank, content)
        answer = self.lie(bank, self.world.answer(bank, content))
        if self.restart:
            self.world.restart(bank)
            again = self.world.bank(bank).on(content)
            assert again == answer
        if self.echo:
            self.replies.insert(0, Reply(bank, self.world.bank(bank).on(content), ""))
        self.replies.insert(0, Reply(bank, answer, ""))

    def receive(self, timeout: float) -> list[Reply]:
        if not self.replies:
            self.clock += timeout
        taken, self.replies = self.replies, []
        if self.echo:
            taken, self.last = self.last + taken, taken
        return taken

    def forget(self) -> None:
        self.replies, self.last, self.gone = [], [], set()

    def run(self) -> None:
        coordinator.run(self.world.made.folder / "coordinator", RUN, self, lambda: self.clock)


def exchange_of(content: bytes) -> int:
    letter, body = letters.request(content)
    match letter:
        case Invitation():
            return INVITE
        case Close():
            return CLOSE
    return Message.from_bytes(body).exchange
