"""What a federation is, `federation.yaml`, the same for all; and what a bank brings to it, `bank.yaml`, its own affair.

A misspelt field is an error with the nearest name. What cannot work, or would promise nothing, is refused with its reason before any bank
is asked. Imports no torch.
"""

import hashlib
import ipaddress
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cluster.job import ClusterConfig, read_yaml
from federation.enrolment.member import Name
from federation.institution import arithmetic
from federation.policy import AdapterShape, Evaluation, Method, Metric, Policy, Proposal, Sha256, TaskShape
from privacy.errors import PlanError
from trainers.config import DataConfig, Part, Task, UnitColumn, validate

_HINT = "`consortium federation init DIR` writes one"
_IN_VECTOR: dict[Metric, tuple[str, ...]] = {"accuracy": ("accuracy", "count")}


def _check_host(host: str) -> str:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"hosts: {host}: a name or an address, without a port") from None
    return host


Host = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9.:-]+$", description="names or addresses of a machine, as in fed.example.com"),
    AfterValidator(_check_host),
]
Address = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$", description="HOST:PORT, as in fed.example.com:9443")
]

_NEED_EACH_UPDATE = {
    "flora": "stacks the banks' factors",
    "fedex": "multiplies each bank's factors",
    "flexlora": "multiplies each bank's factors",
    "krum": "compares the banks' updates",
    "median": "sorts the banks' updates",
    "trimmed_mean": "sorts the banks' updates",
}


def _refuse_what_needs_each_update(method: Any) -> Any:
    if method in _NEED_EACH_UPDATE:
        raise ValueError(
            f"training.aggregation.method: {method} {_NEED_EACH_UPDATE[method]}, of which only the sum is seen: use ffa, fedsvd or fedavg"
        )
    return method


def _refuse_institution(level: Any) -> Any:
    if level == "institution":
        raise ValueError(f"training.privacy.level: institution: {arithmetic(1.0, 1_000_000, 10)}: use customer")
    return level


class BaseModelConfig(Part):
    """The model that all banks have, each in a directory of its own."""

    name: str
    """For the reader; what counts is the hash"""
    sha256: Sha256


class AggregationConfig(Part):
    """How updates become the next adapter: see federation/rounds/aggregate.py."""

    method: Annotated[Method, BeforeValidator(_refuse_what_needs_each_update)] = "ffa"
    momentum: float = Field(0.0, ge=0, lt=1)
    """The server's, beta of FedAvgM"""
    most_units: int | None = Field(None, ge=1)
    """A bank weighs what its declared units are of this, at most 1; null weighs all banks alike."""


class EncodingConfig(Part):
    """How an update becomes integers that can be masked: see privacy/secagg/fixed_point.py."""

    clip: float = Field(gt=0)
    """Most that a bank's update may measure (L2)"""
    fraction_bits: int
    modulus_bits: int = Field(32, ge=2, le=32)


class PrivacyFloor(Part):
    """The least that every bank promises its customers; a bank may promise more."""

    epsilon: float = Field(gt=0)
    """What the whole run may cost a customer, at most"""
    epsilon_round: float = Field(gt=0)
    """And a round of it"""
    delta: float = Field(gt=0, lt=1)
    level: Annotated[Literal["customer"], BeforeValidator(_refuse_institution)] = "customer"
    """Whom the noise hides; to hide whole banks is refused: see federation/institution.py"""


class Timeouts(Part):
    """Seconds the coordinator waits for the banks' answers, exchange by exchange; see privacy/secagg/client.py for what they are."""

    keys: float = Field(300, gt=0)
    shares: float = Field(300, gt=0)
    update: float = Field(7200, gt=0)
    """Training included"""
    view: float = Field(300, gt=0)
    reveal: float = Field(300, gt=0)
    receipt: float = Field(300, gt=0)


class LocalConfig(Part):
    """What a bank does with its own rows in a round."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    """Units a step, in expectation; of a bank that has fewer, all. Without privacy: examples"""
    learning_rate: float = Field(gt=0)
    """Of the first round"""
    schedule: Literal["constant", "linear"] = "linear"
    """Of the learning rate, round by round; linear falls by as much after each, to learning_rate / rounds in the last"""
    moments: Literal["auto", "kept", "new"] = "auto"
    """Adam's: kept at the bank from its round before, or new in each. auto: kept, but new with fedsvd, which turns their coordinates"""
    clip_norm: float = Field(gt=0)
    """Most that a unit's gradient may measure (L2, over all trained parameters); without privacy, a step's"""
    max_length: int = Field(ge=2)
    """Tokens of an example; longer ones are cut"""


class TrainingConfig(Part):
    """What banks train together, and on which terms. Nothing has a default that privacy rests on."""

    task: Task
    base_model: BaseModelConfig
    adapter: AdapterShape
    labels: list[str] = Field(default_factory=list)
    """For classify: the classes in the order of the head, public and the same for all banks"""
    local: LocalConfig
    rounds: int = Field(ge=1)
    spare_rounds: int = Field(1, ge=0)
    """Rounds that failed after training, for which every bank's budget is calibrated too"""
    attempts: int = Field(3, ge=1)
    """At a round, before the run ends"""
    cohort: int = Field(ge=1)
    """n: banks that take part in a round, at most"""
    quorum: int = Field(ge=1)
    """Banks without which no round begins"""
    threshold: int = Field(ge=1)
    """t: banks that have to be left to reveal a sum; so many updates are in it at least"""
    secure_aggregation: bool = True
    """False shows the coordinator every bank's update. For measurements, where banks allow sums of one."""
    aggregation: AggregationConfig = AggregationConfig()
    privacy: PrivacyFloor | None
    """Null promises customers nothing."""
    encoding: EncodingConfig
    evaluation: Evaluation
    """Of each round's model by the banks: noised results on private rows, results on public data, or off"""
    metrics: list[Metric] = Field(default_factory=list)
    """What evaluations report"""
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _check_combinations(self) -> "TrainingConfig":
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        _refuse(
            {
                f"training.privacy: a round may cost {self.privacy and self.privacy.epsilon_round}, more than epsilon for the whole run": (
                    self.privacy is not None and self.privacy.epsilon_round > self.privacy.epsilon
                ),
                f"training.metrics: {', '.join(self.metrics)}: with evaluation: off there are none: leave them out": (
                    bool(self.metrics) and self.evaluation == "off"
                ),
                "training.local.moments: kept: fedsvd turns the coordinates that they are of: leave it out": (
                    self.local.moments == "kept" and self.aggregation.method == "fedsvd"
                ),
                f"training.metrics: none, and evaluation: {self.evaluation}: say which, as in [accuracy], or set evaluation: off": (
                    not self.metrics and self.evaluation != "off"
                ),
                "training.evaluation: noised needs training.privacy, of which it takes a share: set that, or evaluation: off": (
                    self.evaluation == "noised" and self.privacy is None
                ),
                "training.labels: two or more are needed for task: classify: banks' heads must have the same classes in the same order": (
                    self.task == "classify" and len(self.labels) < 2
                ),
                f"training.labels: task: {self.task} has none: leave them out": self.task != "classify" and bool(self.labels),
                f"training.labels: {', '.join(twice)}: more than once": bool(twice),
            }
        )
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of the numbers that come with a bank's update: "accuracy" is a sum over held-out units and "count" their number."""
        return tuple(name for metric in self.metrics for name in _IN_VECTOR[metric])

    def learning_rate(self, round: int) -> float:
        """Of a round's steps."""
        passed = (round - 1) / self.rounds if self.local.schedule == "linear" else 0.0
        return self.local.learning_rate * (1 - passed)

    @property
    def keeps_moments(self) -> bool:
        return self.local.moments != "new" and self.aggregation.method != "fedsvd"

    @property
    def hash(self) -> bytes:
        """SHA-256 of all of it: what a session's header names."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).digest()

    def proposal(self, bundle: str, colluders: int) -> Proposal:
        """What a bank is asked for in each round, by the code of this hash, under a roster that reckons with so many colluders."""
        return Proposal(
            base_model=self.base_model.sha256,
            bundle=bundle,
            task=TaskShape(task=self.task, labels=self.labels, max_length=self.local.max_length),
            aggregation=self.aggregation.method,
            adapter=self.adapter,
            members=self.quorum,
            in_sum=self.threshold if self.secure_aggregation else 1,
            colluders=colluders,
            threshold=self.threshold,
            clip=self.encoding.clip,
            rounds=self.rounds,
            epsilon_round=self.privacy.epsilon_round if self.privacy else math.inf,
            evaluation=self.evaluation,
            metrics=tuple(self.metrics),
        )


class FederationConfig(Part):
    """A federation and what it is for."""

    name: Name
    hosts: list[Host] = Field(min_length=1)
    """Names and addresses under which banks reach the coordinator; in its certificate."""
    colluders: int = Field(1, ge=0)
    """c: how many banks may tell the coordinator all they know without another's update coming to light. It takes c + 2 banks at least."""
    certificate_days: int = Field(90, ge=1, le=825)
    """How long certificates hold; `consortium federation renew` makes new ones for the same keys."""
    training: TrainingConfig | None = None
    """Written when it is known; banks can be enrolled before."""

    @model_validator(mode="after")
    def _check_training(self) -> "FederationConfig":
        if self.training is not None:
            _check_session(self.training, self.colluders)
        return self


class BankConfig(Part):
    """A bank's side. It stays at the bank."""

    bank: Name
    """In the roster"""
    base_model: Path
    """The directory where the bank has the federation's base model"""
    data: DataConfig
    unit: Literal["record"] | UnitColumn
    """Whose data are protected: every record for itself, or all records of a person."""
    units: int = Field(ge=1)
    """How many there are at most, declared and public"""
    population: str
    """The customers' name in the ledger"""
    ledger: Path
    cluster: ClusterConfig = ClusterConfig()
    coordinator: Address | None = None
    """Where its gateway listens; simulations have none"""
    policy: Policy


def _refuse(refused: dict[str, bool]) -> None:
    if found := [message for message, applies in refused.items() if applies]:
        raise ValueError("; ".join(found))


def _check_session(training: TrainingConfig, c: int) -> None:
    """That a sum of the banks' updates can be had, keeps what it promises and is right."""
    from privacy.secagg.fixed_point import FixedPoint  # numpy and scipy, which enrolling banks does without
    from privacy.secagg.rules import least_threshold

    n, t, quorum, encoding = training.cohort, training.threshold, training.quorum, training.encoding
    _refuse(
        {
            f"training.cohort: {n} banks of which {c} may collude: expected {c + 2} or more (n >= c + 2), "
            "or a sum could be one honest bank's update": n < c + 2,
            f"training.threshold: {t} of {n} banks of which {c} may collude: expected {least_threshold(n, c)} or more (2t > n + c), "
            "or the coordinator could unmask a bank": t < least_threshold(n, c),
            f"training.quorum: {quorum}: expected {t} (the threshold) to {n} (the cohort)": not t <= quorum <= n,
        }
    )
    try:
        FixedPoint(n, encoding.clip, encoding.fraction_bits, encoding.modulus_bits)
    except PlanError as error:
        raise ValueError(f"training.encoding: {error.message}: {error.hint}") from error


def load_federation(path: Path) -> FederationConfig:
    """Raises ConfigError."""
    return check_federation(read_yaml(path, _HINT), source=str(path))


def check_federation(values: Mapping[str, Any], *, source: str, hint: str = _HINT) -> FederationConfig:
    """Raises ConfigError."""
    return validate(FederationConfig, values, source=source, hint=hint)


def load_bank(path: Path) -> BankConfig:
    """Relative paths in it are taken from its folder. Raises ConfigError."""
    hint = "a bank.yaml has the bank's name, data, unit, population, ledger and policy"
    config, folder = validate(BankConfig, read_yaml(path, hint), source=str(path), hint=hint), path.resolve().parent
    sides = {side: [folder / file for file in getattr(config.data, side)] for side in ("train", "validation")}
    return config.model_copy(
        update={
            "base_model": folder / config.base_model.expanduser(),
            "ledger": folder / config.ledger.expanduser(),
            "data": config.data.model_copy(update=sides),
        }
    )
