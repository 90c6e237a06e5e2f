"""What every private run checks of itself while it runs. Verdicts alone are kept: the figures are private.

Each would have found a fault that libraries in use have had: a sum not clipped as claimed, noise of another scale or elsewhere, empty
batches dropped, workers that draw alike, steps that nobody counted.
"""

import hashlib
import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from privacy.plan import PrivacyPlan

SURE = 1e-9
"""A right run fails a statistical test with this probability."""
SENSITIVITY_SLACK = 1e-4
"""Relative: what single precision may add to a clipped norm"""
_KEPT = 4096


@dataclass(frozen=True)
class Verdicts:
    """True: passed. None: there was nothing to test, as when the run took no step."""

    sensitivity: bool | None
    """Without one of its units a step's sum moved by no more than the clipping norm"""
    noise_scale: bool | None
    """What was added to the sums has the variance it should (chi-square, two-sided)"""
    inclusions: bool | None
    """As many units were drawn as a binomial distribution allows (two-sided)"""
    independence: bool | None
    """No two workers added like noise and none did in two steps running, and all drew the same units"""
    charges: bool | None
    """Every step taken was charged to the ledger, and none else"""

    @property
    def passed(self) -> bool:
        return all(verdict is not False for verdict in asdict(self).values())

    @property
    def failed(self) -> list[str]:
        return [name for name, verdict in asdict(self).items() if verdict is False]


@dataclass(frozen=True)
class Share:
    """What one worker has seen, to be brought together at the end."""

    squares: float
    """Sum of the squared noise it added"""
    numbers: int
    noise: npt.NDArray[np.float32]
    """The first of it"""
    drawn: str
    """Digest of all draws"""
    echo: float = 0.0
    """Of the noise of each step in the next: their products' sum, in its standard deviations were they independent; 0 for too few"""


class SelfTest:
    """Collects, step after step; `share` is then brought together from all workers by `judge`."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self.plan = plan
        self.moved: float | None = None
        """How far the sum moved without a unit, over the clipping norm; set by who replays a step"""
        self._squares, self._numbers = 0.0, 0
        self._noise: list[npt.NDArray[np.float32]] = []
        self._last = np.empty(0)
        self._products, self._multiplied = 0.0, 0
        self._drawn = hashlib.sha256()

    def saw_noise(self, before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> None:
        """This worker's stretch of a step's sum, before and after its noise was added."""
        added = np.subtract(after, before, dtype=np.float64)
        self._squares += float(added @ added)
        self._numbers += len(added)
        if sum(map(len, self._noise)) < _KEPT:
            self._noise.append(added[:_KEPT].astype(np.float32))
        if len(self._last):
            self._products += float(self._last @ added[:_KEPT])
            self._multiplied += len(self._last)
        self._last = added[:_KEPT].copy()

    def saw_draw(self, units: npt.NDArray[np.int64]) -> None:
        self._drawn.update(len(units).to_bytes(8, "big") + units.tobytes())

    def share(self) -> Share:
        noise = np.concatenate(self._noise)[:_KEPT] if self._noise else np.empty(0, np.float32)
        echo = self._products / (self.plan.noise_scale**2 * math.sqrt(self._multiplied)) if self._multiplied >= _KEPT else 0.0
        return Share(self._squares, self._numbers, noise, self._drawn.hexdigest(), echo)

    def judge(self, shares: list[Share], *, coins: int, drawn: int, steps: int, charged: int) -> Verdicts:
        """Of one start: `coins` were tossed and drew `drawn` units (before truncation); `steps` were taken and `charged` charged."""
        return Verdicts(
            sensitivity=None if self.moved is None else self.moved <= 1 + SENSITIVITY_SLACK,
            noise_scale=_all_of([_right_scale(share, self.plan.noise_scale, SURE / len(shares)) for share in shares]),
            inclusions=_right_number(drawn, coins, self.plan.sampling_rate),
            independence=_independent(shares),
            charges=charged == steps,
        )


def _right_scale(share: Share, scale: float, significance: float) -> bool | None:
    """Of each worker for itself: of all together, one that adds too little would pass beside one that adds too much."""
    if not share.numbers:
        return None
    squares, chi_square = share.squares / scale**2, stats.chi2(share.numbers)
    return bool(2 * min(chi_square.cdf(squares), chi_square.sf(squares)) > significance)


def _all_of(verdicts: list[bool | None]) -> bool | None:
    """Of those that had something to look at."""
    looked = [verdict for verdict in verdicts if verdict is not None]
    return all(looked) if looked else None


def _right_number(drawn: int, coins: int, rate: float) -> bool | None:
    if not coins:
        return None
    tails = stats.binom(coins, rate)
    return bool(2 * min(tails.cdf(drawn), tails.sf(drawn - 1)) > SURE)


def _independent(shares: list[Share]) -> bool | None:
    """Correlations of noise between workers are of the order of 1 / sqrt(n)."""
    if len({share.drawn for share in shares}) > 1 or any(abs(share.echo) > 7 for share in shares):
        return False
    length = min((len(share.noise) for share in shares), default=0)
    if len(shares) < 2 or length < 100:
        return None if len(shares) < 2 else True
    found = np.corrcoef(np.stack([share.noise[:length] for share in shares]).astype(np.float64))
    highest = float(np.abs(found - np.eye(len(shares))).max())
    return highest < 7 / math.sqrt(length)
