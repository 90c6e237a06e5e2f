"""What a bank's policy forbids: rule by rule, at the limit and just beyond it."""

import json
import math
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from federation.policy import _RULES, AdapterShape, Policy, Proposal, Refusal, Spent, TaskShape, check

NOON = datetime(2026, 11, 20, 12, 0)
SHAPE = AdapterShape(rank=16, alpha=32, targets="all-linear")
TASK = TaskShape(task="classify", labels=["card", "loan"], max_length=64)
POLICY = Policy(
    base_models=["a" * 64],
    bundles=["b" * 64],
    tasks=[TaskShape(task="sft", max_length=64), TASK],
    aggregation=["ffa", "fedsvd"],
    adapters=[SHAPE, AdapterShape(rank=8, alpha=16, targets=["v_proj", "q_proj"])],
    least_members=4,
    least_in_sum=3,
    least_honest_in_sum=2,
    least_threshold=3,
    most_clip=1.0,
    most_rounds=10,
    most_attempts=30,
    most_epsilon_round=0.5,
    most_epsilon=4.0,
    evaluation="public_data",
    metrics=["accuracy"],
    hours="20:00-06:00",
)
PROPOSAL = Proposal(
    base_model="a" * 64,
    bundle="b" * 64,
    task=TASK,
    aggregation="ffa",
    adapter=SHAPE,
    members=4,
    in_sum=3,
    colluders=1,
    threshold=3,
    clip=1.0,
    rounds=10,
    epsilon_round=0.5,
    evaluation="public_data",
    metrics=("accuracy",),
)
SPENT = Spent(attempts=30, epsilon=4.0)
NIGHT = NOON.replace(hour=23)


def test_what_is_exactly_at_every_limit_is_allowed() -> None:
    assert check(PROPOSAL, POLICY, SPENT, NIGHT) is None


def test_there_is_a_rule_for_every_field_of_the_policy() -> None:
    assert list(_RULES) == list(Policy.model_fields)


@pytest.mark.parametrize(
    ("rule", "asks", "asked", "allowed"),
    [
        ("base_models", {"base_model": "c" * 64}, "c" * 64, "a" * 64),
        ("bundles", {"bundle": "c" * 64}, "c" * 64, "b" * 64),
        ("aggregation", {"aggregation": "fedavg"}, "fedavg", "ffa or fedsvd"),
        ("tasks", {"task": TASK.model_copy(update={"max_length": 63})}, "max_length=63", "max_length=64"),
        ("tasks", {"task": TASK.model_copy(update={"labels": ["card"]})}, "labels=['card']", "labels=['card', 'loan']"),
        ("adapters", {"adapter": AdapterShape(rank=17, alpha=32, targets="all-linear")}, "rank=17", "rank=16"),
        ("least_members", {"members": 3}, "3", "4 or more"),
        ("least_in_sum", {"in_sum": 1}, "1", "3 or more"),
        ("least_honest_in_sum", {"colluders": 2}, "1", "2 or more"),
        ("least_threshold", {"threshold": 2}, "2", "3 or more"),
        ("most_clip", {"clip": 1.001}, "1.001", "1.0 or less"),
        ("most_clip", {"clip": math.nan}, "nan", "1.0 or less"),
        ("most_rounds", {"rounds": 11}, "11", "10 or less"),
        ("most_epsilon_round", {"epsilon_round": 0.51}, "0.51", "0.5 or less"),
        ("most_epsilon_round", {"epsilon_round": math.inf}, "inf", "0.5 or less"),
        ("evaluation", {"evaluation": "noised"}, "noised", "public_data or off"),
        ("metrics", {"metrics": ("accuracy", "f1")}, "f1", "accuracy"),
    ],
)
def test_what_is_beyond_a_limit_is_refused_by_its_rule(rule: str, asks: dict[str, Any], asked: str, allowed: str) -> None:
    refusal = check(replace(PROPOSAL, **asks), POLICY, SPENT, NIGHT)
    assert refusal is not None and refusal.rule == rule
    assert asked in refusal.asked and allowed in refusal.allowed


@pytest.mark.parametrize(("rule", "spent"), [("most_attempts", Spent(31, 4.0)), ("most_epsilon", Spent(30, 4.001))])
def test_what_was_spent_counts(rule: str, spent: Spent) -> None:
    refusal = check(PROPOSAL, POLICY, spent, NIGHT)
    assert refusal is not None and refusal.rule == rule


@pytest.mark.parametrize("allowed", ["off", "public_data", "noised"])
def test_of_evaluations_a_bank_has_the_kind_it_allows_or_none(allowed: str) -> None:
    """public_data is no lesser noised: it is exact, and nobody pays for it."""
    policy = POLICY.model_copy(update={"evaluation": allowed})
    kinds = ("off", "public_data", "noised")
    assert {kind for kind in kinds if not check(replace(PROPOSAL, evaluation=kind), policy, SPENT, NIGHT)} == {"off", allowed}


@pytest.mark.parametrize(
    ("hours", "open_at", "shut_at"),
    [("20:00-06:00", ("20:00", "23:59", "00:00", "05:59"), ("06:00", "19:59")), ("08:30-17:00", ("08:30", "16:59"), ("08:29", "17:00"))],
)
def test_hours_may_go_over_midnight(hours: str, open_at: tuple[str, ...], shut_at: tuple[str, ...]) -> None:
    policy = POLICY.model_copy(update={"hours": hours})

    def refused(clock: str) -> Refusal | None:
        return check(PROPOSAL, policy, SPENT, datetime.fromisoformat(f"2026-11-20T{clock}"))

    assert not any(map(refused, open_at))
    assert [refused(clock) for clock in shut_at] == [Refusal("hours", clock, hours) for clock in shut_at]


def test_null_allows_any_epsilon_and_any_hour() -> None:
    policy = POLICY.model_copy(update={"most_epsilon_round": None, "most_epsilon": None, "hours": None})
    assert check(replace(PROPOSAL, epsilon_round=math.inf), policy, Spent(1, math.inf), NOON) is None


def test_a_refusal_can_be_logged_and_sent() -> None:
    refusal = check(PROPOSAL, POLICY, SPENT, NOON)
    assert refusal is not None and Refusal(**json.loads(json.dumps(asdict(refusal)))) == refusal
    assert str(refusal) == "hours: asked 12:00, allowed 20:00-06:00"


def test_the_order_of_an_adapters_modules_does_not_matter() -> None:
    proposal = replace(PROPOSAL, adapter=AdapterShape(rank=8, alpha=16, targets=["q_proj", "v_proj"]))
    assert check(proposal, POLICY, SPENT, NIGHT) is None


@pytest.mark.parametrize("field", list(Policy.model_fields))
def test_nothing_is_allowed_by_silence(field: str) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({name: value for name, value in POLICY.model_dump().items() if name != field})


@pytest.mark.parametrize("change", [{"least_in_sum": 0}, {"hours": "8-17"}, {"bundles": ["b" * 63]}, {"most_epsilon": math.inf}])
def test_a_policy_that_would_be_misread_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({**POLICY.model_dump(), **change})
