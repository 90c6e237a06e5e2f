"""Gaussian noise from a cryptographic stream, in double precision.

Box and Muller (1958) on 53-bit uniforms: exact up to rounding, with tails to 8.6 standard deviations (beyond it lies 10^-17 of the
probability). The sum it is added to is in single precision; what attacks on rounding can do is in SHARP_EDGES.md (Mironov 2012).
"""

import numpy as np
import numpy.typing as npt

from privacy.stream import Stream

CHUNK = 2**20
"""Numbers that are made at a time."""


class GaussianNoise:
    """Independent normal deviates of mean 0 and standard deviation `scale`."""

    def __init__(self, scale: float, stream: Stream) -> None:
        assert scale > 0
        self.scale = scale
        self.secret = stream.secret
        self._stream = stream

    def draw(self, count: int) -> npt.NDArray[np.float32]:
        """The next `count`, computed in float64 and rounded: (count,)."""
        whole = np.empty(count, dtype=np.float32)
        for start in range(0, count, CHUNK):
            pairs = min(CHUNK // 2, (count - start + 1) // 2)
            both = self._pairs(pairs)
            whole[start : start + 2 * pairs] = both[: count - start]
        return whole

    def _pairs(self, pairs: int) -> npt.NDArray[np.float64]:
        uniform = ((self._stream.integers(2 * pairs) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53  # (0, 1]: its logarithm is finite
        radius = self.scale * np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = (2.0 * np.pi) * uniform[pairs:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
