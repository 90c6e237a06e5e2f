"""Rows that say the same, or nearly: what was learnt by heart in training proves nothing in a test.

Exact: the same words in the same order, whatever their case and punctuation. Near: of the runs of three words that two texts have
together, 60 % are in both (Jaccard). Candidates come from MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, 3.4) and are compared exactly, so none is reported wrongly; of pairs at 60 % fewer than 1 in 20,000 are missed.
"""

import hashlib
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 0.6
_WORDS_TOGETHER = 3
_BANDS, _ROWS = 42, 3
_CROWD = 8
"""Rows of a band that a new one is compared with: a template used a million times must not cost a million squared."""

_random = np.random.default_rng(0)
_FACTORS, _SHIFTS = (_random.integers(0, 2**64, size=(_BANDS * _ROWS, 1), dtype=np.uint64) for _ in range(2))
_FACTORS |= np.uint64(1)


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a text to compare it with others."""

    digest: bytes
    runs: NDArray[np.uint32]
    """Hashes of its runs of words, each once"""
    bands: tuple[bytes, ...]


@dataclass(frozen=True)
class Match:
    """An earlier row like this one: `exact` where words and their order are the same."""

    place: str
    similarity: float
    exact: bool


def fingerprint(text: str) -> Fingerprint | None:
    """None for a text without words."""
    words = re.findall(r"\w+", text.casefold())
    if not words:
        return None
    starts = range(max(1, len(words) - _WORDS_TOGETHER + 1))
    hashes = {zlib.crc32(" ".join(words[start : start + _WORDS_TOGETHER]).encode(errors="surrogatepass")) for start in starts}
    runs = np.array(sorted(hashes), dtype=np.uint32)
    digest = hashlib.blake2b(" ".join(words).encode(errors="surrogatepass"), digest_size=16).digest()
    return Fingerprint(digest, runs, _bands(runs))


def _bands(runs: NDArray[np.uint32]) -> tuple[bytes, ...]:
    """The smallest of each of 126 hash functions (multiply and shift, modulo 2^64), three to a band."""
    smallest = ((_FACTORS * runs.astype(np.uint64) + _SHIFTS) >> np.uint64(32)).min(axis=1).astype(np.uint32)
    return tuple(bytes([band]) + part.tobytes() for band, part in enumerate(smallest.reshape(_BANDS, _ROWS)))


def _similarity(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


class Index:
    """Texts met so far."""

    def __init__(self) -> None:
        self._exact: dict[bytes, str] = {}
        self._rows: list[tuple[str, NDArray[np.uint32]]] = []
        self._bands: defaultdict[bytes, list[int]] = defaultdict(list)

    def find(self, text: Fingerprint) -> Match | None:
        """The row with the same words, else the first one that is near, else None."""
        if text.digest in self._exact:
            return Match(self._exact[text.digest], 1.0, exact=True)
        for number in dict.fromkeys(number for band in text.bands for number in self._bands.get(band, ())):
            place, runs = self._rows[number]
            if (similarity := _similarity(runs, text.runs)) >= NEAR:
                return Match(place, similarity, exact=False)
        return None

    def add(self, text: Fingerprint, place: str) -> None:
        """Remember a text; one with the same words as an earlier one is known already."""
        if text.digest in self._exact:
            return
        self._exact[text.digest] = place
        for band in text.bands:
            if len(self._bands[band]) < _CROWD:
                self._bands[band].append(len(self._rows))
        self._rows.append((place, text.runs))
