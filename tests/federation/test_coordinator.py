"""A run of rounds: right sums, whoever vanishes; the same round again, whoever is killed; nothing aggregated twice, nothing left open."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from federation.errors import FactsError, JournalError, RunFailed
from federation.rounds import bank as bank_side
from federation.rounds import coordinator, letters, record
from federation.rounds.aggregate import Layout, State, advance
from federation.rounds.budget import RoundBudget
from federation.rounds.journal import Journal
from federation.rounds.letters import Answer
from privacy import disk
from privacy.secagg.agreement import Secrets
from privacy.secagg.messages import Keys, Message, Opened, Reveal, sign
from tests.federation.enrolment import BANKS, Federation
from tests.federation.loopback import (
    BUNDLE,
    INVITE,
    RUN,
    Killed,
    Loopback,
    World,
    exchange_of,
    in_the_clear,
    make_world,
    planned,
)

ONE_ROUND = {"rounds": 1}
UPDATE, CLOSE = 2, 7


@pytest.fixture
def world(made: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(bank_side, "plan_round", planned)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # processes are killed here, not machines
    world = make_world(made)
    yield world
    world.close()


def _events(world: World, kind: str) -> list[dict[str, Any]]:
    lines = (world.run_folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def _status(world: World) -> dict[str, Any]:
    return dict(json.loads((world.run_folder / "status.json").read_text()))


def _result(world: World) -> dict[str, Any]:
    return dict(json.loads((world.run_folder / "result" / "result.json").read_text()))


def _check(world: World, *rounds: tuple[str, ...]) -> None:
    """The run's result is what the updates of these banks make, round by round; each was aggregated once, and no ledger has any open."""
    result = _result(world)
    assert [tuple(round["banks"]) for round in result["rounds"]] == [*rounds]
    adapter = load_file(world.run_folder / "result" / "adapter_model.safetensors")
    for name, tensor in in_the_clear(world, result["rounds"]).items():
        np.testing.assert_allclose(adapter[name], tensor, atol=1e-6)
    with Journal(world.run_folder) as journal:
        last = world.training.rounds + bool(world.training.metrics)
        assert [each.round for each in journal.rounds] == [*range(last + 1)]
    assert all(closed for bank in BANKS for _, _, closed in world.held(bank))


def _released(world: World, bank: str) -> list[str]:
    return [each.released for each in record.decisions(world.bank_folder(bank) / "record.jsonl") if each.released]


def _compared(world: World, bank: str) -> list[str]:
    """What the bank found of each model it was sent."""
    decisions = record.decisions(world.bank_folder(bank) / "record.jsonl")
    return [decision.asked["compared"].split(":")[0] for decision in decisions if "compared" in decision.asked]


def test_a_run_of_four_banks_is_the_mean_of_their_updates(world: World) -> None:
    world.ask(rounds=3)
    Loopback(world).run()
    _check(world, BANKS, BANKS, BANKS)
    result, status = _result(world), _status(world)
    assert result["metrics"]["3"] == pytest.approx({"accuracy": 0.8, "count": 1250}, rel=1e-4) and [*result["metrics"]] == [*"0123"]
    assert [event["name"] for event in _events(world, "exchange")][:8] == (
        ["keys", "shares", "update", "view", "reveal", "receipt", "receipts", "close"]
    )
    assert status["state"] == "finished" and status["bytes_in"] == sum(event["bytes_in"] for event in _events(world, "exchange"))
    assert all(path.stat().st_mode & 0o077 == 0 for path in world.run_folder.rglob("*") if path.name != "start.safetensors")
    assert all(_compared(world, bank) == ["no", *["with the last sum"] * 3] for bank in BANKS)
    assert all(len(toy.asked) == 4 for toy in world.toys.values())


@pytest.mark.parametrize("exchange", range(6))
def test_a_bank_that_vanishes_at_any_exchange_breaks_no_round(world: World, exchange: int) -> None:
    world.ask(**ONE_ROUND)
    lost = iter([True])
    Loopback(world, lose=lambda bank, at: (bank, at) == ("alder", exchange) and next(lost, False)).run()
    _check(world, BANKS[1:] if exchange <= UPDATE else BANKS)
    assert [event["banks"] for event in _events(world, "attempt")] == [[*BANKS], [*BANKS]]
    assert _compared(world, "alder") == (["no", "no"] if exchange else ["no"])
    assert _compared(world, "birch") == ["no", "with the last sum"]


def test_a_bank_that_is_late_is_not_waited_for_beyond_the_deadline_and_is_told_to_end(world: World) -> None:
    world.ask(timeouts={"update": 60}, **ONE_ROUND)

    class Slow(Loopback):
        def send(self, bank: str, content: bytes) -> None:
            super().send(bank, content)
            if (bank, exchange_of(content)) == ("alder", UPDATE):
                self.replies = [reply for reply in self.replies if reply.bank != bank]

    Slow(world).run()
    _check(world, BANKS[1:])
    assert [event["seconds"] for event in _events(world, "exchange") if event["name"] == "update"] == [60, 60]


def test_when_too_many_vanish_the_round_is_tried_again_with_fresh_updates(world: World) -> None:
    world.ask(**ONE_ROUND)
    lost = iter([True] * 2)
    Loopback(world, lose=lambda bank, at: bank in BANKS[:2] and at == UPDATE and next(lost, False)).run()
    _check(world, BANKS)
    assert "2 banks are left, 3 are needed" in _events(world, "failed_attempt")[0]["message"]
    assert world.toys["cedar"].asked == [(1, 1, "train"), (1, 2, "train"), (2, 1, "evaluate")]
    assert [charged for _, charged, _ in world.held("cedar")] == [3, 1, 3, 1, 1]  # the failed attempt's steps stay charged
    assert [charged for _, charged, _ in world.held("alder")] == [0, 0, 3, 1, 1]  # it had not begun


def test_a_run_whose_attempts_all_fail_says_what_happened_and_can_be_taken_up(world: World) -> None:
    world.ask(**ONE_ROUND)
    with pytest.raises(RunFailed, match=r"round 1 has failed 3 times: attempt 1: .*2 banks are left.*attempt 3: "):
        Loopback(world, lose=lambda bank, at: bank in BANKS[:2] and at == UPDATE).run()
    assert _status(world)["state"] == "failed"
    Loopback(world).run()
    _check(world, BANKS)
    assert _result(world)["rounds"][0]["attempt"] == 4


@pytest.mark.parametrize("exchange", range(8))
def test_a_coordinator_killed_at_any_exchange_goes_on_at_the_same_round(world: World, exchange: int) -> None:
    world.ask(**ONE_ROUND)
    with pytest.raises(Killed):
        Loopback(world, kill=lambda bank, at: (bank, at) == ("birch", exchange)).run()
    Loopback(world).run()
    _check(world, BANKS)
    aggregated = exchange > 5
    assert _result(world)["rounds"][0]["attempt"] == (1 if aggregated else 2)
    trained = 0 if exchange < UPDATE else 1
    assert [charged for _, charged, _ in world.held("alder") if charged == 3] == [3] * (1 if aggregated else 1 + (trained or exchange == 2))
    assert [event["bundle"] for event in _events(world, "run_started")] == [BUNDLE] * 2


def test_banks_that_are_killed_after_every_answer_answer_the_same_and_train_once(world: World) -> None:
    world.ask(**ONE_ROUND)
    Loopback(world, restart=True).run()
    _check(world, BANKS)
    assert all(toy.asked == [(1, 1, "train"), (2, 1, "evaluate")] for toy in world.toys.values())


def test_letters_that_come_twice_and_replies_in_disorder_change_nothing(world: World) -> None:
    world.ask(**ONE_ROUND)
    Loopback(world, echo=True).run()
    _check(world, BANKS)
    assert not _events(world, "failure") and all(len(toy.asked) == 2 for toy in world.toys.values())


@pytest.mark.parametrize("late", [False, True])
def test_a_bank_killed_in_training_trains_again_as_far_as_its_reservation_goes(world: World, late: bool) -> None:
    world.ask(**ONE_ROUND)
    alder = world.toys["alder"]
    alder.fails, alder.fails_late = Killed(), late

    Loopback(world).run()
    _check(world, BANKS[1:] if late else BANKS)
    assert [event["bank"] for event in _events(world, "failure")] == ["alder"] * late
    assert alder.asked == [(1, 1, "train"), (1, 1, "train"), (2, 1, "evaluate")]


@pytest.mark.parametrize("late", [False, True])
def test_banks_killed_before_and_after_everything_they_write_give_one_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    world.ask(evaluation="off", metrics=[], **ONE_ROUND)
    died, running = set[str](), False

    def dying(function: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
        """The function, in or after which a bank dies the first time that it is called for this."""

        def call(*args: Any) -> Any:
            dies = running and key(*args) not in died
            died.add(key(*args) if running else "")
            if dies and not late:
                raise Killed
            result = function(*args)
            if dies:
                raise Killed
            return result

        return call

    def spare(*args: Any) -> RoundBudget:
        budget = planned(*args)
        assert budget.plan
        return replace(budget, plan=replace(budget.plan, spare_steps=30))

    monkeypatch.setattr(disk, "write", dying(disk.write, lambda path, _: str(path)))
    monkeypatch.setattr(record, "note", dying(record.note, lambda path, decision: f"{path} {decision.released or decision.asked}"))
    monkeypatch.setattr(bank_side, "reserve", dying(bank_side.reserve, lambda budget, ledger, *_: str(ledger.path)))
    monkeypatch.setattr(bank_side, "plan_round", spare)

    class Deadly(Loopback):
        def send(self, bank: str, content: bytes) -> None:
            nonlocal running
            running = True
            super().send(bank, content)
            running = False

    Deadly(world).run()
    _check(world, BANKS)
    assert len(died) > 4 * 15 and not _events(world, "failure")
    assert [released.split()[0] for released in _released(world, "alder")] == ["Keys", "Shares", "Masked", "View", "Reveal", "Receipt"]
    assert sum(not closed for bank in BANKS for _, _, closed in world.held(bank)) == 0


def test_a_bank_that_misbehaves_is_left_out_of_the_next_attempt(world: World) -> None:
    world.ask(**ONE_ROUND)
    lost = iter([True])

    def another_share(bank: str, content: bytes) -> bytes:
        letter, body = letters.reply(content)
        if bank != "alder" or not isinstance(letter, Answer) or not isinstance(reveal := Message.from_bytes(body), Reveal):
            return content
        changed = Opened(reveal.seeds[-1].bank, bytes(33))
        message = sign(world.made.homes[bank].keys[-1].identity, replace(reveal, seeds=(*reveal.seeds[:-1], changed)))
        return letters.seal(letter, message.to_bytes())

    Loopback(world, lie=another_share, lose=lambda bank, at: (bank, at) == ("birch", 4) and next(lost, False)).run()
    _check(world, BANKS[1:])
    assert [event["banks"] for event in _events(world, "attempt")] == [[*BANKS], [*BANKS[1:]], [*BANKS]]
    assert "alder has changed its share of dogwood's seed" in _events(world, "failure")[0]["message"]


def test_a_bank_whose_secret_cannot_be_rebuilt_is_left_out_of_the_next_attempt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ask(**ONE_ROUND)
    publish = Secrets.publish

    def publish_another(secrets: Secrets, session: bytes, bank: str) -> Keys:
        keys = publish(secrets, session, bank)
        return replace(keys, commitment=bytes(32)) if bank == "alder" else keys

    monkeypatch.setattr(Secrets, "publish", publish_another)
    Loopback(world).run()
    _check(world, BANKS[1:])
    assert "alder gave out shares of another secret" in _events(world, "failed_attempt")[0]["message"]


@pytest.mark.parametrize("method", ["fedsvd", "fedavg"])
def test_banks_follow_every_method_and_accept_what_the_sum_says(world: World, method: str) -> None:
    world.ask(aggregation={"method": method, "most_units": 2000})
    Loopback(world).run()
    assert _compared(world, "alder") == ["no", "with the last sum", "with the last sum"]
    if method == "fedavg":
        _check(world, BANKS, BANKS)


def test_an_adapter_that_is_not_what_the_sum_says_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lying(layout: Layout, state: State, delta: Any, momentum: float) -> State:
        return advance(layout, state, delta + 1e-6, momentum)

    monkeypatch.setattr(coordinator, "advance", lying)
    with pytest.raises(RunFailed, match=r"round 2: 0 banks are left and 3 make a quorum: \w+: result: asked adapter"):
        Loopback(world).run()
    assert {event["rule"] for event in _events(world, "refusal")} == {"result"}


def test_a_bank_that_refuses_sits_the_round_out_and_the_others_go_on(world: World) -> None:
    world.ask(**ONE_ROUND)
    world.allow("dogwood", most_epsilon_round=0.1)
    Loopback(world).run()
    _check(world, BANKS[:3])
    refused = [{name: event[name] for name in ("bank", "rule", "asked", "allowed")} for event in _events(world, "refusal")]
    assert refused == [{"bank": "dogwood", "rule": "most_epsilon_round", "asked": "4.0", "allowed": "0.1 or less"}] * 2
    assert _result(world)["refusals"][0]["bank"] == "dogwood"


def test_when_too_many_refuse_the_run_fails_with_their_rules(world: World) -> None:
    for bank in BANKS[:2]:
        world.allow(bank, bundles=["b" * 64])
    with pytest.raises(RunFailed, match=r"2 banks are left and 3 make a quorum: \w+: bundles: .*; \w+: bundles: "):
        Loopback(world).run()
    assert [event["answered"] for event in _events(world, "exchange")][:1] == [2]


def test_a_bank_whose_training_fails_is_told_of_by_type_alone_and_misses_the_round(world: World) -> None:
    world.ask(**ONE_ROUND)
    world.toys["alder"].fails = ValueError("row 17: account 4711")
    Loopback(world).run()
    _check(world, BANKS[1:])
    assert [(event["bank"], event["message"]) for event in _events(world, "failure")] == [("alder", "ValueError")]
    assert "account 4711" in (world.bank_folder("alder") / "errors.log").read_text()
    assert not any("4711" in path.read_text() for path in world.run_folder.glob("*.json*"))


def test_without_secure_aggregation_the_result_is_the_same(world: World) -> None:
    world.ask(secure_aggregation=False)
    for bank in BANKS:
        world.allow(bank, least_in_sum=1, least_honest_in_sum=0)
    Loopback(world, restart=True, echo=True).run()
    _check(world, BANKS, BANKS)
    assert all(len(toy.asked) == 3 for toy in world.toys.values()) and "no" in _compared(world, "alder")


def test_without_secure_aggregation_too_few_banks_are_another_attempt(world: World) -> None:
    world.ask(secure_aggregation=False, **ONE_ROUND)
    for bank in BANKS:
        world.allow(bank, least_in_sum=1, least_honest_in_sum=0)
    lost = iter([True] * 2)
    Loopback(world, lose=lambda bank, at: bank in BANKS[:2] and at == INVITE and next(lost, False)).run()
    _check(world, BANKS)


def test_a_stop_ends_the_run_after_the_exchange_and_it_can_be_taken_up(world: World) -> None:
    world.ask(**ONE_ROUND)

    def ask_to_stop(bank: str, content: bytes) -> bytes:
        (world.run_folder / "stop").touch()
        return content

    Loopback(world, change=ask_to_stop).run()
    assert [event["name"] for event in _events(world, "exchange")] == ["keys", "close"]
    assert _status(world)["state"] == "stopped" and not (world.run_folder / "stop").exists()
    assert all(closed for bank in BANKS for _, _, closed in world.held(bank))
    Loopback(world).run()
    _check(world, BANKS)


def test_a_round_waits_for_its_quorum_and_says_so(world: World) -> None:
    world.ask(**ONE_ROUND)
    seen = []

    class Late(Loopback):
        def reachable(self) -> frozenset[str]:
            return frozenset(BANKS if self.clock > 10 else BANKS[:2])

        def receive(self, timeout: float) -> list[coordinator.Reply]:
            seen.append(_status(world)["message"])
            return super().receive(timeout)

    Late(world).run()
    _check(world, BANKS)
    assert seen[0] == "2 of 3 banks are connected"


def test_a_cohort_is_no_larger_than_was_said(world: World) -> None:
    world.ask(cohort=3, **ONE_ROUND)
    Loopback(world).run()
    assert [len(event["banks"]) for event in _events(world, "attempt")] == [3, 3]


def test_a_run_goes_on_with_the_training_it_began_with_or_not_at_all(world: World) -> None:
    with pytest.raises(Killed):
        Loopback(world, kill=lambda bank, at: at == UPDATE).run()
    world.ask(rounds=1)
    with pytest.raises(JournalError, match="begun with another training block"):
        Loopback(world).run()


def test_a_federation_without_training_has_no_runs(made: Federation) -> None:
    with pytest.raises(FactsError, match="has no training block"):
        coordinator.run(made.folder / "coordinator", RUN, Loopback(World(made, {})))
