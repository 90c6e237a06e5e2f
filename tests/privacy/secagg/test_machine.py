"""Hypothesis plays network and misfortune: letters and answers arrive late, twice, in any order or never, and banks are killed and started
again at any time. Whatever it does, no bank says two things, and the sum is that of the banks online or there is none."""

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privacy.errors import Aborted, ProtocolError
from privacy.secagg.messages import Message, Reveal, Signed
from privacy.secagg.server import Letter, Server
from tests.privacy.secagg.driver import federation, wire

NAMES = [f"bank{number}" for number in range(4)]
banks = st.sampled_from(NAMES)


@contextmanager
def _expected(words: str) -> Iterator[None]:
    """What honest parties raise in bad weather."""
    try:
        yield
    except (Aborted, ProtocolError) as error:
        if not re.search(words, error.message):
            raise


class Misfortune(Enum):
    KILLED = auto()
    """And started again; all it was ever sent arrives once more"""
    SENT_AGAIN = auto()
    A_LETTER_ARRIVES = auto()
    """Any that was ever written"""
    AN_ANSWER_ARRIVES = auto()


class Weather(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        self.made = self.stack.enter_context(federation(4))
        self.clients = self.made.clients()
        self._start()

    def _start(self) -> None:
        self.server = Server(self.made.header, self.made.roster)
        self.letters: defaultdict[str, list[Message]] = defaultdict(list)
        """All that were written, by bank; any may arrive at any time"""
        self.answers: list[Message] = []
        self.said: defaultdict[tuple[Any, ...], set[bytes]] = defaultdict(set)
        self._post(self.server.start())

    def _post(self, letters: list[Letter]) -> None:
        for bank, message in letters:
            self.letters[bank].append(message)

    def _say(self, answers: list[Message]) -> None:
        for answer in answers:
            assert isinstance(answer, Signed)
            self.said[answer.session, answer.bank, type(answer)].add(answer.to_bytes())
            self.answers.append(answer)

    @precondition(lambda self: not self.server.over)
    @rule(
        chosen=st.sets(banks, min_size=3),
        misfortunes=st.lists(st.tuples(st.sampled_from(Misfortune), banks, st.integers(0, 50)), max_size=8),
    )
    def an_exchange(self, chosen: set[str], misfortunes: list[tuple[Misfortune, str, int]]) -> None:
        """The coordinator goes on with the banks chosen, as far as they can."""
        exchange = self.server.exchange
        for what, bank, number in misfortunes:
            self._befall(what, bank, number)
        for bank in sorted(chosen & self.letters.keys()):
            self._deliver(bank, -1)
            if answers := self.clients[bank].resend():
                self._say(answers)
                self._submit(-1)
        if self.server.exchange == exchange:
            self._close()

    def _befall(self, what: Misfortune, bank: str, number: int) -> None:
        match what:
            case Misfortune.KILLED:
                self.clients[bank] = self.made.client(bank)
                for which in range(len(self.letters[bank])):
                    self._deliver(bank, which)
            case Misfortune.SENT_AGAIN:
                self._say(self.clients[bank].resend())
            case Misfortune.A_LETTER_ARRIVES if letters := self.letters[bank]:
                self._deliver(bank, number % len(letters))
            case Misfortune.AN_ANSWER_ARRIVES if self.answers:
                self._submit(number % len(self.answers))

    @precondition(lambda self: self.server.over)
    @rule()
    def another_session(self) -> None:
        for client in self.clients.values():
            client.end()
        self.made.updates = self.made.fresh_updates()
        self.made.next_header()
        self.clients = self.made.clients()
        self._start()

    @invariant()
    def nobody_has_said_two_things(self) -> None:
        assert all(len(different) == 1 for different in self.said.values())

    @invariant()
    def no_bank_has_given_both_shares_of_another(self) -> None:
        for reveal in (answer for answer in self.answers if isinstance(answer, Reveal)):
            assert {each.bank for each in reveal.seeds}.isdisjoint(each.bank for each in reveal.keys)

    @invariant()
    def the_sum_is_that_of_the_banks_online(self) -> None:
        if self.server.exchange > Reveal.exchange:
            online = next(message.banks for message in self.letters[self._any_reveal()] if type(message).__name__ == "Online")
            assert len(online) >= 3
            np.testing.assert_array_equal(self.server.total(), self.made.sum(online))

    def _any_reveal(self) -> str:
        return next(answer.bank for answer in self.answers if isinstance(answer, Reveal))

    def _deliver(self, bank: str, which: int) -> None:
        with _expected("out of order"):
            self._say(self.clients[bank].on(wire(self.letters[bank][which])))

    def _submit(self, which: int) -> None:
        with _expected("out of order|a second time|session is over|banks are left"):
            self._post(self.server.on(wire(self.answers[which])))

    def _close(self) -> None:
        with _expected("session is over|banks are left"):
            self._post(self.server.close_exchange())

    def teardown(self) -> None:
        self.stack.close()


TestWeather = Weather.TestCase
TestWeather.settings = settings(max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[*HealthCheck])
