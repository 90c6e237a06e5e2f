"""Accuracy told with noise: its bound, its scale, and what it costs."""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.accountant import epsilon
from privacy.errors import PlanError
from privacy.evaluation import SENSITIVITY, delta_of, event, exact, noise_for, public, release
from privacy.filter import Filter
from privacy.stream import Stream

MOST, SURE = 10_000, 1e-6


def _square_sum(noise: float, supposed: float) -> tuple[float, int]:
    """Of the noise of 20,000 releases, far from both ends, in its standard deviations if it were of the supposed multiplier."""
    means, stream = np.full(MOST // 2, 0.8), Stream(seed=3)
    drawn = np.array([release(means, MOST, noise, stream) for _ in range(20_000)]) * MOST - exact(means)
    return float(np.square(drawn / (supposed * SENSITIVITY)).sum()), drawn.size


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (0.97, False), (1.03, False)])
def test_the_noise_has_the_scale_of_the_sensitivity_and_a_wrong_one_is_found_out(factor: float, right: bool) -> None:
    squares, numbers = _square_sum(20.0 * factor, supposed=20.0)
    chi_square = stats.chi2(numbers)
    assert (2 * min(chi_square.cdf(squares), chi_square.sf(squares)) > SURE) == right


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
def test_a_unit_more_moves_what_is_released_by_the_sensitivity_at_most(mean: float) -> None:
    others = np.array([0.2, 0.9])
    moved = exact(np.append(others, mean)) - exact(others)
    assert np.linalg.norm(moved) <= SENSITIVITY and (np.linalg.norm(moved) == pytest.approx(SENSITIVITY)) == (mean == 1.0)


def test_means_that_are_none_move_it_no_further() -> None:
    assert exact(np.array([np.nan, np.inf, -np.inf, 7.0, -7.0])).tolist() == [2.0, 5.0]


def test_no_unit_and_one_unit_are_told_apart_by_noise_alone() -> None:
    stream = Stream(seed=4)
    none, one = (np.array([release(np.ones(count), 8, 1.0, stream) for _ in range(4000)]) for count in (0, 1))
    assert none.min() == 0.0 and none.max() < 1.0 and one.min() == 0.0
    assert 0 < one.mean() - none.mean() < 1 / 8


def test_public_rows_are_told_exactly_and_within_bounds() -> None:
    assert public(np.array([1.0, 0.5]), 4) == (0.375, 0.5)
    assert public(np.ones(9), 4) == (1.0, 1.0)
    assert public(np.empty(0), 4) == (0.0, 0.0)


@pytest.mark.parametrize(("target", "times"), [(1.0, 1), (0.4, 11), (3.0, 4)])
def test_noise_for_an_epsilon_is_the_closed_form_s_and_the_accountant_agrees(target: float, times: int) -> None:
    noise = noise_for(target, 1e-5, times)
    assert delta_of(noise / math.sqrt(times), target) == pytest.approx(1e-5, rel=1e-3)
    assert epsilon([event(noise, 5000, times)], 1e-5) == pytest.approx(target, rel=2e-3)
    assert delta_of(0.95 * noise / math.sqrt(times), target) > 1.1e-5


@pytest.mark.parametrize(
    ("target", "delta", "said"),
    [
        (6000.0, 1e-5, "epsilon 6000 promise nothing"),
        (50_000.0, 1e-5, "epsilon 50000 promise nothing"),
        (1e-9, 1e-12, "no amount of noise"),
    ],
)
def test_an_epsilon_that_no_noise_in_use_has_is_refused(target: float, delta: float, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        noise_for(target, delta, 1)


def test_the_ledger_s_filter_takes_it_for_a_gaussian_release() -> None:
    spent = Filter("retail", 4.0, 1e-6, (event(10.0, 5000, 3),), 8).spent(8)
    assert spent == pytest.approx(3 * 8 / (2 * 10.0**2), rel=1e-9)
