"""What a private run promises, as numbers: the one place where noise, batch, units and steps are combined.

The mechanism, a step (Abadi et al. 2016, algorithm 1; truncated as in Ganesh 2025, arXiv 2508.15089): each of at most N units is drawn with
probability q by a secret coin of its own; of more than `cap` drawn units a random `cap` stay. The sum of the units' gradients, each scaled
to a norm of at most C, gets Gaussian noise of standard deviation sigma C in every coordinate. That sum is all that leaves the step.

Neighbouring: two sets of which one has one unit more. All numbers here are public; none may be taken from the private rows.
"""

import bisect
import math
from dataclasses import dataclass, replace

from scipy.stats import binom

from privacy.errors import PlanError

OVERFLOW = 1e-20
"""Most probability with which a step may meet its cap: beside this any delta in use is large."""


@dataclass(frozen=True)
class Event:
    """So many steps alike, as the accountants and the ledger know them."""

    noise_multiplier: float
    """sigma: noise's standard deviation over the clipping norm"""
    sampling_rate: float
    """q"""
    units: int
    """N"""
    cap: int
    steps: int

    def times(self, steps: int) -> "Event":
        return replace(self, steps=steps)

    @property
    def overflow(self) -> float:
        """Probability that any of the steps draws more than `cap` units, at most (union bound)."""
        return self.steps * float(binom.sf(self.cap, self.units, self.sampling_rate))


@dataclass(frozen=True)
class PrivacyPlan:
    """A run's promise. Raises PlanError where it would be none."""

    units: int
    """N, declared: people, accounts or records, whatever the unit is"""
    expected_batch: int
    """Units of a step, on average; the sum is divided by this and never by how many there were"""
    steps: int
    spare_steps: int
    """Steps that failures may cause to be taken again, reserved and calibrated for like the others"""
    clip_norm: float
    """C, of a unit's gradient over all its records and all trained parameters (L2)"""
    noise_multiplier: float
    """sigma"""
    delta: float

    def __post_init__(self) -> None:
        refused = {
            f"units: {self.units}: expected at least 1": self.units < 1,
            f"expected batch of {self.expected_batch} of {self.units} units: expected 1 to all of them": (
                not 1 <= self.expected_batch <= self.units
            ),
            f"{self.steps} steps and {self.spare_steps} spare ones: expected at least 1 and 0": self.steps < 1 or self.spare_steps < 0,
            f"clip_norm: {self.clip_norm}: expected a positive number": not 0 < self.clip_norm < math.inf,
            f"noise_multiplier: {self.noise_multiplier}: expected a positive number": not 0 < self.noise_multiplier < math.inf,
            f"delta: {self.delta}: expected more than 0 and less than 1 / units = {1 / max(1, self.units):.1e}; "
            "at 1 / units a mechanism that publishes one unit whole would pass": not 0 < self.delta < 1 / max(1, self.units),
        }
        if found := [message for message, applies in refused.items() if applies]:
            raise PlanError("; ".join(found), "`consortium privacy plan` shows noise, batch and steps for an epsilon")

    @property
    def sampling_rate(self) -> float:
        """q: the probability with which each unit takes part in a step."""
        return self.expected_batch / self.units

    @property
    def cap(self) -> int:
        return batch_cap(self.units, self.expected_batch)

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise in every coordinate of the sum."""
        return self.noise_multiplier * self.clip_norm

    @property
    def event(self) -> Event:
        """All steps that are reserved."""
        return Event(self.noise_multiplier, self.sampling_rate, self.units, self.cap, self.steps + self.spare_steps)


def batch_cap(units: int, expected_batch: int) -> int:
    """Most units of a step: 6 standard deviations above the mean, or where all but OVERFLOW of the probability lies below if that is more.

    It bounds memory and the time of a step, and is so far out that it costs nothing: 6 deviations alone are passed once in 10^7 steps.
    """
    rate = expected_batch / units
    rare = bisect.bisect_left(range(units), True, key=lambda count: bool(binom.sf(count, units, rate) <= OVERFLOW))
    return min(units, max(math.ceil(expected_batch + 6 * math.sqrt(expected_batch)), rare))
