"""A roster that comes into force in the middle of a round: the next attempt is under it, and nothing is lost."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from federation.rounds import bank as bank_side
from tests.federation.enrolment import BANKS, Federation
from tests.federation.loopback import Loopback, World, exchange_of, make_world, planned
from tests.federation.test_coordinator import _check, _events


@pytest.fixture
def world(made: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(bank_side, "plan_round", planned)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    world = make_world(made)
    world.ask(rounds=1)
    yield world
    world.close()


@dataclass
class Changing(Loopback):
    """Before the first bank has its letter of an exchange, all but the last have signed it out, and put that in force."""

    exchange: int = 0
    restarted: bool = False
    """Whether the banks are killed then, and have only their folders when they are asked"""

    def send(self, bank: str, content: bytes) -> None:
        roster = self.world.made.registry.in_force
        assert roster
        if exchange_of(content) == self.exchange and roster.version == 1:
            self.world.made.sign(self.world.made.propose(BANKS[-1]))
            if self.restarted:
                self.world.close()
        super().send(bank, content)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("exchange", [0, 2, 3, 5, 6])
def test_a_roster_that_changes_in_a_round_costs_an_attempt_at_most(world: World, exchange: int, restarted: bool) -> None:
    Changing(world, exchange=exchange, restarted=restarted).run()
    first, *_, last = _events(world, "attempt")
    assert (first["banks"], last["banks"]) == ([*BANKS], [*BANKS[:3]])
    [aggregated] = [event for event in _events(world, "round") if event["round"] == 1]
    _check(world, tuple(aggregated["banks"]))
