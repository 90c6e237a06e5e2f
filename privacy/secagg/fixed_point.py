"""Real vectors as integers modulo 2^k, so that masks hide them perfectly and their sum is exact; k bits of each on the wire.

A coordinate is cut to +-clip, multiplied by 2^f and rounded at random to one of the two integers beside it, such that its expected value
stays (stochastic rounding; Suresh et al. 2017, arXiv 1611.00429, section 2). Rounding puts the sum of n vectors off by 0 on average, with a
standard deviation of at most sqrt(n) / 2 units of 2^-f. Cutting and rounding come after the noise a bank adds: what that promises on
its own stays true (post-processing); only accuracy is lost.

Weights come before: a bank of weight w encodes w times its update, and w itself as one more coordinate.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from privacy.errors import PlanError
from privacy.stream import Stream

_CHUNK = 2**16  # coordinates at a time
_GROUP = 32  # coordinates of k bits that fill k words of 32; divides _CHUNK
_LIMIT = 64  # clips from 2^-64 to 2^64: a sum and its unit are then ordinary numbers of single precision
_FINEST = 31 + _LIMIT

Reals = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class FixedPoint:
    """An encoding of vectors whose sum cannot wrap around; PlanError where that cannot be proven.

    A cut coordinate times 2^f lies within +-C, C = clip * 2^f. Rounding moves it by less than a unit and never past an integer, so what is
    encoded lies within +-ceil(C), and the sum of at most `parties` of those within +-parties * ceil(C). Modulo 2^k no two integers from
    -2^(k-1) to 2^(k-1) - 1 are the same. The condition is therefore

        parties * ceil(clip * 2^fraction_bits) < 2^(modulus_bits - 1)

    and cannot be weakened: a coordinate that is clip in all vectors, and is rounded up in all, reaches the bound.
    """

    parties: int
    """The most vectors that are summed"""
    clip: float
    """Coordinates are cut to +-clip; see `fit`"""
    fraction_bits: int
    """f: the unit is 2^-f"""
    modulus_bits: int
    """k: sums are taken modulo 2^k"""

    def __post_init__(self) -> None:
        if not 2 <= self.modulus_bits <= 32 or not 1 <= self.parties < 2 ** (self.modulus_bits - 1):
            raise PlanError(
                f"expected 2 to 32 modulus bits and 1 to 2^(bits - 1) - 1 parties, got {self.modulus_bits} and {self.parties}",
                "32 modulus bits do for any number of banks",
            )
        if not 2.0**-_LIMIT <= self.clip <= 2.0**_LIMIT or not -_LIMIT <= self.fraction_bits <= _FINEST:
            raise PlanError(
                f"a clip of {self.clip:g} with {self.fraction_bits} fraction bits is out of range",
                f"a clip from 2^-{_LIMIT} to 2^{_LIMIT}, and fraction bits from -{_LIMIT} to {_FINEST}",
            )
        reached = self._reached(self.fraction_bits)
        if reached >= 2 ** (self.modulus_bits - 1):
            wider = f", or {reached.bit_length() + 1} modulus bits" if reached.bit_length() < 32 else ""
            raise PlanError(
                f"a sum of {self.parties} coordinates within +-{self.clip:g} can wrap around "
                f"with {self.fraction_bits} fraction bits modulo 2^{self.modulus_bits}",
                f"at most {self._most_fraction_bits} fraction bits{wider}",
            )

    def _reached(self, fraction_bits: int) -> int:
        """The greatest absolute value of a sum, in units; exact, as a power of two only moves the exponent of clip."""
        return self.parties * math.ceil(math.ldexp(self.clip, fraction_bits))

    @property
    def _most_fraction_bits(self) -> int:
        """The most with which no sum can wrap, everything else as it is. There always are some: -64 make C at most 1."""
        return max(bits for bits in range(-_LIMIT, _FINEST + 1) if self._reached(bits) < 2 ** (self.modulus_bits - 1))

    def encode(self, values: Reals, stream: Stream) -> npt.NDArray[np.uint32]:
        """Integers modulo 2^32 (two's complement), of which the lowest k bits count. Expected values are off by at most 2^-32 units.

        The stream's key must be secret. Raises PlanError if a value is NaN or infinite.
        """
        encoded = np.empty(len(values), np.uint32)
        for start in range(0, len(values), _CHUNK):
            exact = values[start : start + _CHUNK].astype(np.float64)
            _refuse_infinite(exact, start)
            np.clip(exact, -self.clip, self.clip, out=exact)
            exact *= 2.0**self.fraction_bits
            below = np.floor(exact)
            draws = stream.integers(-(-len(exact) // 2)).view(np.uint32)[: len(exact)]
            below += draws < (exact - below) * 2.0**32  # a comparison, as adding the draw would itself be rounded
            encoded[start : start + _CHUNK] = below.astype(np.int32).view(np.uint32)
        return encoded

    def decode(self, total: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
        """The sum of at most `parties` encoded vectors, from its lowest k bits: the residue nearest to 0, in units of 2^-f."""
        unused = 32 - self.modulus_bits
        decoded = np.empty(len(total), np.float32)
        for start in range(0, len(total), _CHUNK):
            signed = (total[start : start + _CHUNK] << np.uint32(unused)).view(np.int32) >> np.int32(unused)
            decoded[start : start + _CHUNK] = signed * 2.0**-self.fraction_bits
        return decoded


def fit(parties: int, clip: float, modulus_bits: int, noise_tail: float = 0.0) -> FixedPoint:
    """The finest encoding with which a sum cannot wrap around.

    `clip` bounds a coordinate before noise: the greatest weight times the L2 norm the update is clipped to (one coordinate may hold all of
    it). Counts and metrics share its fraction bits: scale them to that size first. `noise_tail` is what noise can add, see `gaussian_tail`.
    """
    coarsest = FixedPoint(parties, clip + noise_tail, -_LIMIT, modulus_bits)
    return replace(coarsest, fraction_bits=coarsest._most_fraction_bits)


def gaussian_tail(sigma: float, draws: int, probability: float) -> float:
    """What no one of `draws` normal deviates of standard deviation sigma exceeds in size, but with at most this probability (union bound).

    With draws = parties * coordinates * rounds it holds for a whole run. What does exceed it is cut, which costs accuracy, not privacy.
    """
    if not (sigma >= 0 and draws >= 1 and probability < 1 and probability / (2 * draws) > 0):
        raise PlanError(
            f"no tail for sigma {sigma}, {draws} draws, probability {probability}", "sigma >= 0, draws >= 1, 0 < probability < 1"
        )
    return -sigma * NormalDist().inv_cdf(probability / (2 * draws))


def pack(vector: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint8]:
    """The lowest bits of each, densely, the lowest first: ceil(count * bits / 8) bytes, the last filled up with zeros.

    32 bits are a view. What begins at a multiple of 8 coordinates begins with a byte, so a vector can be packed in stretches.
    """
    assert vector.dtype == np.uint32
    if bits == 32:
        return vector.astype("<u4", copy=False).view(np.uint8)
    packed = np.empty(_packed_size(len(vector), bits), np.uint8)
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK]
        groups = np.pad(part, (0, -len(part) % _GROUP)).reshape(-1, _GROUP) & _lowest(bits)
        words = np.zeros((len(groups), bits), "<u4")
        for column, word, shift in _places(bits):
            words[:, word] |= groups[:, column] << shift
            if shift + bits > 32:
                words[:, word + 1] |= groups[:, column] >> (32 - shift)
        stretch = packed[start * bits // 8 : (start + _CHUNK) * bits // 8]
        stretch[:] = words.reshape(-1).view(np.uint8)[: len(stretch)]
    return packed


def unpack(packed: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.uint32]:
    """`count` integers below 2^bits of what `pack` made; PlanError if it is not exactly as long as that. 32 bits are a view."""
    if len(packed) != _packed_size(count, bits):
        raise PlanError(f"{count} coordinates of {bits} bits take {_packed_size(count, bits)} bytes, got {len(packed)}", "was it cut off?")
    if bits == 32:
        return packed.view("<u4")
    vector = np.empty(count, np.uint32)
    for start in range(0, count, _CHUNK):
        stretch = packed[start * bits // 8 : (start + _CHUNK) * bits // 8]
        words = np.pad(stretch, (0, -len(stretch) % (4 * bits))).view("<u4").reshape(-1, bits)
        groups = np.empty((len(words), _GROUP), np.uint32)
        for column, word, shift in _places(bits):
            groups[:, column] = words[:, word] >> shift
            if shift + bits > 32:
                groups[:, column] |= words[:, word + 1] << (32 - shift)
        part = vector[start : start + _CHUNK]
        part[:] = groups.reshape(-1)[: len(part)] & _lowest(bits)
    return vector


def _packed_size(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _lowest(bits: int) -> np.uint32:
    return np.uint32(2**bits - 1)


def _places(bits: int) -> Iterator[tuple[int, int, int]]:
    """For each coordinate of a group, the word its lowest bit is in and that bit's place there."""
    return ((column, *divmod(column * bits, 32)) for column in range(_GROUP))


def _refuse_infinite(values: npt.NDArray[np.float64], start: int) -> None:
    """The coordinates from `start` on."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise PlanError(f"coordinate {start + wrong[0]} is {values[wrong[0]]}", "a bank whose training diverged sits the round out")
