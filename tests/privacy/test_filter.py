"""What a budget admits: against closed forms, and against the accountants."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accountant import epsilon, renyi_best
from privacy.errors import BudgetRefused
from privacy.filter import ORDERS, OVERFLOW_SHARE, Filter, calibrate, overhead
from privacy.plan import Event, PrivacyPlan

DELTA = 1e-6


def _make_event(noise: float, *, batch: int = 512, steps: int = 585, units: int = 100_000) -> Event:
    return PrivacyPlan(units, batch, steps, 0, clip_norm=1.0, noise_multiplier=noise, delta=1e-7).event


def _make_filter(budget: float = 4.0, *events: Event, order: float | None = None) -> Filter:
    return Filter("retail", budget, DELTA, events, order)


def _all_units(noise: float, steps: int) -> Event:
    return Event(noise, 1.0, 1000, 1000, steps)


@pytest.mark.parametrize("order", [1.5, 8, 64])
def test_without_sampling_a_step_costs_order_over_twice_the_variance(order: float) -> None:
    spent = _make_filter(4.0, _all_units(3.0, 7), _all_units(5.0, 2), order=order).spent(order)
    assert spent == pytest.approx(order / 2 * (7 / 9 + 2 / 25), rel=1e-9) and spent >= order / 2 * (7 / 9 + 2 / 25)


def test_the_conversion_is_that_of_the_paper() -> None:
    left = DELTA * (1 - OVERFLOW_SHARE)
    assert overhead(10, DELTA) == pytest.approx(math.log(9 / 10) - (math.log(left) + math.log(10)) / 9)


def test_a_gaussians_conversion_holds_and_is_not_far_off() -> None:
    """Against the exact delta of the Gaussian mechanism (Balle & Wang 2018)."""
    from scipy.stats import norm

    fresh, event = _make_filter(2.0), _all_units(3.0, 1)
    proven = _make_filter(2.0, event, order=fresh.order_for(_all_units(3.0, 1))).proven
    exact = norm.cdf(1 / 6 - 3 * proven) - math.exp(proven) * norm.cdf(-1 / 6 - 3 * proven)
    looser = norm.cdf(1 / 6 - 2.1 * proven) - math.exp(0.7 * proven) * norm.cdf(-1 / 6 - 2.1 * proven)
    assert exact < DELTA < looser


def test_the_first_events_order_admits_most_of_it() -> None:
    fresh, step = _make_filter(), _make_event(0.8, steps=1)
    admitted = {order: _make_filter(4.0, order=order).steps_admitted(step.times(100_000)) for order in ORDERS}
    assert fresh.order_for(step) in ORDERS and admitted[fresh.order_for(step)] == max(admitted.values()) > 0


def test_a_job_for_the_whole_of_a_fresh_budget_is_admitted_with_a_little_more_noise() -> None:
    noise, reason = calibrate(2.0, _make_event, DELTA, _make_filter(2.0))
    assert _make_filter(2.0).admits(_make_event(noise)) and "raised from" in reason
    assert 0.6 * 2 < epsilon([_make_event(noise)], DELTA) <= 2


def test_where_the_budget_has_room_the_noise_is_the_least_by_pld() -> None:
    noise, reason = calibrate(2.0, _make_event, DELTA, _make_filter(8.0))
    assert noise == pytest.approx(0.775, rel=5e-3) and reason == "the least by PLD"


def test_more_than_remains_is_refused_with_what_would_be_admitted() -> None:
    first = _make_event(0.7)
    used = _make_filter(4.0, first, order=_make_filter(4.0).order_for(first))
    with pytest.raises(BudgetRefused, match=r"budget of retail \(epsilon 4, delta 1e-06\) does not allow 585 steps") as refused:
        calibrate(4.0, _make_event, DELTA, used)
    assert refused.value.exit_code == 3 and "admitted: " in refused.value.hint and "officer" in refused.value.hint


def test_what_a_refusal_says_is_admitted_is_and_one_step_more_is_not() -> None:
    used, event = _make_filter(4.0, _make_event(0.8), order=4), _make_event(0.7)
    steps, noise = used.steps_admitted(event), used.least_noise(_make_event, 0.7, 100)
    assert 0 < steps < event.steps and used.admits(event.times(steps)) and not used.admits(event.times(steps + 1))
    assert noise is not None and used.admits(_make_event(noise)) and not used.admits(_make_event(noise * 0.995))


def test_a_cap_that_will_be_met_is_refused_however_small_the_divergence() -> None:
    assert _make_filter().admits(Event(5.0, 0.005, 100_000, 900, 10))
    assert not _make_filter().admits(Event(5.0, 0.005, 100_000, 550, 10))


def test_a_grant_so_large_that_rare_steps_break_it_is_refused_for_that() -> None:
    assert _make_filter(15.0).admits(_make_event(0.8))
    with pytest.raises(BudgetRefused, match=r"at epsilon 40 the chance that one of the steps meets its cap of \d+ units counts as"):
        _make_filter(40.0).demand(_make_event(0.8))


def test_a_grant_lowered_below_what_is_spent_admits_nothing() -> None:
    lowered = _make_filter(0.5, _make_event(0.7), order=5)
    assert lowered.remaining == 0 and lowered.proven > 0.5 and not lowered.admits(_make_event(1000, steps=1))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.5, 4), st.sampled_from([64, 256, 1024]), st.integers(1, 400)), min_size=1, max_size=4),
    st.floats(0.5, 10),
)
def test_whatever_is_admitted_stays_within_the_budget_by_other_accountants_too(wishes: list[tuple[float, int, int]], budget: float) -> None:
    used = _make_filter(budget)
    for noise, batch, steps in wishes:
        event = _make_event(noise, batch=batch, steps=steps)
        if used.admits(event):
            used = Filter("retail", budget, DELTA, (*used.events, event), used.order_for(event))
    assert used.proven <= budget + 1e-9
    assert used.remaining == pytest.approx(budget - used.proven, abs=1e-9)
    if used.events:
        assert renyi_best(used.events, DELTA) <= used.proven + 0.02 * used.proven


def test_pld_reports_no_more_than_the_filter_proves() -> None:
    events = (_make_event(0.8), _make_event(1.1, batch=1024, steps=200), _make_event(0.7, batch=128))
    used = _make_filter(8.0, *events, order=_make_filter(8.0).order_for(events[0]))
    assert 0 < epsilon(events, DELTA) <= used.proven <= 8
