"""A bank that is a real process and is killed with SIGKILL, again and again, in every exchange: it goes on from its vault, and what it
has said in all its lives is what one life would have said."""

import contextlib
import random
import signal
import time
from collections import defaultdict
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import pytest

from privacy.errors import Aborted, SecAggError
from privacy.secagg.messages import Header, Inbox, KeyList, Message, Online, Receipts, Reveal, Sum, Views
from privacy.secagg.server import Server
from privacy.secagg.transcript import verify_transcripts
from tests.privacy.secagg.driver import Federation, Session, federation

BANK = "bank1"


class Bank:
    """One life of the bank: a process that has no more than its vault and its update."""

    exchange = 0  # to the driver: every message is a new one

    def __init__(self, made: Federation) -> None:
        self._pipe, other = get_context("fork").Pipe()
        self._process = get_context("fork").Process(target=_live, args=(made, other), daemon=True)
        self._process.start()
        other.close()

    def on(self, message: Message) -> list[Message]:
        """Its answer, the stored one if it was given before. Raises what the bank raises."""
        self.tell(message)
        answer = self._pipe.recv()
        if isinstance(answer, SecAggError):
            raise answer
        return [Message.from_bytes(each) for each in answer]

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def tell(self, message: Message) -> None:
        self._pipe.send_bytes(message.to_bytes())

    def kill(self) -> list[Message]:
        """What it had said by then."""
        self._process.kill()
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        said: list[Message] = []
        with contextlib.suppress(EOFError, ConnectionResetError):
            while self._pipe.poll():
                said += [Message.from_bytes(each) for each in self._pipe.recv()]
        self._pipe.close()
        return said


def _live(made: Federation, pipe: Connection) -> None:
    client = made.client(BANK)
    while True:
        message = Message.from_bytes(pipe.recv_bytes())
        try:
            answers = client.resend() if client.exchange > message.exchange else client.on(message)
            pipe.send([answer.to_bytes() for answer in answers])
        except SecAggError as error:
            pipe.send(error)


class Killed:
    """Stands where a client would; lives several lives for each message."""

    exchange = 0

    def __init__(self, made: Federation, lives: int) -> None:
        self._made, self._lives, self._bank = made, lives, Bank(made)
        self.said: defaultdict[str, set[bytes]] = defaultdict(set)
        """Everything that ever left the bank, by type"""

    def on(self, message: Message) -> list[Message]:
        for _ in range(self._lives):
            self._bank.tell(message)
            time.sleep(random.uniform(0, 0.02))
            self._note(self._bank.kill())
            self._bank = Bank(self._made)
        return self._note(self._bank.on(message))

    def close(self) -> None:
        self._note(self._bank.kill())

    def _note(self, said: list[Message]) -> list[Message]:
        for message in said:
            self.said[type(message).__name__].add(message.to_bytes())
        return said


@pytest.mark.parametrize("lives", [1, 4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_bank_killed_in_every_exchange_has_said_everything_once(lives: int) -> None:
    with federation(4) as made:
        others = [bank for bank in made.roster.names if bank != BANK]
        killed = Killed(made, lives)
        session = Session(Server(made.header, made.roster), {bank: made.client(bank) for bank in others} | {BANK: killed}, {"bank3": 2})
        try:
            np.testing.assert_array_equal(session.run(), made.sum([*others[:2], BANK]))
        finally:
            killed.close()
        assert not session.refusals and {name: len(said) for name, said in killed.said.items()} == dict.fromkeys(
            ("Keys", "Shares", "Masked", "View", "Reveal", "Receipt"), 1
        )
        (reveal,) = map(Reveal.from_bytes, killed.said["Reveal"])
        assert not {each.bank for each in reveal.seeds} & {each.bank for each in reveal.keys}
        assert made.client(BANK).exchange == 7 and verify_transcripts([made.transcript(bank) for bank in made.roster.names]) is None


@pytest.mark.parametrize("asked", [Header, KeyList, Inbox, Online, Views, Sum, Receipts])
@pytest.mark.parametrize("others", [2, 3])
def test_a_bank_that_stays_dead_is_left_out_or_ends_the_session(asked: type[Message], others: int) -> None:
    """Of four banks three are enough; with one of them gone from the beginning, all three are needed."""
    with federation(4) as made:
        rest = [bank for bank in made.roster.names if bank != BANK][:others]
        bank = Bank(made)

        def die(name: str, message: Message) -> Message | None:
            if name == BANK and type(message) is asked:
                bank.tell(message)
                bank.kill()
            return message if name in rest or (name == BANK and bank.alive) else None

        clients = {name: made.client(name) for name in made.roster.names if name != BANK}
        session = Session(Server(made.header, made.roster), clients | {BANK: bank}, to_bank=die)
        if others == 2 and asked is not Receipts:
            with pytest.raises(Aborted, match="2 banks are left, 3 are needed"):
                session.run()
        else:
            online = rest if asked.exchange <= Inbox.exchange else [*rest, BANK]
            np.testing.assert_array_equal(session.run(), made.sum(online))
        assert not bank.alive and not session.refusals
