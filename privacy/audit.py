"""What an attack on a finished run proves of its epsilon: lower bounds that hold with a stated confidence.

Canaries are units of our own; a secret fair coin each decided whether it was trained on. An attack scores them, the higher the more
likely it was in, and the better scores tell the coins, the larger epsilon must be. Neighbouring: with and without one canary. Units of
every bound: nats of privacy loss, at the delta of the claim. A bound above the claim refutes it; one below says little, since the best
attack on the best canaries falls far short of epsilon (at a true 4 and m = 1000 about 1.6): a bug-catcher and no proof.

No torch here: whoever trains passes scores. Scores that are not finite are refused; fewer than two canaries bound nothing; tied scores are
taken in the order that helps the auditor least, so that no tie is broken by what the auditor should not know.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import beta, binom

from privacy.errors import AuditError

Array = npt.NDArray[np.float64]

GUESSED_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Of the canaries, how many are guessed, half of them in and half out; fixed before any score is seen, and paid for by Bonferroni."""
FALSE_POSITIVE_SHARES = (0.0, 0.01, 0.05, 0.1, 0.25)
"""Where `clopper_pearson` puts its thresholds: this share of the canaries on one side lies beyond them. Fixed and paid for likewise."""
RESOLUTION = 1e-4
"""Of a bound; it is rounded down."""


@dataclass(frozen=True)
class Claim:
    """(epsilon, delta) as promised. Raises AuditError where it promises nothing."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 <= self.epsilon < math.inf and 0 <= self.delta < 1):
            raise AuditError(
                f"a claim of epsilon {self.epsilon}, delta {self.delta}: expected epsilon of at least 0 and delta in [0, 1)",
                "take both from the run's statement",
            )


@dataclass(frozen=True, eq=False)
class Scores:
    """An attack's scores, higher for what it thinks was trained on. Raises AuditError for what is no list of finite numbers."""

    inside: Array
    outside: Array

    def __post_init__(self) -> None:
        for name in ("inside", "outside"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not np.isfinite(values).all():
                raise AuditError(
                    f"scores of canaries {name}: expected a list of finite numbers, got shape {values.shape} with "
                    f"{int((~np.isfinite(values)).sum())} that are NaN or infinite",
                    "a loss that overflows has no rank: leave nothing out, find why",
                )
            object.__setattr__(self, name, values)

    @classmethod
    def tossed(cls, scores: Sequence[float] | Array, coins: Sequence[bool]) -> "Scores":
        """Of canaries in the order of their coins, True for those trained on."""
        if len(scores) != len(coins):
            raise AuditError(f"{len(scores)} scores for {len(coins)} coins: expected one each", "score every canary, also those left out")
        values, tossed_in = np.asarray(scores, dtype=np.float64), np.asarray(coins, dtype=bool)
        return cls(values[tossed_in], values[~tossed_in])

    @property
    def canaries(self) -> int:
        """m"""
        return len(self.inside) + len(self.outside)

    def correct(self, guesses: int) -> int:
        """Right guesses when the highest half of `guesses` scores is guessed in and the lowest half out."""
        scores = np.concatenate([self.inside, self.outside])
        inside = np.arange(len(scores)) < len(self.inside)
        ranked = inside[np.lexsort((~inside, scores))]  # of tied ones those in come lower: both halves guess them wrong first
        half = guesses // 2
        return int(ranked[len(ranked) - half :].sum() + (~ranked[:half]).sum())


@dataclass(frozen=True)
class OneRun:
    """What the guesses about one run prove."""

    canaries: int
    guesses: int
    """Of the tried counts the one that proves most"""
    correct: int
    epsilon: float
    """The lower bound"""
    p_value: float
    """Probability of guesses this good, at most, were the claim true"""
    reach: float
    """The most that so many canaries could have proven, all guesses right"""
    confidence: float


def one_run(scores: Scores, claim: Claim, confidence: float = 0.95) -> OneRun:
    """Lower bound on epsilon from a single run whose canaries were each in by a fair coin: Steinke, Nasr & Jagielski 2023, theorem 5.2.

    Holds for any attack and however the canaries influence one another.
    """
    m = scores.canaries
    best = best_count(
        scores,
        bound=lambda guesses, correct, significance: _certified(m, guesses, correct, claim.delta, significance),
        p_value=lambda guesses, correct: tail(m, guesses, correct, claim),
        confidence=confidence,
    )
    counts = guess_counts(m)
    reach = [_certified(m, guesses, guesses, claim.delta, (1 - confidence) / len(counts)) for guesses in counts]
    return OneRun(m, best.guesses, best.correct, best.bound, best.p_value, max(reach, default=0.0), confidence)


def power(canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many canaries could ever certify in one run: all of them guessed, and right. 0 for none."""
    check_confidence(confidence)
    return _certified(canaries, canaries, canaries, Claim(0, delta).delta, 1 - confidence)


def guess_counts(canaries: int) -> list[int]:
    """The numbers of guesses that are tried: even, at least 2, known before any score. None for fewer than two canaries."""
    halves = {max(1, round(canaries * share / 2)) for share in GUESSED_SHARES} if canaries > 1 else set()
    return sorted(2 * half for half in halves)


@dataclass(frozen=True)
class Best:
    """Of the numbers of guesses that were tried, the one that proves most; corrected for how many were tried."""

    guesses: int
    correct: int
    bound: float
    p_value: float


def best_count(
    scores: Scores, *, bound: Callable[[int, int, float], float], p_value: Callable[[int, int], float], confidence: float
) -> Best:
    """`bound` is made of guesses, how many were right, and the significance that Bonferroni leaves; `p_value` of the first two."""
    check_confidence(confidence)
    tried = [(guesses, scores.correct(guesses)) for guesses in guess_counts(scores.canaries)]
    if not tried:
        return Best(0, 0, 0.0, 1.0)
    found = [Best(*pair, bound(*pair, (1 - confidence) / len(tried)), min(1.0, len(tried) * p_value(*pair))) for pair in tried]
    least = min(best.p_value for best in found)
    return replace(max(found, key=lambda best: (best.bound, -best.p_value)), p_value=least)


def tail(canaries: int, guesses: int, correct: int, claim: Claim) -> float:
    """Probability that `correct` or more of `guesses` are right under the claim, at most (theorem 5.2 of arXiv 2305.08846).

    Under pure epsilon a guess is right with probability e^epsilon / (1 + e^epsilon) at most, each given the others. Delta lets i more
    of them be right at a price of 2 m delta / i: the worst i is taken.
    """
    right = expit(claim.epsilon)
    pure = float(binom.sf(correct - 1, guesses, right))
    more = np.arange(1, correct + 1)
    slices = (binom.sf(correct - more - 1, guesses, right) - pure) / more
    return min(1.0, pure + 2 * canaries * claim.delta * float(slices.max(initial=0)))


def largest_refuted(refuted: Callable[[float], bool]) -> float:
    """The largest value that is `refuted`, up to RESOLUTION; 0 where 0 is not. It was itself refuted: rounding only lowers a bound."""
    if not refuted(0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _certified(canaries: int, guesses: int, correct: int, delta: float, significance: float) -> float:
    return largest_refuted(lambda epsilon: tail(canaries, guesses, correct, Claim(epsilon, delta)) <= significance)


def clopper_pearson(scores: Scores, delta: float, confidence: float = 0.95) -> float:
    """Lower bound on epsilon from true and false positive rates, and from the mirrored ones (Nasr et al. 2021, arXiv 2101.04535).

    Thresholds are order statistics, at fixed ranks, of one side only: a rate beyond one of them has a beta distribution, so Clopper and
    Pearson's limit for that side is exact, and the other side has had no say in the choice. Rests on scores that are independent draws of
    one distribution on each side. Canaries of one run share its noise: there it is information, and `one_run` is the bound.
    """
    check_confidence(confidence)
    mirrored = Scores(-scores.outside, -scores.inside)
    tests = [(side, beyond) for side in (scores, mirrored) for beyond in _false_positives(len(side.outside))]
    bounds = [_bound_beyond(side, beyond, delta, (1 - confidence) / len(tests)) for side, beyond in tests]
    return max(bounds, default=0.0)


def rates_bound(true_positives: int, inside: int, false_positives: int, outside: int, delta: float, significance: float) -> float:
    """ln((TPR - delta) / FPR), the true positive rate at its lower limit and the false one at its upper, each at half the significance."""
    least, _ = proportion(true_positives, inside, significance)
    _, most = proportion(false_positives, outside, significance)
    return max(0.0, math.log((least - delta) / most)) if least > delta else 0.0


def proportion(successes: int, trials: int, significance: float) -> tuple[float, float]:
    """Clopper and Pearson's exact limits of a rate, each missed with half the significance at most. (0, 1) for no trials."""
    low = float(beta.ppf(significance / 2, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - significance / 2, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def _false_positives(outside: int) -> list[int]:
    return sorted({math.floor(share * outside) for share in FALSE_POSITIVE_SHARES}) if outside else []


def _bound_beyond(scores: Scores, beyond: int, delta: float, significance: float) -> float:
    """At the score that `beyond` of those outside may pass."""
    threshold = np.sort(scores.outside)[len(scores.outside) - 1 - beyond]
    passed = int((scores.inside > threshold).sum())
    return rates_bound(passed, len(scores.inside), beyond, len(scores.outside), delta, significance)


def check_confidence(confidence: float) -> None:
    if not 0.5 <= confidence < 1:
        raise AuditError(f"a confidence of {confidence}: expected at least 0.5 and less than 1", "0.95 is usual")


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NO_POWER = "no power"
    NOT_AUDITABLE = "not auditable"


@dataclass(frozen=True)
class Verdict:
    """What an audit says of a claim, in one word and one sentence."""

    outcome: Outcome
    claim: Claim
    run: OneRun | None
    sentence: str

    @property
    def lower_bound(self) -> float | None:
        return self.run.epsilon if self.run else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "outcome": self.outcome.value, "lower_bound": self.lower_bound}


def judge(claim: Claim, run: OneRun | None) -> Verdict:
    """`run` is what `one_run` made of the claim; None for a training run into which no canaries were planted."""
    promised = f"epsilon {claim.epsilon:.4g} at delta {claim.delta:.1e}"
    if run is None:
        return Verdict(Outcome.NOT_AUDITABLE, claim, None, f"The run has no canaries, so nothing can be said here of {promised}.")
    sure = f"{100 * run.confidence:g} % confidence"
    if run.epsilon > claim.epsilon:
        return Verdict(Outcome.FAILED, claim, run,
                       f"{promised[0].upper()}{promised[1:]} is refuted: {run.correct} of {run.guesses} guesses were right, "
                       f"which shows an epsilon above {run.epsilon:.2f} with {sure}.")  # fmt: skip
    if run.reach <= claim.epsilon:
        return Verdict(Outcome.NO_POWER, claim, run,
                       f"{run.canaries} canaries cannot show more than epsilon {run.reach:.2f} with {sure}, so they could not refute "
                       f"{promised}, true or not.")  # fmt: skip
    return Verdict(Outcome.PASSED, claim, run,
                   f"{run.correct} of {run.guesses} guesses were right, which shows an epsilon of at least {run.epsilon:.2f} with {sure} "
                   f"and does not refute {promised}: this catches bugs and is no proof.")  # fmt: skip
