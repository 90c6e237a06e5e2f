"""The noise: its distribution, and that a wrong scale is found out."""

import numpy as np
import pytest
from scipy import stats

from privacy.noise import GaussianNoise
from privacy.stream import Stream

SURE = 1e-6


def test_noise_is_normal_with_the_scale_it_was_asked_for() -> None:
    drawn = GaussianNoise(2.5, Stream(seed=1)).draw(1_000_001)

    assert drawn.dtype == np.float32
    assert stats.kstest(drawn / 2.5, "norm").pvalue > SURE
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5e-3
    assert abs(np.corrcoef(drawn[:500_000], drawn[500_000:1_000_000])[0, 1]) < 7e-3  # the two halves of a pair


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_wrong_scale_is_found_out(factor: float) -> None:
    drawn = GaussianNoise(factor, Stream(seed=2)).draw(100_000).astype(np.float64)

    square_sum = float((drawn**2).sum())

    assert 2 * min(stats.chi2(100_000).cdf(square_sum), stats.chi2(100_000).sf(square_sum)) < SURE


def test_tails_are_as_long_as_they_should_be() -> None:
    drawn = np.abs(GaussianNoise(1.0, Stream(seed=3)).draw(4_000_000))

    assert stats.binomtest(int((drawn > 4).sum()), len(drawn), 2 * stats.norm.sf(4)).pvalue > SURE
    assert drawn.max() < 9


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2**20 - 1, 2**20 + 1])
def test_any_number_can_be_drawn(count: int) -> None:
    drawn = GaussianNoise(1.0, Stream()).draw(count)

    assert len(drawn) == count and np.isfinite(drawn).all()
    assert len(np.unique(drawn)) > 0.97 * count - 1


def test_streams_differ_and_a_seed_repeats() -> None:
    first, second, third = (GaussianNoise(1.0, stream).draw(1000) for stream in (Stream(seed=4), Stream(seed=4), Stream()))

    assert np.array_equal(first, second)
    assert abs(np.corrcoef(first, third)[0, 1]) < 0.2
