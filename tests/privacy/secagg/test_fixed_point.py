"""The encoding: unbiased, never wraps within its bound and does beyond it, and k bits of each on the wire."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import PlanError
from privacy.noise import GaussianNoise
from privacy.secagg.fixed_point import FixedPoint, fit, gaussian_tail, pack, unpack
from privacy.secagg.masks import add_masks
from privacy.stream import Stream

SURE = 1e-6
CHUNK = 2**16


def _make_values(count: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(count).uniform(-1, 1, count).astype(dtype)


def _sum_of_alike(encoding: FixedPoint, value: float, parties: int) -> float:
    """What the sum of so many equal coordinates is read back as."""
    encoded = [encoding.encode(np.array([value]), Stream(seed=party)) for party in range(parties)]
    return float(encoding.decode(sum(encoded))[0])


def _unchecked(parties: int, clip: float, fraction_bits: int, modulus_bits: int) -> FixedPoint:
    """An encoding whose proof was left out, to show what it is for."""
    encoding = FixedPoint(parties, clip, -64, 32)
    for name, value in {"fraction_bits": fraction_bits, "modulus_bits": modulus_bits}.items():
        object.__setattr__(encoding, name, value)
    return encoding


@settings(deadline=None)
@given(
    parties=st.integers(1, 100),
    clip=st.floats(2.0**-64, 2.0**64),
    bits=st.integers(8, 32),
    seed=st.integers(0, 2**32),
)
def test_the_finest_encoding_sums_the_extremes_and_one_bit_more_is_refused(parties: int, clip: float, bits: int, seed: int) -> None:
    encoding = fit(parties, clip, bits)
    extremes = np.array([-clip, clip, -math.inf, math.inf, 0.0]).clip(-1e300, 1e300)  # the latter two are cut

    total = sum(encoding.encode(extremes, Stream(seed=seed + party)) for party in range(parties))

    off = np.abs(encoding.decode(total) - parties * extremes.clip(-clip, clip))
    assert (off <= parties * 2.0**-encoding.fraction_bits * (1 + 1e-6) + parties * clip * 2.0**-23).all()
    with pytest.raises(PlanError, match="wrap around") as refused:
        FixedPoint(parties, clip, encoding.fraction_bits + 1, bits)
    assert f"at most {encoding.fraction_bits} fraction bits" in refused.value.hint


def test_one_party_or_one_fraction_bit_beyond_the_proof_does_wrap() -> None:
    assert _sum_of_alike(FixedPoint(31, 1.0, 2, 8), 1.0, 31) == 31.0

    assert _sum_of_alike(_unchecked(32, 1.0, 2, 8), 1.0, 32) == -32.0
    assert _sum_of_alike(_unchecked(31, 1.0, 3, 8), 1.0, 31) == -1.0
    for refused in ((32, 1.0, 2, 8), (31, 1.0, 3, 8)):
        with pytest.raises(PlanError, match="wrap around"):
            FixedPoint(*refused)


def test_the_proof_counts_a_coordinate_that_is_rounded_up() -> None:
    """A clip of 4.01 units: 127 / 4.01 = 31 parties would seem to fit, but some coordinate is rounded to 5."""
    loose = _unchecked(31, 1.0025, 2, 8)
    encoded = loose.encode(np.full(100_000, 1.0025), Stream(seed=1))

    assert encoded.max() == 5 and 31 * 5 >= 2**7 > 31 * 4.01
    with pytest.raises(PlanError, match="wrap around"):
        FixedPoint(31, 1.0025, 2, 8)


def test_a_refusal_names_the_least_modulus_that_would_do() -> None:
    with pytest.raises(PlanError) as refused:
        FixedPoint(100, 1.0, 10, 16)

    assert refused.value.hint == "at most 8 fraction bits, or 18 modulus bits"
    FixedPoint(100, 1.0, 8, 16), FixedPoint(100, 1.0, 10, 18)
    for parameters in ((100, 1.0, 9, 16), (100, 1.0, 10, 17)):
        with pytest.raises(PlanError):
            FixedPoint(*parameters)


@pytest.mark.parametrize(
    ("fraction_bits", "hint"), [(30, "at most 14 fraction bits, or 32 modulus bits"), (31, "at most 14 fraction bits")]
)
def test_a_refusal_names_no_modulus_above_32_bits(fraction_bits: int, hint: str) -> None:
    with pytest.raises(PlanError) as refused:
        FixedPoint(1, 1.0, fraction_bits, 16)

    assert refused.value.hint == hint


@pytest.mark.parametrize(("parties", "modulus_bits"), [(0, 32), (-1, 32), (3, 33), (1, 1), (128, 8)])
def test_parties_or_bits_that_cannot_be_are_refused(parties: int, modulus_bits: int) -> None:
    with pytest.raises(PlanError, match="expected 2 to 32 modulus bits"):
        FixedPoint(parties, 2.0**-60, 0, modulus_bits)


@pytest.mark.parametrize(
    ("clip", "fraction_bits"),
    [(0.0, 8), (-1.0, 8), (math.nan, 8), (math.inf, 8), (2.0**65, 8), (2.0**-65, 8), (1.0, 10**9), (1.0, -(10**9))],
)
def test_a_clip_or_unit_beyond_single_precision_is_refused(clip: float, fraction_bits: int) -> None:
    with pytest.raises(PlanError, match="out of range"):
        FixedPoint(3, clip, fraction_bits, 32)


@pytest.mark.parametrize("value", [0.3, -0.3, 0.999, -2.5, 3.0, -3.0, 1e-4])
def test_rounding_is_unbiased_and_goes_to_a_neighbour(value: float) -> None:
    rounded = FixedPoint(1, 4.0, 0, 32).encode(np.full(1_000_000, value), Stream(seed=5)).view(np.int32)

    up = int((rounded == math.floor(value) + 1).sum())

    assert set(np.unique(rounded)) <= {math.floor(value), math.ceil(value)}
    assert stats.binomtest(up, 1_000_000, value - math.floor(value)).pvalue > SURE


def test_a_bias_of_three_in_a_hundred_is_found_out() -> None:
    rounded = FixedPoint(1, 4.0, 0, 32).encode(np.full(1_000_000, 0.3 * 1.03), Stream(seed=6)).view(np.int32)

    assert stats.binomtest(int(rounded.sum()), 1_000_000, 0.3).pvalue < SURE


def test_neighbouring_coordinates_are_rounded_independently() -> None:
    rounded = FixedPoint(1, 4.0, 0, 32).encode(np.full(1_000_000, 0.5), Stream(seed=7)).view(np.int32).astype(float)

    assert abs(np.corrcoef(rounded[:-1], rounded[1:])[0, 1]) < 5e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 2, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_any_number_of_coordinates_comes_back(count: int, dtype: type) -> None:
    encoding, values = fit(3, 1.0, 32), _make_values(count, dtype)

    decoded = encoding.decode(encoding.encode(values, Stream()))

    assert decoded.dtype == np.float32 and len(decoded) == count
    assert np.allclose(decoded, values, rtol=0, atol=2.0**-encoding.fraction_bits + 2.0**-24)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused(value: float) -> None:
    values = _make_values(CHUNK + 10)
    values[CHUNK + 7] = value

    with pytest.raises(PlanError, match=f"coordinate {CHUNK + 7} is {value}"):
        fit(3, 1.0, 32).encode(values, Stream())


def test_a_noisy_coordinate_is_within_the_tail() -> None:
    noise = GaussianNoise(2.0, Stream(seed=9)).draw(1_000_000)

    beyond = int((np.abs(noise) > gaussian_tail(2.0, 100, 0.5)).sum())

    assert stats.binomtest(beyond, 1_000_000, 0.5 / 100).pvalue > SURE
    assert np.abs(noise).max() < gaussian_tail(2.0, 1_000_000, SURE)
    assert fit(10, 1.0, 32, noise_tail=gaussian_tail(2.0, 10**9, 1e-9)).clip > 1.0 + 2.0 * 6


@pytest.mark.parametrize(
    ("sigma", "draws", "probability"),
    [(-1.0, 10, 0.1), (math.nan, 10, 0.1), (1.0, 0, 0.1), (1.0, 10, 0.0), (1.0, 10, 1.0), (1.0, 10**9, 1e-320)],
)
def test_a_tail_of_no_noise_is_refused(sigma: float, draws: int, probability: float) -> None:
    with pytest.raises(PlanError, match="no tail"):
        gaussian_tail(sigma, draws, probability)


@settings(deadline=None)
@given(bits=st.integers(1, 32), count=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_packing_keeps_the_lowest_bits(bits: int, count: int, seed: int) -> None:
    vector = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)

    packed = pack(vector, bits)

    assert packed.dtype == np.uint8 and len(packed) == math.ceil(count * bits / 8)
    assert int.from_bytes(packed.tobytes(), "little") == sum((int(value) % 2**bits) << (bits * i) for i, value in enumerate(vector))
    assert np.array_equal(unpack(packed, count, bits), vector % np.uint64(2**bits))


@pytest.mark.parametrize("bits", [1, 7, 20, 31])
def test_a_long_vector_is_packed_chunk_by_chunk_or_in_stretches_alike(bits: int) -> None:
    vector = np.random.default_rng(bits).integers(0, 2**bits, 3 * CHUNK + 11, dtype=np.uint32)

    packed = pack(vector, bits)

    assert np.array_equal(unpack(packed, len(vector), bits), vector)
    assert np.array_equal(np.concatenate([pack(vector[:1000], bits), pack(vector[1000:], bits)]), packed)


def test_packing_20_bits_takes_20_of_32_and_32_bits_no_copy() -> None:
    vector = np.arange(3200, dtype=np.uint32)

    assert pack(vector, 20).nbytes * 32 == vector.nbytes * 20
    assert np.shares_memory(pack(vector, 32), vector) and np.shares_memory(unpack(pack(vector, 32), 3200, 32), vector)


@pytest.mark.parametrize("size", [0, 24, 26, 40])
def test_a_packed_vector_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(PlanError, match="take 25 bytes"):
        unpack(np.zeros(size, np.uint8), 10, 20)


def test_a_bank_takes_little_memory_beyond_a_second_vector() -> None:
    encoding, values, stream = fit(10, 1.0, 32), _make_values(4_000_000), Stream()
    tracemalloc.start()

    encoded = encoding.encode(values, stream)
    add_masks(encoded, [(bytes(32), 1), (bytes(32), -1)])
    pack(encoded, 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < values.nbytes * 5 / 4


def test_sums_modulo_2_to_the_32_are_right_in_their_lowest_bits() -> None:
    encoding = fit(3, 1.0, 20)
    vectors = [_make_values(1000 + party)[:1000] for party in range(3)]

    total = sum(unpack(pack(encoding.encode(vector, Stream()), 20), 1000, 20) for vector in vectors)

    assert np.allclose(encoding.decode(total), sum(vectors), rtol=0, atol=3 * 2.0**-encoding.fraction_bits)
