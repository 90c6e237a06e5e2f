"""A bank's record of its decisions: readable, in order, and seen to be changed where it was."""

import subprocess
import sys
from pathlib import Path

import pytest

from federation.errors import JournalError
from federation.rounds.record import Decision, decisions, note
from privacy import chain
from tests.helpers import REPOSITORY


def _decision(round: int, rule: str = "") -> Decision:
    return Decision("bank-a", "intents", round, 1, {"clip": "1.0"}, rule, "" if rule else "masked 3f9a", 0.5 * round)


_WRITER = """
import sys
from pathlib import Path
from federation.rounds.record import Decision, note
path, rule = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for round in range(30):
    note(path, Decision("bank-a", "intents", round, 1, {}, rule, "", None))
"""


def test_decisions_are_read_as_they_were_noted(tmp_path: Path) -> None:
    path, made = tmp_path / "record.jsonl", [_decision(1), _decision(2, "most_clip"), _decision(3)]
    for decision in made:
        note(path, decision)
    assert decisions(path) == made
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_processes_of_a_bank_write_to_one_record(tmp_path: Path) -> None:
    path, rules = tmp_path / "record.jsonl", ("hours", "bundles")
    command, pipe = [sys.executable, "-c", _WRITER, str(path)], subprocess.PIPE
    writers = [subprocess.Popen([*command, rule], cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) for rule in rules]
    assert all(writer.stdout and writer.stdout.readline() for writer in writers)
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    noted = decisions(path)
    for rule in rules:
        assert [decision.round for decision in noted if decision.rule == rule] == list(range(30))


def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    made = [_decision(1), _decision(2)]
    for decision in made:
        note(path, decision)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert decisions(path) == made[:1]
    note(path, made[1])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"most_clip", b"most_cl1p"), lines[2]], 2),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
        (lambda lines: [*lines, b"{}\n"], 4),
        (lambda lines: [*lines[:2], b"garbage\n"], 3),
    ],
)
def test_the_first_line_that_was_changed_lost_added_or_swapped_is_named(tmp_path: Path, change: object, line: int) -> None:
    path = tmp_path / "record.jsonl"
    for decision in (_decision(1), _decision(2, "most_clip"), _decision(3)):
        note(path, decision)
    assert callable(change)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    for use in (lambda: decisions(path), lambda: note(path, _decision(4))):
        with pytest.raises(JournalError, match=f"line {line}: "):
            use()
    assert path.read_bytes() == before


def test_a_record_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        note(tmp_path / "nowhere" / "record.jsonl", _decision(1))


def test_another_kind_of_file_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    chain.add(path, chain.START, [{"bank": "bank-a"}])
    with pytest.raises(JournalError, match="not a bank's record"):
        decisions(path)
