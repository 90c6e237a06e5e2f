"""The coordinator's side of a run: round after round, until the last model is there. Which moment survives what is in journal.py.

A round reads like the paper: choose banks, invite them, pass on what they send exchange by exchange, add up, advance, keep, tell them.

    journal.jsonl ...     federation/rounds/journal.py
    start.safetensors     the adapter that the run starts from, made before
    events.jsonl          what happened, a JSON object a line
    status.json           how it stands, written whole at every change
    stop                  whoever puts this file here ends the run after the exchange going on; it can be taken up again
    adapter/              the same as Hugging Face lays it out, if it was made so; the result's shape and tokenizer
    result/               the last adapter in its place, and result.json: rounds, banks, metrics, refusals

The final model is evaluated in a round of its own, after the last, with which the adapter does not change. An attempt that fails is
followed by another, with fresh updates. The coordinator can be killed at any moment: the same round is then begun anew, as another attempt.
Nothing in these files is private: of what banks hold there are sums only.
"""

import hashlib
import json
import math
import random
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors.numpy import load, save

from federation import bundle
from federation.config import TrainingConfig
from federation.enrolment.registry import Registry
from federation.enrolment.roster import Roster
from federation.errors import AdapterError, FactsError, JournalError, RunFailed
from federation.files import translated
from federation.rounds import letters
from federation.rounds.aggregate import Layout, Mean, State, advance, begin, mean
from federation.rounds.journal import Journal
from federation.rounds.letters import Answer, Close, Contribution, Done, Failure, Invitation, Refusal
from federation.rounds.session import Masked, Open, Session
from federation.rounds.status import Status
from privacy import disk
from privacy.errors import ConsortiumError, Misbehaviour, SecAggError

_AGAIN_SECONDS = 2.0  # before a letter is sent again whose leg has failed, and between looks for banks
_FAREWELL_SECONDS = 30.0  # for a letter after which nothing is missing but the bank's word that it came
_GATHER_SECONDS = 15.0  # from the start, in which banks that are not needed for a quorum may come too
_CLOSE = 7  # after those of secure aggregation
_RESUME = "`consortium federation status` shows the banks; `consortium federation resume` takes the run up again"
Clock = Callable[[], float]


class Reply(NamedTuple):
    """What came of a letter to a bank."""

    bank: str
    content: bytes | None
    """None: the bank is unreachable, or its app has failed"""
    error: str
    """How"""


class Transport(Protocol):
    """Moves bytes, and looks into none."""

    def reachable(self) -> frozenset[str]:
        """Banks that are connected now."""
        ...

    def send(self, bank: str, content: bytes) -> None:
        """Returns at once."""
        ...

    def receive(self, timeout: float) -> list[Reply]:
        """Those that came since, waiting up to `timeout` seconds for the first; may be empty."""
        ...

    def forget(self) -> None:
        """Erase what is still stored of letters and replies; replies to come are dropped."""
        ...


class _Stopped(Exception):
    """Somebody has asked for it."""


def run(home: Path, run: str, transport: Transport, clock: Clock = time.monotonic) -> None:
    """From where it stands to its end, or until it is stopped. Raises RunFailed, and ConsortiumError for folders that are not as they
    should be."""
    registry = Registry(home)
    if (training := registry.config.training) is None:
        raise FactsError(f"{home / 'federation.yaml'} has no training block", "say what is to be trained")
    folder = home / "runs" / run
    ours = bundle.sha256(bundle.build())
    with translated(folder), _open_journal(folder, run, training) as journal, Status(folder, journal, training, ours) as status:
        coordinator = _Coordinator(registry, training, ours, journal, status, transport, clock)
        try:
            coordinator.run()
            _write_result(registry.config.name, training, journal, status)
            status.ended("finished")
        except _Stopped:
            (folder / "stop").unlink(missing_ok=True)
            status.ended("stopped")
        except ConsortiumError as error:
            status.ended("failed", message=error.message)
            raise


def _open_journal(folder: Path, run: str, training: TrainingConfig) -> Journal:
    """The run's journal, begun with its first adapter where there is none."""
    if not (folder / "journal.jsonl").exists():
        with translated(folder / "start.safetensors"):
            adapter = load((folder / "start.safetensors").read_bytes())
        return Journal.create(folder, run, training.hash.hex(), begin(Layout.of(adapter, training.aggregation.method), adapter))
    journal = Journal(folder)
    if journal.config != training.hash.hex():
        journal.close()
        raise JournalError(
            f"{folder}: begun with another training block than federation.yaml has now",
            "put it back, or start another run; after an update of the software, end it with the version that began it",
        )
    return journal


class _Coordinator:
    def __init__(
        self,
        registry: Registry,
        training: TrainingConfig,
        bundle: str,
        journal: Journal,
        status: Status,
        transport: Transport,
        clock: Clock,
    ) -> None:
        self._registry, self._training, self._bundle, self._journal, self._status = registry, training, bundle, journal, status
        self._transport, self._clock = transport, clock
        self._gathered = clock() + _GATHER_SECONDS
        self._out: dict[str, str] = {}
        """Banks that sit the round out, and why"""

    def run(self) -> None:
        last = self._training.rounds + bool(self._training.metric_names)
        while self._journal.round <= last:
            self._round()

    def _round(self) -> None:
        """Attempts until one of them gives a sum."""
        before, failed = None, list[str]()
        while len(failed) < self._training.attempts:
            if (roster := self._roster()) != before:  # what banks said under another counts no more
                self._out, before = {}, roster
            cohort = self._choose(roster)
            self._journal.begin_round(self._journal.round, self._journal.attempt + 1)
            state = self._journal.state()
            content = save(dict(state.adapter))
            invitation = self._invitation(roster, content)
            layout = Layout.of(state.adapter, self._training.aggregation.method)
            session = (Masked if self._training.secure_aggregation else Open)(invitation, roster, layout)
            self._status.attempt(self._journal.round, self._journal.attempt, invitation.kind, cohort)
            try:
                self._attempt(session, invitation, dict.fromkeys(cohort, letters.seal(invitation, content)), state, layout)
                return
            except (SecAggError, AdapterError) as error:
                failed.append(f"attempt {self._journal.attempt}: {error.message}")
                self._out |= dict.fromkeys(error.banks if isinstance(error, Misbehaviour) else (), error.message)
                self._status.failed(error.message)
                self._farewell(Close(invitation=invitation.digest, banks=(), model=None), cohort)
            except _Stopped:
                self._farewell(Close(invitation=invitation.digest, banks=(), model=None), cohort)
                raise
        raise RunFailed(f"round {self._journal.round} has failed {len(failed)} times: {'; '.join(failed)}", _RESUME)

    def _attempt(self, session: Session, invitation: Invitation, sent: dict[str, bytes], state: State, layout: Layout) -> None:
        """The exchanges, the sum, what it makes of the adapter; on disk before banks hear of it."""
        cohort, began = tuple(sent), self._clock()
        for number, name in enumerate(session.exchanges):
            self._check_stop()
            self._exchange(number, name, getattr(self._training.timeouts, name), sent, invitation.digest, session)
            sent = session.close()
        training, evaluated = self._training, invitation.kind == "evaluate"
        said = mean(Layout(layout.method, ()) if evaluated else layout, session.total(), training.encoding.clip)
        following = state if evaluated else advance(layout, state, said.delta, training.aggregation.momentum)
        self._journal.close_round(invitation.round, invitation.attempt, following, session.banks, _metrics(training, said))
        closed = self._journal.rounds[-1]
        self._status.round(closed, self._clock() - began)
        if sent:
            self._exchange(len(session.exchanges), "receipts", _FAREWELL_SECONDS, sent, invitation.digest)
        self._farewell(Close(invitation=invitation.digest, banks=closed.banks, model=bytes.fromhex(closed.adapter)), cohort)

    def _farewell(self, close: Close, cohort: tuple[str, ...]) -> None:
        """Tell all who were invited how it ended, waiting for those that are known to listen."""
        here = self._transport.reachable() & {*cohort}
        listening = self._status.answering & here
        for bank in here - listening:
            self._transport.send(bank, letters.seal(close))
        self._exchange(_CLOSE, "close", _FAREWELL_SECONDS, dict.fromkeys(sorted(listening), letters.seal(close)), close.invitation)
        self._transport.forget()

    def _exchange(
        self, number: int, name: str, seconds: float, sent: Mapping[str, bytes], invitation: bytes, session: Session | None = None
    ) -> None:
        """Send each bank its letter, again where a leg has failed, and take in the answers until all are there or the time is over."""
        self._status.exchange(number, name, sent)
        pending, began = dict(sent), self._clock()
        due, end = dict.fromkeys(sent, began), began + seconds
        while pending and (now := self._clock()) < end:
            ready = [bank for bank in pending if due[bank] <= now]
            reachable = self._transport.reachable() if ready else frozenset()
            for bank in ready:
                due[bank] = math.inf if bank in reachable else now + _AGAIN_SECONDS
                if bank in reachable:
                    self._transport.send(bank, pending[bank])
                    self._status.sent(len(pending[bank]))
            for reply in self._transport.receive(min(end, *(due[bank] for bank in pending)) - now):
                if reply.bank not in pending:
                    continue
                if reply.content is None:
                    self._status.unreachable(reply.bank, reply.error)
                    due[reply.bank] = self._clock() + _AGAIN_SECONDS
                elif self._take(reply.bank, reply.content, invitation, session):
                    del pending[reply.bank]
        for bank in pending:
            self._status.bank(bank, "late")
        self._status.exchanged(self._clock() - began)

    def _take(self, bank: str, content: bytes, invitation: bytes, session: Session | None) -> bool:
        """Whether that was the bank's answer in this exchange, good or bad. What follows from an earlier invitation is dropped."""
        self._status.received(len(content))
        try:
            letter, body = letters.reply(content)
            if letter.invitation not in (invitation, letters.UNREAD):
                return False
            match letter:
                case Refusal():
                    self._out[bank] = f"{letter.rule}: asked {letter.asked}, allowed {letter.allowed}"
                    self._status.refusal(bank, letter.rule, letter.asked, letter.allowed)
                    return True
                case Failure():
                    self._status.failure(bank, letter.message)
                    return True
                case Answer() | Contribution():
                    if session is None or not session.take(bank, letter, body):
                        return False
                case Done():
                    if session is not None:
                        return False
            self._status.bank(bank, "answered")
        except (FactsError, SecAggError) as error:
            if session is not None and session.over:
                raise
            if isinstance(error, Misbehaviour):
                self._out[bank] = error.message
            self._status.failure(bank, error.message)
        return True

    def _choose(self, roster: Roster) -> tuple[str, ...]:
        """The banks of the next attempt, in the roster's order; waits until there are enough. RunFailed where there cannot be."""
        training, why = self._training, "; ".join(f"{bank}: {reason}" for bank, reason in self._out.items())
        willing = [bank for bank in roster.names if bank not in self._out]
        if len(willing) < training.quorum:
            raise RunFailed(
                f"round {self._journal.round}: {len(willing)} banks are left and {training.quorum} make a quorum: "
                + (why or f"the roster has {len(roster.names)}"),
                _RESUME,
            )
        most = min(len(willing), training.cohort)
        while (found := len(here := self._transport.reachable() & {*willing})) < training.quorum or (
            found < most and self._clock() < self._gathered
        ):
            self._check_stop()
            self._status.waiting(here, training.quorum)
            self._transport.receive(_AGAIN_SECONDS)
        chosen = random.SystemRandom().sample(sorted(here), min(found, most))
        return tuple(bank for bank in willing if bank in chosen)

    def _invitation(self, roster: Roster, adapter: bytes) -> Invitation:
        """To the attempt that the journal has begun."""
        return Invitation(
            federation=roster.federation,
            version=roster.version,
            roster=roster.hash,
            run=self._journal.run,
            round=self._journal.round,
            attempt=self._journal.attempt,
            before=self._journal.rounds[-1].attempt,
            training=self._training,
            bundle=self._bundle,
            model=hashlib.sha256(adapter).digest(),
            nonce=secrets.token_bytes(16),
            deadline=int(time.time() + sum(self._training.timeouts.model_dump().values())),
        ).signed(self._registry.identity)

    def _roster(self) -> Roster:
        if (roster := self._registry.in_force) is None:
            raise RunFailed("no roster is in force", "all banks have to sign it: consortium federation roster")
        return roster

    def _check_stop(self) -> None:
        if (self._journal.folder / "stop").exists():
            raise _Stopped


def _metrics(training: TrainingConfig, said: Mean) -> dict[str, float]:
    """Of the model that the round began with: the accuracy over all banks' held-out units, and how many these are, both as noised."""
    sums = dict(zip(training.metric_names, said.metrics, strict=True))
    if (count := sums.get("count", 0.0)) <= 0:
        return {}
    return {"accuracy": min(1.0, max(0.0, sums["accuracy"] / count)), "count": count * (training.aggregation.most_units or 1)}


def _write_result(federation: str, training: TrainingConfig, journal: Journal, status: Status) -> None:
    folder, start, final = journal.folder / "result", journal.folder / "adapter", journal.rounds[training.rounds]
    with translated(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        if start.exists():
            shutil.copytree(start, folder, dirs_exist_ok=True)
    result: dict[str, Any] = {
        "federation": federation,
        "run": journal.run,
        "config": journal.config,
        "adapter": final.adapter,
        "rounds": [
            {"round": each.round, "attempt": each.attempt, "banks": each.banks, "adapter": each.adapter}
            for each in journal.rounds[1 : training.rounds + 1]
        ],
        "metrics": {str(each.round - 1): each.metrics for each in journal.rounds[1:] if each.metrics},
        "refusals": status.refusals(),
    }
    disk.write(folder / "adapter_model.safetensors", [save(dict(journal.adapter(training.rounds)))])
    disk.write(folder / "result.json", [json.dumps(result, indent=1).encode()])
