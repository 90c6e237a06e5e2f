"""A bank refuses whatever an honest coordinator would not send, says what is wrong, and stays as it was."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy.errors import Aborted, Inconsistent, Misbehaviour, ProtocolError, Refused, SecAggError
from privacy.secagg.client import Client
from privacy.secagg.identity import Identity
from privacy.secagg.messages import Box, Header, Inbox, KeyList, Keys, Message, Online, Receipt, Receipts, Sum, View, Views, sign
from privacy.secagg.rules import Policy
from privacy.secagg.server import Server
from tests.privacy.secagg.driver import POLICY, Federation, Session, copy_of, federation, wire

BANK = "bank1"
Forge = Callable[[Federation, Message], Message]


def _forge_keys(made: Federation, listed: KeyList, number: int, **changes: object) -> KeyList:
    """The list with one bank's keys changed, and signed by it again."""
    keys = list(listed.keys)
    keys[number] = sign(made.identities[number], replace(keys[number], **changes))
    return replace(listed, keys=tuple(keys))


def _forge_box(made: Federation, inbox: Inbox, **changes: object) -> Inbox:
    """The inbox with the first box changed, and signed by its giver again."""
    box = replace(inbox.boxes[0], **changes)
    return replace(inbox, boxes=(sign(made.identities[made.roster.number(box.bank)], box), *inbox.boxes[1:]))


def _phantom(made: Federation, listed: KeyList) -> KeyList:
    phantom = Identity.create("phantom")
    return replace(listed, keys=(*listed.keys, sign(phantom, replace(listed.keys[0], bank="phantom"))))


def _sign_other(made: Federation, number: int, signed: View | Receipt, **changes: object) -> View | Receipt:
    return sign(made.identities[number], replace(signed, **changes))


HEADERS: dict[str, tuple[dict[str, object], str]] = {
    "another run": ({"run": "other"}, "run is 'other', expected 'run'"),
    "another round": ({"round": 2}, "round is 2, expected 1"),
    "another model": ({"model": b"x" * 32}, "model is 787878787878, expected 6d6d6d6d6d6d"),
    "another configuration": ({"config": b"x" * 32}, "config is"),
    "another length": ({"length": 8}, "length is 8, expected 7"),
    "no coordinates": ({"length": 0}, "a vector of no coordinates"),
    "less than none": ({"length": -1}, "a vector of no coordinates"),
    "another roster": ({"roster": b"x" * 32}, "another roster than version 1"),
    "few members": ({"least_members": 1}, "sessions of 1 banks or more: expected at least 2"),
    "more members than there are": ({"least_members": 5}, "but the roster has 4"),
    "a low threshold": ({"threshold": 1}, "threshold 1 for 2 banks"),
    "a wide clip": ({"clip": 1.5}, "a clip of 1.5"),
    "a sum that wraps": ({"fraction_bits": 14}, "can wrap around"),
}

FORGERIES: dict[str, tuple[type[Message], Forge, type[SecAggError], str]] = {
    "a list without this bank's keys": (
        *(KeyList, lambda made, m: replace(m, keys=(m.keys[0], *m.keys[2:]))),
        *(ProtocolError, "does not have the keys that this bank signed"),
    ),
    "other keys of this bank": (
        *(KeyList, lambda made, m: _forge_keys(made, m, 1, masking=b"k" * 32)),
        *(ProtocolError, "does not have the keys that this bank signed"),
    ),
    "swapped keys": (
        *(KeyList, lambda made, m: replace(m, keys=(*m.keys[:2], replace(m.keys[2], masking=b"k" * 32), m.keys[3]))),
        *(ProtocolError, "the signature is not bank2's"),
    ),
    "keys of a phantom": (KeyList, _phantom, ProtocolError, "is not in the roster"),
    "keys in another order": (KeyList, lambda made, m: replace(m, keys=m.keys[::-1]), ProtocolError, "in the roster's order"),
    "keys of a bank twice": (KeyList, lambda made, m: replace(m, keys=(m.keys[0], *m.keys)), ProtocolError, "each bank once"),
    "keys of two banks": (KeyList, lambda made, m: replace(m, keys=m.keys[:2]), Aborted, "2 banks are left, 3 are needed"),
    "keys for another header": (
        *(KeyList, lambda made, m: _forge_keys(made, m, 2, session=b"s" * 32)),
        *(ProtocolError, "bank2 has signed for session 73737373, under another header"),
    ),
    "keys that anybody agrees with": (
        *(KeyList, lambda made, m: _forge_keys(made, m, 2, encryption=bytes(32))),
        *(Misbehaviour, "bank2 has published a key that anybody agrees with"),
    ),
    "a box that was changed": (
        *(Inbox, lambda made, m: replace(m, boxes=(replace(m.boxes[0], sealed=b"s" * 82), *m.boxes[1:]))),
        *(ProtocolError, "the signature is not bank0's"),
    ),
    "a box that does not open": (
        *(Inbox, lambda made, m: _forge_box(made, m, sealed=b"s" * 82)),
        *(Misbehaviour, "bank0 has signed a box that does not open"),
    ),
    "a box with other shares": (
        *(Inbox, lambda made, m: _forge_box(made, m, key_share=b"s" * 32)),
        *(Misbehaviour, "bank0 has signed a box with other shares in it than it says"),
    ),
    "a box for another": (Inbox, lambda made, m: _forge_box(made, m, receiver="bank2"), ProtocolError, "a box from bank0 to 'bank2'"),
    "a box of this bank": (
        *(Inbox, lambda made, m: _forge_box(made, replace(m, boxes=m.boxes[1:]), bank=BANK)),
        *(ProtocolError, "a box of a bank whose keys were not in the list"),
    ),
    "a box of an old session": (Inbox, lambda made, m: _forge_box(made, m, session=b"s" * 32), ProtocolError, "session 73737373"),
    "a box twice": (Inbox, lambda made, m: replace(m, boxes=(m.boxes[0], *m.boxes[:2])), ProtocolError, "each bank once"),
    "one box": (Inbox, lambda made, m: replace(m, boxes=m.boxes[:1]), Aborted, "2 banks are left, 3 are needed"),
    "a stranger online": (Online, lambda made, m: replace(m, banks=(*m.banks, "phantom")), ProtocolError, "is not in the roster"),
    "this bank not online": (Online, lambda made, m: replace(m, banks=("bank0", "bank2", "bank3")), ProtocolError, "must hold this bank"),
    "two banks online": (Online, lambda made, m: replace(m, banks=m.banks[:2]), Aborted, "2 banks are left, 3 are needed"),
    "two views": (Views, lambda made, m: replace(m, views=m.views[:2]), Aborted, "2 banks are left, 3 are needed"),
    "a view twice": (Views, lambda made, m: replace(m, views=(m.views[0], *m.views)), ProtocolError, "each bank once"),
    "a forged view": (
        *(Views, lambda made, m: replace(m, views=(*m.views[:3], replace(m.views[3], signature=bytes(64))))),
        *(ProtocolError, "the signature is not bank3's"),
    ),
    "another view": (
        *(Views, lambda made, m: replace(m, views=(*m.views[:3], _sign_other(made, 3, m.views[3], view=b"v" * 32)))),
        *(Inconsistent, "bank3 signed another view of members and those online than this bank"),
    ),
    "a sum cut short": (Sum, lambda made, m: replace(m, packed=m.packed[:-1]), ProtocolError, "a sum of 13 bytes, expected 14"),
    "two receipts": (Receipts, lambda made, m: replace(m, receipts=m.receipts[:2]), Aborted, "2 banks are left"),
    "a receipt for another sum": (
        *(Receipts, lambda made, m: replace(m, receipts=(_sign_other(made, 0, m.receipts[0], total=b"v" * 32), *m.receipts[1:]))),
        *(Inconsistent, "bank0 signed another sum than this bank"),
    ),
}


def _refuses(client: Client, made: Federation, message: Message, error: type[SecAggError], words: str) -> None:
    """It raises this, naming bank, session and exchange, and nothing has changed."""
    before, exchange = copy_of(made.folder / BANK), client.exchange
    with pytest.raises(error, match=words) as caught:
        client.on(message)
    session = message.session.hex()[:8] if hasattr(message, "session") else ""
    assert caught.value.message.startswith(f"{BANK}, session {session}, exchange {exchange}: ")
    after = copy_of(made.folder / BANK)
    assert client.exchange == exchange and {name: after[name] for name in before if name != "live/secrets"} == {
        name: before[name] for name in before if name != "live/secrets"
    }


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_the_bank_does_not_expect_or_allow_is_refused(case: str) -> None:
    changes, words = HEADERS[case]
    with federation(4) as made:
        client = made.client(BANK)
        _refuses(client, made, replace(made.header, **changes), Refused, words)
        assert not list((made.folder / BANK / "live").iterdir())


def test_a_banks_policy_has_a_floor_of_members_and_a_ceiling_of_bits() -> None:
    with federation(4) as made:
        for policy, words in ((replace(POLICY, least_members=3), "policy wants 3"), (Policy(2, 1.0, 15), "15")):
            _refuses(made.client(BANK, policy), made, made.header, Refused, words)


def test_every_forgery_is_refused_and_the_session_ends_well_all_the_same() -> None:
    with federation(4) as made:
        clients, tried = made.clients(), set[str]()

        def forge(bank: str, message: Message) -> None:
            for case, (kind, change, error, words) in FORGERIES.items():
                if bank == BANK and type(message) is kind:
                    _refuses(clients[BANK], made, wire(change(made, message)), error, words)
                    tried.add(case)

        session = Session(Server(made.header, made.roster), clients, before=forge)
        np.testing.assert_array_equal(session.run(), made.sum(made.roster.names))
        assert tried == FORGERIES.keys() and not session.refusals and clients[BANK].exchange == 7


def test_a_bank_whose_shares_never_arrived_cannot_be_online() -> None:
    with federation(5) as made:
        clients, tried = made.clients(), []

        def add(bank: str, message: Message) -> None:
            if bank == BANK and isinstance(message, Online):
                tried.append(bank)
                forged = replace(message, banks=made.roster.names)
                _refuses(clients[BANK], made, forged, ProtocolError, "must hold this bank, and only members")

        Session(Server(made.header, made.roster), clients, {"bank4": 1}, before=add).run()
        assert tried


def test_a_bank_that_is_not_online_does_not_count_among_those_that_signed() -> None:
    with federation(5) as made:
        clients, tried = made.clients(), []

        def add(bank: str, message: Message) -> None:
            if bank == BANK and isinstance(message, Views):
                tried.append(bank)
                gone = _sign_other(made, 4, message.views[0], bank="bank4")
                forged = replace(message, views=(*message.views[:2], gone))
                _refuses(clients[BANK], made, forged, ProtocolError, "a signature of a bank that is not online")

        Session(Server(made.header, made.roster), clients, {"bank4": 2}, before=add).run()
        assert tried


def test_a_threshold_that_does_for_a_few_is_refused_when_more_have_come() -> None:
    """2t > n + c for the three banks that the header asks for at least, but not for the five that hold shares."""
    with federation(5) as made:
        made.next_header(least_members=3, threshold=2)
        clients = made.clients()
        listed = [keys for bank in made.roster.names for keys in clients[bank].on(made.header) if isinstance(keys, Keys)]
        forged = KeyList(made.header.session, tuple(listed))
        _refuses(clients[BANK], made, forged, Refused, "threshold 2 for 5 banks of which 0 may collude: expected 3")
        assert clients[BANK].on(KeyList(made.header.session, tuple(listed[:3])))


def test_a_message_out_of_order_again_or_of_another_session_is_refused() -> None:
    with federation(3) as made:
        sent: list[Message] = []
        session = Session(Server(made.header, made.roster), made.clients(), before=lambda bank, m: sent.append(m) if bank == BANK else None)
        session.run()
        for client in session.clients.values():
            client.end()
        made.updates = made.fresh_updates()
        new: list[Message] = []

        def replay(bank: str, message: Message) -> None:
            if bank == BANK:
                for old in sent:
                    _refuses(clients[BANK], made, old, ProtocolError if clients[BANK].exchange or old.exchange else Refused, ".")
                for early_or_late in new:
                    _refuses(clients[BANK], made, early_or_late, ProtocolError, "out of order")
                new.append(message)

        header = made.next_header(round=2)
        clients = made.clients()
        Session(Server(header, made.roster), clients, before=replay).run()
        assert len(new) == len(sent) == 7


def test_banks_that_were_sent_different_models_part_at_the_first_list_of_keys() -> None:
    """The header is in every signature: no masks are made, and none could cancel."""
    with federation(4) as made:
        clients = made.clients()
        other = replace(made.header, model=b"x" * 32)
        clients["bank3"] = made.client("bank3", model=other.model)

        def lie(bank: str, message: Message) -> Message:
            if bank == "bank3":
                return other if isinstance(message, Header) else replace(message, session=other.session)
            return message

        listed = [key for bank in made.roster.names for key in clients[bank].on(lie(bank, made.header))]
        for bank, client in clients.items():
            with pytest.raises(ProtocolError, match="under another header than this bank"):
                client.on(lie(bank, KeyList(made.header.session, tuple(keys for keys in listed if isinstance(keys, Keys)))))


@pytest.mark.parametrize(("update", "error"), [(None, Refused), (np.zeros(6, np.float32), Refused), (np.zeros(7), Refused)])
def test_an_update_that_does_not_fit_is_not_masked(update: np.ndarray | None, error: type[Exception]) -> None:
    with federation(3) as made:
        made.updates[BANK] = update  # type: ignore[assignment]
        session = Session(Server(made.header, made.roster), made.clients())
        session.run()
        assert [type(refusal) for refusal in session.refusals] == [error] and "no update to mask: expected float32" in str(session.refusals)


def test_an_update_that_is_not_finite_is_not_masked_and_can_be_exchanged() -> None:
    with federation(3) as made:
        good = made.updates[BANK].copy()
        made.updates[BANK][3] = np.nan
        clients = made.clients()

        def exchange(bank: str, message: Message) -> None:
            if bank == BANK and isinstance(message, Inbox):
                with pytest.raises(Refused, match=f"{BANK}, session .*, exchange 2: the update's coordinate 3 is nan"):
                    clients[BANK].on(message)
                made.updates[BANK] = good
                clients[BANK] = made.client(BANK)

        np.testing.assert_array_equal(
            Session(Server(made.header, made.roster), clients, before=exchange).run(), made.sum(made.roster.names)
        )


def test_the_coordinator_cannot_have_two_online_sets_signed() -> None:
    """Two of five banks are told that bank4 is gone: they give no share, be they shown all views or only those like their own."""
    with federation(5) as made:
        views: list[View] = []

        def lie(bank: str, message: Message) -> Message:
            return Online(message.session, message.banks[:4]) if isinstance(message, Online) and bank < "bank2" else message

        def collect(message: Message) -> Message:
            views.extend([message] if isinstance(message, View) else [])
            return message

        session = Session(Server(made.header, made.roster), made.clients(), to_bank=lie, to_server=collect)
        np.testing.assert_array_equal(session.run(), made.sum(made.roster.names))
        assert [(type(refusal), refusal.banks) for refusal in session.refusals] == [(Inconsistent, ("bank0",)), (Inconsistent, ("bank1",))]
        for shown, error in ((views[:4], Inconsistent), (views[:2], Aborted)):
            with pytest.raises(error):
                session.clients["bank0"].on(Views(made.header.session, tuple(shown)))
        assert session.clients["bank0"].exchange == 4


def test_a_box_cannot_be_opened_by_another_nor_twice_in_another_direction() -> None:
    """Swapping the contents of two signed boxes of one giver is caught by the associated data, whoever signs the swap."""
    with federation(3) as made:
        boxes: list[Box] = []

        def swap(message: Message) -> Message:
            if hasattr(message, "boxes") and getattr(message, "bank", "") == "bank0":
                first, second = message.boxes
                boxes.extend([first, second])
                swapped = (replace(first, sealed=second.sealed), replace(second, sealed=first.sealed))
                return sign(made.identities[0], replace(message, boxes=tuple(sign(made.identities[0], box) for box in swapped)))
            return message

        session = Session(Server(made.header, made.roster), made.clients(), to_server=swap)
        with pytest.raises(Aborted):
            session.run()
        assert boxes and [refusal.banks for refusal in session.refusals] == [("bank0",), ("bank0",)]


def test_updates_too_large_for_units_of_one_are_summed_in_larger_ones() -> None:
    with federation(3) as made:
        made.updates = {bank: update * np.float32(2**20) for bank, update in made.updates.items()}
        made.next_header(clip=2.0**20, fraction_bits=-12)
        clients = {bank: made.client(bank, replace(POLICY, most_clip=2.0**20)) for bank in made.roster.names}
        np.testing.assert_array_equal(Session(Server(made.header, made.roster), clients).run(), made.sum(made.roster.names))
