"""A statement says no less than was proven, in figures and in words."""

from pathlib import Path
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.selftest import Verdicts
from privacy.statement import Run, bound, make_statement, paragraph

RUN = Run("run", "customer", 2, steps_taken=20, secret=True, canaries=0, trained=("LoRA adapters",), released="adapter", base_model="base")


def _make_plan(noise: float) -> PrivacyPlan:
    return PrivacyPlan(1000, 50, steps=20, spare_steps=2, clip_norm=1.0, noise_multiplier=noise, delta=1e-5)


def _state(folder: Path, plan: PrivacyPlan) -> dict[str, Any]:
    with Ledger.create(folder / "ledger.db") as ledger:
        ledger.grant("customers", 20.0, 1e-4)
        held = ledger.reserve("customers", plan.event, "run")
        held.charge(20)
        return make_statement(
            plan, RUN, plan.event.times(20), Verdicts(True, True, True, True, True), ledger.status("customers"), ledger.id
        )


@pytest.mark.parametrize("noise", [1.02, 1.03, 1.05, 1.07])
def test_epsilon_is_rounded_up(tmp_path: Path, noise: float) -> None:
    plan = _make_plan(noise)

    claim = _state(tmp_path, plan)["claim"]

    assert 0 <= claim["epsilon"] - epsilon([plan.event.times(20)], plan.delta) < 1e-4


def test_words_say_no_less_than_figures() -> None:
    assert bound({"epsilon": 0.0041, "delta": 1.04e-5}) == "epsilon 0.01 at delta 1.04e-05"


def test_what_all_runs_together_cost_is_said_as_it_is_proven_and_at_its_own_delta(tmp_path: Path) -> None:
    statement = _state(tmp_path, _make_plan(1.0))

    together = bound({"epsilon": statement["history"]["population_proven_epsilon"], "delta": 1e-4})
    assert f"each chosen in sight of those before: {together}." in paragraph(statement)
    assert statement["history"]["population_proven_epsilon"] > statement["history"]["population_charged_epsilon"]
