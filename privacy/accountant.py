"""The epsilon of events, and the noise an epsilon takes. The one file that imports dp_accounting and Opacus's accountant.

Reported is the privacy loss distribution, discretised pessimistically (Koskela et al. 2020; Doroshenko et al. 2022, arXiv 2207.04380): an
upper bound. Gopi et al.'s PRV accountant (2021), from other hands, is held against it. A Gaussian approximation (GDP) is no upper bound and
is not here; neither is an epsilon for shuffled batches, for which no amplification by sampling is proven.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting
from dp_accounting import pld, rdp
from scipy.optimize import brentq

from privacy.errors import PlanError, PromiseBroken
from privacy.plan import Event

COARSE, FINEST = 1e-3, 1e-5
"""Discretisation of the privacy loss"""
REFINED_BELOW, REFINED = 0.5, 2000
"""Where an epsilon is below the first, the discretisation is that epsilon over the second."""
PRV_ERROR = 0.01
"""The absolute error of epsilon that the PRV accountant is asked to keep to, and states."""
TOLERANCE = 1e-3
"""Relative, of a calibrated noise multiplier; rounded to more noise."""
_LEAST_NOISE, _MOST_NOISE = 0.2, 1e4
# A series that does not converge gives an infinite divergence, which is safe and no news to the user.
logging.getLogger("absl").addFilter(lambda record: "failed to converge" not in record.getMessage())


@dataclass(frozen=True)
class CrossCheck:
    """The same events by three accountants, at one delta."""

    pld: float
    prv: float
    rdp: float
    """Of the untruncated events at a delta less by what truncation may add, at the best order"""


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Of all events together, by PLD, at `delta`: an upper bound within the discretisation of the privacy loss. 0 for no steps.

    The finer that is, the longer it takes and the tighter the bound; a small epsilon is looked at again, as finely as it is small.
    """
    found = _epsilon(events, delta, COARSE)
    return _epsilon(events, delta, max(FINEST, found / REFINED)) if found < REFINED_BELOW else found


def noise_for(target: float, event: Callable[[float], Event], delta: float, beside: Sequence[Event] = ()) -> float:
    """The least noise multiplier, up to TOLERANCE, whose event has at most `target` epsilon at `delta`, together with those `beside` it.

    `event` makes it of a noise multiplier. Raises PlanError where no noise would do.
    """

    over = _over(lambda noise: epsilon([event(noise), *beside], delta), target)
    guess = _guess(target, event, delta, beside)
    high = guess
    while over(high) > 0:
        high *= 1.2
        if high > _MOST_NOISE:
            raise PlanError(f"no amount of noise gives epsilon {target:g} at delta {delta:g}", "more units, fewer steps, a smaller batch")
    low = high
    while low > _LEAST_NOISE and over(low) <= 0:
        low, high = low / 1.2, low
    found = high if over(low) <= 0 else float(brentq(over, low, high, rtol=TOLERANCE / 2))
    while over(found := math.ceil(found * 1e4) / 1e4) > 0:
        found *= 1 + TOLERANCE / 4
    return found


def _over(reach: Callable[[float], float], target: float) -> Callable[[float], float]:
    return lru_cache(lambda noise: reach(noise) - target)


def renyi(event: Event, order: float) -> float:
    """Renyi divergence of `order` (above 1) of the untruncated event: RDP (Mironov 2017; Mironov, Talwar & Zhang 2019)."""
    return float(_rdp(event, [order]).rdp[0])


def renyi_best(events: Sequence[Event], delta: float) -> float:
    """Epsilon by RDP at the best order. Truncation is paid for in delta: a run that meets no cap is an untruncated one.

    Where two mechanisms differ with probability p at most, a bound (epsilon, delta) of one is (epsilon, delta + (1 + e^epsilon) p) of the
    other.
    """
    accountant = rdp.RdpAccountant()
    for event in events:
        accountant.compose(_untruncated(event))
    overflow, found = sum(event.overflow for event in events), accountant.get_epsilon(delta)
    for _ in range(3):  # delta's share depends on epsilon, which hardly moves
        left = delta - (1 + math.exp(min(found, 700))) * overflow
        if left <= 0:
            return math.inf
        found = accountant.get_epsilon(left)
    return float(found)


def cross_check(events: Sequence[Event], delta: float) -> CrossCheck:
    """The same by PLD, PRV and RDP. Raises PromiseBroken where PLD and PRV differ by more than their stated errors, or RDP lies below."""
    found = CrossCheck(epsilon(events, delta), _prv(events, delta), renyi_best(events, delta))
    if not -PRV_ERROR - _slack(found.pld) <= found.prv - found.pld <= 2 * PRV_ERROR:
        raise PromiseBroken(f"two accountants disagree: epsilon {found.pld:.4f} by PLD, {found.prv:.4f} by PRV",
                            "no statement is written; report it with noise, rate and steps")  # fmt: skip
    if found.rdp < found.pld - _slack(found.pld):
        raise PromiseBroken(f"RDP, the looser bound, gives epsilon {found.rdp:.4f}, below PLD's {found.pld:.4f}",
                            "no statement is written; report it with noise, rate and steps")  # fmt: skip
    return found


def _slack(found: float) -> float:
    """What rounding the privacy loss up may have added to a PLD's epsilon."""
    return 0.01 * found + 20 * FINEST


def _epsilon(events: Sequence[Event], delta: float, interval: float) -> float:
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=interval)
    for event in events:
        if event.steps:
            step = dp_accounting.TruncatedSubsampledGaussianDpEvent(event.units, event.sampling_rate, event.cap, event.noise_multiplier)
            accountant.compose(dp_accounting.SelfComposedDpEvent(step, event.steps))
    return float(accountant.get_epsilon(delta))


def _untruncated(event: Event) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier))
    return dp_accounting.SelfComposedDpEvent(step, event.steps)


def _rdp(event: Event, orders: Sequence[float]) -> rdp.RdpAccountant:
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(_untruncated(event))
    return accountant


def _prv(events: Sequence[Event], delta: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that Opacus imports, and of its RDP accountant about the range to search
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(event.noise_multiplier, event.sampling_rate, event.steps) for event in events if event.steps]
        return float(accountant.get_epsilon(delta, eps_error=PRV_ERROR)) if accountant.history else 0.0


def _guess(target: float, event: Callable[[float], Event], delta: float, beside: Sequence[Event]) -> float:
    """By RDP, which is fast and asks for a little more noise than is needed."""

    def reach(noise: float) -> float:
        accountant = rdp.RdpAccountant()
        for each in (event(noise), *beside):
            accountant.compose(_untruncated(each))
        return float(accountant.get_epsilon(delta))

    over = _over(reach, target)
    if over(_MOST_NOISE) > 0 or over(_LEAST_NOISE) < 0:
        return 1.0
    return float(brentq(over, _LEAST_NOISE, _MOST_NOISE, rtol=1e-2))
