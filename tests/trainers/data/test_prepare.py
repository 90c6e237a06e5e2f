import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from tests.helpers import write_jsonl
from trainers.config import DataConfig, Task
from trainers.data.formats import Labelled, Text
from trainers.data.masking import encode
from trainers.data.prepare import Prepared, describe_file, load, prepare
from trainers.errors import DataError


def _make_config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(train=[path], **{"validation_fraction": 0.0} | changes)


def _make_documents(folder: Path, count: int = 20, name: str = "documents.jsonl") -> Path:
    return write_jsonl(folder / name, [{"text": f"Document {number}: fees. " * (1 + number % 3)} for number in range(count)])


def _make_messages(folder: Path, labels: list[Any], name: str = "messages.jsonl") -> Path:
    return write_jsonl(folder / name, [{"text": f"Message {number}", "label": label} for number, label in enumerate(labels)])


def _prepare(data: DataConfig, tokenizer: Any, folder: Path, task: Task = "pretrain", *, max_length: int = 64) -> tuple[Prepared, Prepared]:
    prepare(data, task, tokenizer, folder, max_length=max_length)
    return load(folder)


def test_what_was_prepared_is_what_encoding_gives(tokenizer: Any, tmp_path: Path) -> None:
    path = _make_documents(tmp_path)
    texts = [Text(json.loads(line)["text"]) for line in path.read_text().splitlines()]
    expected = [e for examples in encode(texts, tokenizer, max_length=16, truncate=False) for e in examples]  # type: ignore[union-attr]

    train, validation = _prepare(_make_config(path), tokenizer, tmp_path / "data", max_length=16)

    samples = train.samples(range(len(train)))
    assert [(list(s.ids), list(s.learnt)) for s in samples] == [(e.ids, e.learnt) for e in expected]
    assert list(train.lengths) == [len(e.ids) for e in expected]
    assert list(train.targets) == [sum(e.learnt[1:]) for e in expected]
    assert len(validation) == 0


def test_samples_come_in_the_order_asked_for_and_know_their_file_and_line(tokenizer: Any, tmp_path: Path) -> None:
    files = [_make_documents(tmp_path, 3, "first.jsonl"), _make_documents(tmp_path, 3, "second.jsonl")]

    train, _ = _prepare(DataConfig(train=files, validation_fraction=0.0), tokenizer, tmp_path / "data")

    assert [s.origin for s in train.samples([5, 0, 3, 5])] == [f"{files[1]}:3", f"{files[0]}:1", f"{files[1]}:1", f"{files[1]}:3"]


def test_a_second_call_takes_what_is_there(tokenizer: Any, tmp_path: Path) -> None:
    data = _make_config(_make_documents(tmp_path))
    first = prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}

    second = prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)

    assert second == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


def _change_data(data: DataConfig, tokenizer: Any) -> None:
    _make_documents(data.train[0].parent, 21)


def _change_template(data: DataConfig, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages }}"


def _change_stop_token(data: DataConfig, tokenizer: Any) -> None:
    tokenizer.eos_token = "<unk>"


def _change_vocabulary(data: DataConfig, tokenizer: Any) -> None:
    tokenizer.add_tokens(["annuity"])


@pytest.mark.parametrize("change", [_change_data, _change_template, _change_stop_token, _change_vocabulary])
def test_a_change_of_data_or_tokenizer_prepares_again(tokenizer: Any, tmp_path: Path, change: Any) -> None:
    data = _make_config(_make_documents(tmp_path))
    prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)
    before = (tmp_path / "data" / "prepared.json").read_text()

    change(data, tokenizer)
    prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)

    assert (tmp_path / "data" / "prepared.json").read_text() != before


@pytest.mark.parametrize("changes", [{"validation_fraction": 0.5}, {"over_length": "truncate"}, {"on_bad_row": "skip"}])
def test_a_change_of_the_data_block_or_the_length_prepares_again(tokenizer: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = _make_documents(tmp_path)
    keys = []
    for data, length in ((_make_config(path), 64), (_make_config(path, **changes), 64), (_make_config(path, **changes), 32)):
        prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=length)
        keys.append(json.loads((tmp_path / "data" / "prepared.json").read_text())["key"])

    assert len(set(keys)) == 3


def test_after_a_failed_preparation_the_earlier_one_is_not_taken_for_whole(tokenizer: Any, tmp_path: Path) -> None:
    """Data edited, refused for a bad row, edited back: the examples on disk are those of the refused file."""
    path = _make_documents(tmp_path)
    good, expected = path.read_text(), len(_prepare(_make_config(path), tokenizer, tmp_path / "data")[0])
    path.write_text(good[: len(good) // 2])
    with pytest.raises(DataError):
        prepare(_make_config(path), "pretrain", tokenizer, tmp_path / "data", max_length=64)

    path.write_text(good)

    assert len(_prepare(_make_config(path), tokenizer, tmp_path / "data")[0]) == expected


def _make_file_with_bad_rows(folder: Path) -> Path:
    """Bad on lines 2 (format) and 4 (length), good on 1, 3 and 5."""
    rows = [{"text": "Card?", "label": "card"}] * 5
    rows[1] = {"text": "", "label": "card"}
    rows[3] = {"text": "Where is it? " * 50, "label": "card"}
    return write_jsonl(folder / "messages.jsonl", rows)


def test_bad_rows_are_listed_by_file_and_line_in_their_order(tokenizer: Any, tmp_path: Path) -> None:
    path = _make_file_with_bad_rows(tmp_path)

    with pytest.raises(DataError, match="2 bad rows:") as caught:
        prepare(_make_config(path), "classify", tokenizer, tmp_path / "data", max_length=64)

    lines = caught.value.message.splitlines()
    assert lines[1] == f"  {path}:2: empty field: 'text'"
    assert lines[2].startswith(f"  {path}:4: over length: ") and lines[2].endswith("tokens, data.max_length is 64")
    assert "data.on_bad_row: skip" in caught.value.hint


def test_bad_rows_are_left_out_and_counted_when_the_job_says_so(tokenizer: Any, tmp_path: Path) -> None:
    path = _make_file_with_bad_rows(tmp_path)

    summary = prepare(_make_config(path, on_bad_row="skip"), "classify", tokenizer, tmp_path / "data", max_length=64)

    assert (summary.bad, summary.train_rows, summary.files[0]["rows"]) == (2, 3, 5)
    assert summary.bad_rows[0] == f"{path}:2: empty field: 'text'"
    assert [s.origin for s in load(tmp_path / "data")[0].samples(range(3))] == [f"{path}:1", f"{path}:3", f"{path}:5"]


def test_reading_stops_at_twenty_bad_rows(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "messages.jsonl", [{"text": "", "label": "card"}] * 3000)

    with pytest.raises(DataError, match="20 or more bad rows") as caught:
        prepare(_make_config(path), "classify", tokenizer, tmp_path / "data", max_length=64)

    assert len(caught.value.message.splitlines()) == 21


def test_when_only_lengths_are_at_fault_the_hint_is_about_lengths(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "messages.jsonl", [{"text": "Where is it? " * 50, "label": "card"}])

    with pytest.raises(DataError) as caught:
        prepare(_make_config(path), "classify", tokenizer, tmp_path / "data", max_length=64)

    assert caught.value.hint.startswith("raise data.max_length, or set data.over_length: truncate")


def test_truncated_rows_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    data = _make_config(_make_file_with_bad_rows(tmp_path), on_bad_row="skip", over_length="truncate")

    summary = prepare(data, "classify", tokenizer, tmp_path / "data", max_length=64)

    assert (summary.truncated, summary.bad, summary.train_rows) == (1, 1, 4)
    assert list(load(tmp_path / "data")[0].lengths).count(64) == 1


@pytest.mark.parametrize("text", ["", "{}\n"])
def test_files_without_a_good_row_are_refused(tokenizer: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.jsonl").write_text(text)

    with pytest.raises(DataError):
        prepare(_make_config(tmp_path / "empty.jsonl", on_bad_row="skip"), "pretrain", tokenizer, tmp_path / "data", max_length=64)


def test_a_missing_file_is_refused_before_anything_is_written(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: No such file"):
        prepare(_make_config(tmp_path / "absent.jsonl"), "pretrain", tokenizer, tmp_path / "data", max_length=64)

    assert not (tmp_path / "data").exists()


def test_prepared_data_is_readable_by_its_owner_only(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)

    _prepare(_make_config(_make_documents(tmp_path)), tokenizer, tmp_path / "data")

    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()} == {
        "examples.arrow": 0o600,
        "prepared.json": 0o600,
    }


def test_a_customer_is_on_one_side_of_the_split(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": f"Message {number}", "customer_id": number % 40} for number in range(400)]
    path = write_jsonl(tmp_path / "documents.jsonl", rows)

    sides = _prepare(_make_config(path, group_by="customer_id", validation_fraction=0.3), tokenizer, tmp_path / "data")

    train, validation = ({rows[int(s.origin.split(":")[-1]) - 1]["customer_id"] for s in p.samples(range(len(p)))} for p in sides)
    assert train | validation == set(range(40))
    assert not train & validation
    assert 4 <= len(validation) <= 20


def test_a_customer_is_one_unit_however_a_file_types_the_name(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": f"card {customer!r}", "customer": customer} for customer in (7, "7", "7 ", "8")]
    first = write_jsonl(tmp_path / "rows.jsonl", rows)
    table = pyarrow.Table.from_pylist([{"text": "loan", "customer": value} for value in (7.0, float("nan"))])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    files = [first, tmp_path / "rows.parquet"]
    data = DataConfig(train=files, validation_fraction=0, group_by="customer", on_bad_row="skip")

    summary = prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)

    assert load(tmp_path / "data")[0].units.tolist() == [0, 0, 0, 1, 0]
    assert summary.bad == 1  # one whose customer is not a number is nobody's


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = _make_documents(tmp_path, count=300)

    def append(rows: int) -> None:
        with path.open("a") as file:
            file.write('{"text": "a customer nobody declared"}\n')

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(_make_config(path), "pretrain", tokenizer, tmp_path / "data", max_length=64, progress=append)


def test_the_hash_of_a_directory_covers_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    before = describe_file(tmp_path)

    (tmp_path / "second").rename(tmp_path / "third")

    assert describe_file(tmp_path)["bytes"] == before["bytes"] and describe_file(tmp_path)["sha256"] != before["sha256"]


def test_a_row_without_a_customer_is_a_bad_row_and_a_mistyped_column_comes_with_the_nearest(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "documents.jsonl", [{"text": "a", "customer_id": "c1"}, {"text": "b", "customer_id": None}])

    with pytest.raises(DataError, match=":2: missing field: 'customer_id'"):
        prepare(_make_config(path, group_by="customer_id"), "pretrain", tokenizer, tmp_path / "data", max_length=64)
    with pytest.raises(DataError, match="did you mean 'customer_id'"):
        prepare(_make_config(path, group_by="custmer_id"), "pretrain", tokenizer, tmp_path / "data", max_length=64)


def test_examples_of_one_document_stay_on_one_side(tokenizer: Any, tmp_path: Path) -> None:
    sides = _prepare(_make_config(_make_documents(tmp_path, 60), validation_fraction=0.4), tokenizer, tmp_path / "data", max_length=8)

    train, validation = ({s.origin for s in side.samples(range(len(side)))} for side in sides)

    assert train and validation and not train & validation
    assert len(train | validation) == 60


def test_validation_files_are_held_out_whole_and_the_fraction_is_not_used(tokenizer: Any, tmp_path: Path) -> None:
    data = DataConfig(
        train=[_make_documents(tmp_path, 12)], validation=[_make_documents(tmp_path, 5, "held_out.jsonl")], validation_fraction=0.5
    )

    summary = prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)

    assert (summary.train_rows, summary.validation_rows) == (12, 5)
    assert all("held_out" in s.origin for s in load(tmp_path / "data")[1].samples(range(5)))


def test_a_customer_on_both_sides_of_given_files_is_a_bad_row(tokenizer: Any, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": "Message one", "customer_id": "c1"}])
    held_out = [{"text": "Message two", "customer_id": "c2"}, {"text": "Message three", "customer_id": "c1"}]
    validation = write_jsonl(tmp_path / "held_out.jsonl", held_out)
    data = DataConfig(train=[train], validation=[validation], group_by="customer_id")

    with pytest.raises(DataError, match=r"held_out.jsonl:2: on both sides: 'customer_id'") as caught:
        prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64)
    assert "c1" not in str(caught.value)  # who it is stays in the file

    summary = prepare(data.model_copy(update={"on_bad_row": "skip"}), "pretrain", tokenizer, tmp_path / "data", max_length=64)
    assert (summary.train_rows, summary.validation_rows, summary.bad) == (1, 1, 1)


def test_classes_are_sorted_by_name_in_whatever_order_they_are_met(tokenizer: Any, tmp_path: Path) -> None:
    labels = ["loan", "card", "transfer", "card", "app"]

    train, _ = _prepare(_make_config(_make_messages(tmp_path, labels)), tokenizer, tmp_path / "data", "classify")

    assert train.labels == ["app", "card", "loan", "transfer"]
    assert [train.labels[s.label] for s in train.samples(range(5))] == labels
    assert list(train.targets) == [1] * 5


def test_both_sides_and_both_files_share_the_classes(tokenizer: Any, tmp_path: Path) -> None:
    data = DataConfig(train=[_make_messages(tmp_path, ["b", "c"])], validation=[_make_messages(tmp_path, ["c", "a"], "held_out.jsonl")])

    train, validation = _prepare(data, tokenizer, tmp_path / "data", "classify")

    assert train.labels == validation.labels == ["a", "b", "c"]
    assert [s.label for s in train.samples([0, 1])] == [1, 2]
    assert [s.label for s in validation.samples([0, 1])] == [2, 0]


def test_numbered_classes_keep_the_order_of_their_numbers(tokenizer: Any, tmp_path: Path) -> None:
    labels = [10, 2, 0, 1, 11]

    train, _ = _prepare(_make_config(_make_messages(tmp_path, labels)), tokenizer, tmp_path / "data", "classify")

    assert train.labels == ["0", "1", "2", "10", "11"]
    assert [int(train.labels[s.label]) for s in train.samples(range(5))] == labels


def test_text_that_looks_like_a_label_of_another_type_is_the_same_class(tokenizer: Any, tmp_path: Path) -> None:
    train, _ = _prepare(_make_config(_make_messages(tmp_path, [1, "1", "card"])), tokenizer, tmp_path / "data", "classify")

    assert train.labels == ["1", "card"]


def test_rows_are_mapped_from_disk_and_not_loaded(tokenizer: Any, tmp_path: Path) -> None:
    from datasets.table import MemoryMappedTable

    path = write_jsonl(tmp_path / "documents.jsonl", [{"text": "fee " * 2000}] * 200)
    before = pyarrow.total_allocated_bytes()

    train, _ = _prepare(_make_config(path), tokenizer, tmp_path / "data", max_length=4096)

    assert isinstance(train.rows.data, MemoryMappedTable)
    assert os.path.getsize(tmp_path / "data" / "examples.arrow") > 1_600_000
    assert pyarrow.total_allocated_bytes() - before < 200_000
    assert len(train.samples([150])[0].ids) == train.lengths[150]


def test_what_is_prepared_can_be_encoded_into_more_than_one_group_of_rows(tokenizer: Any, tmp_path: Path) -> None:
    """More rows than are encoded together, the last group not full."""
    seen: list[int] = []
    data = _make_config(_make_documents(tmp_path, 600))

    prepare(data, "pretrain", tokenizer, tmp_path / "data", max_length=64, progress=seen.append)

    assert seen == [256, 512]
    assert np.array_equal([int(s.origin.split(":")[-1]) for s in load(tmp_path / "data")[0].samples(range(600))], range(1, 601))


def test_the_class_of_a_row_does_not_depend_on_the_text_beside_it(tokenizer: Any) -> None:
    rows = [Labelled("short", "a"), Labelled("a much longer text than the other", "b")]

    together = encode(rows, tokenizer, max_length=64, truncate=False)

    assert together == [encode([row], tokenizer, max_length=64, truncate=False)[0] for row in rows]
