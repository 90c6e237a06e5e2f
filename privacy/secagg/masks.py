"""Masks: the keystream of a seed, added to a vector modulo 2^32.

AES-256 in counter mode from counter 0 (NIST SP 800-38A, section 6.5), read as little-endian 32-bit integers: coordinate i is masked with
the i-th, however the vector is cut. To whoever lacks the seed a masked vector looks uniform, as long as the seed masks no second one: a
seed is derived for one session and one pair of banks, by HKDF (RFC 5869) over all they must agree on. Masks of one seed with opposite
signs cancel in a sum (Bonawitz et al. 2017, section 4).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEED_BYTES = 32
_CHUNK = 2**16  # coordinates; with keystream and zeros within 1 MiB, the second cache of a core
_BLOCK = 4  # coordinates masked by one block of AES
_ZEROS = bytes(4 * _CHUNK)


def derive_seed(secret: bytes, info: bytes) -> bytes:
    """A seed of 32 bytes from an agreed secret by HKDF-SHA256; another `info`, another seed that has nothing to do with it."""
    return HKDF(SHA256(), SEED_BYTES, salt=None, info=info).derive(secret)


def add_masks(vector: npt.NDArray[np.uint32], masks: Sequence[tuple[bytes, int]], first: int = 0) -> None:
    """Adds to the vector, in place, the keystream of each (seed, sign), sign being +1 or -1.

    `vector` holds the coordinates from `first` on of the whole: stretches masked one by one are the whole masked at once. Works on all
    cores of the process, as neither the sum nor AES holds the interpreter's lock (cryptography 50; 44 does); memory beyond the vector:
    256 KiB a core.
    """
    assert vector.dtype == np.uint32 and all(len(seed) == SEED_BYTES and abs(sign) == 1 for seed, sign in masks)
    cores = len(os.sched_getaffinity(0))
    share = _CHUNK * (len(vector) // (cores * _CHUNK) + 1)
    with ThreadPoolExecutor(cores) as pool:
        shares = pool.map(lambda start: _add(vector[start : start + share], masks, first + start), range(0, len(vector), share))
        list(shares)  # what fails in a thread fails here


def _add(vector: npt.NDArray[np.uint32], masks: Sequence[tuple[bytes, int]], first: int) -> None:
    """Chunk by chunk and within it mask by mask, so that a coordinate is fetched from memory once and not once for each mask."""
    streams = [(_keystream(seed, first), np.add if sign > 0 else np.subtract) for seed, sign in masks]
    buffer = bytearray(len(_ZEROS))
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK]
        for stream, combine in streams:
            stream.update_into(memoryview(_ZEROS)[: 4 * len(part)], buffer)
            combine(part, np.frombuffer(buffer, "<u4", len(part)), out=part)


def _keystream(seed: bytes, first: int) -> CipherContext:
    """The keystream from integer `first` on."""
    block, within = divmod(first, _BLOCK)
    stream = Cipher(algorithms.AES256(seed), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    stream.update(bytes(4 * within))
    return stream
