"""Banks' accounts of a session: alike if all were told the same, and else the first thing that was not is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import chain
from privacy.errors import SecAggError, VaultError
from privacy.secagg.messages import Inbox, KeyList, Keys, Message, Online, Sum, sign
from privacy.secagg.server import Server
from privacy.secagg.transcript import Difference, Transcript, verify_transcripts
from tests.privacy.secagg.driver import Federation, Session, federation, scratch


def _transcripts(made: Federation) -> list[Path]:
    return [made.transcript(bank) for bank in made.roster.names]


def test_transcripts_of_honest_sessions_agree() -> None:
    with federation(4) as made:
        for drops in ({}, {"bank2": 2}):
            session = Session(Server(made.header, made.roster), made.clients(), drops)
            session.run()
            for client in session.clients.values():
                client.end()
            made.next_header()
            made.updates = made.fresh_updates()
        assert verify_transcripts(_transcripts(made)) is None
        assert len({json.loads(line).get("session") for line in made.transcript("bank0").read_text().splitlines()}) == 3


def _second_keys(made: Federation, message: Message) -> Message:
    """bank0 signs a second set for bank3."""
    assert isinstance(message, KeyList)
    other = sign(made.identities[0], replace(message.keys[0], commitment=bytes(32)))
    return replace(message, keys=(other, *message.keys[1:]))


@pytest.mark.parametrize(
    ("kind", "lie", "exchange", "what"),
    [
        (KeyList, _second_keys, 0, "keys of bank0"),
        (KeyList, lambda made, m: replace(m, keys=(*m.keys[:2], m.keys[3])), 1, "banks with keys"),
        (Inbox, lambda made, m: replace(m, boxes=m.boxes[:2]), 2, "members"),
        (Online, lambda made, m: replace(m, banks=("bank0", "bank1", "bank3")), 3, "online"),
        (Sum, lambda made, m: replace(m, packed=memoryview(bytes(14))), 5, "sum"),
    ],
)
def test_the_first_difference_is_named(kind: type[Message], lie: object, exchange: int, what: str) -> None:
    with federation(4) as made:
        assert callable(lie)
        session = Session(
            Server(made.header, made.roster),
            made.clients(),
            to_bank=lambda bank, m: lie(made, m) if bank == "bank3" and type(m) is kind else m,
        )
        try:
            session.run()
        except SecAggError:
            assert kind is not Sum
        found = verify_transcripts(_transcripts(made))
        banks = ("bank0", "bank2" if kind is KeyList and exchange else "bank3")
        assert found is not None and found == Difference(made.header.session.hex(), exchange, what, (banks[0], "bank3"))


def _make_transcript(path: Path) -> Path:
    transcript = Transcript(path, "bank")
    for number in range(3):
        transcript.note(bytes(32), Keys(bytes(32), f"bank{number}", *(bytes(32),) * 3))
    return path


def test_a_torn_last_line_is_cut_off_and_written_again() -> None:
    with scratch() as folder:
        path = _make_transcript(folder / "transcript.jsonl")
        whole = path.read_bytes()
        for torn in (whole[:-1], whole[: whole.rindex(b"\n", 0, -1) + 20], whole[: whole.rindex(b"\n", 0, -1) + 1]):
            path.write_bytes(torn)
            Transcript(path, "bank").note(bytes(32), *(Keys(bytes(32), f"bank{number}", *(bytes(32),) * 3) for number in range(3)))
            assert path.read_bytes() == whole
        for torn in (b"", b'{"ba'):
            path.write_bytes(torn)
            Transcript(path, "bank")
            assert path.read_bytes() == whole[: whole.index(b"\n") + 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:2], lines[2].replace("bank1", "bank7"), lines[3]],
        lambda lines: [*lines[:2], lines[3]],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [lines[0].replace("bank", "bonk"), *lines[1:]],
        lambda lines: ["[]", *lines[1:]],
        lambda lines: ["garbage", *lines[1:]],
    ],
)
def test_changed_lost_and_swapped_lines_are_seen(change: object) -> None:
    with scratch() as folder:
        path = _make_transcript(folder / "transcript.jsonl")
        assert callable(change)
        path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
        with pytest.raises(VaultError, match=r"line \d"):
            verify_transcripts([path])
        with pytest.raises(VaultError):
            Transcript(path, "bank")


def test_opening_looks_at_the_newest_session_and_verifying_at_all() -> None:
    with scratch() as folder:
        path = _make_transcript(folder / "transcript.jsonl")
        keys = [Keys(b"n" * 32, f"bank{number}", *(bytes(32),) * 3) for number in range(2)]
        Transcript(path, "bank").note(b"n" * 32, *keys)
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*lines[:2], lines[2].replace("bank1", "bank7"), *lines[3:]]))
        Transcript(path, "bank").note(b"n" * 32, *keys)
        assert len(path.read_text().splitlines()) == len(lines)
        with pytest.raises(VaultError, match="line 3"):
            verify_transcripts([path])
        path.write_text("".join([*lines[:4], lines[4].replace("bank0", "bank7"), lines[5]]))
        with pytest.raises(VaultError, match="line 5"):
            Transcript(path, "bank")


@pytest.mark.parametrize("fact", [{"session": []}, {"exchange": "0"}, {"exchange": True}, {"what": None}, {"digest": 1}, {"signature": 2}])
def test_a_bank_cannot_break_the_comparison_by_what_its_transcript_says(fact: dict[str, object]) -> None:
    with scratch() as folder:
        path = _make_transcript(folder / "transcript.jsonl")
        chain.add(path, chain.follow(path, VaultError)[1], [{"session": "", "exchange": 0, "what": "online", "digest": ""} | fact])
        with pytest.raises(VaultError, match="a fact that is none"):
            verify_transcripts([path])
        path.write_text("[" * 100_000 + "\n")
        with pytest.raises(VaultError, match="line 1"):
            verify_transcripts([path])


def test_a_transcript_holds_nothing_secret() -> None:
    """Names, numbers, hashes and signatures."""
    with federation(3) as made:
        Session(Server(made.header, made.roster), made.clients()).run()
        rows = [json.loads(line) for line in made.transcript("bank0").read_text().splitlines()]
        assert {frozenset(row) for row in rows[1:]} == {frozenset(("session", "exchange", "what", "digest", "signature", "hash"))}
        assert all(len(row["digest"]) == 64 for row in rows[1:])
