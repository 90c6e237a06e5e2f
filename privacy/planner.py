"""Noise, batch and steps for an epsilon: what a private run could promise, before there is one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from privacy.accountant import REFINED_BELOW, epsilon
from privacy.errors import PlanError, PrivacyError
from privacy.filter import Filter, calibrate
from privacy.plan import Event, PrivacyPlan

WEAK_ABOVE = 8.0
"""Epsilons above this keep little from an attacker: e^8 is 2981 to 1."""


@dataclass(frozen=True)
class Wish:
    """What is planned for. Exactly one of `target` and `noise`, and of `epochs` and `steps`, is given, or PlanError is raised."""

    units: int
    batch: int
    """Expected units of a step"""
    delta: float
    target: float | None = None
    """Epsilon"""
    noise: float | None = None
    epochs: float | None = None
    steps: int | None = None
    spare_steps: int = 0

    def __post_init__(self) -> None:
        pairs = {"--epsilon and --noise": (self.target, self.noise), "--epochs and --steps": (self.epochs, self.steps)}
        for names, given in pairs.items():
            if given.count(None) != 1:
                raise PlanError(f"expected one of {names}", "the one follows from the other")
            if not all(0 < number < math.inf for number in given if number is not None):
                raise PlanError(f"{names}: expected a positive number")

    def steps_of(self, batch: int) -> int:
        return self.steps if self.steps is not None else math.ceil((self.epochs or 0) * self.units / batch)

    def event(self, noise: float, batch: int) -> Event:
        """Raises PlanError where it would promise nothing."""
        plan = PrivacyPlan(
            self.units, batch, self.steps_of(batch), self.spare_steps, clip_norm=1.0, noise_multiplier=noise, delta=self.delta
        )
        return plan.event


@dataclass(frozen=True)
class Row:
    """One batch size."""

    batch: int
    steps: int
    noise: float | None
    """None where there is none that gives the epsilon and that the ledger admits"""
    epsilon: float | None
    """By PLD, of this run alone, spare steps included"""
    signal: float | None
    """Units of a batch over noise multiplier: the mean gradient against the noise on it; larger learns better"""
    admitted: bool | None
    """By the ledger; None without one"""
    reason: str


def suggest_delta(units: int, filter: Filter | None) -> tuple[float, str]:
    """A delta for so many units, and why."""
    if filter is not None:
        return filter.delta, f"the delta granted to {filter.population}"
    return float(f"1e-{len(str(10 * units - 1))}"), "a tenth of 1 / units, rounded down to a power of ten: at 1 / units nothing is promised"


def plan_rows(wish: Wish, filter: Filter | None) -> list[Row]:
    """The batch wished for and powers of two around it. Raises PlanError where the wish itself makes no sense.

    Below REFINED_BELOW an epsilon takes minutes to calibrate: only the batch wished for is looked at.
    """
    wish.event(1.0, wish.batch)
    alone = wish.target is not None and wish.target < REFINED_BELOW
    return [_row(wish, batch, filter) for batch in ([wish.batch] if alone else batches_around(wish.batch, wish.units))]


def batches_around(batch: int, units: int) -> list[int]:
    """It and the powers of two from a quarter to four times of it, of at most all units."""
    powers = (2**power for power in range(batch.bit_length() + 2))
    return sorted({batch, *(power for power in powers if batch / 4 <= power <= min(4 * batch, units))})


def _row(wish: Wish, batch: int, filter: Filter | None) -> Row:
    steps, event = wish.steps_of(batch), partial(wish.event, batch=batch)
    try:
        noise, reason = _noise(wish, event, filter)
    except PrivacyError as refused:
        return Row(batch, steps, None, None, None, None if filter is None else False, f"{refused}; {refused.hint}")
    planned = event(noise)
    admitted = None if filter is None else filter.admits(planned)
    if filter is not None and not admitted:
        refusal = filter.refused(planned)
        reason = f"{refusal}; {refusal.hint}"
    return Row(batch, steps, noise, epsilon([planned], wish.delta), batch / noise, admitted, reason)


def _noise(wish: Wish, event: Callable[[float], Event], filter: Filter | None) -> tuple[float, str]:
    if wish.noise is not None:
        return wish.noise, "as given"
    assert wish.target is not None
    return calibrate(wish.target, event, wish.delta, filter)
