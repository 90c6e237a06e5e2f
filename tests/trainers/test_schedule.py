import math
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.schedule import learning_rate_schedule

KINDS: list[Literal["cosine", "linear", "constant"]] = ["cosine", "linear", "constant"]


def _rates(kind: Any = "cosine", *, total: int = 100, warmup: float = 0.0, peak: float = 1.0) -> list[float]:
    rate = learning_rate_schedule(kind, peak=peak, total_steps=total, warmup=warmup)
    return [rate(step) for step in range(total)]


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 10), (0.03, 3), (0.07, 7), (0.025, 3), (1, 1), (10, 10), (10.9, 10)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_rises_evenly_over_a_share_or_a_number_of_steps(kind: Any, warmup: float, steps: int) -> None:
    rates = _rates(kind, warmup=warmup)
    assert rates[:steps] == pytest.approx([(step + 1) / steps for step in range(steps)])
    assert rates[steps] == 1.0


def test_cosine_is_half_way_down_in_the_middle_and_flat_at_both_ends() -> None:
    rates = _rates("cosine", total=100)
    assert rates[50] == pytest.approx(0.5) and rates[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[0] - rates[1] < 0.001 and rates[98] - rates[99] < 0.001


def test_linear_falls_by_the_same_amount_each_step_to_one_before_zero() -> None:
    assert _rates("linear", total=10, warmup=2) == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_constant_stays_at_the_peak() -> None:
    assert _rates("constant", total=10, warmup=2, peak=3e-4)[1:] == [3e-4] * 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 0.03, 1, 50])
def test_a_run_of_one_step_takes_it_at_the_peak(kind: Any, warmup: float) -> None:
    assert _rates(kind, total=1, warmup=warmup, peak=2e-5) == [2e-5]


def test_a_warmup_longer_than_the_run_ends_at_the_peak() -> None:
    assert _rates(total=4, warmup=100) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_beyond_the_end_gets_no_negative_rate(kind: Any) -> None:
    rate = learning_rate_schedule(kind, peak=1.0, total_steps=10, warmup=0.1)
    assert rate(10) == rate(1000) == pytest.approx(1.0 if kind == "constant" else 0.0)


@given(
    kind=st.sampled_from(KINDS),
    total=st.integers(1, 500),
    warmup=st.floats(0, 0.99) | st.integers(1, 600).map(float),
    peak=st.floats(1e-7, 1),
)
def test_the_rate_is_positive_has_no_jump_and_reaches_the_peak_once_on_its_way_up(
    kind: Any, total: int, warmup: float, peak: float
) -> None:
    rates = _rates(kind, total=total, warmup=warmup, peak=peak)
    top = rates.index(max(rates))
    assert max(rates) == peak and min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    rise, fall = 1 / (top + 1), math.pi / 2 / max(1, total - top - 1)
    assert all(abs(after - before) <= 1.001 * peak * max(rise, fall) for before, after in pairwise(rates))
