"""Banks' transcripts against one another: who cut out, made up or was told something else is named."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from federation.dossier.verify import check, export, identities, read_exports
from federation.errors import FolderError, NotTrusted
from privacy import chain
from privacy.errors import VaultError
from privacy.secagg.messages import KeyList, Message, Sum, sign
from tests.federation.conftest import Command
from tests.federation.enrolment import BANKS, Federation
from tests.federation.sessions import Sessions, sessions


@pytest.fixture
def held(made: Federation) -> Iterator[Sessions]:
    with sessions(made) as held:
        yield held


def _findings(held: Sessions, paths: list[Path]) -> list[tuple[str, int, tuple[str, ...], str]]:
    keys = identities([held.roster])
    found = check(read_exports(paths, keys), keys).findings
    return [(each.session, each.exchange, each.banks, each.what) for each in found]


def _rewritten(held: Sessions, bank: str, output: Path, change: Callable[[list[chain.Row]], list[chain.Row]]) -> Path:
    """What a bank would hand out that calculates its chain anew over other lines."""
    rows, _ = chain.follow(held.transcript(bank), VaultError)
    (lines := output.with_suffix(".lines")).unlink(missing_ok=True)
    chain.add(lines, chain.START, change(rows))
    output.unlink(missing_ok=True)
    export(lines, output, held.made.homes[bank].keys_in(held.roster).identity)
    return output


def test_transcripts_of_honest_sessions_agree(held: Sessions, tmp_path: Path) -> None:
    names = [held.run(), held.run(drops={"birch": 2})]
    keys = identities([held.roster])
    found = check(read_exports(held.export(tmp_path), keys), keys)
    assert found.banks == BANKS and not found.findings and not found.others
    assert [session.session for session in found.sessions] == names
    assert [session.title for session in found.sessions] == ["round 1, attempt 1, run run", "round 1, attempt 2, run run"]
    assert found.sessions[0].reached == dict.fromkeys(BANKS, 5) and found.sessions[1].reached["birch"] == 2


def test_one_transcript_names_the_banks_whose_own_was_not_given(held: Sessions, tmp_path: Path) -> None:
    held.run()
    keys = identities([held.roster])
    found = check(read_exports(held.export(tmp_path)[:1], keys), keys)
    assert not found.findings and found.others == BANKS[1:]


def test_a_session_that_was_cut_out_is_missing_at_that_bank(held: Sessions, tmp_path: Path) -> None:
    first, second = held.run(), held.run()
    paths = held.export(tmp_path)
    _rewritten(held, "cedar", paths[2], lambda rows: [row for row in rows if row.get("session") != first])
    ((session, exchange, banks, what),) = _findings(held, paths)
    assert (session, exchange, banks) == (first, 0, ("cedar", "alder")) and session != second
    assert what == "the transcript of cedar lacks this session; alder has keys of cedar with its signature"


def test_a_line_that_was_cut_out_is_named(held: Sessions, tmp_path: Path) -> None:
    held.run()
    paths = held.export(tmp_path)
    _rewritten(held, "cedar", paths[2], lambda rows: [row for row in rows if row.get("what") != "view of cedar"])
    assert [found[2:] for found in _findings(held, paths)] == [
        (("cedar", "alder"), "the transcript of cedar lacks its view of cedar; alder has view of cedar with its signature")
    ]


def test_a_line_that_was_made_up_is_held_against_who_has_it(held: Sessions, tmp_path: Path) -> None:
    """birch cannot put into cedar's mouth what cedar did not sign."""
    held.run()
    paths = held.export(tmp_path)
    _rewritten(
        held, "birch", paths[1], lambda rows: [row | {"digest": "ab" * 32} if row.get("what") == "view of cedar" else row for row in rows]
    )
    assert [found[1:] for found in _findings(held, paths)] == [
        (3, ("birch",), "birch has a line for view of cedar that cedar did not sign")
    ]


def test_two_versions_that_a_bank_signed_are_shown_with_who_holds_them(held: Sessions, tmp_path: Path) -> None:
    def lie(bank: str, message: Message) -> Message:
        if bank != "dogwood" or not isinstance(message, KeyList):
            return message
        return replace(message, keys=(sign(held.driven.identities[0], replace(message.keys[0], commitment=bytes(32))), *message.keys[1:]))

    held.run(lie)
    exchange, banks, what = _findings(held, held.export(tmp_path))[0][1:]
    assert exchange == 0 and banks == ("alder", "dogwood") and what.startswith("alder and dogwood have different keys of alder")


def test_an_attempt_that_is_two_sessions_is_named_at_both(held: Sessions, tmp_path: Path) -> None:
    """A coordinator that shows one half of the banks a session, and the other half another, each of which agrees with itself."""
    first = held.run(lambda bank, message: message if bank in BANKS[:2] else None)
    held.driven.header = replace(held.driven.header, attempt=1)
    second = held.run(lambda bank, message: message if bank in BANKS[2:] else None)
    assert [found[:3] for found in _findings(held, held.export(tmp_path))] == [(first, 0, BANKS[:2]), (second, 0, BANKS[2:])]


def test_another_sum_is_named_with_the_receipts_that_are_not_for_it(held: Sessions, tmp_path: Path) -> None:
    held.run(lambda bank, m: replace(m, packed=memoryview(bytes(14))) if bank == "dogwood" and isinstance(m, Sum) else m)
    found = _findings(held, held.export(tmp_path))
    assert (5, ("alder", "dogwood"), "alder and dogwood were not shown the same sum") in [each[1:] for each in found]


def test_a_tampered_line_is_named_by_file_and_number(held: Sessions, tmp_path: Path, consortium: Command) -> None:
    held.run()
    paths = held.export(tmp_path)
    lines = paths[1].read_text().splitlines(keepends=True)
    paths[1].write_text("".join([*lines[:4], lines[4].replace("of", "by", 1), *lines[5:]]))
    code, out, err = consortium("verify-transcripts", *paths, "--home", held.made.folder / "alder")
    assert code == 1 and not out and f"{paths[1]}, line 5" in err and "hint: " in err


def test_a_transcript_counts_as_its_banks_own_only_with_its_signature(held: Sessions, tmp_path: Path) -> None:
    held.run()
    keys, paths = identities([held.roster]), held.export(tmp_path)
    with pytest.raises(VaultError, match="not a transcript that its bank has signed"):
        read_exports([held.transcript("alder")], keys)
    with pytest.raises(NotTrusted, match=r"a second transcript of alder"):
        read_exports([paths[0], paths[0]], keys)
    with pytest.raises(NotTrusted, match="in no roster"):
        read_exports(paths, {name: keys[name] for name in BANKS[1:]})
    with pytest.raises(NotTrusted, match="not signed by alder"):
        read_exports(paths, keys | {"alder": keys["birch"]})
    with pytest.raises(VaultError, match="expected that of alder"):
        export(held.transcript("birch"), tmp_path / "other", held.made.homes["alder"].keys[0].identity)
    with pytest.raises(FolderError, match="is there already"):
        export(held.transcript("alder"), paths[0], held.made.homes["alder"].keys[0].identity)


def test_lines_after_the_signature_are_not_covered_by_it_and_refused(held: Sessions, tmp_path: Path) -> None:
    held.run()
    keys, path = identities([held.roster]), held.export(tmp_path)[0]
    rows, end = chain.follow(path, VaultError)
    chain.add(path, end, [rows[-2], rows[-1]])
    with pytest.raises(VaultError, match="has signed"):
        read_exports([path], keys)


def test_keys_that_were_replaced_count_with_the_roster_they_were_in(held: Sessions, tmp_path: Path) -> None:
    held.run()
    paths = held.export(tmp_path)
    held.made.join("alder", rotate=True)
    newer = held.made.sign(held.made.propose()).roster
    with pytest.raises(NotTrusted, match="not signed by alder"):
        read_exports(paths, identities([newer]))
    keys = identities([held.roster, newer])
    assert not check(read_exports(paths, keys), keys).findings


def test_what_a_transcript_says_cannot_break_the_comparison(held: Sessions, tmp_path: Path) -> None:
    held.run()
    paths, keys = held.export(tmp_path), identities([held.roster])
    for change in ({"session": "zz"}, {"digest": "12"}, {"signature": "x"}, {"exchange": 6}, {"what": "sum\x1b[2J"}):
        _rewritten(held, "birch", paths[1], lambda rows, change=change: [*rows, rows[-1] | change])  # type: ignore[misc]
        with pytest.raises(VaultError, match="not a transcript"):
            read_exports(paths, keys)


def test_the_commands_export_and_compare(held: Sessions, tmp_path: Path, consortium: Command) -> None:
    first = held.run()
    for bank in BANKS:
        shutil.copytree(held.transcript(bank).parent, held.made.folder / bank / "vault")
        assert consortium("export-transcript", tmp_path / bank, "--home", held.made.folder / bank)[0] == 0
    paths = [tmp_path / bank for bank in BANKS]
    code, out, _ = consortium("verify-transcripts", *paths, "--home", held.made.folder / "dogwood")
    assert code == 0 and first[:16] in out and "round 1, attempt 1" in out and "4 transcripts agree on 1 session" in out
    code, out, _ = consortium("verify-transcripts", *paths[:2], "--roster", held.made.folder / "coordinator" / "roster-1.json", "--json")
    assert code == 0 and json.loads(out)["others"] == ["cedar", "dogwood"] and not json.loads(out)["findings"]
    lines = paths[2].read_text().splitlines()
    assert json.loads(lines[-1]).keys() == {"signed", "signature", "hash"}
    assert consortium("verify-transcripts", *paths, "--home", tmp_path)[0] != 0


def test_transcripts_that_differ_are_exit_code_1(held: Sessions, tmp_path: Path, consortium: Command) -> None:
    held.run()
    paths = held.export(tmp_path)
    _rewritten(held, "cedar", paths[2], lambda rows: [row for row in rows if row.get("what") != "view of cedar"])
    code, out, _ = consortium("verify-transcripts", *paths, "--home", held.made.folder / "alder")
    assert code == 1 and "the transcript of cedar lacks its view of cedar" in out
