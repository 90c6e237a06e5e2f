"""The wire format: one encoding for each message, and an error for all else."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import ProtocolError
from privacy.secagg.codec import hashed, labelled
from privacy.secagg.identity import Identity, Roster, fingerprint
from privacy.secagg.messages import Header, Keys, Masked, Message, Online, Signed, sign
from privacy.secagg.server import Server
from tests.privacy.secagg.driver import Session, federation


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """One of each type, as a session sends them."""
    seen: dict[type[Message], Message] = {}

    def note(message: Message) -> Message:
        seen.setdefault(type(message), message)
        return message

    with federation(3) as made:
        Session(Server(made.header, made.roster), made.clients(), {"bank0": 3}, to_bank=lambda _, m: note(m), to_server=note).run()
    return [*seen.values()]


def test_a_message_is_read_as_it_was_written(messages: list[Message]) -> None:
    assert len(messages) == 13
    for message in messages:
        data = message.to_bytes()
        assert Message.from_bytes(data) == type(message).from_bytes(memoryview(data)) == message
        assert type(message).from_bytes(data).digest == message.digest


def test_a_message_that_is_cut_short_or_goes_on_is_refused(messages: list[Message]) -> None:
    for message in messages:
        data = message.to_bytes()
        for end in range(len(data)):
            with pytest.raises(ProtocolError):
                Message.from_bytes(data[:end])
        with pytest.raises(ProtocolError, match="1 bytes too many"):
            Message.from_bytes(data + b"\0")


def test_a_message_of_another_version_or_type_is_refused(messages: list[Message]) -> None:
    data = bytearray(messages[0].to_bytes())
    for place, value in ((3, 2), (4, 1), (5, 14)):
        changed = bytes(data[:place]) + bytes([value]) + bytes(data[place + 1 :])
        with pytest.raises(ProtocolError, match="not a message of this protocol and version"):
            Message.from_bytes(changed)
    with pytest.raises(ProtocolError, match="expected Online, got Header"):
        Online.from_bytes(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bytes_are_refused_or_are_the_one_encoding_of_what_they_say(messages: list[Message], data: st.DataObject) -> None:
    wire = bytearray(messages[data.draw(st.integers(0, len(messages) - 1))].to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(wire) - 1))
        wire[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with contextlib.suppress(ProtocolError):
        assert Message.from_bytes(bytes(wire)).to_bytes() == wire


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([b"", *(b"CSA\x01\x00" + bytes([number]) for number in range(14))]), rest=st.binary(max_size=400))
def test_any_bytes_at_all_are_refused_or_are_the_one_encoding_of_what_they_say(start: bytes, rest: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert Message.from_bytes(start + rest).to_bytes() == start + rest


@pytest.mark.parametrize("name", [b"\x00", b"\x02\xff\xfe", b"\x02\xc0\xaf"])
def test_a_name_that_is_empty_or_not_utf_8_is_refused(name: bytes) -> None:
    good = Online(bytes(32), ("x",)).to_bytes()
    with pytest.raises(ProtocolError, match="name"):
        Message.from_bytes(good.removesuffix(b"\x01x") + name)


def test_a_name_that_is_too_long_cannot_be_written() -> None:
    with pytest.raises(ProtocolError, match="takes 256 bytes, expected 1 to 255"):
        Online(bytes(32), ("é" * 128,)).to_bytes()


def test_a_clip_that_is_not_finite_is_refused() -> None:
    with federation(2) as made, pytest.raises(ProtocolError, match="expected a finite number, got nan"):
        Header.from_bytes(replace(made.header, clip=float("nan")).to_bytes())


def test_a_vector_is_never_copied_on_its_way_to_bytes_and_back() -> None:
    vector = memoryview(bytearray(1000))
    pieces = Masked(bytes(32), "bank", vector).pieces()
    assert any(piece is vector for piece in pieces)
    data = bytearray(b"".join(pieces))
    read = Masked.from_bytes(data)
    data[-1] = 7
    assert read.packed[-1] == 7 and read.packed.readonly


def test_a_signature_covers_type_session_bank_and_content_and_nothing_else_fits_it(messages: list[Message]) -> None:
    identity = Identity.create("bank")
    roster = Roster(1, 0, (("bank", identity.public), ("other", Identity.create("other").public)))
    keys = sign(identity, Keys(bytes(32), "bank", *(bytes([i]) * 32 for i in range(3))))
    roster.check_signature("bank", keys.signature, keys.digest)
    for changed in ("session", "encryption", "masking", "commitment"):
        with pytest.raises(ProtocolError, match="the signature is not bank's"):
            roster.check_signature("bank", keys.signature, replace(keys, **{changed: b"x" * 32}).digest)
    assert len({message.digest for message in messages}) == len(messages)
    signed = [message for message in messages if isinstance(message, Signed)]
    assert all(replace(message, signature=bytes(64)).digest == message.digest for message in signed) and len(signed) == 6


def test_every_fact_of_a_roster_is_in_its_hash() -> None:
    roster = Roster(1, 1, tuple((name, Identity.create(name).public) for name in ("bank0", "bank1", "bank2")))
    for other in (replace(roster, version=2), replace(roster, colluders=0), replace(roster, banks=roster.banks[::-1])):
        assert other.hash != roster.hash


def test_a_fingerprint_is_short_enough_to_read_aloud() -> None:
    assert len(fingerprint(bytes(32)).split()) == 8 and fingerprint(bytes(32)) != fingerprint(b"x" * 32)


def test_labels_tell_apart_what_joined_bytes_would_not() -> None:
    assert labelled("a", b"bc", b"d") != labelled("a", b"b", b"cd") and hashed("a", b"b") != hashed("ab", b"")
