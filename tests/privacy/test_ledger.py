"""The budget ledger: real files, real processes, real signals."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.errors import BudgetRefused, LedgerCorrupt, LedgerError
from privacy.filter import calibrate
from privacy.ledger import Ledger, verify
from privacy.plan import Event, PrivacyPlan
from tests import helpers

DELTA = 1e-6


def _make_event(noise: float = 0.8, steps: int = 585) -> Event:
    return PrivacyPlan(100_000, 512, steps, 0, clip_norm=1.0, noise_multiplier=noise, delta=1e-7).event


def _make_ledger(folder: Path, epsilon: float = 8.0) -> Ledger:
    ledger = Ledger.create(folder / "bank.ledger")
    ledger.grant("retail", epsilon, DELTA, by="officer")
    return ledger


def _make_used(folder: Path) -> Path:
    """A ledger of nine rows."""
    with _make_ledger(folder) as ledger:
        ledger.attach("retail", "ab" * 32, "rows.jsonl", 100_000)
        reservation = ledger.reserve("retail", _make_event(), "run")
        for _ in range(5):
            reservation.charge()
    return folder / "bank.ledger"


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that has this code, and `ledger` open on its first argument."""
    head = "import sys, time, pathlib\nfrom privacy.ledger import Ledger\nfrom privacy.errors import BudgetRefused\n"
    head += "from privacy.plan import Event\nledger = Ledger.open(pathlib.Path(sys.argv[1]))\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=helpers.REPOSITORY
    )


def _tamper(path: Path, *statements: str) -> None:
    """As someone would who may write to the file and knows of the triggers."""
    connection = sqlite3.connect(path)
    for trigger in ("rows_stay", "rows_remain", "rows_follow"):
        connection.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_two_processes_cannot_both_spend_the_last_of_a_budget(tmp_path: Path) -> None:
    with _make_ledger(tmp_path, epsilon=4.0) as ledger:
        event = _make_event(0.8, steps=400)
        room = ledger.filter("retail").steps_admitted(event.times(100_000)) // event.steps
        go, fields = tmp_path / "go", (event.noise_multiplier, event.sampling_rate, event.units, event.cap, event.steps)
        code = f"""
event = Event{fields}
print("ready", flush=True)
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.001)
try:
    while True:
        print(ledger.reserve("retail", event, sys.argv[3]).id, flush=True)
except BudgetRefused as refused:
    sys.exit(refused.exit_code)
"""
        racers = [_start(code, ledger.path, go, name) for name in ("one", "two")]
        assert all(racer.stdout is not None and racer.stdout.readline() == "ready\n" for racer in racers)
        go.touch()
        won = [racer.communicate(timeout=120)[0].split() for racer in racers]
        assert [racer.returncode for racer in racers] == [3, 3]
        assert room > 1 and len(won[0]) + len(won[1]) == room == len(ledger.book().held)
        assert ledger.filter("retail").proven <= 4


def test_a_run_killed_three_times_has_every_step_it_reported_in_the_ledger(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        reservation = ledger.reserve("retail", _make_event(5.0, steps=100_000), "run")
        reported = 0
        for attempt in range(1, 4):
            code = "mine = ledger.reservation(sys.argv[2])\nwhile True:\n    mine.charge()\n    print('applied', flush=True)\n"
            process = _start(code, ledger.path, reservation.id)
            assert process.stdout is not None and process.stdout.readline() == "applied\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            reported += 1 + process.communicate(timeout=60)[0].count("applied\n")
            charged = reservation.held.charged
            assert reported <= charged <= reported + attempt  # one may have been charged and not yet reported
            reported = charged
    assert verify(ledger.path).number == 3 + charged


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["UPDATE rows SET body = replace(body, '8.0', '9.0') WHERE number = 2"], "row 2 "),
        (["UPDATE rows SET time = '2020' WHERE number = 6"], "row 6 "),
        (["DELETE FROM rows WHERE number = 5"], "row 6 "),
        (["DELETE FROM rows WHERE number = 1"], "row 2 "),
        (["UPDATE rows SET number = 99 WHERE number = 5", "UPDATE rows SET number = 5 WHERE number = 6",
          "UPDATE rows SET number = 6 WHERE number = 99"], "row 5 "),
        (["INSERT INTO rows SELECT number + 1, time, kind, population, body, hash FROM rows WHERE number = 9"], "row 10 "),
        (["DELETE FROM rows"], "no rows"),
    ],
    ids=["changed budget", "changed time", "deleted row", "deleted start", "swapped rows", "forged row", "emptied"],
)  # fmt: skip
def test_tampering_is_found_at_the_first_row_that_does_not_fit(tmp_path: Path, statements: list[str], found: str) -> None:
    path = _make_used(tmp_path)
    assert verify(path).number == 9
    _tamper(path, *statements)
    for look in (verify, Ledger.open):
        with pytest.raises(LedgerCorrupt, match=found):
            look(path)


def test_a_cut_tail_shows_by_the_noted_head_only(tmp_path: Path) -> None:
    path = _make_used(tmp_path)
    noted = verify(path)
    with Ledger.open(path) as ledger:
        ledger.grant("corporate", 1.0, 1e-7)
    assert verify(path, noted.hash).number == 10  # the note is not the newest head and is found all the same
    _tamper(path, "DELETE FROM rows WHERE number > 7")
    assert verify(path).number == 7
    with pytest.raises(LedgerCorrupt, match=f"no row has the noted hash {noted.hash}; the head is row 7"):
        verify(path, noted.hash)


def test_a_process_that_has_the_ledger_open_notices_what_is_done_to_it(tmp_path: Path) -> None:
    path = _make_used(tmp_path)
    with Ledger.open(path) as ledger:
        reservation = ledger.reservation(next(iter(ledger.book().held)))
        _tamper(path, "DELETE FROM rows WHERE number > 7")
        with pytest.raises(LedgerCorrupt, match="row 9 is gone"):
            reservation.charge()


@pytest.mark.parametrize(
    "statement",
    ["UPDATE rows SET body = '{}'", "DELETE FROM rows WHERE number = 9", "INSERT OR REPLACE INTO rows SELECT * FROM rows WHERE number = 2"],
)
def test_rows_resist_accidents(tmp_path: Path, statement: str) -> None:
    connection = sqlite3.connect(_make_used(tmp_path))
    with pytest.raises(sqlite3.IntegrityError, match="rows of a ledger are"):
        connection.execute(statement)
    connection.close()


def test_a_row_in_its_chain_that_makes_no_sense_is_found(tmp_path: Path) -> None:
    with Ledger.open(_make_used(tmp_path)) as ledger, ledger._writing() as book:
        ledger._append("charge", "retail", {"id": next(iter(book.held)), "from": 0, "steps": 1})
    with pytest.raises(LedgerCorrupt, match="row 10 does not fit: steps out of order"):
        verify(ledger.path)


def test_a_file_with_a_row_more_is_another_file(tmp_path: Path) -> None:
    rows = helpers.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    before = hashlib.sha256(rows.read_bytes()).hexdigest()
    with _make_ledger(tmp_path) as ledger:
        ledger.attach("retail", before, str(rows), 1000)
        assert ledger.population_of([before]) == "retail"
        helpers.write_jsonl(rows, [{"text": "a"}, {"text": "b"}])
        with pytest.raises(LedgerError, match="1 of 2 training files are attached to no population") as refused:
            ledger.population_of([before, hashlib.sha256(rows.read_bytes()).hexdigest()])
    assert "ledger attach" in refused.value.hint and refused.value.exit_code == 2


def test_a_file_has_one_population_and_a_job_the_files_of_one(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        ledger.grant("corporate", 1.0, 1e-7)
        ledger.attach("retail", "aa", "a.jsonl", 1000)
        ledger.attach("corporate", "bb", "b.jsonl", 1000)
        with pytest.raises(LedgerError, match="attached to retail already, as a"):
            ledger.attach("corporate", "aa", "copy.jsonl", 1000)
        with pytest.raises(LedgerError, match="2 populations: corporate, retail"):
            ledger.population_of(["aa", "bb"])
        with pytest.raises(LedgerError, match="0 populations"):
            ledger.population_of([])


def test_the_whole_of_a_fresh_budget_can_be_planned_for_once(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        noise, _ = calibrate(8.0, _make_event, DELTA, ledger.filter("retail"))
        ledger.reserve("retail", _make_event(noise), "first")
        with pytest.raises(BudgetRefused, match="budget of retail") as refused:
            ledger.reserve("retail", _make_event(noise), "second")
        assert refused.value.exit_code == 3 and [held.run for held in ledger.book().held.values()] == ["first"]
        status = ledger.status("retail")
        assert status.epsilon_charged == 0 < status.epsilon_reserved <= status.filter.proven <= 8


def test_closing_gives_back_only_steps_never_taken(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        reservation = ledger.reserve("retail", _make_event(steps=585), "run")
        reservation.charge(200)
        reservation.charge()
        full = ledger.filter("retail").remaining
        reservation.close()
        reservation.close()
        after = ledger.filter("retail")
        assert after.events == (_make_event(steps=201),) and after.remaining > full
        with pytest.raises(BudgetRefused, match="its reservation is closed"):
            reservation.charge()
        status = ledger.status("retail")
        assert status.epsilon_charged == status.epsilon_reserved <= after.proven


def test_no_more_steps_are_charged_than_were_reserved(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        reservation = ledger.reserve("retail", _make_event(steps=3), "run")
        reservation.charge(2)
        with pytest.raises(BudgetRefused, match="run run has 1 of its 3 reserved steps left, 2 more are needed"):
            reservation.charge(2)
        reservation.charge()
        assert reservation.held.charged == 3


def test_the_order_is_fixed_by_the_first_reservation_that_counts(tmp_path: Path) -> None:
    little, much = _make_event(3.0, steps=10), _make_event(0.7, steps=100)
    with _make_ledger(tmp_path) as ledger:
        fresh = ledger.filter("retail")
        assert fresh.order_for(little) != fresh.order_for(much)
        never_run = ledger.reserve("retail", much, "never run")
        never_run.close()
        assert ledger.filter("retail").order is None
        first = ledger.reserve("retail", little, "first")
        assert ledger.reserve("retail", much, "second").held.order == first.held.order == fresh.order_for(little)


def test_a_budget_is_not_renewed_by_granting_it_again(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        ledger.reserve("retail", _make_event(), "run")
        spent = ledger.filter("retail").proven
        with pytest.raises(LedgerError, match="retail has a budget: epsilon 8"):
            ledger.grant("retail", 8.0, DELTA)
        ledger.grant("retail", 9.0, DELTA, replace=True)
        raised = ledger.filter("retail")
        assert raised.proven == spent and raised.remaining == pytest.approx(9 - spent)
        ledger.grant("retail", 0.1, DELTA, replace=True)
        with pytest.raises(BudgetRefused, match="0 remains"):
            ledger.reserve("retail", _make_event(steps=1), "late")


def test_a_delta_that_promises_nothing_is_refused(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        with pytest.raises(LedgerError, match="delta 1e-06 for 1000000 units"):
            ledger.attach("retail", "aa", "a.jsonl", 1_000_000)
        ledger.attach("retail", "aa", "a.jsonl", 100_000)
        with pytest.raises(LedgerError, match="delta 1e-05 for 100000 units"):
            ledger.grant("retail", 8.0, 1e-5, replace=True)
        with pytest.raises(LedgerError, match=r"for 2000000 units \(the job\)"):
            ledger.reserve("retail", Event(1.0, 1e-4, 2_000_000, 400, 1), "run")


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-6), (-1, 1e-6), (float("inf"), 1e-6), (float("nan"), 1e-6), (1, 0), (1, 1)])
def test_a_budget_that_makes_no_sense_is_refused(tmp_path: Path, epsilon: float, delta: float) -> None:
    with _make_ledger(tmp_path) as ledger, pytest.raises(LedgerError, match="expected epsilon above 0 and delta between 0 and 1"):
        ledger.grant("corporate", epsilon, delta)


def test_an_unknown_population_is_told_with_the_nearest(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger, pytest.raises(LedgerError, match="'retial'; did you mean 'retail'") as refused:
        ledger.reserve("retial", _make_event(), "run")
    assert "compliance officer" in refused.value.hint


def test_its_files_are_their_owners_only(tmp_path: Path) -> None:
    with _make_ledger(tmp_path):
        files = list(tmp_path.iterdir())
        assert len(files) == 3 and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)  # with SQLite's -wal and -shm


def test_a_file_that_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, " * 100)
    (tmp_path / "empty").touch()
    with pytest.raises(LedgerError, match="no such ledger"):
        Ledger.open(tmp_path / "missing")
    for name in ("text", "empty"):
        with pytest.raises(LedgerError) as refused:
            Ledger.open(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value) and "ledger create" in refused.value.hint
    with pytest.raises(LedgerError, match="File exists"):
        Ledger.create(tmp_path / "text")


def test_an_act_that_fails_leaves_no_row(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        before = ledger.head()
        with pytest.raises(LedgerError), ledger._writing() as book:  # noqa: PT012
            ledger._append("grant", "corporate", {"epsilon": 1.0, "delta": 1e-7, "by": ""})
            book.grant("private")
        assert ledger.head() == before
        ledger.grant("corporate", 1.0, 1e-7)


def test_a_file_name_that_is_no_text_can_be_attached(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        ledger.attach("retail", "aa", os.fsdecode(b"caf\xe9.jsonl"), 1000)
        assert verify(ledger.path).number == 3 and ledger.book().files["aa"].path == "caf\\udce9.jsonl"


def test_a_reservation_cannot_give_budget_back(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as ledger:
        ledger.reserve("retail", _make_event(), "run")
        for event in (_make_event().times(-500), _make_event().times(0), Event(float("inf"), 0.005, 100_000, 735, 1)):
            with pytest.raises(LedgerError, match="expected steps from 1"):
                ledger.reserve("retail", event, "run")


def test_every_commit_is_synced(tmp_path: Path) -> None:
    with _make_ledger(tmp_path) as created, Ledger.open(created.path) as opened:
        for ledger in (created, opened):
            settings = [ledger._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
            assert settings == ["wal", 2]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["reserve", "charge", "close"]), st.integers(0, 3), st.integers(1, 300)), max_size=12))
def test_whatever_is_asked_of_it_the_budget_is_kept_and_the_file_says_so(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    taken: dict[str, int] = {}
    with _make_ledger(folder, epsilon=3.0) as ledger:
        for act, which, steps in asked:
            ids = list(taken)
            try:
                if act == "reserve":
                    taken[ledger.reserve("retail", _make_event(0.7 + 0.1 * which, steps=2 * steps), "run").id] = 0
                elif act == "charge" and which < len(ids):
                    ledger.reservation(ids[which]).charge(steps)
                    taken[ids[which]] += steps
                elif which < len(ids):
                    ledger.reservation(ids[which]).close()
            except BudgetRefused:
                pass
        with Ledger.open(ledger.path) as other:
            read, proven = other.book(), other.filter("retail").proven
        assert (read.held, read.grants, read.id) == (ledger.book().held, ledger.book().grants, ledger.id)
        assert {id: held.charged for id, held in read.held.items()} == taken and proven <= 3
    shutil.rmtree(folder)


def test_bodies_are_canonical_json_for_other_readers(tmp_path: Path) -> None:
    """Anyone can calculate the chain with what SQLite, JSON and SHA-256 are."""
    connection, before = sqlite3.connect(_make_used(tmp_path)), "0" * 64
    for *row, found in connection.execute("SELECT number, time, kind, population, body, hash FROM rows ORDER BY number"):
        before = hashlib.sha256(json.dumps([before, *row], separators=(",", ":")).encode()).hexdigest()
        assert before == found and json.dumps(json.loads(row[-1]), sort_keys=True, separators=(",", ":")) == row[-1]
    connection.close()
