"""What a round costs a bank's customers: noise that holds for the whole run, chosen before it begins, and the ledger's part in each round.

The promise, of a bank to its customers (privacy/plan.py has what it means): all training of `rounds + spare_rounds` rounds and the
evaluations of `rounds + spare_rounds + 1` models together cost at most `privacy.epsilon` at `privacy.delta` by PLD, and a round with its
evaluation at most `privacy.epsilon_round`. A unit is either trained on or held out, and pays for both here: that is more than it has to.

Evaluations are given EVALUATION_SHARE of both, which settles their noise (in closed form: privacy/evaluation.py). Training's noise is then
the least with which both together keep to the promise, raised where a ledger with a fresh budget would not admit all of it. So it follows
from public numbers and from the grant alone, and is the same in every round; what else was charged to the population is for the ledger to
refuse, round by round.

These epsilons are at `privacy.delta`, the coordinator's word: the larger it is, the less noise they take. The grant's delta is the
officer's. What holds at a smaller one holds at the grant's; a larger one is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from federation.config import BankConfig, PrivacyFloor, TrainingConfig
from privacy.accountant import epsilon, noise_for
from privacy.errors import BudgetRefused, PrivacyError
from privacy.evaluation import event as evaluation_event
from privacy.evaluation import noise_for as evaluation_noise_for
from privacy.filter import Filter, calibrate
from privacy.ledger import Ledger
from privacy.plan import Event, PrivacyPlan

EVALUATION_SHARE = 0.1
"""Of the run's epsilon, and of a round's, that evaluations alone may cost"""

Kind = Literal["train", "evaluate"]


@dataclass(frozen=True)
class RoundBudget:
    """What a round does to private rows, and where that is set aside. JSON by `dataclasses.asdict`, and read again by `of`."""

    plan: PrivacyPlan | None
    """None without private training"""
    training: str | None
    """Id of its reservation"""
    evaluation_noise: float | None
    """The multiplier; None without a noised evaluation"""
    evaluation: str | None
    """Id of its reservation"""
    units: int
    """Declared by the bank"""

    @staticmethod
    def of(values: Mapping[str, Any]) -> "RoundBudget":
        plan = values["plan"]
        return RoundBudget(**{**values, "plan": plan and PrivacyPlan(**plan)})

    @property
    def events(self) -> list[Event]:
        """Training first: it is to fix the order of the ledger's filter, which cannot follow sampled steps at all orders."""
        training = [] if self.plan is None else [self.plan.event]
        return training + ([] if self.evaluation_noise is None else [evaluation_event(self.evaluation_noise, self.units)])

    def times(self, training: TrainingConfig) -> list[int]:
        """How often the promise has room for each of them in a run."""
        models = _models(training)
        return ([] if self.plan is None else [models - 1]) + ([] if self.evaluation_noise is None else [models])


def plan_round(training: TrainingConfig, bank: BankConfig, kind: Kind) -> RoundBudget:
    """Of any round of a run; nothing is reserved. The first call of a process for a run takes seconds, up to a minute.

    Raises PlanError where no noise keeps the promise, BudgetRefused where the population's grant is smaller than it or of a smaller delta,
    LedgerError.
    """
    floor = training.privacy
    if floor is None:
        return RoundBudget(None, None, None, None, bank.units)
    fresh, noise, plan = _fresh(bank), noise_of_evaluations(training), None
    if floor.delta > fresh.delta:
        raise BudgetRefused(
            f"delta {floor.delta} is above the {fresh.delta} at which {bank.population} was granted its budget: "
            "an epsilon at it promises less",
            f"the federation lowers training.privacy.delta to {fresh.delta} or less, or the compliance officer grants another",
        )
    if kind == "train":
        batch = min(training.local.batch, bank.units)
        any_noise = PrivacyPlan(bank.units, batch, training.local.steps, 0, training.local.clip_norm, 1.0, floor.delta)
        plan = replace(any_noise, noise_multiplier=_training_noise(any_noise, floor, _models(training), noise, fresh))
    return RoundBudget(plan, None, noise, None, bank.units)


def noise_of_evaluations(training: TrainingConfig) -> float | None:
    """Their noise multiplier, the same at all banks and so public; None where evaluations are not noised."""
    if training.privacy is None or training.evaluation != "noised":
        return None
    return _evaluation_noise(training.privacy, _models(training))


def _models(training: TrainingConfig) -> int:
    """That are evaluated: one before each round that is paid for, and the last."""
    return training.rounds + training.spare_rounds + 1


def _fresh(bank: BankConfig) -> Filter:
    """The population's budget as it was granted."""
    with Ledger.open(bank.ledger) as ledger:
        grant = ledger.book().grant(bank.population)
    return Filter(bank.population, grant.epsilon, grant.delta, (), None)


def _evaluation_noise(floor: PrivacyFloor, models: int) -> float:
    of_all = evaluation_noise_for(EVALUATION_SHARE * floor.epsilon, floor.delta, models)
    return max(of_all, evaluation_noise_for(EVALUATION_SHARE * floor.epsilon_round, floor.delta, 1))


@lru_cache(maxsize=64)
def _training_noise(plan: PrivacyPlan, floor: PrivacyFloor, models: int, evaluation_noise: float | None, budget: Filter) -> float:
    def steps(noise: float) -> Event:
        return replace(plan, noise_multiplier=noise).event

    def evaluations(times: int) -> list[Event]:
        return [] if evaluation_noise is None else [evaluation_event(evaluation_noise, plan.units, times)]

    all_steps = (models - 1) * plan.steps
    noise, _ = calibrate(floor.epsilon, lambda noise: steps(noise).times(all_steps), floor.delta, budget, evaluations(models))
    if epsilon([steps(noise), *evaluations(1)], floor.delta) <= floor.epsilon_round:
        return noise
    return noise_for(floor.epsilon_round, steps, floor.delta, evaluations(1))


def price(budget: RoundBudget, ledger: Ledger, population: str) -> float:
    """The population's proven epsilon at its grant's delta with this round in it, which is not reserved yet. Raises LedgerError."""
    filter, events = ledger.filter(population), budget.events
    if not events:
        return filter.proven
    return replace(filter, events=(*filter.events, *events), order=filter.order_for(events[0])).proven


def reserve(budget: RoundBudget, ledger: Ledger, population: str, run_name: str) -> RoundBudget:
    """All of the round set aside, or nothing. `run_name` is the attempt's own: asked again under it, what is untouched is found again.

    Raises BudgetRefused, LedgerError.
    """
    held: list[str] = []
    try:
        for event in budget.events:
            held.append(_reserve(ledger, population, event, run_name))
    except PrivacyError:
        for id in held:
            ledger.reservation(id).close()
        raise
    ids = iter(held)
    return replace(
        budget,
        training=None if budget.plan is None else next(ids),
        evaluation=None if budget.evaluation_noise is None else next(ids),
    )


def _reserve(ledger: Ledger, population: str, event: Event, run_name: str) -> str:
    """A bank that was killed before it had noted the id finds the reservation by its name."""
    mine = [held for held in ledger.book().reservations(population) if (held.run, held.event) == (run_name, event)]
    untouched = [held.id for held in mine if not held.closed and not held.charged]
    return untouched[0] if untouched else ledger.reserve(population, event, run_name).id


def check_run(budget: RoundBudget, training: TrainingConfig, ledger: Ledger, population: str, attempts: str) -> None:
    """BudgetRefused where this round would be more than the run's epsilon is for. `attempts` is how the names of the run's begin.

    Raises LedgerError.
    """
    book = ledger.book()
    for event, times in zip(budget.events, budget.times(training), strict=True):
        taken = sum(held.charged for held in book.reservations(population) if held.run.startswith(attempts) and held.event == event)
        if taken + event.steps > times * event.steps:
            raise BudgetRefused(
                f"{taken} of {times * event.steps} steps that the run's epsilon is for are taken: {event.steps} more are outside of it",
                "another run, with more spare_rounds: they are for rounds that fail after training",
            )


def release(budget: RoundBudget, ledger: Ledger) -> None:
    """Give back what was reserved and never taken; what was taken stays charged. Nothing happens the second time. Raises LedgerError."""
    for id in (budget.training, budget.evaluation):
        if id is not None:
            ledger.reservation(id).close()
