"""Who takes part in a step: Poisson sampling of units, by coins that nobody outside the run ever sees.

Amplification by sampling is proven for this and not for walking through a shuffled list (Chua et al. 2024, arXiv 2403.17673), so the number
taking part differs from step to step and may be none: an empty step is a step, with its noise and its charge.
"""

import math

import numpy as np
import numpy.typing as npt

from privacy.stream import Stream


class UnitSampler:
    """Draws, step after step, the units that take part. Workers with the same key and the same units draw the same.

    Truncated Poisson sampling (Ganesh 2025, arXiv 2508.15089, section 2): every unit by a coin of its own with probability `rate`, rounded
    down to a multiple of 2^-64; of more than `cap`, a uniformly random `cap` stay. No draw can be repeated or foreseen without the key.
    """

    def __init__(self, units: int, rate: float, cap: int, stream: Stream) -> None:
        assert units >= 0 and 0 < rate <= 1 and cap >= 1
        self.units, self.rate, self.cap = units, rate, cap
        self._stream = stream
        self._below = math.floor(rate * 2**64)
        self.coins = self.drawn = 0
        """Tossed so far, and the units they drew, before truncation: for the self-test"""

    def draw(self) -> npt.NDArray[np.int64]:
        """Indices of the units of the next step, ascending."""
        coins = self._stream.integers(self.units)
        found = np.arange(self.units) if self._below >= 2**64 else np.flatnonzero(coins < np.uint64(self._below))
        self.coins, self.drawn = self.coins + self.units, self.drawn + len(found)
        if len(found) > self.cap:
            order = np.argsort(self._stream.integers(len(found)), kind="stable")
            found = np.sort(found[order[: self.cap]])
        return found.astype(np.int64)
