"""The coordinator refuses what an honest bank would not send, names who sent it, and goes on."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy.errors import Aborted, Inconsistent, Misbehaviour, ProtocolError, SecAggError
from privacy.secagg import agreement, client
from privacy.secagg.identity import Identity
from privacy.secagg.messages import Box, Keys, Masked, Message, Opened, Reveal, Shares, Signed, Sum, View, sign
from privacy.secagg.server import Server
from tests.privacy.secagg.driver import Federation, Session, federation, wire

BANK = "bank1"
Forge = Callable[[Federation, Message], Message]


def _signed(made: Federation, message: Signed, **changes: object) -> Message:
    """Changed, and signed by its bank again."""
    return sign(made.identities[made.roster.number(message.bank)], replace(message, **changes))


def _box(made: Federation, shares: Shares, **changes: object) -> Message:
    box = _signed(made, shares.boxes[0], **changes)
    assert isinstance(box, Box)
    return _signed(made, shares, boxes=(box, *shares.boxes[1:]))


def _as_other(made: Federation, message: Message) -> Message:
    return replace(message, bank="bank2")


def _wrong_share(made: Federation, reveal: Reveal) -> Message:
    """Of the seed of bank0."""
    return _signed(made, reveal, seeds=(Opened("bank0", bytes(33)), *reveal.seeds[1:]))


FORGERIES: dict[str, tuple[type[Message], Forge, type[SecAggError], str]] = {
    "another bank's name": (Keys, _as_other, ProtocolError, "the signature is not bank2's"),
    "a phantom": (
        *(Keys, lambda made, m: sign(Identity.create("phantom"), replace(m, bank="phantom"))),
        *(ProtocolError, "'phantom' is not in the roster"),
    ),
    "another session": (Keys, lambda made, m: _signed(made, m, session=b"s" * 32), ProtocolError, "it is for session 73737373"),
    "keys that anybody agrees with": (Keys, lambda made, m: _signed(made, m, masking=bytes(32)), Misbehaviour, "anybody agrees with"),
    "a box too few": (Shares, lambda made, m: _signed(made, m, boxes=m.boxes[1:]), ProtocolError, "one box for each other bank"),
    "a box unsigned": (
        *(Shares, lambda made, m: _signed(made, m, boxes=(replace(m.boxes[0], signature=bytes(64)), *m.boxes[1:]))),
        *(ProtocolError, "the signature is not bank1's"),
    ),
    "a box of an old session": (Shares, lambda made, m: _box(made, m, session=b"s" * 32), ProtocolError, "it is for session 73737373"),
    "a vector cut short": (Masked, lambda made, m: _signed(made, m, packed=m.packed[:-1]), ProtocolError, "13 bytes, expected 14"),
    "a vector too long": (
        *(Masked, lambda made, m: _signed(made, m, packed=memoryview(bytes(15)))),
        *(ProtocolError, "15 bytes, expected 14"),
    ),
    "a vector that was changed": (
        *(Masked, lambda made, m: replace(m, packed=memoryview(bytes(14)))),
        *(ProtocolError, "the signature is not bank1's"),
    ),
    "another view": (View, lambda made, m: _signed(made, m, view=b"v" * 32), Inconsistent, "bank1 signed another view than it was sent"),
    "a share that was changed": (Reveal, _wrong_share, Misbehaviour, "bank1 has changed its share of bank0's seed"),
    "a share in both lists": (
        *(Reveal, lambda made, m: _signed(made, m, keys=(*m.keys, m.seeds[0]))),
        *(ProtocolError, "seeds of those online and of the keys of those gone"),
    ),
    "no shares": (Reveal, lambda made, m: _signed(made, m, seeds=()), ProtocolError, "seeds of those online"),
}


def test_every_forgery_is_refused_and_the_session_ends_well_all_the_same() -> None:
    with federation(4) as made:
        tried = set[str]()

        def forge(message: Message) -> Message:
            for case, (kind, change, error, words) in FORGERIES.items():
                if type(message) is kind and message.bank == BANK:
                    with pytest.raises(error, match=words) as caught:
                        server.on(wire(change(made, message)))
                    assert f"session {made.header.session.hex()[:8]}, exchange {kind.exchange}" in caught.value.message
                    assert BANK in server.waiting_for
                    tried.add(case)
            return message

        server = Server(made.header, made.roster)
        session = Session(server, made.clients(), to_server=forge)
        np.testing.assert_array_equal(session.run(), made.sum(made.roster.names))
        assert tried == FORGERIES.keys() and not session.refusals


def test_a_message_again_late_or_that_no_bank_sends_is_refused() -> None:
    with federation(4) as made:
        sent: list[Message] = []

        def repeat(message: Message) -> Message:
            if isinstance(message, Signed) and message.bank == BANK:
                for old in sent:
                    with pytest.raises(ProtocolError, match="came a second time"):
                        server.on(old)
                sent.append(message)
            return message

        server = Server(made.header, made.roster)
        with pytest.raises(ProtocolError, match="Header is nothing that a bank sends"):
            server.on(made.header)
        Session(server, made.clients(), to_server=repeat).run()
        with pytest.raises(ProtocolError, match="the session is over"):
            server.on(sent[0])
        with pytest.raises(ProtocolError, match="the session is over"):
            server.close_exchange()


def test_what_comes_after_its_exchange_was_closed_is_out_of_order() -> None:
    with federation(4) as made:
        late: list[Message] = []

        def delay(message: Message) -> Message | None:
            if isinstance(message, Masked) and message.bank == BANK:
                late.append(message)
                return None
            if late and isinstance(message, View):
                with pytest.raises(ProtocolError, match="Masked is out of order"):
                    server.on(late[0])
            return message

        server = Server(made.header, made.roster)
        total = Session(server, made.clients(), to_server=delay).run()
        np.testing.assert_array_equal(total, made.sum(["bank0", "bank2", "bank3"]))


@pytest.mark.parametrize("kind", [Keys, Masked, View])
def test_two_different_messages_signed_by_one_bank_are_misbehaviour_at_any_time(kind: type[Message]) -> None:
    changed: dict[type[Message], dict[str, object]] = {
        Keys: {"masking": b"k" * 32},
        Masked: {"packed": memoryview(bytes(14))},
        View: {"view": b"v" * 32},
    }
    with federation(4) as made:
        second: list[Message] = []

        def contradict(message: Message) -> Message:
            if type(message) is kind and message.bank == BANK:
                second.append(_signed(made, message, **changed[kind]))
            elif second:
                with pytest.raises(Misbehaviour, match=f"bank1 has signed two different {kind.__name__}") as caught:
                    server.on(second[0])
                assert caught.value.banks == (BANK,)
            return message

        server = Server(made.header, made.roster)
        np.testing.assert_array_equal(Session(server, made.clients(), to_server=contradict).run(), made.sum(made.roster.names))


@pytest.mark.parametrize(("drops", "secret"), [({}, "seed"), ({BANK: 2}, "masking")])
def test_a_bank_that_shares_another_secret_than_it_publishes_is_named(
    drops: dict[str, int], secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its boxes open and fit their hashes, so it is nobody else's doing."""
    publish = agreement.Secrets.publish

    def lie(self: agreement.Secrets, session: bytes, bank: str) -> Keys:
        return publish(replace(self, **{secret: b"x" * 32}) if bank == BANK else self, session, bank)

    monkeypatch.setattr(agreement.Secrets, "publish", lie)
    with federation(4) as made:
        session = Session(Server(made.header, made.roster), made.clients(), drops)
        with pytest.raises(Misbehaviour, match="bank1 gave out shares of another secret than it published") as caught:
            session.run()
        assert caught.value.banks == (BANK,) and session.server.over


def test_banks_that_were_sent_different_sums_say_so() -> None:
    with federation(4) as made:
        forged = memoryview(bytes(14))

        def lie(bank: str, message: Message) -> Message:
            return replace(message, packed=forged) if isinstance(message, Sum) and bank == BANK else message

        session = Session(Server(made.header, made.roster), made.clients(), to_bank=lie)
        session.run()
        assert {type(refusal) for refusal in session.refusals} == {Inconsistent}
        assert [refusal.banks for refusal in session.refusals] == [(BANK,), ("bank0", "bank2", "bank3"), (BANK,), (BANK,)]


def test_shares_that_reach_the_coordinator_never_rebuild_both_secrets_of_a_bank() -> None:
    """Of each member every bank gives one kind of share, here with one bank gone."""
    with federation(5) as made:
        reveals: list[Reveal] = []

        def collect(message: Message) -> Message:
            reveals.extend([message] if isinstance(message, Reveal) else [])
            return message

        Session(Server(made.header, made.roster), made.clients(), {"bank4": 2}, to_server=collect).run()
        assert len(reveals) == 4
        for reveal in reveals:
            assert [each.bank for each in reveal.seeds] == ["bank0", "bank1", "bank2", "bank3"]
            assert [each.bank for each in reveal.keys] == ["bank4"]


def test_the_coordinator_holds_no_vector_but_the_sum() -> None:
    """A vector of 4 MB from each of 5 banks, handed over one by one."""
    with federation(5, length=10**6) as made:
        made.next_header(modulus_bits=32)
        server, weighed = Server(made.header, made.roster), []

        def weigh(message: Message) -> Message | None:
            if not isinstance(message, Masked) or len(server.waiting_for) == 1:
                return message
            tracemalloc.start()
            server.on(message)
            weighed.append(tracemalloc.get_traced_memory())
            tracemalloc.stop()
            return None

        Session(server, made.clients(), to_server=weigh).run()
        assert len(weighed) == 4 and all(held < 100_000 and peak < 5_000_000 for held, peak in weighed)


def test_a_sum_with_too_few_members_is_not_begun() -> None:
    with federation(4) as made:
        made.next_header(least_members=4)
        for drops, exchange in (({BANK: 0}, 0), ({BANK: 1}, 1)):
            session = Session(Server(made.header, made.roster), made.clients(), drops)
            with pytest.raises(Aborted, match=f"exchange {exchange}: 3 banks are left, 4 are needed"):
                session.run()
            for one in session.clients.values():
                one.end()
            made.next_header()


def test_the_bank_module_has_no_word_of_sockets_or_clocks() -> None:
    for module in (client, agreement):
        assert not {"socket", "time", "datetime", "asyncio", "threading"} & set(vars(module))
