"""A disk without room, at a bank or at the coordinator, in the middle of a round: an error with a name, and nothing lost."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import pytest

from federation.errors import FolderError, JournalError
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


@contextmanager
def _no_room() -> Iterator[None]:
    """Whatever this process writes to a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass
class Starved(Loopback):
    full: Callable[[str, int], bool] = lambda bank, exchange: False
    """Whether the bank has no room for what it does with this letter"""

    def send(self, bank: str, content: bytes) -> None:
        self.world.bank(bank)  # is open by then
        with _no_room() if self.full(bank, exchange_of(content)) else nullcontext():
            super().send(bank, content)


@dataclass
class Poor(Loopback):
    """Its coordinator has no room from the moment on at which all banks have had their letters of an exchange."""

    exchange: int = 0
    room: ExitStack = field(default_factory=ExitStack)

    def send(self, bank: str, content: bytes) -> None:
        super().send(bank, content)
        if (bank, exchange_of(content)) == (BANKS[-1], self.exchange):
            self.room.enter_context(_no_room())


@pytest.mark.parametrize("exchange", range(8))
def test_a_bank_without_room_says_so_and_takes_part_again_when_there_is_some(world: World, exchange: int) -> None:
    once = iter([True])
    Starved(world, full=lambda bank, at: (bank, at) == ("alder", exchange) and next(once, False)).run()
    _check(world, BANKS[1:] if exchange <= 2 else BANKS)
    [failure] = _events(world, "failure")
    assert failure["bank"] == "alder" and failure["message"].endswith(("File too large", "bank.ledger: disk I/O error"))
    assert _events(world, "attempt")[-1]["banks"] == [*BANKS]


@pytest.mark.parametrize("exchange", range(8))
def test_a_coordinator_without_room_stops_with_an_error_and_goes_on_when_there_is_some(world: World, exchange: int) -> None:
    poor = Poor(world, exchange=exchange)
    with poor.room, pytest.raises((FolderError, JournalError), match="File too large"):
        poor.run()
    Loopback(world).run()
    _check(world, BANKS)
