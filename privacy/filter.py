"""What may still be released of a population: a Renyi filter over all that was.

The guarantee: whatever is released of the population's rows, by jobs whose noise, rate and steps may each be chosen after everything
before was seen, is together (epsilon, delta)-differentially private for one unit more or less, where (epsilon, delta) is the grant. It is
fully adaptive composition at a fixed order (Feldman & Zrnic 2021, arXiv 2008.11193, section 4): the Renyi divergences of the releases,
summed, may not pass a bound that was fixed beforehand. Jobs that run side by side are one such sequence, of single steps.

- **One order**, chosen for the first event before anything was released. To follow several orders and to stop at whichever is kept longest
  would make the order depend on what was released; the proof does not cover this unless delta is split over the orders.
- **The bound** is epsilon less what turns a divergence into an epsilon at delta (Canonne, Kamath & Steinke 2020, arXiv 2004.00010, prop.
  12).
- **Truncation** is paid from a fixed share of delta. A run that meets no cap is an untruncated one; where two mechanisms differ with
  probability p at most, (epsilon, delta) of one is (epsilon, delta + (1 + e^epsilon) p) of the other. The share is fixed, and not what the
  events of the day leave, because a bound that moves with choices made on the way is none of the theorem's.
- **Less than was planned** may be taken, and counts as what was taken: a step that was never taken released nothing.

A grant that is replaced moves the bound; what holds then is the largest that ever stood.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from privacy.accountant import TOLERANCE, noise_for, renyi
from privacy.errors import BudgetRefused
from privacy.plan import Event

ORDERS = (1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, *range(6, 17), *range(18, 33, 2), *range(36, 65, 4),
          *range(80, 129, 16), *range(160, 257, 32), 384, 512)  # fmt: skip
"""Orders to choose from. Budgets of an epsilon far below 1 need the high ones."""
OVERFLOW_SHARE = 0.01
"""Of delta, set aside for truncation: caps are so far out that it lasts for a million steps."""
ROUNDING = 1e-11
"""Added to the divergence of each step: more than double precision can have lost."""
MOST_RAISED = 1.5
"""How much more noise than an epsilon takes may be proposed, to fit into a budget that is counted less tightly."""
_MOST_NOISE = 1e3


@dataclass(frozen=True)
class Filter:
    """A budget and what counts against it."""

    population: str
    epsilon: float
    delta: float
    events: tuple[Event, ...]
    """With the steps that count: all that are reserved, or of a closed reservation those taken"""
    order: float | None
    """None before the first event"""

    def order_for(self, event: Event) -> float:
        """The order fixed before, else that at which most repetitions of this event are admitted."""
        return self.order or max(ORDERS, key=lambda order: self.bound(order) / _cost(event.times(1), order))

    def bound(self, order: float) -> float:
        """Most that the divergences of `order` may sum up to; negative where the order is of no use for the budget."""
        return self.epsilon - overhead(order, self.delta)

    def spent(self, order: float) -> float:
        return sum(_cost(event.times(1), order) * event.steps for event in self.events)

    @property
    def proven(self) -> float:
        """Epsilon of all events at the grant's delta, whatever they depended on. 0 for none."""
        return 0.0 if self.order is None else self.spent(self.order) + overhead(self.order, self.delta)

    @property
    def remaining(self) -> float:
        """Divergence that may still be spent; before the first event the whole epsilon, of which the conversion has yet to go off."""
        return self.epsilon if self.order is None else max(0.0, self.bound(self.order) - self.spent(self.order))

    def admits(self, event: Event) -> bool:
        order = self.order_for(event)
        in_bound = self.spent(order) + _cost(event.times(1), order) * event.steps <= self.bound(order)
        return in_bound and self._truncation(event) <= self.delta * OVERFLOW_SHARE

    def _truncation(self, event: Event) -> float:
        """What the caps of all events and of this one take of delta."""
        rare = sum(_overflow(each.times(1)) * each.steps for each in (*self.events, event))
        return rare * (1 + math.exp(min(self.epsilon, 700)))

    def steps_admitted(self, event: Event) -> int:
        """Of its steps, as many as the budget has room for."""
        return bisect.bisect_left(range(1, event.steps + 1), True, key=lambda steps: not self.admits(event.times(steps)))

    def least_noise(self, event: Callable[[float], Event], least: float, most: float) -> float | None:
        """The least noise multiplier from `least` to `most`, up to TOLERANCE, that is admitted; None where none is.

        `event` makes the event of a noise multiplier.
        """
        if self.admits(event(least)):
            return least
        if not self.admits(event(most)):
            return None
        while most > least * (1 + TOLERANCE):
            middle = math.sqrt(least * most)
            least, most = (least, middle) if self.admits(event(middle)) else (middle, most)
        rounded = math.ceil(most * 1e4) / 1e4
        return rounded if self.admits(event(rounded)) else most

    def demand(self, event: Event) -> float:
        """The order at which the event is admitted. Raises BudgetRefused, with what would be admitted."""
        if self.admits(event):
            return self.order_for(event)
        raise self.refused(event)

    def refused(self, event: Event) -> BudgetRefused:
        order = self.order_for(event)
        cost = _cost(event.times(1), order) * event.steps
        left = max(0.0, self.bound(order) - self.spent(order))
        if cost <= left:
            return BudgetRefused(
                f"the budget of {self.population} cannot be kept: at epsilon {self.epsilon:g} the chance that one of the steps meets its "
                f"cap of {event.cap} units counts as {self._truncation(event):.1e} of delta, "
                f"and {self.delta * OVERFLOW_SHARE:.1e} is set aside",
                "what a rare step counts grows with e^epsilon: grant a smaller budget; one above 15 or so promises nothing",
            )
        noise = self.least_noise(lambda noise: replace(event, noise_multiplier=noise), event.noise_multiplier, _MOST_NOISE)
        more = f", or all {event.steps} with a noise multiplier from {noise:.4g} up" if noise else ""
        return BudgetRefused(
            f"the budget of {self.population} (epsilon {self.epsilon:g}, delta {self.delta:g}) does not allow {event.steps} steps with "
            f"noise multiplier {event.noise_multiplier:.4g} and rate {event.sampling_rate:.3g}: they cost {cost:.4g}, {left:.4g} remains "
            f"(Renyi divergence of order {order:g})",
            f"admitted: {self.steps_admitted(event)} of these steps{more}; a larger budget is the compliance officer's to grant",
        )


def overhead(order: float, delta: float) -> float:
    """What a Renyi divergence of `order` lacks to an epsilon at `delta` less the share for truncation (CKS 2020, prop. 12)."""
    left = delta * (1 - OVERFLOW_SHARE)
    return max(0.0, math.log1p(-1 / order) - math.log(left * order) / (order - 1))


def calibrate(
    target: float, event: Callable[[float], Event], delta: float, filter: Filter | None, beside: Sequence[Event] = ()
) -> tuple[float, str]:
    """A noise multiplier whose event has at most `target` epsilon at `delta`, by PLD, and is admitted by `filter`; and why it is so.

    `event` makes the event of a noise multiplier; events `beside` it count in both. A filter counts less tightly than PLD: where it refuses
    the least noise although `target` is no more than what remains, the noise is raised, by half at most, until it is admitted. So a job
    planned for the whole of a fresh budget is. Raises BudgetRefused where that does not help, PlanError where no noise gives the target.
    """
    noise = noise_for(target, event, delta, beside)
    if filter is None:
        return noise, "the least by PLD"
    within = replace(filter, events=(*filter.events, *beside))
    if within.admits(event(noise)):
        return noise, "the least by PLD"
    raised = within.least_noise(event, noise, MOST_RAISED * noise) if target <= filter.remaining else None
    if raised is None:
        raise within.refused(event(noise))
    return raised, f"raised from {noise:.4g}, the least by PLD, to fit into the budget of {filter.population}, which is a Renyi filter"


@lru_cache(maxsize=1 << 16)
def _cost(step: Event, order: float) -> float:
    return max(0.0, renyi(step, order)) + ROUNDING


@lru_cache(maxsize=1 << 12)
def _overflow(step: Event) -> float:
    return step.overflow
