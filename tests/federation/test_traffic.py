"""What a bank's person is told of the way to the coordinator."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from federation.flower.traffic import Traffic, trouble

BEFORE = datetime.now(UTC) - timedelta(days=1)


def _note(traffic: Traffic, status: int, why: str) -> None:
    traffic.note(bank="alder", method="POST", path="/v1/fleet/" + "a" * 5000, status=status, received=0, sent=0, why=why)


def test_trouble_is_that_of_the_last_request(tmp_path: Path) -> None:
    assert trouble(tmp_path, BEFORE) == ""
    traffic = Traffic(tmp_path)
    for _ in range(50):
        _note(traffic, 401, "its clock is ahead")
    assert trouble(tmp_path, BEFORE) == "its clock is ahead"
    assert trouble(tmp_path, datetime.now(UTC) + timedelta(seconds=1)) == ""
    _note(traffic, 200, "")
    assert trouble(tmp_path, BEFORE) == ""


def test_a_line_that_is_being_written_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "gateway.jsonl").write_text('{"why": "unrea')
    assert trouble(tmp_path, BEFORE) == ""
