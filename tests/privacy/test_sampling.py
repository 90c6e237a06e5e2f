"""The draws of units: their distribution, the cap, and that workers with one key draw alike."""

import numpy as np
import pytest
from scipy import stats

from privacy.sampling import UnitSampler
from privacy.stream import Stream

SURE = 1e-6
"""A right sampler fails one of these tests once in a million seeds; the seeds are fixed."""


def test_the_number_drawn_is_binomial() -> None:
    sampler = UnitSampler(500, 0.1, 500, Stream(seed=1))

    sizes = [len(sampler.draw()) for _ in range(2000)]

    assert stats.binomtest(sum(sizes), 500 * 2000, 0.1).pvalue > SURE
    assert stats.kstest(sizes, stats.binom(500, 0.1).cdf).pvalue > SURE or _chi_square(sizes) > SURE


def _chi_square(sizes: list[int]) -> float:
    edges = [0, 40, 44, 47, 50, 53, 56, 60, 501]
    expected = np.diff(stats.binom(500, 0.1).cdf(np.array(edges) - 1)) * len(sizes)
    return float(stats.chisquare(np.histogram(sizes, edges)[0], expected).pvalue)


def test_every_unit_is_as_likely_and_steps_are_independent() -> None:
    sampler = UnitSampler(200, 0.25, 200, Stream(seed=2))

    drawn = np.zeros((3000, 200))
    for step in range(3000):
        drawn[step, sampler.draw()] = 1

    assert stats.chisquare(drawn.sum(0)).pvalue > SURE
    together = (drawn[1:] * drawn[:-1]).sum()  # in two steps running
    assert stats.binomtest(int(together), 2999 * 200, 0.25**2).pvalue > SURE


def test_a_sampler_that_shuffles_is_told_from_this_one() -> None:
    """The test above has power: batches of one size are far from binomial."""
    assert _chi_square([50] * 2000) < SURE


def test_more_than_the_cap_are_cut_to_a_random_part() -> None:
    sampler = UnitSampler(100, 0.5, 30, Stream(seed=3))

    drawn = [sampler.draw() for _ in range(1000)]

    assert {len(units) for units in drawn} == {30}
    assert stats.chisquare(np.bincount(np.concatenate(drawn), minlength=100)).pvalue > SURE


def test_workers_with_one_key_draw_the_same_and_others_do_not() -> None:
    ours, theirs, others = (UnitSampler(1000, 0.1, 1000, stream) for stream in (Stream(b"k" * 32), Stream(b"k" * 32), Stream()))

    for _ in range(3):
        assert np.array_equal(drawn := ours.draw(), theirs.draw())
        assert not np.array_equal(drawn, others.draw())


@pytest.mark.parametrize(("rate", "expected"), [(1.0, 7), (1e-15, 0)])
def test_sure_and_almost_impossible_draws(rate: float, expected: int) -> None:
    assert len(UnitSampler(7, rate, 7, Stream()).draw()) == expected


def test_nobody_to_draw_from_is_an_empty_step() -> None:
    assert len(UnitSampler(0, 0.5, 1, Stream()).draw()) == 0


def test_a_stream_shows_no_key_and_knows_whether_it_is_secret() -> None:
    assert "k" * 8 not in repr(Stream(b"k" * 32))
    assert Stream().secret and not Stream(seed=0).secret
