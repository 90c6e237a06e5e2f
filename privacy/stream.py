"""Random bits that nobody can foresee: AES-256 in counter mode under a key of the operating system.

Samples and noise are secrets of a private run: who knows them can undo both. Generators made for simulation (Mersenne Twister, PCG, Philox)
give themselves away from a few outputs, however they were seeded. A key lives in the memory of its process, is never logged, stored or
sent but to the other workers of the run, and dies with it: no checkpoint holds one, and a run that starts again draws a new one.
"""

import os

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_CHUNK = 2**20
_ZEROS = bytes(8 * _CHUNK)


def fresh_key() -> bytes:
    return os.urandom(KEY_BYTES)


class Stream:
    """An endless sequence of 64-bit integers, uniform and independent to anybody without the key.

    One given a `seed` can be repeated: that is for tests, and whatever was drawn from it is not private (`secret` is False).
    """

    def __init__(self, key: bytes | None = None, *, seed: int | None = None) -> None:
        assert key is None or seed is None
        self.secret = seed is None
        if seed is not None:
            key = seed.to_bytes(KEY_BYTES, "big")
        self._cipher = Cipher(algorithms.AES256(key or fresh_key()), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return f"Stream(secret={self.secret})"

    def integers(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count`, as a new array (count,)."""
        whole = np.empty(count, dtype=np.uint64)
        for start in range(0, count, _CHUNK):
            part = min(_CHUNK, count - start)
            whole[start : start + part] = np.frombuffer(self._cipher.update(memoryview(_ZEROS)[: 8 * part]), dtype="<u8")
        return whole
