import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import write_jsonl
from trainers.config import DataConfig, Task
from trainers.data.formats import BadRow, Chat, Completion, Content, Labelled, Row, Text, in_validation, read_rows, split_key
from trainers.data.prepare import contents
from trainers.errors import DataError

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
TURNS = (("user", "Hello"), ("assistant", "Good day"))


def _make_config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(train=[path], **changes)


def _read(path: Path, task: Task = "sft", **changes: Any) -> list[Content | BadRow]:
    return [content for _, content in contents(_make_config(path, **changes), task, path)]


def _problems(path: Path, task: Task = "sft", **changes: Any) -> dict[int, str]:
    """Line to what is wrong with it."""
    return {row.line: str(c) for row, c in contents(_make_config(path, **changes), task, path) if isinstance(c, BadRow)}


def _make_bad_file(folder: Path, bad: Any, good: Any) -> Path:
    """A good row on line 1, the bad one on line 2, a good one on line 3."""
    rows: list[Any] = [good, bad, good]
    return write_jsonl(folder / "rows.jsonl", rows)


ROW_OF_FORMAT: list[tuple[Task, dict[str, Any], Content]] = [
    ("sft", {"messages": CHAT}, Chat(TURNS)),
    ("sft", {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day"}]}, Chat(TURNS)),
    ("sft", {"instruction": "Hello", "output": "Good day"}, Chat(TURNS)),
    ("sft", {"instruction": "Add", "input": "1 2", "output": "3"}, Chat((("user", "Add\n\n1 2"), ("assistant", "3")))),
    ("sft", {"prompt": "Hello", "completion": "Good day"}, Completion("Hello", "Good day")),
    ("sft", {"prompt": "Hello", "response": "Good day"}, Completion("Hello", "Good day")),
    ("sft", {"text": "Hello", "label": "Good day"}, Chat(TURNS)),
    ("classify", {"text": "Hello", "label": "greeting"}, Labelled("Hello", "greeting")),
    ("classify", {"query": "Hello", "intent": 7}, Labelled("Hello", "7")),
    ("classify", {"sentence": "Hello", "category": "greeting"}, Labelled("Hello", "greeting")),
    ("pretrain", {"text": "A policy."}, Text("A policy.")),
]


@pytest.mark.parametrize(("task", "row", "expected"), ROW_OF_FORMAT)
def test_every_format_is_recognised_by_its_columns(tmp_path: Path, task: Task, row: dict[str, Any], expected: Content) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row, row])

    assert _read(path, task) == [expected, expected]


def test_the_format_of_the_job_file_overrides_what_the_columns_suggest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT, "prompt": "Hello", "completion": "Good day"}])

    assert _read(path) == [Chat(TURNS)]
    assert _read(path, format="completion") == [Completion("Hello", "Good day")]


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"q": "Hello", "kind": "greeting"}])

    assert _read(path, "classify", columns={"text": "q", "label": "kind"}) == [Labelled("Hello", "greeting")]


def test_a_mapped_column_is_taken_before_one_of_the_usual_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "raw", "clean": "Hello", "label": "greeting"}])

    assert _read(path, "classify", columns={"text": "clean"}) == [Labelled("Hello", "greeting")]


def test_a_mapped_column_that_is_not_there_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "Hello", "intent": "greeting"}])

    with pytest.raises(DataError, match=r"names column 'querry', which is not there \(there are: query, intent\)") as caught:
        _read(path, "classify", columns={"text": "querry"})
    assert caught.value.hint == "did you mean 'query'?"


def test_a_mapped_field_that_no_format_has_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "Hello", "intent": "greeting"}])

    with pytest.raises(DataError, match="maps 'lable', which no format has") as caught:
        _read(path, "classify", columns={"lable": "intent"})
    assert caught.value.hint == "did you mean 'label'?"


def test_columns_that_fit_no_format_are_listed_with_what_would_fit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Hello", "answer": "Good day"}])

    with pytest.raises(DataError, match=r"columns question, answer fit no layout of task sft .*alpaca: instruction, output") as caught:
        _read(path)
    assert "data.columns" in caught.value.hint


def test_plain_text_for_sft_is_refused_with_a_word_on_pretraining(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "A policy."}])

    with pytest.raises(DataError) as caught:
        _read(path)
    assert caught.value.hint == "plain text is for task: pretrain"


def test_the_system_prompt_is_put_before_conversations_that_have_none(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Be brief."}, *CHAT]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT}, {"messages": own}])

    first, second = _read(path, system_prompt="Be kind.")

    assert first == Chat((("system", "Be kind."), *TURNS))
    assert second == Chat((("system", "Be brief."), *TURNS))


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_jsonl),
        ("ROWS.JSONL", write_jsonl),
        ("rows.json", write_jsonl),
        ("rows.csv", _write_csv),
        ("rows.parquet", _write_parquet),
        ("rows", lambda path, rows: Dataset.from_list(rows).save_to_disk(path)),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, write: Any) -> None:
    rows = [{"text": "Where is my card?", "label": "card"}, {"text": "Straße,\nnot road", "label": "other"}]
    write(tmp_path / name, rows)

    assert _read(tmp_path / name, "classify") == [Labelled("Where is my card?", "card"), Labelled("Straße,\nnot road", "other")]


def test_conversations_survive_parquet_and_dataset_directories(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT * 2}]
    _write_parquet(tmp_path / "rows.parquet", rows)
    Dataset.from_list(rows).save_to_disk(tmp_path / "rows")

    assert _read(tmp_path / "rows.parquet") == [Chat(TURNS), Chat(TURNS * 2)]
    assert _read(tmp_path / "rows") == [Chat(TURNS), Chat(TURNS * 2)]


def test_a_dataset_directory_whose_rows_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    """Its hash would stay as it is, whatever the rows."""
    Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "rows")
    (tmp_path / "elsewhere").mkdir()
    (arrow,) = (tmp_path / "rows").glob("*.arrow")
    arrow.rename(tmp_path / "elsewhere" / arrow.name)
    (tmp_path / "rows" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    state = tmp_path / "rows" / "state.json"

    for place in ("../elsewhere", "linked"):
        state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": f"{place}/{arrow.name}"}]}))
        with pytest.raises(DataError, match="outside of it"):
            list(read_rows(tmp_path / "rows"))


def test_class_numbers_of_a_dataset_directory_become_the_names_it_gives_them(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["card", "loan"])})
    Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": None}], features=features).save_to_disk(tmp_path / "rows")

    content, problem = _read(tmp_path / "rows", "classify")

    assert content == Labelled("a", "loan")
    assert str(problem) == "missing field: 'label'"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"messages": None}, "missing field: 'messages'"),
        ({}, "missing field: 'messages'"),
        ({"messages": "Hello"}, "wrong type: 'messages' must be a list of messages, got str"),
        ({"messages": []}, "nothing to learn: no assistant message with content"),
        ({"messages": CHAT[:1]}, "nothing to learn: no assistant message with content"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": " \n"}]}, "nothing to learn: no assistant message with content"),
        ({"messages": ["Hello"]}, "wrong type: message 1 must be an object, got str"),
        ({"messages": [{"role": "user"}]}, "missing field: message 1 has no 'content'"),
        ({"messages": [{"from": "human", "value": "Hello"}]}, "missing field: message 1 has no 'content' and no 'role'"),
        ({"messages": [*CHAT, {"role": "bot", "content": "Hi"}]}, "unknown role: message 3 has 'bot' (known: human, gpt,"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "unknown role: message 1 has ['user']"),
        ({"messages": [{"role": "user", "content": 7}]}, "wrong type: message 1: 'content' must be text, got int"),
        ([1, 2], "wrong type: expected a JSON object, got list"),
        ("Hello", "wrong type: expected a JSON object, got str"),
    ],
)
def test_a_bad_conversation_is_named_by_its_line(tmp_path: Path, bad: Any, problem: str) -> None:
    path = _make_bad_file(tmp_path, bad, {"messages": CHAT})

    assert list(_problems(path)) == [2]
    assert _problems(path)[2].startswith(problem)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"label": "card"}, "missing field: 'text'"),
        ({"text": "Hello", "label": None}, "missing field: 'label'"),
        ({"text": " \t", "label": "card"}, "empty field: 'text'"),
        ({"text": "Hello", "label": ""}, "empty field: 'label'"),
        ({"text": 7, "label": "card"}, "wrong type: 'text' must be text, got int"),
        ({"text": "Hello", "label": 1.5}, "wrong type: 'label' must be a name or a whole number, got 1.5"),
        ({"text": "Hello", "label": True}, "wrong type: 'label' must be a name or a whole number, got True"),
    ],
)
def test_a_bad_labelled_row_is_named_by_its_line(tmp_path: Path, bad: Any, problem: str) -> None:
    path = _make_bad_file(tmp_path, bad, {"text": "Hello", "label": "card"})

    assert _problems(path, "classify") == {2: problem}


def test_what_a_customer_wrote_is_not_in_the_message_about_a_bad_row(tmp_path: Path) -> None:
    secret = "my IBAN is DE89370400440532013000"
    rows: list[Any] = [{"messages": secret}, {"messages": [secret]}, {"messages": [{"role": "user", "text": secret}]}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT}, *rows])

    problems = _problems(path)

    assert list(problems) == [2, 3, 4]
    assert not any("IBAN" in problem for problem in problems.values())


def test_broken_json_is_one_bad_row_and_blank_lines_still_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n')

    assert list(_problems(path, "pretrain")) == [3]
    assert _problems(path, "pretrain")[3].startswith("broken JSON: Expecting ',' delimiter")
    assert [content for content in _read(path, "pretrain") if isinstance(content, Text)] == [Text("a"), Text("c")]


def test_a_first_row_without_the_columns_of_the_others_is_a_bad_row_and_not_a_bad_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"txt": "Hello"}, {"text": "Hello"}])

    assert _problems(path, "pretrain") == {1: "missing field: 'text'"}


def test_half_of_a_surrogate_pair_is_a_bad_row_and_a_whole_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "cut \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n')

    assert list(_problems(path, "pretrain")) == [1]
    assert _problems(path, "pretrain")[1].startswith("broken text: half of a surrogate pair")
    assert _read(path, "pretrain")[1] == Text("whole 😀")


def test_a_json_array_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "Hello", "output": "Good day"}], indent=2))

    with pytest.raises(DataError, match="a JSON array, expected one object a line") as caught:
        _read(path)
    assert "jq" in caught.value.hint


def test_a_byte_order_mark_is_no_part_of_the_first_column_or_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nHello,card\n", encoding="utf-8-sig")
    (tmp_path / "rows.jsonl").write_text('{"text": "Hello", "label": "card"}\n', encoding="utf-8-sig")

    assert _read(tmp_path / "rows.csv", "classify") == [Labelled("Hello", "card")]
    assert _read(tmp_path / "rows.jsonl", "classify") == [Labelled("Hello", "card")]


def test_a_csv_record_with_quoted_newlines_is_named_by_the_line_it_ends_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"two\nlines, and ""quotes""",card\n"three\n\nlines",\nplain,loan\n')

    assert [row.line for row in read_rows(path)] == [3, 6, 7]
    assert _read(path, "classify")[0] == Labelled('two\nlines, and "quotes"', "card")
    assert _problems(path, "classify") == {6: "empty field: 'label'"}


def test_csv_rows_with_too_few_or_too_many_fields_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nHello,card\nHello\nHello,card,loan\n")

    assert _problems(path, "classify") == {
        3: "wrong number of fields: expected 2, got 1",
        4: "wrong number of fields: expected 2, got 3",
    }


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_spreadsheets_is_read_by_the_delimiter_of_its_header(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'text{delimiter}label\n"Hello{delimiter} 1,50 euros, please"{delimiter}card\n')

    assert _read(path, "classify") == [Labelled(f"Hello{delimiter} 1,50 euros, please", "card")]


def test_spaces_around_a_label_make_no_other_class(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nHello,card\nHello, card \n")

    assert _read(path, "classify") == [Labelled("Hello", "card"), Labelled("Hello", "card")]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_file_that_is_not_utf8_is_refused_by_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    header = "text,label\n" if name == "rows.csv" else ""
    rows = '"Hello",card\n' * 5000 + '"Straße",card\n' if header else '{"text": "Hello"}\n' * 5000 + '{"text": "Straße"}\n'
    path.write_bytes((header + rows).encode("latin-1"))

    with pytest.raises(DataError, match=rf"{name}:{5002 if header else 5001}: not UTF-8") as caught:
        list(read_rows(path))
    assert "iconv" in caught.value.hint


def test_a_missing_file_and_an_unknown_kind_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("")

    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        list(read_rows(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match=r"rows\.xlsx: unknown kind of file") as caught:
        list(read_rows(tmp_path / "rows.xlsx"))
    assert ".parquet" in caught.value.hint


def test_directories_and_parquet_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.parquet").write_text("text")

    with pytest.raises(DataError, match=r"not a dataset saved by datasets\.save_to_disk"):
        list(read_rows(tmp_path / "folder"))
    with pytest.raises(DataError, match="not a Parquet file"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_a_directory_of_several_splits_is_refused_with_the_path_of_one(tmp_path: Path) -> None:
    DatasetDict(train=Dataset.from_list([{"text": "a"}]), test=Dataset.from_list([{"text": "b"}])).save_to_disk(tmp_path / "all")

    with pytest.raises(DataError, match=r"several splits \(train, test\)") as caught:
        list(read_rows(tmp_path / "all"))
    assert str(tmp_path / "all" / "train") in caught.value.hint
    assert [row.values for row in read_rows(tmp_path / "all" / "train")] == [{"text": "a"}]


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' + "x" * 100_000)

    assert next(read_rows(path)) == Row(path, 1, {"text": "a"})


SCALAR = st.none() | st.booleans() | st.floats() | st.integers() | st.text()
JSON = st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
LIKELY = st.sampled_from(["user", "assistant", "", "Hello"]) | JSON
MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), LIKELY)


@settings(deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"messages": st.lists(MESSAGE) | JSON, "customer": JSON}), min_size=1, max_size=5))
def test_whatever_json_holds_a_row_is_a_conversation_or_a_bad_row(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = write_jsonl(tmp_path_factory.getbasetemp() / "any.jsonl", rows)

    for content in _read(path):
        assert isinstance(content, Chat) or (isinstance(content, BadRow) and content.kind)


def test_equal_rows_are_on_one_side_of_the_split_and_about_the_asked_share_is_held_out() -> None:
    keys = [split_key({}, Text(f"document {number}"), None) for number in range(5000)]

    held_out = [in_validation(key, 0.2) for key in keys]

    assert held_out == [in_validation(key, 0.2) for key in keys]
    assert 0.18 < sum(held_out) / len(keys) < 0.22
    assert not any(in_validation(key, 0.0) for key in keys)


def test_a_larger_share_holds_out_what_a_smaller_one_does_and_more() -> None:
    keys = [str(number) for number in range(2000)]

    tenth, third = ({key for key in keys if in_validation(key, share)} for share in (0.1, 1 / 3))

    assert tenth < third


def test_the_split_never_moves() -> None:
    """A golden value: what one version holds out, the next one does too."""
    assert [number for number in range(40) if in_validation(f"customer-{number}", 0.2)] == [12, 20, 22, 25, 30]


def test_rows_of_one_group_share_a_key_and_rows_without_a_group_are_bad() -> None:
    ours = {"customer_id": "c1", "text": "a"}

    assert split_key(ours, Text("a"), "customer_id") == split_key(ours | {"text": "b"}, Text("b"), "customer_id")
    assert split_key({"customer_id": 7}, Text("a"), "customer_id") == "7"
    for values in ({"customer_id": None}, {"customer_id": ""}, {}):
        with pytest.raises(BadRow, match="missing field: 'customer_id'"):
            split_key(values, Text("a"), "customer_id")


def test_a_group_of_a_mistyped_name_comes_with_the_nearest_one() -> None:
    with pytest.raises(BadRow, match="did you mean 'customer_id'"):
        split_key({"customer_id": "c1"}, Text("a"), "custmer_id")
