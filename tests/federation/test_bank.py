"""What a bank says no to, by which rule, and that a no leaves nothing behind."""

import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from federation.config import TrainingConfig
from federation.errors import FolderError, RunFailed
from federation.rounds import bank, budget, letters, record
from federation.rounds.letters import Answer, Close, Done, Failure, Invitation, Next, Refusal
from privacy.ledger import Ledger
from privacy.plan import Event
from tests.federation.enrolment import BANKS, Federation
from tests.federation.loopback import BUNDLE, RUN, START, UPDATE, Loopback, World, exchange_of, make_world, planned


@pytest.fixture
def world(made: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(bank, "plan_round", planned)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes are killed here, not machines
    world = make_world(made)
    yield world
    world.close()


def _ask(world: World, request: bytes) -> Any:
    return letters.reply(world.bank("alder").on(request))[0]


def _check_refused(world: World, request: bytes, rule: str) -> Refusal:
    """By this rule, alone and on record; nothing was trained or released and nothing stays reserved."""
    before = _released(world)
    answer = _ask(world, request)
    assert isinstance(answer, Refusal) and answer.rule == rule, answer
    noted = [
        (each.rule, each.asked["asked"], each.asked["allowed"])
        for each in record.decisions(world.bank_folder("alder") / "record.jsonl")
        if each.rule
    ]
    assert (rule, answer.asked, answer.allowed) in noted
    assert _released(world) == before and not world.toys["alder"].asked
    return answer


def _released(world: World) -> list[str]:
    return [each.released for each in record.decisions(world.bank_folder("alder") / "record.jsonl") if each.released]


def _training(world: World, **changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(world.training.model_dump() | changes)


@pytest.mark.parametrize(
    ("rule", "allows"),
    [
        ("base_models", {"base_models": ["c" * 64]}),
        ("bundles", {"bundles": ["c" * 64]}),
        ("tasks", {"tasks": []}),
        ("aggregation", {"aggregation": ["fedavg"]}),
        ("adapters", {"adapters": []}),
        ("least_members", {"least_members": 4}),
        ("least_in_sum", {"least_in_sum": 4}),
        ("least_honest_in_sum", {"least_honest_in_sum": 3}),
        ("least_threshold", {"least_threshold": 4}),
        ("most_clip", {"most_clip": 3.9}),
        ("most_rounds", {"most_rounds": 1}),
        ("most_epsilon_round", {"most_epsilon_round": 3.9}),
        ("most_epsilon", {"most_epsilon": 0.01}),
        ("evaluation", {"evaluation": "public_data"}),
        ("metrics", {"metrics": []}),
        ("hours", {"hours": "00:00-00:01"}),
    ],
)
def test_what_the_policy_forbids_is_refused_by_its_rule(world: World, rule: str, allows: dict[str, Any]) -> None:
    world.now = lambda: datetime(2026, 11, 20, 12)
    world.allow("alder", **allows)
    _check_refused(world, world.invite(), rule)
    assert not world.held("alder")


def test_a_policy_counts_as_soon_as_it_is_written(world: World) -> None:
    world.allow("alder", bundles=[])
    _check_refused(world, world.invite(), "bundles")
    world.allow("alder", bundles=[BUNDLE])
    assert isinstance(_ask(world, world.invite()), Answer)


@pytest.mark.parametrize(
    ("rule", "training"),
    [
        ("least_members", {"quorum": 2}),
        ("least_in_sum", {"threshold": 2}),
        ("least_in_sum", {"secure_aggregation": False}),
        ("most_epsilon_round", {"privacy": None, "evaluation": "off", "metrics": []}),
        ("most_epsilon_round", {"privacy": {"epsilon": 9, "epsilon_round": 9, "delta": 1e-5}}),
        ("most_rounds", {"rounds": 4}),
        ("tasks", {"labels": ["card", "mortgage"]}),
        ("tasks", {"local": {"steps": 3, "batch": 10, "learning_rate": 0.1, "clip_norm": 1.0, "max_length": 7}}),
        ("base_models", {"base_model": {"name": "other", "sha256": "d" * 64}}),
        ("adapters", {"adapter": {"rank": 3, "alpha": 4, "targets": "all-linear"}}),
    ],
)
def test_a_coordinator_that_asks_for_more_is_refused(world: World, rule: str, training: dict[str, Any]) -> None:
    _check_refused(world, world.invite(training=_training(world, **training)), rule)


def test_private_rows_are_not_had_exactly_and_for_nothing_by_calling_them_public(world: World) -> None:
    """The round after the last evaluates any adapter: exact accuracies of crafted ones, as many as are asked for."""
    last = world.training.rounds + 1
    refusal = _check_refused(world, world.invite(round=last, training=_training(world, evaluation="public_data")), "evaluation")
    assert (refusal.asked, refusal.allowed) == ("public_data", "noised or off") and not world.held("alder")
    assert isinstance(_ask(world, world.invite(round=last)), Answer)
    assert [charged for _, charged, _ in world.held("alder")] == [0]  # it is reserved, as it is noised


def test_a_delta_above_that_of_the_grant_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At it the noise of an epsilon that the policy allows would be less."""
    monkeypatch.setattr(bank, "plan_round", budget.plan_round)
    training = _training(world, privacy={"epsilon": 8, "epsilon_round": 4, "delta": 1e-4})
    for round in (1, training.rounds + 1):
        told = _check_refused(world, world.invite(round=round, training=training), "ledger").allowed
        assert told.startswith("delta 0.0001 is above the 1e-05 at which retail was granted")
    assert not world.held("alder")


def test_attempts_that_were_answered_count_at_whichever_round(world: World) -> None:
    world.allow("alder", most_attempts=3)
    for round, attempt in ((1, 1), (1, 2), (2, 3)):
        assert isinstance(_ask(world, world.invite(round=round, attempt=attempt)), Answer)
    refusal = _check_refused(world, world.invite(round=2, attempt=4), "most_attempts")
    assert (refusal.asked, refusal.allowed) == ("4", "3 or less")
    assert isinstance(_ask(world, world.invite(run="intents-2")), Answer)


def test_no_more_is_trained_in_a_run_than_its_epsilon_is_for(world: World) -> None:
    """However often the coordinator says that an attempt has failed; another run is another promise."""
    world.ask(rounds=1, spare_rounds=1, attempts=9)

    class Forgetful(Loopback):
        def send(self, bank: str, content: bytes) -> None:
            super().send(bank, content)
            if exchange_of(content) == UPDATE:
                self.replies = [reply for reply in self.replies if reply.bank != bank]

    with pytest.raises(RunFailed):
        Forgetful(world).run()
    steps = world.training.local.steps
    for name in BANKS:
        charged = [charged for _, charged, _ in world.held(name)]
        told = [each.rule for each in record.decisions(world.bank_folder(name) / "record.jsonl") if each.rule]
        assert charged.count(steps) == 2 and set(charged) <= {0, 1, steps} and told == ["promise"]
    assert isinstance(_ask(world, world.invite(run="intents-2")), Answer)


def test_a_run_goes_on_under_the_terms_it_began_with(world: World) -> None:
    assert isinstance(_ask(world, world.invite()), Answer)
    for changes in ({"spare_rounds": 19}, {"rounds": 3}, {"privacy": {"epsilon": 7, "epsilon_round": 4, "delta": 1e-5}}):
        _check_refused(world, world.invite(attempt=2, training=_training(world, **changes)), "training")
    assert isinstance(_ask(world, world.invite(attempt=2)), Answer)


def test_what_another_job_reserves_meanwhile_counts_against_what_the_officer_allows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(round: budget.RoundBudget, ledger: Ledger, population: str, name: str) -> budget.RoundBudget:
        ledger.reserve(population, Event(1.0, 0.01, 1000, 200, 1), "another job")
        return budget.reserve(round, ledger, population, name)

    with Ledger.open(world.config("alder").ledger) as ledger:
        alone = budget.price(planned(world.training, world.config("alder"), "train"), ledger, "retail")
    world.allow("alder", most_epsilon=alone)
    monkeypatch.setattr(bank, "reserve", meanwhile)
    _check_refused(world, world.invite(), "most_epsilon")
    assert all(closed for run, _, closed in world.held("alder") if run != "another job")


def test_a_model_that_the_bank_does_not_have_is_refused(world: World) -> None:
    world.allow("alder", base_models=["a" * 64, "d" * 64])
    training = _training(world, base_model={"name": "other", "sha256": "d" * 64})
    assert _check_refused(world, world.invite(training=training), "base_model").allowed == "a" * 64


def test_a_threshold_that_the_sum_does_not_survive_is_refused_even_where_the_policy_would_not_mind(world: World) -> None:
    world.allow("alder", least_threshold=1, least_in_sum=1, least_honest_in_sum=0)
    refusal = _check_refused(world, world.invite(training=_training(world, threshold=2)), "header")
    assert "expected 3 or more" in refusal.allowed and not world.held("alder")


def test_an_adapter_of_another_rank_than_the_training_says_is_refused(world: World) -> None:
    content = save(START | {"layer.lora_A.weight": np.ones((1, 5), np.float32), "layer.lora_B.weight": np.ones((4, 1), np.float32)})
    invitation, _ = letters.request(world.invite(model=hashlib.sha256(content).digest()))
    assert _check_refused(world, letters.seal(invitation, content), "adapters").asked == "an adapter of rank 1"


def test_a_budget_that_is_used_up_is_the_ledgers_refusal(world: World) -> None:
    world.allow("alder", most_epsilon=None)
    before = Event(1.0, 0.01, 1000, 200, 1)
    with Ledger.open(world.config("alder").ledger) as ledger:
        ledger.reserve("retail", before.times(ledger.filter("retail").steps_admitted(before.times(10**5))), "before")
    assert "does not allow" in _check_refused(world, world.invite(), "ledger").allowed
    assert all(run == "before" or (closed and not charged) for run, charged, closed in world.held("alder"))


def test_a_population_without_a_budget_is_the_ledgers_refusal(world: World) -> None:
    path = world.bank_folder("alder") / "bank.yaml"
    path.write_text(path.read_text().replace("retail", "wealth"))
    assert "no budget is granted" in _check_refused(world, world.invite(), "ledger").allowed


def test_of_a_file_that_fails_the_coordinator_is_told_the_name_alone(world: World) -> None:
    world.config("alder").ledger.unlink()
    told = _check_refused(world, world.invite(), "ledger").allowed
    assert told.startswith("bank.ledger: no such ledger")
    assert str(world.bank_folder("alder")) not in told


def test_only_the_rosters_coordinator_can_invite(world: World) -> None:
    content, (invitation, _) = save(START), letters.request(world.invite())
    assert isinstance(invitation, Invitation)
    _check_refused(world, letters.seal(invitation.signed(Ed25519PrivateKey.generate()), content), "coordinator")
    _check_refused(world, letters.seal(invitation.model_copy(update={"attempt": 2}), content), "coordinator")
    _check_refused(world, letters.seal(invitation, content[:-1] + b"\x01"), "coordinator")


@pytest.mark.parametrize("change", [{"federation": "meadow"}, {"version": 2}, {"roster": bytes(32)}])
def test_another_roster_than_that_in_force_is_refused(world: World, change: dict[str, Any]) -> None:
    assert _check_refused(world, world.invite(**change), "roster").allowed.startswith("orchard, version 1, ")


def test_a_roster_with_a_phantom_that_not_all_have_signed_is_refused(world: World) -> None:
    world.made.join("elm")
    proposal = world.made.propose().roster
    _check_refused(world, world.invite(version=proposal.version, roster=proposal.hash), "roster")


def test_a_bank_without_a_roster_refuses_everybody(world: World) -> None:
    (world.bank_folder("alder") / "roster.json").unlink()
    _check_refused(world, world.invite(), "roster")


def test_no_attempt_is_answered_twice_and_no_earlier_one(world: World) -> None:
    late = world.invite(attempt=2)
    assert isinstance(_ask(world, late), Answer)
    for change in ({"attempt": 1}, {"attempt": 2, "nonce": bytes([1]) * 16}):
        _check_refused(world, world.invite(**change), "order")
    late_invitation, _ = letters.request(late)
    assert isinstance(late_invitation, Invitation)
    assert isinstance(_ask(world, letters.seal(Close(invitation=late_invitation.digest, banks=(), model=None))), Done)
    assert _check_refused(world, late, "order").allowed == "what comes after round 1, attempt 2"
    assert all(closed for _, _, closed in world.held("alder"))


def test_the_same_invitation_has_the_same_answer_and_one_line_in_the_record(world: World) -> None:
    request = world.invite()
    answer = world.bank("alder").on(request)
    assert world.bank("alder").on(request) == answer
    world.restart("alder")
    assert world.bank("alder").on(request) == answer
    assert len(record.decisions(world.bank_folder("alder") / "record.jsonl")) == 1 and len(world.held("alder")) == 2


def test_a_later_invitation_ends_the_attempt_before_and_gives_back_its_budget(world: World) -> None:
    for attempt in (1, 2):
        assert isinstance(_ask(world, world.invite(attempt=attempt)), Answer)
    assert [(run[-1], closed) for run, _, closed in world.held("alder")] == [("1", True), ("1", True), ("2", False), ("2", False)]


def test_what_was_reserved_before_a_crash_and_not_remembered_is_given_back(world: World) -> None:
    with Ledger.open(world.config("alder").ledger) as ledger:
        ledger.reserve("retail", Event(8.0, 0.01, 1000, 100, 3), "orchard/intents-1, round 1, attempt 1")
        ledger.reserve("retail", Event(8.0, 0.01, 1000, 100, 3), "not a federation's")
    world.bank("alder")
    assert [closed for _, _, closed in world.held("alder")] == [True, False]


def test_a_message_for_no_attempt_is_refused_and_a_wrong_one_changes_nothing(world: World) -> None:
    assert _check_refused(world, letters.seal(Next(invitation=bytes(32)), b"x"), "order").asked.startswith("a message for an attempt")
    request = world.invite()
    answer = _ask(world, request)
    _check_refused(world, letters.seal(Next(invitation=answer.invitation), b"x"), "protocol")
    assert record.decisions(world.bank_folder("alder") / "record.jsonl")[-1].round == 1
    assert _ask(world, request) == answer


@pytest.mark.parametrize("request_", [b"", b"CFL\x00\x00\x01\x00\x00\x00\x02{}", b"x" * 100])
def test_what_is_no_letter_is_a_failure_and_the_bank_lives_on(world: World, request_: bytes) -> None:
    assert isinstance(_ask(world, request_), Failure)
    assert isinstance(_ask(world, world.invite()), Answer)


def test_two_processes_cannot_be_one_bank_nor_may_others_read_its_folder(world: World) -> None:
    def second() -> None:
        bank.Bank(world.bank_folder("alder"), lambda: world.config("alder"), "a" * 64, world.toys["alder"])

    world.bank("alder")
    with pytest.raises(Exception, match="another process has it open"):
        second()
    world.restart("alder")
    world.bank_folder("alder").chmod(0o755)
    with pytest.raises(FolderError, match="others than its owner"):
        second()


def test_everything_that_leaves_a_bank_is_on_its_record_and_nobody_else_may_read_it(world: World) -> None:
    world.ask(rounds=1)
    Loopback(world).run()
    assert [released.split()[0] for released in _released(world)] == ["Keys", "Shares", "Masked", "View", "Reveal", "Receipt"] * 2
    folder = world.bank_folder("alder")
    decisions = record.decisions(folder / "record.jsonl")
    assert decisions[2].asked == {"letter": "Inbox", "steps": "3"} and all(each.epsilon for each in decisions)
    assert not [*(folder / "attempt").iterdir()]
    made = [folder / "record.jsonl", *(path for name in ("vault", "attempt", "starts") for path in (folder / name).rglob("*"))]
    assert all(path.stat().st_mode & 0o077 == 0 for path in made)


def test_boxes_that_are_not_as_banks_signed_them_are_refused_before_anything_is_trained_or_charged(world: World) -> None:
    def change(bank: str, content: bytes) -> bytes:
        return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:] if (bank, exchange_of(content)) == ("alder", 2) else content

    world.ask(rounds=1)
    Loopback(world, change=change).run()
    assert "protocol" in {each.rule for each in record.decisions(world.bank_folder("alder") / "record.jsonl")}
    assert not world.toys["alder"].asked and world.toys["birch"].asked
    assert world.held("alder") and all(closed and not charged for _, charged, closed in world.held("alder"))


def test_a_round_that_follows_another_attempt_than_the_one_that_counted_is_refused(world: World) -> None:
    path = world.bank_folder("alder") / "record.jsonl"
    told = {"letter": "close", "banks": "alder, birch, cedar", "model": "d" * 64}
    record.note(path, record.Decision("alder", RUN, 1, 2, told, "", "", None))
    assert _check_refused(world, world.invite(round=2, before=7), "result").allowed.startswith("attempt 2's")
    assert isinstance(_ask(world, world.invite(round=2, before=2)), Answer)


def test_the_record_says_that_a_sum_was_seen_and_another_is_said_to_count(world: World) -> None:
    world.ask(rounds=1, metrics=[], evaluation="off")
    Loopback(world).run()
    path = world.bank_folder("alder") / "record.jsonl"
    world.ask(rounds=2, metrics=[], evaluation="off")
    path.unlink()  # and with it what the bank was told of attempt 1
    assert isinstance(_ask(world, world.invite(round=2, before=7)), Answer)
    assert record.decisions(path)[-1].asked["compared"] == "no: this bank has the sum of attempt 1, and was told that attempt 7 counts"


def test_an_attempt_that_cannot_be_read_after_an_update_is_given_up_and_its_budget_given_back(world: World) -> None:
    assert isinstance(_ask(world, world.invite()), Answer)
    live = world.bank_folder("alder") / "attempt" / "live"
    live.write_bytes(live.read_bytes().replace(b'"quorum"', b'"least"'))
    world.restart("alder")
    world.bank("alder")
    assert all(closed and not charged for _, charged, closed in world.held("alder")) and not live.exists()
    assert "given up" in record.decisions(world.bank_folder("alder") / "record.jsonl")[-1].asked
    assert isinstance(_ask(world, world.invite(attempt=2)), Answer)


@pytest.mark.slow
def test_a_run_under_the_noise_that_keeps_its_promise(made: Federation) -> None:
    world = make_world(made)
    world.ask(rounds=1)
    Loopback(world).run()
    world.close()
    with Ledger.open(world.config("alder").ledger) as ledger:
        assert 0 < ledger.status("retail").epsilon_charged <= 8
