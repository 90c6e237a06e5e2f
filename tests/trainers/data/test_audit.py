import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers import write_jsonl
from trainers.config import DataConfig
from trainers.data.audit import Audit, audit
from trainers.errors import DataError

IBAN = "DE89 3704 0044 0532 0130 00"
TEXT = "I have lost my card on the way to the airport this morning and nobody has found it"


def _chat(*turns: str) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in zip(("user", "assistant") * 9, turns, strict=False)]}


def _places(found: Audit) -> list[tuple[str, str, str]]:
    return [(str(place.kind), place.row.rpartition(":")[2], place.column) for place in found.places]


def test_findings_have_line_and_column_and_never_the_value(tmp_path: Path) -> None:
    rows = [
        _chat("Hello there", "Hello"),
        _chat("Hi", f"It is {IBAN}"),
        {"text": "none", "card": 4111111111111111, "who": {"mail": "a@b.de"}},
    ]

    found = audit(write_jsonl(tmp_path / "rows.jsonl", rows))

    assert _places(found) == [("IBAN", "2", "messages[1].content"), ("CARD", "3", "card"), ("EMAIL", "3", "who.mail")]
    assert [place.masked for place in found.places] == ["DE** **** 3000", "** **** 1111", "a** ****"]
    assert found.counts["IBAN"] == 1 and not found.names_looked_for


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        file.write_text(f"id;text\n1;nothing here\n2;{IBAN}\n")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["nothing here", IBAN]}), file)

    assert [(kind, column) for kind, _, column in _places(audit(file))] == [("IBAN", "text")]


def test_a_value_in_the_name_of_a_field_is_found_once(tmp_path: Path) -> None:
    found = audit(write_jsonl(tmp_path / "rows.jsonl", [{"balances": {IBAN: 5}}] * 2))

    assert _places(found) == [("IBAN", "1", "(name of a field)")]


def test_broken_rows_are_counted_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": \n{"text": "two"}\n')

    found = audit(tmp_path / "rows.jsonl")

    assert (found.rows, found.broken) == (2, 1)


def test_the_same_words_are_an_exact_duplicate_and_a_changed_word_a_near_one(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": TEXT}, {"id": "b", "text": TEXT.upper() + "!"}, {"id": "c", "text": TEXT.replace("airport", "station")},
            {"id": "d", "text": "How do I order a new card for my daughter who studies abroad"}]  # fmt: skip

    found = audit(write_jsonl(tmp_path / "rows.jsonl", rows))

    assert [(repeat.row[-1], repeat.of[-1], repeat.exact) for repeat in found.repeats] == [("2", "1", True), ("3", "1", False)]
    assert 0.6 <= found.repeats[1].similarity < 1 and found.counts["DUPLICATES"] == 2


def test_test_rows_in_the_training_rows_are_leakage(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": TEXT}, {"text": "How high is the fee for a transfer to Norway"}])
    tests = write_jsonl(
        tmp_path / "test.jsonl", [_chat(TEXT), {"text": TEXT.replace("airport", "bus")}, {"text": "something else entirely"}]
    )

    found = audit(train, against=[tests])

    assert found.leakage is not None and found.leakage.test_rows == 3 and found.counts["LEAKAGE"] == 2
    assert [(repeat.row, repeat.exact) for repeat in found.leakage.repeats] == [(f"{tests}:1", True), (f"{tests}:2", False)]


def test_a_job_says_what_is_held_out_of_the_file_itself(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": TEXT, "label": "lost", "customer": f"C{number}"} for number in range(40)])
    data = DataConfig(train=[file], group_by="customer", validation_fraction=0.5)

    found = audit(file, job=(data, "classify"))

    assert found.leakage is not None and 5 < found.leakage.test_rows < 35 and found.counts["LEAKAGE"] == found.leakage.test_rows
    assert found.balance is not None and found.balance.counts == {"lost": 40}


def test_classes_are_counted_with_their_entropy(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "x", "label": label} for label in "aaab"])

    balance = audit(file, label="label").balance

    assert balance is not None and balance.counts == {"a": 3, "b": 1} and balance.entropy == pytest.approx(0.8113, abs=1e-4)


def test_a_label_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has a column 'labl'") as error:
        audit(write_jsonl(tmp_path / "rows.jsonl", [{"text": "x", "label": "a"}]), label="labl")
    assert error.value.hint == "did you mean 'label'?"


def test_an_audit_can_be_written_as_json(tmp_path: Path) -> None:
    found = audit(write_jsonl(tmp_path / "rows.jsonl", [{"text": IBAN}]), label="text")

    assert IBAN not in json.dumps({**asdict(found), "balance": None})
