"""What rounds cost: the promise of the whole run, of one round, and the ledger's say in both."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from federation.config import BankConfig, TrainingConfig
from federation.rounds.budget import (
    EVALUATION_SHARE,
    Kind,
    RoundBudget,
    noise_of_evaluations,
    plan_round,
    price,
    release,
    reserve,
)
from privacy.accountant import epsilon
from privacy.errors import BudgetRefused, LedgerError, PlanError
from privacy.evaluation import event
from privacy.ledger import Ledger

DELTA, UNITS = 1e-5, 2000


def _training(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "task": "sft",
        "base_model": {"name": "tiny", "sha256": "a" * 64},
        "adapter": {"rank": 4, "alpha": 8, "targets": "all-linear"},
        "local": {"steps": 10, "batch": 50, "learning_rate": 1e-3, "clip_norm": 0.1, "max_length": 64},
        "rounds": 3,
        "cohort": 4,
        "quorum": 4,
        "threshold": 3,
        "privacy": {"epsilon": 4, "epsilon_round": 4, "delta": DELTA},
        "encoding": {"clip": 1.0, "fraction_bits": 20},
        "evaluation": "noised",
        "metrics": ["accuracy"],
    }
    return TrainingConfig.model_validate(values | changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "bank.ledger") as made:
        made.grant("retail", 4.0, DELTA)
        yield made


def _bank(ledger: Ledger, **changes: Any) -> BankConfig:
    policy = {"base_models": [], "bundles": [], "tasks": [], "aggregation": [], "adapters": [], "least_members": 1, "least_in_sum": 1,
              "least_honest_in_sum": 0, "least_threshold": 1, "most_clip": 1, "most_rounds": 9, "most_attempts": 9,
              "most_epsilon_round": None, "most_epsilon": None, "evaluation": "off", "metrics": [], "hours": None}  # fmt: skip
    return BankConfig.model_validate(
        {"bank": "alder", "base_model": "model", "data": "rows.jsonl", "unit": "record", "units": UNITS, "population": "retail",
         "ledger": ledger.path, "policy": policy} | changes
    )  # fmt: skip


def test_all_rounds_and_their_evaluations_cost_what_the_run_may(ledger: Ledger) -> None:
    planned = plan_round(_training(), _bank(ledger), "train")

    assert planned.plan is not None and planned.evaluation_noise is not None
    steps, evaluations = planned.plan.event.times(4 * 10), event(planned.evaluation_noise, UNITS, 5)
    assert 0.6 * 4 < epsilon([steps, evaluations], DELTA) <= 4  # not quite all of it: the ledger counts less tightly
    assert epsilon([evaluations], DELTA) <= 1.002 * EVALUATION_SHARE * 4
    assert planned == plan_round(_training(), _bank(ledger), "train")


def test_a_fresh_budget_admits_all_rounds_spare_ones_and_evaluations_and_then_nothing(ledger: Ledger) -> None:
    training, bank = _training(), _bank(ledger)
    for attempt in range(4):
        reserve(plan_round(training, bank, "train"), ledger, "retail", f"run 1, attempt {attempt}")
    reserve(plan_round(training, bank, "evaluate"), ledger, "retail", "run 1, evaluation")

    assert 0.9 * 4 < ledger.filter("retail").proven <= 4
    with pytest.raises(BudgetRefused, match="retail"):
        reserve(plan_round(training, bank, "train"), ledger, "retail", "run 1, attempt 5")


def test_one_round_costs_no_more_than_a_round_may(ledger: Ledger) -> None:
    tight = _training(privacy={"epsilon": 4, "epsilon_round": 0.8, "delta": DELTA})
    loose, found = (plan_round(training, _bank(ledger), "train") for training in (_training(), tight))

    assert found.plan is not None and loose.plan is not None and found.evaluation_noise is not None
    assert found.plan.noise_multiplier > loose.plan.noise_multiplier
    assert 0.99 * 0.8 < epsilon([found.plan.event, event(found.evaluation_noise, UNITS)], DELTA) <= 0.8


def test_the_last_model_s_evaluation_is_no_training(ledger: Ledger) -> None:
    training, bank = _training(), _bank(ledger)
    found = plan_round(training, bank, "evaluate")
    assert found.plan is None and found.evaluation_noise == plan_round(training, bank, "train").evaluation_noise
    unmeasured = plan_round(_training(evaluation="off", metrics=[]), bank, "evaluate")
    assert unmeasured.events == [] and price(unmeasured, ledger, "retail") == 0.0
    assert reserve(unmeasured, ledger, "retail", "run 1") == unmeasured


def test_without_privacy_nothing_is_planned_and_no_ledger_is_asked(ledger: Ledger) -> None:
    ledger.path.unlink()
    found = plan_round(_training(privacy=None, evaluation="off", metrics=[]), _bank(ledger), "train")
    assert found == RoundBudget(None, None, None, None, UNITS)


def test_the_price_is_what_the_ledger_says_afterwards(ledger: Ledger) -> None:
    planned = plan_round(_training(), _bank(ledger), "train")
    for attempt in ("1", "2"):
        told = price(planned, ledger, "retail")
        reserve(planned, ledger, "retail", attempt)
        assert told == pytest.approx(ledger.filter("retail").proven) and told > 0


def test_what_was_taken_stays_charged_and_the_rest_is_given_back(ledger: Ledger) -> None:
    held = reserve(plan_round(_training(), _bank(ledger), "train"), ledger, "retail", "run 1")
    assert held.training is not None and held.evaluation is not None
    ledger.reservation(held.training).charge(3)

    release(held, ledger)
    release(held, ledger)

    assert [each.counted.steps for each in ledger.book().reservations("retail")] == [3, 0]
    assert ledger.reservation(held.training).held.closed


def test_a_round_is_reserved_whole_or_not_at_all(ledger: Ledger) -> None:
    planned = plan_round(_training(), _bank(ledger), "train")
    with pytest.raises(BudgetRefused):
        reserve(replace(planned, evaluation_noise=0.01), ledger, "retail", "run 1")
    assert [each.counted.steps for each in ledger.book().reservations("retail")] == [0]


def test_asked_again_under_its_name_a_round_is_not_reserved_twice(ledger: Ledger) -> None:
    planned = plan_round(_training(), _bank(ledger), "train")
    first = reserve(planned, ledger, "retail", "run 1, round 1")
    assert reserve(planned, ledger, "retail", "run 1, round 1") == first
    assert reserve(planned, ledger, "retail", "run 1, round 2").training != first.training


def test_a_budget_survives_json(ledger: Ledger) -> None:
    held = reserve(plan_round(_training(), _bank(ledger), "train"), ledger, "retail", "run 1")
    assert RoundBudget.of(json.loads(json.dumps(asdict(held)))) == held


def test_a_small_bank_takes_part_with_all_its_units(ledger: Ledger) -> None:
    ledger.grant("retail", 400.0, DELTA, replace=True)
    loose = _training(privacy={"epsilon": 8, "epsilon_round": 8, "delta": DELTA}, evaluation="off", metrics=[])
    found = plan_round(loose, _bank(ledger, units=20), "train")
    assert found.plan is not None and found.plan.expected_batch == 20


def test_at_a_delta_above_that_of_the_grant_nothing_is_planned(ledger: Ledger) -> None:
    """At it an epsilon takes less noise, and at a smaller one more."""
    smaller, same, larger = (_training(privacy={"epsilon": 4, "epsilon_round": 4, "delta": DELTA * by}) for by in (0.1, 1, 2))
    bank = _bank(ledger)
    noises = [plan_round(training, bank, "evaluate").evaluation_noise or 0 for training in (smaller, same)]
    assert noises[0] > noises[1] > (noise_of_evaluations(larger) or math.inf)
    for kind in get_args(Kind):
        with pytest.raises(BudgetRefused, match="delta 2e-05 is above the 1e-05 at which retail was granted"):
            plan_round(larger, bank, kind)


def test_what_cannot_be_promised_is_refused(ledger: Ledger) -> None:
    with pytest.raises(PlanError, match="delta"):
        plan_round(_training(), _bank(ledger, units=10**6), "train")
    with pytest.raises(LedgerError, match="no budget is granted to 'others'"):
        plan_round(_training(), _bank(ledger, population="others"), "train")
    with pytest.raises(BudgetRefused, match="retail"):
        plan_round(_training(privacy={"epsilon": 9, "epsilon_round": 9, "delta": DELTA}), _bank(ledger), "train")
