"""What a bank allows, whoever asks: its word is law on its own machine.

Each rule compares one thing that is asked with what the bank's `policy` block says. What it forbids is a value, to be logged at the bank
and sent to the coordinator: nothing crashes, nothing leaves. Whether the roster, the header and the ledger allow a round is checked
elsewhere, and again; a policy only ever forbids more.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from trainers.config import Part, Task

Method = Literal["ffa", "fedsvd", "fedavg"]
"""How updates become the next adapter: see rounds/aggregate.py."""
Metric = Literal["accuracy"]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$"), Field(description="a SHA-256, 64 hexadecimal digits")]
Evaluation = Annotated[
    Literal["off", "public_data", "noised"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML 1.1 takes off for false
    Field(description="noised, public_data or off"),
]
_HOURS = "^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"


class AdapterShape(Part):
    """Of the low-rank adapter that all banks train (Hu et al. 2021); the same for all."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1), AfterValidator(sorted)] = Field(
        description="all-linear or a list of module names"
    )


class TaskShape(Part):
    """What is learnt. Rows that do not fit it cannot be trained on, so that whoever may vary it can ask which rows there are."""

    task: Task
    labels: list[str] = Field(default_factory=list)
    """For classify: the classes in the order of the head"""
    max_length: int = Field(ge=2)
    """Tokens of an example"""


class Policy(Part):
    """The `policy` block of bank.yaml. There are no defaults: what a bank allows has been said by its officer."""

    base_models: list[Sha256]
    """Hashes of base models the bank will load"""
    bundles: list[Sha256]
    """Hashes of Flower bundles the bank will run"""
    tasks: list[TaskShape]
    aggregation: list[Method]
    adapters: list[AdapterShape]
    least_members: int = Field(ge=1)
    """Banks a round must begin with"""
    least_in_sum: int = Field(ge=1)
    """Banks whose updates are in any sum that is revealed; 1 lets the coordinator see this bank's own"""
    least_honest_in_sum: int = Field(ge=0)
    """Those of them that do not collude"""
    least_threshold: int = Field(ge=1)
    most_clip: float = Field(gt=0)
    """The greatest L2 norm of an update that leaves"""
    most_rounds: int = Field(ge=1)
    """Of a run"""
    most_attempts: int = Field(ge=1)
    """At a run's rounds that this bank answers: in each of them a vector may leave it"""
    most_epsilon_round: float | None = Field(gt=0)
    """What a round may cost a customer, at a delta up to the one granted; null allows any, and training without privacy"""
    most_epsilon: float | None = Field(gt=0)
    """What all that was ever charged to the population may come to, this round included; null allows any"""
    evaluation: Evaluation
    """The one kind that is allowed beside none: noised, of private rows, or exact, of rows that the officer vouches are public"""
    metrics: list[Metric]
    hours: Annotated[str, StringConstraints(pattern=_HOURS)] | None = Field(description="two times of day, as in 20:00-06:00, or null")
    """When the bank takes part, in its own time, over midnight where the second time is the earlier; null is always"""


@dataclass(frozen=True)
class Proposal:
    """What a coordinator asks of a bank for a round."""

    base_model: str
    bundle: str
    task: TaskShape
    aggregation: Method
    adapter: AdapterShape
    members: int
    """Banks the round begins with at least"""
    in_sum: int
    """Banks a revealed sum holds at least: the threshold, or 1 without secure aggregation"""
    colluders: int
    threshold: int
    clip: float
    rounds: int
    epsilon_round: float
    """What the round costs a customer, infinite without privacy"""
    evaluation: Literal["off", "public_data", "noised"]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Spent:
    """How far the bank has gone."""

    attempts: int
    """Answered in this run, this one included"""
    epsilon: float
    """The population's, in all and with this round, as its ledger reckons it"""


@dataclass(frozen=True)
class Refusal:
    """Which rule forbids it, what was asked, what is allowed: text, fit for a log and a message."""

    rule: str
    asked: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.rule}: asked {self.asked}, allowed {self.allowed}"


@dataclass(frozen=True)
class _Case:
    asks: Proposal
    allows: Policy
    spent: Spent
    now: datetime


@dataclass(frozen=True)
class _Verdict:
    holds: bool
    asked: Any
    allowed: str


def check(proposal: Proposal, policy: Policy, spent: Spent, now: datetime) -> Refusal | None:
    """The first rule that forbids the proposal, None where all allow it. `now` is in the bank's own time."""
    case = _Case(proposal, policy, spent, now)
    for rule, judge in _RULES.items():
        verdict = judge(case)
        if not verdict.holds:
            return Refusal(rule, str(verdict.asked), verdict.allowed)
    return None


def _among(asked: Any, allowed: Collection[Any]) -> _Verdict:
    return _Verdict(asked in allowed, asked, " or ".join(map(str, allowed)) or "none")


def _at_least(asked: int, least: int) -> _Verdict:
    return _Verdict(asked >= least, asked, f"{least} or more")


def _at_most(asked: float, most: float | None) -> _Verdict:
    return _Verdict(most is None or asked <= most, asked, f"{most} or less")


def _metrics(case: _Case) -> _Verdict:
    others = [name for name in case.asks.metrics if name not in case.allows.metrics]
    return _Verdict(not others, ", ".join(others), ", ".join(case.allows.metrics) or "none")


def _evaluation(case: _Case) -> _Verdict:
    """Neither noised nor public_data is less than the other: an exact look at rows that are not public would be free."""
    return _among(case.asks.evaluation, dict.fromkeys((case.allows.evaluation, "off")))


def _hours(case: _Case) -> _Verdict:
    now, hours = f"{case.now:%H:%M}", case.allows.hours
    if hours is None:
        return _Verdict(True, now, "always")
    begin, end = hours.split("-")
    return _Verdict(begin <= now < end if begin <= end else now >= begin or now < end, now, hours)


_RULES: dict[str, Callable[[_Case], _Verdict]] = {
    "base_models": lambda case: _among(case.asks.base_model, case.allows.base_models),
    "bundles": lambda case: _among(case.asks.bundle, case.allows.bundles),
    "tasks": lambda case: _among(case.asks.task, case.allows.tasks),
    "aggregation": lambda case: _among(case.asks.aggregation, case.allows.aggregation),
    "adapters": lambda case: _among(case.asks.adapter, case.allows.adapters),
    "least_members": lambda case: _at_least(case.asks.members, case.allows.least_members),
    "least_in_sum": lambda case: _at_least(case.asks.in_sum, case.allows.least_in_sum),
    "least_honest_in_sum": lambda case: _at_least(case.asks.in_sum - case.asks.colluders, case.allows.least_honest_in_sum),
    "least_threshold": lambda case: _at_least(case.asks.threshold, case.allows.least_threshold),
    "most_clip": lambda case: _at_most(case.asks.clip, case.allows.most_clip),
    "most_rounds": lambda case: _at_most(case.asks.rounds, case.allows.most_rounds),
    "most_attempts": lambda case: _at_most(case.spent.attempts, case.allows.most_attempts),
    "most_epsilon_round": lambda case: _at_most(case.asks.epsilon_round, case.allows.most_epsilon_round),
    "most_epsilon": lambda case: _at_most(case.spent.epsilon, case.allows.most_epsilon),
    "evaluation": _evaluation,
    "metrics": _metrics,
    "hours": _hours,
}
