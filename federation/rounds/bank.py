"""A bank's side of a run: what it answers to a coordinator's letters, and in which order it asks itself whether it may.

    letter       what the bank does first                                                  what leaves
    Invitation   looks at it from all sides (offer.py); reserves the round's budget        its public keys
    Next, 1      splits its secrets                                                        shares, encrypted
    Next, 2      evaluates, trains, cuts the update to its clip, masks it                  the masked vector
    Next, 3-5    compares who is online, reveals shares, takes the sum                     signatures, shares
    Close        works out what the sum makes of the adapter, gives back the budget left   -

What the bank does not allow is a Refusal, and goes into its record with the rule; what fails is a Failure, of which the coordinator is told
the message if the error is one of ours, and the name of its type otherwise. Everything that leaves is in the record before.

It has no memory but its folder, and may be killed at any moment: asked the same again it gives the same answer.

    vault/            the session going on: privacy/secagg/vault.py
    record.jsonl      every decision: record.py. What was answered is read off it
    attempt/live      the invitation that was accepted last, and what was reserved for it
    attempt/vector    what was contributed to it, where secure aggregation is off
    starts/           what the sums that it was sent have made of the adapter: starts.py
    errors.log        what went wrong, whole

Of training that a crash cut off, the steps are done that are reserved and not charged; a finished update is kept by the training job until
the next, and a masked vector that is in the vault is never made again. Where the bank has seen the sum it knows the next adapter, and
refuses another (rule "result"); a bank that sat the round out cannot tell, and says so in its record. Without secure aggregation nobody but
the coordinator can.
"""

import hashlib
import json
import math
import os
import random
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from safetensors.numpy import load

from federation import policy
from federation.config import BankConfig, TrainingConfig
from federation.enrolment.home import Home
from federation.enrolment.roster import Roster
from federation.errors import AdapterError, FactsError
from federation.files import Facts, check_private, translated
from federation.policy import Spent
from federation.rounds import letters, offer, record
from federation.rounds.aggregate import Layout, State, Vector, advance, contribution, mean
from federation.rounds.budget import RoundBudget, check_run, plan_round, price, release, reserve
from federation.rounds.letters import Close, Invitation, Next
from federation.rounds.local import Task, Train
from federation.rounds.offer import Declined, rule
from federation.rounds.starts import Starts
from privacy import disk
from privacy.errors import (
    Aborted,
    BudgetRefused,
    ConsortiumError,
    Inconsistent,
    LedgerError,
    Misbehaviour,
    PlanError,
    ProtocolError,
    Refused,
)
from privacy.ledger import Ledger
from privacy.secagg.client import Client
from privacy.secagg.codec import Buffer
from privacy.secagg.messages import Header, Inbox, Message, Sum
from privacy.secagg.vault import Vault


class _Accepted(Facts):
    """The last invitation that was accepted; its bytes are the body."""

    budget: RoundBudget | None
    epsilon: float | None
    """Of the population, in all and with this round"""
    compared: str
    """Whether its adapter was found to be what the last sum makes of the one before, for the record"""


class _Attempt:
    """The invitation that was accepted last, with what is made of it."""

    def __init__(self, stored: bytes, roster: Roster) -> None:
        self.accepted, request = letters.read(_Accepted, stored)
        self.request = bytes(request)
        invitation, body = letters.request(self.request)
        assert isinstance(invitation, Invitation)
        self.invitation, self.adapter = invitation, load(bytes(body))
        self.layout = Layout.of(self.adapter, invitation.training.aggregation.method)
        self.header = invitation.header(roster, self.layout)


class Bank:
    """An open one; to be closed, or used in a `with`."""

    def __init__(
        self,
        folder: Path,
        read_config: Callable[[], BankConfig],
        base_model: str,
        train: Train,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`read_config` is asked at every invitation, so that a policy counts as soon as it is written. `base_model` is the hash of the
        model that the bank has. `now` is in the bank's own time. Raises ConsortiumError."""
        check_private(folder)
        self._folder, self._home, self._read_config, self._base_model = folder, Home(folder), read_config, base_model
        self._train, self._now = train, now
        self._record = folder / "record.jsonl"
        self._starts = Starts(folder / "starts")
        with translated(folder / "attempt"):
            (folder / "attempt").mkdir(mode=0o700, exist_ok=True)
        self._name = read_config().bank
        self._vault = Vault(folder / "vault", self._name)
        self._attempt: _Attempt | None = None
        try:
            self._attempt = self._read_live()
        except FactsError as error:  # the software has changed: nothing more can be answered in it
            self._drop(error)
        if self._attempt is None:
            self._release()

    def close(self) -> None:
        self._vault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def on(self, request: Buffer) -> bytes:
        """The answer to a coordinator's letter, as bytes."""
        invitation = bytes(32)
        try:
            facts, body = letters.request(request)
            invitation = facts.digest if isinstance(facts, Invitation) else facts.invitation
            try:
                match facts:
                    case Invitation():
                        return self._on_invitation(facts, body, request)
                    case Next():
                        return self._on_message(facts, body)
                    case Close():
                        return self._on_close(facts)
            except Declined as declined:
                refusal = declined.refusal
                about = facts if isinstance(facts, Invitation) else self._current.invitation if self._is_current(facts) else None
                self._note(about, {"letter": facts.letter, "asked": refusal.asked, "allowed": refusal.allowed}, rule=refusal.rule)
                return letters.seal(letters.Refusal(invitation=invitation, **asdict(refusal)))
        except Exception as error:  # whatever it is, the bank lives on, and no private text leaves in a message nobody has looked at
            with suppress(OSError):  # there may be no room for it
                self._log()
            told = error.message if isinstance(error, ConsortiumError) else type(error).__name__
            return letters.seal(letters.Failure(invitation=invitation, message=letters.short(told)))

    def _on_invitation(self, invitation: Invitation, body: Buffer, request: Buffer) -> bytes:
        if not (self._attempt and self._attempt.request == request):
            self._accept(invitation, body, request)
        return self._step(self._current.header) if invitation.training.secure_aggregation else self._contribute()

    def _accept(self, invitation: Invitation, body: Buffer, request: Buffer) -> None:
        """Say no, or be ready to answer; the round's budget is reserved when this returns. Raises Declined."""
        config, training = self._read_config(), invitation.training
        roster = offer.check_sender(invitation, body, self._home.in_force)
        attempts = offer.attempts_so_far(invitation, record.decisions(self._record))
        self._give_up()  # whoever signed this one has given up what went before
        budget, epsilon = self._price(invitation, config)
        spent = Spent(attempts, math.inf if epsilon is None else epsilon)
        if refusal := policy.check(training.proposal(invitation.bundle, roster.colluders), config.policy, spent, self._now()):
            raise Declined(**asdict(refusal))
        if training.base_model.sha256 != self._base_model:
            raise Declined("base_model", training.base_model.sha256, self._base_model)
        adapter = load(bytes(body))
        self._check_before(invitation)
        layout, start = Layout.of(adapter, training.aggregation.method), self._starts.of(invitation)
        offer.check_adapter(invitation, layout, adapter, load(bytes(start.adapter)) if start else None)
        if training.secure_aggregation:
            offer.check_session(invitation, layout, roster, config)
        if budget:
            budget, epsilon = self._reserve(budget, invitation, config)
        accepted = _Accepted(budget=budget, epsilon=epsilon, compared=self._starts.compared(invitation))
        disk.write(self._live, [letters.seal(accepted, request)])
        self._attempt = self._read_live()

    def _price(self, invitation: Invitation, config: BankConfig) -> tuple[RoundBudget | None, float | None]:
        """What the round would cost, and the population's epsilon with it; neither without privacy."""
        if invitation.training.privacy is None:
            return None, None
        with rule("ledger", offer.name(invitation), BudgetRefused, LedgerError, PlanError), Ledger.open(config.ledger) as ledger:
            budget = plan_round(invitation.training, config, invitation.kind)
            with rule("promise", offer.name(invitation), BudgetRefused):
                check_run(budget, invitation.training, ledger, config.population, offer.attempts_of(invitation))
            return budget, price(budget, ledger, config.population)

    def _reserve(self, budget: RoundBudget, invitation: Invitation, config: BankConfig) -> tuple[RoundBudget, float]:
        """The round set aside, and the population's epsilon with it: another job may have reserved since it was priced."""
        asked, most = offer.name(invitation), config.policy.most_epsilon
        with rule("ledger", asked, BudgetRefused, LedgerError), Ledger.open(config.ledger) as ledger:
            budget = reserve(budget, ledger, config.population, asked)
            epsilon = ledger.filter(config.population).proven
            if most is not None and epsilon > most:
                release(budget, ledger)
                raise Declined("most_epsilon", str(epsilon), f"{most} or less")
            return budget, epsilon

    def _on_message(self, letter: Next, body: Buffer) -> bytes:
        if not self._is_current(letter):
            raise Declined("order", "a message for an attempt that this bank is not in", "those that follow from the last invitation")
        with rule("protocol", "a message of secure aggregation", ProtocolError):
            message = Message.from_bytes(body)
        return self._step(message)

    def _step(self, message: Message) -> bytes:
        """The answer of secure aggregation, the stored one if there is one."""
        client, facts = self._client, dict[str, str]()
        stored = self._vault.steps()[message.exchange] if message.exchange < client.exchange else None
        if stored and stored.received.digest == message.digest:
            sent = stored.sent
        else:
            if isinstance(message, Inbox) and client.exchange == Inbox.exchange:
                with _protocol(message):
                    client.check(message)  # or another bank's bad box would cost this one a round
                update, facts = self._work()
                client = self._client = self._open_client(update)
            with _protocol(message):
                sent = next(iter(client.on(message)), None)
        invitation = self._current.invitation.digest
        if sent is None:
            return letters.seal(letters.Done(invitation=invitation))
        self._note_release(type(message).__name__, facts, f"{type(sent).__name__} {sent.digest.hex()}")
        return letters.seal(letters.Answer(invitation=invitation), *sent.pieces())

    def _contribute(self) -> bytes:
        """Without secure aggregation: the vector as it is."""
        path, facts = self._folder / "attempt" / "vector", dict[str, str]()
        if not path.exists():
            update, facts = self._work()
            disk.write(path, [update.astype("<f4").data.cast("B")])
        vector = path.read_bytes()
        self._note_release("Header", facts, f"Contribution {hashlib.sha256(vector).hexdigest()}")
        return letters.seal(letters.Contribution(invitation=self._current.invitation.digest), vector)

    def _work(self) -> tuple[Vector, dict[str, str]]:
        """What the bank has to say in this attempt, metrics of the model it was sent and the update that its training makes of it; and what
        the record should have of that."""
        attempt = self._current
        invitation, training, layout = attempt.invitation, attempt.invitation.training, attempt.layout
        work = self._train(
            Task(
                run=invitation.run,
                round=invitation.round,
                attempt=invitation.attempt,
                kind=invitation.kind,
                training=training,
                adapter=attempt.adapter,
                budget=attempt.accepted.budget,
            )
        )
        if invitation.kind == "train":
            delta, weight = layout.flatten(work.adapter) - layout.flatten(attempt.adapter), self._weight(training)
        else:  # there is nothing to weigh: it is drawn, as no two attempts may have the same vector
            delta, weight = np.zeros(0, np.float32), 1 - random.SystemRandom().random() / 2
        vector = contribution(delta, training.encoding.clip, weight, work.metrics)
        return vector, {name: json.dumps(value) for name, value in work.facts.items()}

    def _weight(self, training: TrainingConfig) -> float:
        most = training.aggregation.most_units
        return min(1.0, self._read_config().units / most) if most else 1.0

    def _on_close(self, letter: Close) -> bytes:
        if self._is_current(letter):
            told = {"letter": "close", "banks": ", ".join(letter.banks), "model": letter.model.hex() if letter.model else ""}
            self._note(self._current.invitation, told, epsilon=self._current.accepted.epsilon)
            self._give_up()
        return letters.seal(letters.Done(invitation=letter.invitation))

    def _drop(self, error: FactsError) -> None:
        """Give up an attempt that cannot be read any more; what was sent in it stays masked."""
        if steps := self._vault.steps():
            header = steps[0].received
            assert isinstance(header, Header)
            self._vault.end(header.session)
        self._forget_live()
        self._note(None, {"letter": "invitation", "given up": error.message})

    def _give_up(self) -> None:
        """Nothing more is answered in the attempt going on, if there is one, and its reservation is closed. Done again after a crash."""
        if self._attempt and self._attempt.invitation.training.secure_aggregation:
            self._follow()
            self._client.end()
        self._release()
        self._forget_live()
        self._attempt = None
        self.__dict__.pop("_client", None)

    def _forget_live(self) -> None:
        for name in ("vector", "live"):
            (self._folder / "attempt" / name).unlink(missing_ok=True)

    def _follow(self) -> None:
        """Keep what the sum, if the bank has been sent one, makes of the adapter."""
        attempt, client = self._current, self._client
        invitation, training, layout = attempt.invitation, attempt.invitation.training, attempt.layout
        if client.exchange <= Sum.exchange or invitation.kind == "evaluate":
            return
        if (velocity := self._starts.velocity(invitation, layout)) is None:
            return
        try:
            delta = mean(layout, client.total(), training.encoding.clip).delta
        except (AdapterError, PlanError):  # a sum that says nothing, or that a larger roster's encoding cannot read any more
            return
        self._starts.keep(invitation, advance(layout, State(attempt.adapter, velocity), delta, training.aggregation.momentum))

    def _check_before(self, invitation: Invitation) -> None:
        """Declined where this bank was told that another attempt at the round before was the one that counts."""
        before = (invitation.run, invitation.round - 1)
        noted = [each for each in record.decisions(self._record) if (each.run, each.round) == before]
        closed = [each.attempt for each in noted if each.asked.get("letter") == "close" and each.asked.get("model")]
        if closed and invitation.before not in closed:
            raise Declined("result", f"what attempt {invitation.before} left", f"attempt {closed[-1]}'s, as this bank was told")

    def _release(self) -> None:
        """Close what is reserved in the ledger for attempts, also where a crash came between reserving and remembering it."""
        config, roster = self._read_config(), self._home.in_force
        if roster is None or not config.ledger.exists():
            return
        with Ledger.open(config.ledger) as ledger:
            for held in ledger.book().reservations(config.population):
                if held.run.startswith(f"{roster.federation}/") and not held.closed:
                    ledger.reservation(held.id).close()

    def _is_current(self, letter: Next | Close) -> bool:
        return self._attempt is not None and self._attempt.invitation.digest == letter.invitation

    @property
    def _current(self) -> _Attempt:
        assert self._attempt is not None
        return self._attempt

    @cached_property
    def _client(self) -> Client:
        return self._open_client(None)

    def _open_client(self, update: Vector | None) -> Client:
        attempt, roster = self._current, self._roster
        expected, allowed = offer.terms(attempt.invitation, attempt.layout, self._read_config())
        return Client(self._home.keys_in(roster).identity, roster.for_sums, allowed, expected, self._vault, update)

    @property
    def _roster(self) -> Roster:
        roster = self._home.in_force
        assert roster is not None
        return roster

    @property
    def _live(self) -> Path:
        return self._folder / "attempt" / "live"

    def _read_live(self) -> _Attempt | None:
        return _Attempt(self._live.read_bytes(), self._roster) if self._live.exists() else None

    def _note_release(self, letter: str, facts: Mapping[str, str], released: str) -> None:
        attempt = self._current
        invitation = attempt.invitation
        terms = {
            "kind": invitation.kind,
            "training": invitation.training.hash.hex(),
            "bundle": invitation.bundle,
            "model": invitation.model.hex(),
            "roster": str(invitation.version),
            "compared": attempt.accepted.compared,
        }
        asked = {"letter": letter, **(terms if letter == "Header" else {}), **facts}
        self._note(invitation, asked, released=released, epsilon=attempt.accepted.epsilon)

    def _note(
        self, invitation: Invitation | None, asked: Mapping[str, str], *, rule: str = "", released: str = "", epsilon: float | None = None
    ) -> None:
        """Once: what is asked again is not decided again."""
        where = (invitation.run, invitation.round, invitation.attempt) if invitation else ("", 0, 0)
        decision = record.Decision(self._name, *where, asked, rule, released, epsilon)
        if not any(_same(decision, each) for each in record.decisions(self._record)):
            record.note(self._record, decision)

    def _log(self) -> None:
        path = self._folder / "errors.log"
        with open(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a") as file:
            file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {traceback.format_exc()}\n")


def _protocol(message: Message) -> AbstractContextManager[None]:
    return rule("protocol", type(message).__name__, ProtocolError, Misbehaviour, Inconsistent, Refused, Aborted)


def _same(one: record.Decision, other: record.Decision) -> bool:
    """What was released is told by its hash alone: how it was made is not known any more after a crash."""
    return one.released == other.released and (bool(one.released) or replace(one, time=other.time) == other)
