"""Masks: the keystream of the standard, cut anyhow, that cancels and hides."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.secagg.masks import add_masks, derive_seed

SURE = 1e-6
SEED = bytes(range(32))


def _make_vector(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def _mask(count: int, seed: bytes = SEED) -> np.ndarray:
    vector = np.zeros(count, np.uint32)
    add_masks(vector, [(seed, 1)])
    return vector


def test_the_mask_is_the_keystream_of_aes_256_ctr() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    nist = Cipher(algorithms.AES256(key), modes.CTR(bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))).encryptor()
    blocks = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()

    known = nist.update(bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"))
    counters = b"".join(block.to_bytes(16, "big") for block in range(70_000))

    assert known.hex() == "601ec313775789a5b7a7f504bbf3d228"  # SP 800-38A, F.5.5: the cipher is the standard's
    assert _mask(280_000, key).astype("<u4").tobytes() == blocks.update(counters)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 3000), max_size=5), first=st.integers(0, 2**40))
def test_stretches_masked_one_by_one_are_the_whole(cuts: list[int], first: int) -> None:
    whole, pieces = _make_vector(3000), _make_vector(3000)
    masks = [(SEED, 1), (bytes(32), -1)]

    add_masks(whole, masks, first)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 3000], strict=True):
        add_masks(pieces[start:end], masks, first + start)

    assert np.array_equal(whole, pieces)


@pytest.mark.parametrize("count", [0, 1, 3, 2**16, 2**17 - 1, 2**17 + 1, 2**18 + 5])
def test_the_cores_and_chunks_leave_no_seam(count: int) -> None:
    assert np.array_equal(_mask(count), _mask(400_000)[:count])


def test_the_mask_is_the_same_on_one_core() -> None:
    cores = os.sched_getaffinity(0)
    many = _mask(400_000)

    os.sched_setaffinity(0, {min(cores)})
    try:
        one = _mask(400_000)
    finally:
        os.sched_setaffinity(0, cores)

    assert np.array_equal(one, many)


def test_masks_of_all_pairs_cancel_in_the_sum() -> None:
    banks = range(5)
    vectors = [_make_vector(70_001, bank) for bank in banks]
    plain = sum(vectors)

    for bank in banks:
        seeds = {other: derive_seed(SEED, bytes(sorted({bank, other}))) for other in banks if other != bank}
        add_masks(vectors[bank], [(seed, 1 if bank < other else -1) for other, seed in seeds.items()])

    assert np.array_equal(sum(vectors), plain)


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_a_masked_constant_is_uniform_in_every_byte(value: int) -> None:
    masked = np.full(1_000_000, value, np.uint32)

    add_masks(masked, [(os.urandom(32), 1), (os.urandom(32), -1)])

    for place in range(4):
        counts = np.bincount(masked.view(np.uint8)[place::4], minlength=256)
        assert stats.chisquare(counts).pvalue > SURE


def test_two_seeds_on_the_same_vector_share_nothing() -> None:
    first, second = (_mask(1_000_000, derive_seed(SEED, info)) for info in (b"session 1", b"session 2"))

    differences = (first - second).view(np.uint8)

    assert stats.chisquare(np.bincount(differences, minlength=256)).pvalue > SURE


def test_a_seed_is_derived_as_the_standard_says() -> None:
    """RFC 5869, test case 3 (no salt, no info): the first 32 of its 42 bytes."""
    assert derive_seed(b"\x0b" * 22, b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
