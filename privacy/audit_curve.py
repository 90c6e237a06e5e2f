"""A sharper audit of one run, for a promise that is a whole curve: Mahloujifar, Melis & Chaudhuri 2024 (arXiv 2410.22235).

(epsilon, delta) at one delta is a weak description of Gaussian noise, which has a delta for every epsilon. A test of the whole curve
refutes broken noise where `audit.one_run` cannot, though it too stays well below the truth. What it refutes is the curve: the lower bound
on epsilon it gives is that of Gaussian noise, and holds for mechanisms of that shape (noise on sums of many steps comes near it), so a
verdict rests on `audit.one_run`.

Why it holds. Let C of r guesses be right, p_k = P[C = k]. Fix all coins but that of canary j: being in or out changes the probability of
any set of outputs from x to g(x) at most, with g concave. The outputs by which j is guessed right and C >= i are, under the other coin,
those by which j is guessed wrong and C >= i - 1. Hence, averaged over coins (Jensen) and over the m canaries,

    R_i <= g(H_{i-1})      R_i = sum over k >= i of k p_k / m      H_i = sum over k >= i of (r - k) p_k / m

and R_0 + H_0 = r / m. Were P[C >= v] as large as t, the least that R_0 + H_0 could be is reached when all of it lies at v and each p_{i-1}
below is as small as g allows: mass added or moved up above i raises both R_i and R_i + H_i at any i below, whatever it spares there. Where
even that least passes r / m, P[C >= v] < t.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from privacy.audit import Claim, Scores, best_count, largest_refuted
from privacy.errors import AuditError

Curve = Callable[[float], float]
"""The inverse of g: to a probability with the canary, the least that its absence leaves (and the other way round)."""

LEAST_P_VALUE = 1e-12
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CurveRun:
    """What the guesses about one run prove of a promised curve."""

    canaries: int
    guesses: int
    """Of the tried counts the one that proves most"""
    correct: int
    p_value: float
    """Probability of guesses this good, at most, were the promised curve true; of any shape"""
    mu: float
    """Gaussian noise of standard deviation sensitivity / mu, or any less mu, would not have allowed these guesses"""
    epsilon: float
    """Of that noise, at the delta asked for: a lower bound for a mechanism that is Gaussian in shape"""
    confidence: float


def one_run_fdp(scores: Scores, promise: Sequence[Claim], delta: float, confidence: float = 0.95) -> CurveRun:
    """Test of the curve through all points of `promise`, all of which must hold, as an accountant gives them for one run.

    Raises AuditError for a promise of no points.
    """
    if not promise:
        raise AuditError("a promise of no points: expected at least one (epsilon, delta)", "take them from the accountant")
    m, promised = scores.canaries, through(promise)
    best = best_count(
        scores,
        bound=lambda guesses, correct, significance: _largest_mu(m, guesses, correct, significance),
        p_value=lambda guesses, correct: _p_value(m, guesses, correct, promised),
        confidence=confidence,
    )
    epsilon = gaussian_epsilon(best.bound, Claim(0, delta).delta)
    return CurveRun(m, best.guesses, best.correct, best.p_value, best.bound, epsilon, confidence)


def through(points: Sequence[Claim]) -> Curve:
    """Of a mechanism that is (epsilon, delta)-private at every one of the points, in both directions."""
    scale = np.exp([min(point.epsilon, 700.0) for point in points])  # above, e^epsilon is no number and the point says nothing
    delta = np.array([point.delta for point in points])
    return lambda y: max(0.0, float(((y - delta) / scale).max()), float((1 - delta - (1 - y) * scale).max()))


def gaussian(mu: float) -> Curve:
    """Of Gaussian noise of standard deviation sensitivity / mu (Dong, Roth & Su 2019, arXiv 1905.02383, equation 6)."""
    return lambda y: float(ndtr(ndtri(min(1.0, y)) - mu))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` of Gaussian noise of standard deviation sensitivity / mu (the same, corollary 2.13)."""
    if mu == 0 or _gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    if delta == 0:
        return math.inf
    most = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: _gaussian_delta(mu, epsilon) - delta, 0.0, most, xtol=1e-9))


def refutes(canaries: int, guesses: int, correct: int, curve: Curve, probability: float) -> bool:
    """Whether `correct` or more of `guesses` are right with less than `probability` under the curve: the recursion above, from v down."""
    whole = guesses / canaries * (1 + _ROUNDING)
    right, wrong = probability * correct / canaries, probability * (guesses - correct) / canaries
    for count in range(correct - 1, -1, -1):
        needed = curve(right)
        if needed <= wrong or right + wrong > whole:  # neither would change any more, or it is enough
            break
        right += count / (guesses - count) * (needed - wrong)
        wrong = needed
    return right + wrong > whole


def _largest_mu(canaries: int, guesses: int, correct: int, significance: float) -> float:
    return largest_refuted(lambda mu: refutes(canaries, guesses, correct, gaussian(mu), significance))


def _p_value(canaries: int, guesses: int, correct: int, curve: Curve) -> float:
    """The least probability that is refuted, within a hundredth of it from above; 1 where none is."""
    low, high = math.log(LEAST_P_VALUE), 0.0
    if refutes(canaries, guesses, correct, curve, LEAST_P_VALUE):
        return LEAST_P_VALUE
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if refutes(canaries, guesses, correct, curve, math.exp(middle)) else (middle, high)
    return math.exp(high)


def _gaussian_delta(mu: float, epsilon: float) -> float:
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))
