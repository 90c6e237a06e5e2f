import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import write_jsonl
from trainers.config import DataConfig, Task
from trainers.data.inspect import Inspection, inspect
from trainers.data.prepare import load, prepare
from trainers.data.synthetic import write_demo_data
from trainers.errors import DataError

WHY = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
LONG = {"messages": [{"role": "user", "content": "Why? " * 50}, {"role": "assistant", "content": "Because."}]}


def _make_config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(train=[path], **{"validation_fraction": 0.0} | changes)


def _make_documents(folder: Path, lengths: list[int]) -> Path:
    """Documents of these many tokens, <s> and </s> included."""
    return write_jsonl(folder / "documents.jsonl", [{"text": "7" * (length - 2)} for length in lengths])


def _make_bad_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    rows = [WHY, {"messages": []}, LONG, {"messages": [{"role": "bot", "content": "Hi"}]}, {"messages": []}, WHY]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"messages": [\n')
    return path


def test_bad_rows_are_counted_by_kind_and_listed_by_line_and_never_stop_it(tokenizer: Any, tmp_path: Path) -> None:
    path = _make_bad_file(tmp_path)

    found = inspect(_make_config(path), "sft", tokenizer, max_length=64)

    assert (found.rows, found.good, found.truncated) == (7, 2, 0)
    assert found.dropped == {"nothing to learn": 2, "over length": 1, "unknown role": 1, "broken JSON": 1}
    assert [line.split(": ")[0] for line in found.listed] == [f"{path}:{line}" for line in (2, 3, 4, 5, 7)]
    assert found.listed[0] == f"{path}:2: nothing to learn: no assistant message with content"


def test_rows_that_would_be_cut_are_counted_and_listed_with_both_lengths(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "7" * 98, "label": "card"}, {"text": "7", "label": "loan"}])

    found = inspect(_make_config(path, over_length="truncate"), "classify", tokenizer, max_length=16)

    assert (found.good, found.truncated, found.dropped) == (2, 1, {})
    assert found.listed == [f"{path}:1: over length: 99 tokens, cut to 16"]
    assert found.tokens == 16 + 2


def test_only_the_first_twenty_reasons_are_listed_and_all_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [WHY, *[{"messages": []}] * 700])

    found = inspect(_make_config(path), "sft", tokenizer, max_length=64)

    assert len(found.listed) == 20
    assert (found.rows, found.good, found.dropped) == (701, 1, {"nothing to learn": 700})


def test_lengths_are_those_of_whole_rows_in_ten_bins(tokenizer: Any, tmp_path: Path) -> None:
    lengths = [int(length) for length in np.random.default_rng(0).lognormal(4, 0.7, 200)]
    lengths = [max(3, length) for length in lengths]

    found = inspect(_make_config(_make_documents(tmp_path, lengths)), "pretrain", tokenizer, max_length=32).lengths

    assert found is not None
    assert (found.min, found.max) == (min(lengths), max(lengths))
    assert (found.median, found.p95) == (sorted(lengths)[99], sorted(lengths)[189])
    assert len(found.histogram) == 10 and sum(bin.rows for bin in found.histogram) == 200
    assert [sum(bin.low <= length <= bin.high for length in lengths) for bin in found.histogram] == [bin.rows for bin in found.histogram]


@pytest.mark.parametrize("lengths", [[9], [9, 9, 9], [9, 10, 12]])
def test_a_narrow_range_of_lengths_has_fewer_bins(tokenizer: Any, tmp_path: Path, lengths: list[int]) -> None:
    found = inspect(_make_config(_make_documents(tmp_path, lengths)), "pretrain", tokenizer, max_length=32).lengths

    assert found is not None
    assert [(bin.low, bin.high) for bin in found.histogram] == [(length, length) for length in range(min(lengths), max(lengths) + 1)]


def test_rows_over_the_length_are_in_the_lengths_so_that_a_better_limit_can_be_chosen(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [WHY, LONG])

    strict, cutting = (
        inspect(_make_config(path, over_length=mode), "sft", tokenizer, max_length=100).lengths for mode in ("bad_row", "truncate")
    )

    assert strict is not None and strict.max > 100
    assert strict == cutting


def test_a_long_document_is_one_row_and_several_examples(tokenizer: Any, tmp_path: Path) -> None:
    found = inspect(_make_config(_make_documents(tmp_path, [100, 10])), "pretrain", tokenizer, max_length=32)

    assert (found.rows, found.good, found.examples, found.truncated) == (2, 2, 5, 0)
    assert (found.tokens, found.learnt_tokens) == (110, 105)
    assert found.learnt_share == pytest.approx(105 / 110)


def test_classes_are_counted_most_common_first_and_only_for_classify(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": "Where?", "label": label} for label in ["loan", "card", "card", 7, "card", "loan"]]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)

    assert list(inspect(_make_config(path), "classify", tokenizer, max_length=32).labels.items()) == [("card", 3), ("loan", 2), ("7", 1)]
    assert inspect(_make_config(path), "sft", tokenizer, max_length=64).labels == {}


def test_examples_come_in_pieces_that_join_to_the_text_the_model_gets(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": []}, WHY, WHY, WHY])

    found = inspect(_make_config(path), "sft", tokenizer, max_length=64, shown=2)

    assert [example.origin for example in found.shown] == [f"{path}:2", f"{path}:3"]
    assert found.shown[0].pieces == [("<s>User:\nWhy?\nAssistant:\n", False), ("Because.</s>", True), ("\n", False)]


def test_pieces_keep_the_spaces_and_characters_of_several_tokens_between_them(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Preis €", "completion": " 5 € 😀 straße"}])

    (example,) = inspect(_make_config(path), "sft", tokenizer, max_length=64).shown

    assert example.pieces == [("<s>Preis €", False), (" 5 € 😀 straße</s>", True)]


def test_a_row_to_classify_is_shown_with_its_class(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "Where is it?", "label": "card"}])

    (example,) = inspect(_make_config(path), "classify", tokenizer, max_length=64).shown

    assert (example.pieces, example.label) == ([("<s>Where is it?", False)], "card")


def test_a_file_without_a_readable_row_gives_an_inspection_all_the_same(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n" * 300)
    (tmp_path / "empty.jsonl").write_text("")

    broken, empty = (inspect(_make_config(tmp_path / f"{name}.jsonl"), "sft", tokenizer, max_length=64) for name in ("broken", "empty"))

    assert (broken.rows, broken.good, broken.dropped, broken.lengths) == (300, 0, {"broken JSON": 300}, None)
    assert (empty.rows, empty.learnt_share, empty.shown) == (0, 0.0, [])


def test_a_file_that_is_wrong_as_a_whole_is_an_error(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Why?"}])

    with pytest.raises(DataError, match="fit no layout"):
        inspect(_make_config(path), "sft", tokenizer, max_length=64)


@pytest.mark.parametrize("task", ["sft", "classify", "pretrain"])
def test_it_finds_what_preparation_does(tokenizer: Any, tmp_path: Path, task: Task) -> None:
    demo = write_demo_data(tmp_path / "demo", tickets=300, documents=40)
    path = {"sft": demo.tickets_train, "classify": demo.intents_train, "pretrain": demo.policies}[task]
    data = DataConfig(train=[path], on_bad_row="skip")

    found = inspect(data, task, tokenizer, max_length=150)
    summary = prepare(data, task, tokenizer, tmp_path / "data", max_length=150)

    assert (found.good, found.held_out) == (summary.train_rows + summary.validation_rows, summary.validation_rows)
    assert (sum(found.dropped.values()), found.listed) == (summary.bad, summary.bad_rows)
    assert found.tokens == sum(int(side.lengths.sum()) for side in load(tmp_path / "data"))
    assert sorted(found.labels) == summary.labels if task == "classify" else not found.labels


def _peak_memory(config: DataConfig, tokenizer: Any) -> tuple[int, Inspection]:
    tracemalloc.start()
    try:
        found = inspect(config, "pretrain", tokenizer, max_length=512)
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_rows(tokenizer: Any, tmp_path: Path) -> None:
    peaks = []
    for rows in (500, 2000):
        write_jsonl(tmp_path / f"{rows}.jsonl", [{"text": f"{number} fee " * 30} for number in range(rows)])
        peak, found = _peak_memory(_make_config(tmp_path / f"{rows}.jsonl"), tokenizer)
        assert found.rows == rows
        peaks.append(peak)

    assert peaks[1] < 1.3 * peaks[0]
