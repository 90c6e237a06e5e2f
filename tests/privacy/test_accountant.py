"""Epsilon of known plans, against figures found elsewhere, and noise for an epsilon."""

import math

import pytest

from privacy import accountant
from privacy.errors import PlanError, PromiseBroken
from privacy.plan import Event, PrivacyPlan, batch_cap


def _event(noise: float, units: int, batch: int, steps: int) -> Event:
    return Event(noise, batch / units, units, batch_cap(units, batch), steps)


@pytest.mark.parametrize(
    ("noise", "units", "batch", "steps", "delta", "pld", "rdp"),
    [
        (0.6, 10_000, 256, 117, 1e-5, 7.30, 8.68),
        (1.0, 10_000, 256, 117, 1e-5, 1.92, 2.34),
        (0.8, 100_000, 512, 585, 1e-6, 1.78, 2.44),
        (0.8, 1_000_000, 4096, 244, 1e-7, 1.67, 2.42),
    ],
)
def test_epsilon_is_that_of_the_literature(noise: float, units: int, batch: int, steps: int, delta: float, pld: float, rdp: float) -> None:
    events = [_event(noise, units, batch, steps)]

    assert accountant.epsilon(events, delta) == pytest.approx(pld, abs=0.01)
    assert accountant.renyi_best(events, delta) == pytest.approx(rdp, abs=0.01)


def test_two_jobs_together_cost_less_than_their_sum_and_more_than_one() -> None:
    one = _event(0.8, 100_000, 512, 585)

    assert accountant.epsilon([one, one], 1e-6) == pytest.approx(2.14, abs=0.02)


def test_a_small_epsilon_is_not_drowned_by_rounding() -> None:
    found = accountant.epsilon([_event(10.0, 1_000_000, 1000, 1000)], 1e-6)

    assert found < accountant.renyi_best([_event(10.0, 1_000_000, 1000, 1000)], 1e-6) <= 0.012


def test_one_full_batch_is_the_gaussian_mechanism() -> None:
    """Balle & Wang 2018, theorem 8: delta(epsilon) of the Gaussian mechanism in closed form."""
    from scipy.stats import norm

    found = accountant.epsilon([Event(1.0, 1.0, 100, 100, 1)], 1e-5)

    assert norm.cdf(0.5 - found) - math.exp(found) * norm.cdf(-0.5 - found) == pytest.approx(1e-5, rel=0.02)


@pytest.mark.parametrize("target", [0.3, 2.0])
def test_noise_for_an_epsilon_gives_it_and_hardly_less(target: float) -> None:
    def event(noise: float) -> Event:
        return _event(noise, 10_000, 128, 50)

    noise = accountant.noise_for(target, event, 1e-5)

    assert 0.98 * target <= accountant.epsilon([event(noise)], 1e-5) <= target


def test_the_accountants_agree() -> None:
    found = accountant.cross_check([_event(1.0, 10_000, 256, 117)], 1e-5)

    assert found.pld <= found.prv <= found.pld + 2 * accountant.PRV_ERROR
    assert found.rdp > found.pld


def test_no_steps_cost_nothing() -> None:
    assert accountant.epsilon([], 1e-6) == 0
    assert accountant.cross_check([], 1e-6).rdp == 0


def test_accountants_that_disagree_break_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = accountant._prv
    monkeypatch.setattr(accountant, "_prv", lambda events, delta: right([event.times(2 * event.steps) for event in events], delta))

    with pytest.raises(PromiseBroken, match="two accountants disagree"):
        accountant.cross_check([_event(1.0, 10_000, 256, 117)], 1e-5)


def test_a_cap_is_met_as_good_as_never_and_costs_nothing() -> None:
    event = _event(0.8, 100_000, 512, 585)

    assert event.cap >= 512 + 6 * math.sqrt(512)
    assert event.overflow < 1e-17
    assert batch_cap(10, 10) == 10


PLAN = {"units": 1000, "expected_batch": 50, "steps": 10, "spare_steps": 0, "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("delta", 1e-3, "less than 1 / units"),
        ("delta", 0.0, "delta: 0.0: expected more than 0"),
        ("noise_multiplier", 0.0, "noise_multiplier: 0.0: expected a positive number"),
        ("clip_norm", math.inf, "clip_norm: inf: expected a positive number"),
        ("expected_batch", 1001, "expected batch of 1001 of 1000 units"),
        ("units", 0, "units: 0: expected at least 1"),
    ],
)
def test_a_plan_that_promises_nothing_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PrivacyPlan(**PLAN | {field: value})


def test_a_plan_counts_its_spare_steps() -> None:
    plan = PrivacyPlan(**PLAN | {"spare_steps": 6})

    assert plan.event.steps == 16
    assert plan.sampling_rate == 0.05
    assert plan.noise_scale == 1.0
