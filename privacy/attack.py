"""How well an attack tells what was trained on: rates and ranks with their intervals. None of it bounds epsilon; `audit.py` does.

Intervals take scores as independent draws. Canaries of one run share its noise, so there they speak of this run only.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from privacy.audit import Scores, check_confidence, proportion
from privacy.errors import AuditError


@dataclass(frozen=True)
class Estimate:
    """A number and the limits between which it lies with the confidence asked for."""

    value: float
    low: float
    high: float


def auc(scores: Scores, confidence: float = 0.95) -> Estimate:
    """Probability that one inside scores above one outside, ties counting half: 0.5 is chance. DeLong, DeLong & Clarke-Pearson 1988.

    DeLong's variance is 0 where the two sides do not overlap or all are tied, and undefined for a single score. There the limits are exact
    ones, of as many disjoint pairs as there are. Raises AuditError where a side is empty.
    """
    check_confidence(confidence)
    _check_sides(scores)
    inside, outside, significance = len(scores.inside), len(scores.outside), 1 - confidence
    ranks = rankdata(np.concatenate([scores.inside, scores.outside]))
    above = (ranks[:inside] - rankdata(scores.inside)) / outside  # for each inside, the share of those outside that lie below
    below = (ranks[inside:] - rankdata(scores.outside)) / inside
    value, pairs = float(above.mean()), min(inside, outside)
    variance = above.var(ddof=1) / inside + below.var(ddof=1) / outside if pairs > 1 else 0.0
    if variance == 0:
        ordered = value * pairs
        return Estimate(value, proportion(math.floor(ordered), pairs, significance)[0],
                        proportion(math.ceil(ordered), pairs, significance)[1])  # fmt: skip
    margin = float(norm.isf(significance / 2) * math.sqrt(variance))
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))


def tpr_at_fpr(scores: Scores, fpr: float = 0.01, confidence: float = 0.95) -> Estimate:
    """Share of those inside that score above all but a share `fpr` of those outside, with Clopper and Pearson's limits.

    The threshold is chosen by those outside alone, which keeps the limits exact for the rate at it. Raises AuditError where a side is
    empty.
    """
    check_confidence(confidence)
    _check_sides(scores)
    if not 0 <= fpr < 1:
        raise AuditError(f"a false positive rate of {fpr}: expected at least 0 and less than 1", "0.01 is usual")
    allowed = math.floor(fpr * len(scores.outside))
    passed = int((scores.inside > np.sort(scores.outside)[len(scores.outside) - 1 - allowed]).sum())
    return Estimate(passed / len(scores.inside), *proportion(passed, len(scores.inside), 1 - confidence))


def exposure(rank: int, space: int) -> float:
    """log2(space) - log2(rank), in bits, of a secret that is the model's `rank`-th likeliest of `space` (Carlini et al. 2019, section 4.3).

    0 for the unlikeliest, 1.44 on average for a secret never seen, log2(space) for one that could be extracted.
    """
    if not 1 <= rank <= space:
        raise AuditError(
            f"rank {rank} of {space} secrets: expected a rank from 1 to {space}", "rank the secret among candidates, itself included"
        )
    return math.log2(space) - math.log2(rank)


def _check_sides(scores: Scores) -> None:
    if not len(scores.inside) or not len(scores.outside):
        raise AuditError(
            f"{len(scores.inside)} scores inside and {len(scores.outside)} outside: expected at least one on each side",
            "plant more canaries: with 20 of them fair coins leave a side empty once in 500,000 runs",
        )
