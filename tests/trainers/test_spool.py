"""Requests and answers in a folder."""

import stat
import threading
from pathlib import Path

from trainers.spool import Spool


def test_what_is_asked_is_answered_again_and_again_until_it_is_withdrawn(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    thread = threading.Thread(target=_answer_once, args=(Spool(tmp_path / "spool"), b"yes: "))
    thread.start()

    answer = spool.ask("1", b"is it?")

    thread.join()
    assert answer == spool.ask("1", b"is it?") == b"yes: is it?"
    spool.withdraw("1")
    assert _files(tmp_path) == []


def test_answers_that_nobody_will_ask_for_again_are_withdrawn_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for name in ("1", "2", "3"):
        spool.answer(name, b"answer " + name.encode())

    spool.keep_only("2")

    assert spool.ask("2", b"") == b"answer 2" and [path.name for path in _files(tmp_path)] == ["2"]


def test_a_request_outlives_who_asked_and_its_answer_is_had_by_asking_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.ask("1", b"first", waiting=lambda: False) is None

    _answer_once(spool, b"answer to ")

    assert spool.ask("1", b"first", waiting=lambda: False) == b"answer to first"


def test_an_answer_that_was_given_twice_is_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.ask("1", b"", waiting=lambda: False)

    spool.answer("1", b"once")
    spool.answer("1", b"once")

    assert spool.ask("1", b"", waiting=lambda: False) == b"once"
    assert spool.next(waiting=lambda: False) is None


def test_a_request_that_was_taken_back_is_not_answered(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for name in ("1", "2"):
        spool.ask(name, b"", waiting=lambda: False)
    spool.answer("1", b"too late")

    for name in ("1", "2"):
        spool.withdraw(name)

    assert spool.next(waiting=lambda: False) is None and _files(tmp_path) == []


def test_half_a_request_is_none(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / "inbox" / "1.new").write_bytes(b"ha")

    assert spool.next(waiting=lambda: False) is None


def test_a_spool_is_abandoned_when_whoever_claimed_it_is_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    before = spool.is_abandoned

    with spool.claim():
        claimed = Spool(tmp_path).is_abandoned

    assert (before, claimed, spool.is_abandoned) == (False, False, True)


def test_files_are_their_owners(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.ask("1", b"x", waiting=lambda: False)

    assert stat.S_IMODE((tmp_path / "spool" / "inbox" / "1").stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "spool").rglob("*box")} == {0o700}


def _answer_once(spool: Spool, before: bytes) -> None:
    found = spool.next()
    assert found is not None
    name, request = found
    spool.answer(name, before + request)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
