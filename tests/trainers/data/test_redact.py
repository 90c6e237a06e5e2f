import csv
import io
import json
import re
import stat
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from privacy.pii_rules import Kind
from tests.helpers import write_jsonl
from trainers.data.audit import audit
from trainers.data.redact import load_key, redact
from trainers.errors import DataError

KEY = bytes(range(32))
IBAN = "DE89 3704 0044 0532 0130 00"
TAG = re.compile(r"\[IBAN:[0-9a-f]{6}\]")


def test_jsonl_keeps_all_that_is_not_replaced_as_it_was_written(tmp_path: Path) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    kept = '{"a" :1.10,  "big": 123456789012345678901234567890, "e": 1E5, "u": "\\u00fc \\"q\\"", "t": [true, null]}\r\n'
    source.write_text(kept + "\n" + '{"iban": "x ' + IBAN + '", "n": {"card": 4111111111111111}, "z": 0.50}\n', newline="")

    redact(source, output, KEY)

    first, blank, last = output.read_bytes().decode().splitlines(keepends=True)
    assert (first, blank) == (kept, "\n")
    assert re.fullmatch(r'\{"iban": "x \[IBAN:\w{6}\]", "n": \{"card": "\[CARD:\w{6}\]"\}, "z": 0.50\}\n', last)


def test_csv_keeps_mark_delimiter_order_and_fields(tmp_path: Path) -> None:
    source, output = tmp_path / "rows.csv", tmp_path / "out.csv"
    source.write_text(f'"id";text;phone\r\n1;"a; ""b""\nc";5551234\r\n2;{IBAN};\r\n', encoding="utf-8-sig", newline="")

    redact(source, output, KEY)

    assert output.read_bytes().startswith(b"\xef\xbb\xbfid;text;phone\r\n")
    rows = list(csv.reader(io.StringIO(output.read_bytes().decode("utf-8-sig"), newline=""), delimiter=";"))
    assert rows[1][:2] == ["1", 'a; "b"\nc'] and rows[1][2].startswith("[PHONE:") and TAG.fullmatch(rows[2][1])


def test_parquet_keeps_schema_row_groups_and_columns(tmp_path: Path) -> None:
    source, output = tmp_path / "rows.parquet", tmp_path / "out.parquet"
    table = pyarrow.table(
        {
            "n": pyarrow.array([1, None, 3], pyarrow.int16()),
            "text": pyarrow.array(["x", IBAN, None], pyarrow.large_string()),
            "messages": [[{"role": "user", "content": IBAN}], [], None],
            "kind": pyarrow.array(["a", "b", IBAN]).dictionary_encode(),
            "at": pyarrow.array([1, 2, 3], pyarrow.timestamp("us", "UTC")),
        }
    ).replace_schema_metadata({"origin": "core"})
    pyarrow.parquet.write_table(table, source, row_group_size=2)

    redact(source, output, KEY)

    new = pyarrow.parquet.ParquetFile(output)
    assert new.num_row_groups == 2 and new.schema_arrow.equals(pyarrow.parquet.ParquetFile(source).schema_arrow, check_metadata=True)
    rows = new.read().to_pylist()
    assert TAG.fullmatch(rows[1]["text"]) and rows[0]["messages"][0]["content"] == rows[1]["text"] == rows[2]["kind"]
    assert new.read().select(["n", "at"]).equals(table.select(["n", "at"]))


def test_one_value_has_one_pseudonym_and_the_audit_finds_nothing_more(tmp_path: Path) -> None:
    rows = [{"text": f"pay {IBAN}"}, {"text": f"pay {IBAN.replace(' ', '').lower()} and a@b.de"}]
    output = tmp_path / "out.jsonl"

    tallies = redact(write_jsonl(tmp_path / "rows.jsonl", rows), output, KEY)

    first, second = (json.loads(line)["text"] for line in output.read_text().splitlines())
    assert TAG.findall(first) == TAG.findall(second) and audit(output).places == []
    assert (tallies[Kind.IBAN].findings, len(tallies[Kind.IBAN].values), len(tallies[Kind.IBAN].pseudonyms)) == (2, 1, 1)


def test_kinds_limit_what_is_replaced(tmp_path: Path) -> None:
    redact(write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{IBAN} a@b.de"}]), tmp_path / "out.jsonl", KEY, kinds=[Kind.EMAIL])

    assert IBAN in (tmp_path / "out.jsonl").read_text() and "a@b.de" not in (tmp_path / "out.jsonl").read_text()


def test_the_copy_and_the_key_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    key, made = load_key(tmp_path / "key")
    redact(write_jsonl(tmp_path / "rows.jsonl", [{"text": IBAN}]), tmp_path / "out.jsonl", key)

    assert made and len(key) == 32 and load_key(tmp_path / "key") == (key, False)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("key", "out.jsonl")] == [0o600, 0o600]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"text": "a"}\n{"text": \n', ":2: broken JSON"),
        ('{"DE89370400440532013000": 1}\n', ":1: the name of a field holds IBAN DE\\*\\* \\*\\*\\*\\* 3000"),
    ],
)
def test_what_cannot_be_redacted_is_refused_and_nothing_is_written(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)

    with pytest.raises(DataError, match=problem):
        redact(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_card_numbers_in_a_column_of_numbers_of_a_parquet_file_are_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"card": [4111111111111111]}), tmp_path / "rows.parquet")

    with pytest.raises(DataError, match="column 'card' holds CARD"):
        redact(tmp_path / "rows.parquet", tmp_path / "out.parquet", KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_nothing_is_written_over_and_formats_are_not_mixed(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "x"}])

    with pytest.raises(DataError, match="is there already"):
        redact(rows, rows, KEY)
    with pytest.raises(DataError, match="expected the format of"):
        redact(rows, tmp_path / "out.csv", KEY)


def test_a_key_that_others_can_read_or_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").write_bytes(KEY)
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "short").chmod(0o600)

    with pytest.raises(DataError, match="others than its owner"):
        load_key(tmp_path / "open")
    with pytest.raises(DataError, match="1 bytes, expected"):
        load_key(tmp_path / "short")
