"""What survives the coordinator: killed at any moment, it comes back to the state before or after, and aggregates no round twice."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from federation.errors import JournalError
from federation.rounds.aggregate import State
from federation.rounds.journal import Journal
from tests.federation.killer import BANKS
from tests.federation.killer import make_journal as _make_journal
from tests.federation.killer import state as _state
from tests.helpers import REPOSITORY


def _same(one: State, other: State) -> bool:
    return np.array_equal(one.adapter["b"], other.adapter["b"]) and np.array_equal(one.velocity, other.velocity)


def _where(folder: Path) -> tuple[int, int]:
    """The round to come or going on, and its attempt; what it starts from is seen to be what the last one made."""
    with Journal(folder) as journal:
        assert _same(journal.state(), _state(journal.round - 1))
        return journal.round, journal.attempt


def _kill_at_every_moment(what: str, place: Path) -> list[tuple[Path, int]]:
    """The folders that were worked on, moment by moment, and how many calls had returned."""
    subprocess.run([sys.executable, "-m", "tests.federation.killer", what, place], cwd=REPOSITORY, check=True)
    return [(place / f"{moment}", len((place / f"{moment}.told").read_bytes())) for moment in range(1, len([*place.glob("*.told")]) + 1)]


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    _make_journal(tmp_path, rounds=2).close()
    with Journal(tmp_path) as journal:
        assert (journal.run, journal.config, journal.round, journal.attempt) == ("intents", "c" * 64, 3, 0)
        assert journal.rounds[2].banks == BANKS and journal.rounds[2].metrics == {"accuracy": 0.5}
        assert _same(journal.state(), _state(2))
        assert np.array_equal(journal.adapter(1)["b"], _state(1).adapter["b"])
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_beginning_and_closing_again_what_was_is_nothing(tmp_path: Path) -> None:
    with _make_journal(tmp_path) as journal:
        for _ in range(2):
            journal.begin_round(1, 1)
        journal.begin_round(1, 2)
        before = None
        for _ in range(2):
            journal.close_round(1, 2, _state(1), BANKS, {})
            lines = (tmp_path / "journal.jsonl").read_bytes()
            assert before in (None, lines)
            before = lines
    assert _where(tmp_path) == (2, 0) and before is not None and before.count(b"\n") == 4


def test_no_round_is_aggregated_twice(tmp_path: Path) -> None:
    with _make_journal(tmp_path, rounds=2) as journal:
        journal.begin_round(3, 1)
        journal.begin_round(3, 2)
        for round, attempt, number in [(2, 1, 9), (2, 2, 2), (1, 1, 1), (3, 1, 3), (3, 3, 3), (4, 1, 4)]:
            with pytest.raises(JournalError, match=r"no|not going on"):
                journal.close_round(round, attempt, _state(number), BANKS, {})
        for round, attempt in [(2, 1), (2, 2), (3, 1), (3, 4), (4, 1)]:
            with pytest.raises(JournalError, match="attempt 3 of round 3 is next"):
                journal.begin_round(round, attempt)
        assert _same(journal.state(), _state(2))
    assert _where(tmp_path) == (3, 2)


def test_a_coordinator_killed_at_any_moment_comes_back_before_or_after(tmp_path: Path) -> None:
    _make_journal(tmp_path / "made", rounds=1).close()
    places = [(2, 0), (2, 1), (3, 0), (3, 1)]
    reached = []
    for folder, told in _kill_at_every_moment("round", tmp_path):
        reached.append(places.index(_where(folder)))
        assert told <= reached[-1] <= told + 1
        with Journal(folder) as journal:
            journal.begin_round(journal.round, journal.attempt + 1)
            journal.close_round(journal.round, journal.attempt, _state(journal.round), BANKS, {})
        assert _where(folder)[1] == 0
    assert reached == sorted(reached) and set(reached) == {0, 1, 2, 3} and len(reached) > 20


def test_a_run_killed_as_it_is_created_is_there_or_can_be_created_again(tmp_path: Path) -> None:
    there = []
    for folder, told in _kill_at_every_moment("create", tmp_path):
        try:
            there.append(_where(folder) == (1, 0))
        except JournalError:
            there.append(False)
            _make_journal(folder).close()
        assert _where(folder) == (1, 0) and told <= there[-1]
    assert there == sorted(there) and there[-1] and len(there) > 10


def test_a_journal_cut_anywhere_gives_the_state_before(tmp_path: Path) -> None:
    """As a machine leaves it that lost its power while a line was written."""
    _make_journal(tmp_path, rounds=1).close()
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(whole) if byte == ord("\n")]
    kept = dict(zip(ends, [(1, 0), (1, 1), (2, 0)], strict=True))
    for size in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(tmp_path) as journal:
            assert (journal.round, journal.attempt) == kept[max(end for end in ends if end <= size)]


def test_a_state_that_was_changed_is_not_used(tmp_path: Path) -> None:
    with _make_journal(tmp_path, rounds=1) as journal:
        for name in ("0001.safetensors", "0001.velocity.safetensors"):
            path = tmp_path / name
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            with pytest.raises(JournalError, match="not what the journal has"):
                journal.state()
            path.write_bytes(whole)


def test_a_changed_line_is_named(tmp_path: Path) -> None:
    _make_journal(tmp_path, rounds=1).close()
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text().replace("bank-b", "bank-c"))
    with pytest.raises(JournalError, match="line 3"):
        Journal(tmp_path)


def test_one_process_coordinates_a_run(tmp_path: Path) -> None:
    with _make_journal(tmp_path), pytest.raises(JournalError, match="another process"):
        Journal(tmp_path)
    Journal(tmp_path).close()


def test_a_folder_with_a_run_gets_no_second_and_one_without_is_no_journal(tmp_path: Path) -> None:
    _make_journal(tmp_path / "run").close()
    with pytest.raises(JournalError, match="holds a run already"):
        _make_journal(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(JournalError, match=r"holds no run|No such file"):
            Journal(folder)


def test_a_full_disk_is_a_named_error_and_loses_nothing(tmp_path: Path) -> None:
    with _make_journal(tmp_path, rounds=1) as journal:
        journal.begin_round(2, 1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal.jsonl").stat().st_size + 50, limits[1]))
        try:
            with pytest.raises(JournalError, match="File too large"):
                journal.close_round(2, 1, _state(2), BANKS, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert (journal.round, journal.attempt) == (2, 1) and _same(journal.state(), _state(1))
        journal.close_round(2, 1, _state(2), BANKS, {})
    assert _where(tmp_path) == (3, 0)
