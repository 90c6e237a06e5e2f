"""Tables of noise, batch and steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import PlanError
from privacy.filter import Filter
from privacy.planner import Wish, batches_around, plan_rows, suggest_delta


@given(st.integers(1, 10**12))
def test_the_delta_suggested_is_a_power_of_ten_from_a_hundredth_to_a_tenth_of_one_unit(units: int) -> None:
    delta, _ = suggest_delta(units, None)
    assert 0.01 / units * (1 - 1e-9) < delta <= 0.1 / units * (1 + 1e-9) and f"{delta:e}".startswith("1.000000e-")


def test_with_a_population_its_granted_delta_is_suggested() -> None:
    assert suggest_delta(1000, Filter("retail", 4.0, 1e-7, (), None)) == (1e-7, "the delta granted to retail")


@pytest.mark.parametrize(
    ("batch", "units", "expected"),
    [(512, 10**6, [128, 256, 512, 1024, 2048]), (100, 10**6, [32, 64, 100, 128, 256]), (1, 10, [1, 2, 4]), (512, 600, [128, 256, 512])],
)
def test_batches_are_powers_of_two_around_the_one_wished_for(batch: int, units: int, expected: list[int]) -> None:
    assert batches_around(batch, units) == expected


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"noise": 1.0}, "one of --epsilon and --noise"),
        ({"target": None}, "one of --epsilon and --noise"),
        ({"steps": 5}, "one of --epochs and --steps"),
        ({"epochs": float("inf")}, "positive number"),
        ({"target": float("nan")}, "positive number"),
        ({"delta": 1e-4}, "less than 1 / units"),
        ({"batch": 20_000}, "1 to all of them"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(changes: dict[str, float | None], found: str) -> None:
    with pytest.raises(PlanError, match=found):
        plan_rows(Wish(**{"units": 10_000, "batch": 100, "delta": 1e-5, "target": 4.0, "epochs": 3.0} | changes), None)  # type: ignore[arg-type]


def test_larger_batches_give_more_signal_for_an_epsilon_and_the_ledger_is_asked_for_each() -> None:
    spent = Filter("retail", 4.0, 1e-6, (Wish(100_000, 512, 1e-6, noise=0.7, steps=500).event(0.7, 512),), 5.0)
    rows = plan_rows(Wish(100_000, 512, 1e-6, noise=0.8, epochs=3.0, spare_steps=10), spent)
    assert [row.batch for row in rows] == [128, 256, 512, 1024, 2048] and [row.steps for row in rows] == [2344, 1172, 586, 293, 147]
    assert sorted(rows, key=lambda row: row.signal or 0) == rows
    assert [row.admitted for row in rows] == [True, True, True, False, False]
    assert all("admitted: " in row.reason for row in rows if not row.admitted)


def test_a_small_epsilon_is_looked_at_for_the_wished_batch_only() -> None:
    rows = plan_rows(Wish(1000, 1000, 1e-5, target=0.4, steps=10), None)
    assert [row.batch for row in rows] == [1000] and rows[0].epsilon == pytest.approx(0.4, rel=0.01)
