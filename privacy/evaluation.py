"""How good a model is on private rows, told with noise: a sum of correctness over units, and their number.

The mechanism: each unit that is held out has the mean over its records of a number in [0, 1], 1 for right. Released are the sum of these
means and the number of units, each with Gaussian noise of standard deviation sigma sqrt(2); then kept within [0, `most`] and divided by it,
which is public and needs no more of the rows.

Guarantee: one unit more or less moves the pair by (m, 1) with m in [0, 1], an L2 norm of at most sqrt(2); so the pair is released by the
Gaussian mechanism with noise multiplier sigma (Dwork & Roth 2014, appendix A; exactly: Balle & Wang 2018, arXiv 1805.06530, theorem 8). To
the accountants it is one step of sampling rate 1. Neighbouring: two sets of which one has one unit more, with all its records.

Edge cases: no unit gives noise alone; a mean that is NaN counts as 0, one outside [0, 1] as the nearer end. Whose mean it is, and that a
unit's records are at most so many, is the caller's to see to; that a unit is held out follows from its own name alone.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from privacy.errors import PlanError
from privacy.noise import GaussianNoise
from privacy.plan import Event
from privacy.stream import Stream

SENSITIVITY = math.sqrt(2)
"""L2, of (sum of means, number of units) for one unit more or less"""
_LEAST_NOISE, _MOST_NOISE = 1e-2, 1e6


def release(means: npt.NDArray[np.floating], most: float, noise_multiplier: float, stream: Stream) -> tuple[float, float]:
    """The sum of the units' means and their number, noised, both over `most`: two numbers in [0, 1]."""
    noise = GaussianNoise(noise_multiplier * SENSITIVITY, stream).draw(2)
    total, count = exact(means) + noise.astype(np.float64)
    return _share(total, most), _share(count, most)


def public(means: npt.NDArray[np.floating], most: float) -> tuple[float, float]:
    """The same without noise: for rows that are public."""
    total, count = exact(means)
    return _share(total, most), _share(count, most)


def exact(means: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(sum, number), before noise: private."""
    return np.array([np.nan_to_num(means.astype(np.float64)).clip(0, 1).sum(), len(means)])


def _share(value: float, most: float) -> float:
    return min(max(float(value), 0.0), most) / most


def event(noise_multiplier: float, units: int, times: int = 1) -> Event:
    """So many releases, of a population of at most `units`, as the accountants and the ledger know them."""
    return Event(noise_multiplier, sampling_rate=1.0, units=units, cap=units, steps=times)


def delta_of(noise_multiplier: float, epsilon: float) -> float:
    """The least delta at `epsilon` of one release: Balle & Wang 2018, theorem 8, with sensitivity over deviation 1 / noise_multiplier."""
    half, slope = 0.5 / noise_multiplier, epsilon * noise_multiplier
    return float(norm.cdf(half - slope) - math.exp(epsilon + norm.logcdf(-half - slope)))


def noise_for(epsilon: float, delta: float, times: int) -> float:
    """The noise multiplier with which so many releases cost `epsilon` at `delta`: they are one with sigma over sqrt(times).

    Raises PlanError where that would be next to no noise, or no amount of it would do.
    """
    if delta_of(_LEAST_NOISE, epsilon) <= delta:
        raise PlanError(f"evaluations at epsilon {epsilon:g} promise nothing: hardly any noise would do", "a lower epsilon")
    if delta_of(_MOST_NOISE, epsilon) > delta:
        raise PlanError(f"no amount of noise gives evaluations epsilon {epsilon:g} at delta {delta:g}", "a higher epsilon, or delta")
    one = brentq(lambda log_sigma: delta_of(math.exp(log_sigma), epsilon) - delta, math.log(_LEAST_NOISE), math.log(_MOST_NOISE))
    return math.ceil(math.exp(one) * math.sqrt(times) * 1e4) / 1e4
