"""Lines that are only ever added: what a full disk left of some is gone before others follow."""

import resource
import signal
from pathlib import Path

import pytest

from privacy import chain
from privacy.errors import LedgerCorrupt


def test_rows_come_back_in_order_with_their_end(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert chain.follow(path, LedgerCorrupt) == ([], chain.START)
    end = chain.add(path, chain.START, [{"n": 1}, {"n": 2, "of": ["a"]}])
    end = chain.add(path, end, [{"n": 3}])
    assert chain.follow(path, LedgerCorrupt) == ([{"n": 1}, {"n": 2, "of": ["a"]}, {"n": 3}], end)
    assert end.size == path.stat().st_size and path.stat().st_mode & 0o777 == 0o600


def test_half_of_several_lines_is_cut_off_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    end = chain.add(path, chain.START, [{"n": 1}])
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (end.size + 250, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            chain.add(path, end, [{"n": n} for n in range(2, 9)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(path.read_bytes().splitlines()) > 2
    end = chain.add(path, end, [{"n": 9}])
    assert chain.follow(path, LedgerCorrupt) == ([{"n": 1}, {"n": 9}], end)


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        chain.add(path, chain.START, [{"n": float("nan")}])
    assert not path.exists()


def test_a_line_that_does_not_follow_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    chain.add(path, chain.START, [{"n": 1}, {"n": 2}])
    path.write_text(path.read_text().replace('"n": 2', '"n": 3'))
    with pytest.raises(LedgerCorrupt, match=r"line 2: its hash"):
        chain.follow(path, LedgerCorrupt)


def test_lines_can_be_looked_at_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(chain.backwards(chain.mapped(path))) == []
    chain.add(path, chain.START, [{"n": n} for n in range(5)])
    with path.open("a") as file:
        file.write("torn")
    assert [chain.parse(line)[0]["n"] for line in chain.backwards(chain.mapped(path))] == [4, 3, 2, 1, 0]
