"""Files to examples: JSONL, CSV, Parquet and Hugging Face dataset directories, in the layouts people have.

Every row is read on its own, so that a bad one is named by file and line and the others are not lost.
"""

import csv
import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from trainers.config import DataConfig, Format, Task
from trainers.errors import DataError

csv.field_size_limit(1 << 26)  # the default of 128 KiB refuses long documents
_DELIMITERS = (",", ";", "\t")
"""Of CSV: the commonest in the header line. Spreadsheets write semicolons wherever the comma stands in numbers."""


class BadRow(ValueError):
    """A row that cannot be learnt from, and why: `kind: detail`. `tokens` is its length, where it got as far as being encoded."""

    def __init__(self, reason: str, *, tokens: int | None = None) -> None:
        super().__init__(reason)
        self.tokens = tokens

    @property
    def kind(self) -> str:
        return str(self).partition(":")[0]


@dataclass(frozen=True)
class Row:
    """A row as the file has it. `line` counts from 1; for CSV it is the line the record ends on."""

    file: Path
    line: int
    values: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Chat:
    """Turns of (role, content); what the assistant says is learnt."""

    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Completion:
    """A prompt and what should follow it, without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text, every token learnt."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    text: str
    label: str


Content = Chat | Completion | Text | Labelled

# Canonical columns of each format, with the other names they go by. The first match in this order is taken.
_COLUMNS: dict[Format, dict[str, tuple[str, ...]]] = {
    "chat": {"messages": ("messages",)},
    "sharegpt": {"conversations": ("conversations",)},
    "alpaca": {"instruction": ("instruction",), "output": ("output",)},
    "completion": {"prompt": ("prompt",), "completion": ("completion", "response")},
    "classification": {"text": ("text", "sentence", "query"), "label": ("label", "category", "intent")},
    "text": {"text": ("text",)},
}
_CANONICAL = list(dict.fromkeys([field for columns in _COLUMNS.values() for field in columns] + ["input"]))
_FORMATS_OF: dict[Task, tuple[Format, ...]] = {
    "sft": ("chat", "sharegpt", "alpaca", "completion", "classification"),
    "pretrain": ("text",),
    "classify": ("classification",),
}
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file or dataset directory, in order; broken ones with their problem instead of values.

    Raises DataError when there is no such file or its kind is unknown.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file", "paths in a job file are relative to the job file")
    yield from _reader(path)(path)


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        with path.open("rb") as raw:
            number = next(number for number, line in enumerate(raw, 1) if line.decode(errors="ignore").encode() != line)
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason})", "convert it, as in: iconv -f WINDOWS-1252 -t UTF-8") from error


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    if path.is_dir():
        return _read_dataset
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: unknown kind of file", f"expected {', '.join(readers)} or a Hugging Face dataset directory")
    return readers[path.suffix.lower()]


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1 and path.suffix.lower() == ".json" and line.lstrip().startswith("["):
                raise DataError(f"{path}: a JSON array, expected one object a line", "convert it: jq -c '.[]' old.json > new.jsonl")
            if line.strip():
                yield _parse_json(path, number, line)


def _parse_json(path: Path, number: int, line: str) -> Row:
    try:
        values = json.loads(line)
        if "\\u" in line:
            json.dumps(values, ensure_ascii=False).encode()  # an escaped surrogate without its pair is no character
    except json.JSONDecodeError as error:
        return Row(path, number, None, f"broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except UnicodeEncodeError:
        return Row(path, number, None, "broken text: half of a surrogate pair, as left by cutting text inside an emoji")
    if not isinstance(values, dict):
        return Row(path, number, None, f"wrong type: expected a JSON object, got {type(values).__name__}")
    return Row(path, number, values)


def delimiter_of(header: str) -> str:
    """Of a CSV file with this first line."""
    return max(_DELIMITERS, key=header.count)


def _read_csv(path: Path) -> Iterator[Row]:
    with _open_text(path) as lines:
        first = lines.readline()
        records = csv.reader(itertools.chain([first], lines), delimiter=delimiter_of(first))
        header = next(records, [])
        for fields in filter(None, records):
            if len(fields) == len(header):
                yield Row(path, records.line_num, dict(zip(header, fields, strict=True)))
            else:
                yield Row(path, records.line_num, None, f"wrong number of fields: expected {len(header)}, got {len(fields)}")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from (Row(path, number, row) for number, row in enumerate(rows, 1))


def _read_dataset(path: Path) -> Iterator[Row]:
    from datasets import ClassLabel, DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path), keep_in_memory=False)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{path}: not a dataset saved by datasets.save_to_disk", "name the file inside it instead") from error
    if isinstance(dataset, DatasetDict):
        raise DataError(f"{path}: has several splits ({', '.join(dataset)})", f"name one of them: {path / next(iter(dataset))}")
    inside = set(path.rglob("*"))
    if outside := [file["filename"] for file in dataset.cache_files if Path(file["filename"]) not in inside]:
        raise DataError(f"{path}: its rows are in {outside[0]}, outside of it", "its hash says nothing of them: save the dataset anew")
    classes = {column: feature.names for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    for number, row in enumerate(dataset, 1):
        named = {column: names[row[column]] for column, names in classes.items() if row[column] is not None}
        yield Row(path, number, {**row, **named})


@dataclass(frozen=True)
class Layout:
    """Which format a file is in and where its canonical fields stand."""

    format: Format
    columns: Mapping[str, str]

    def field(self, values: Mapping[str, Any], name: str) -> Any:
        column = self.columns.get(name, name)
        if column not in values or values[column] is None:
            raise BadRow(f"missing field: {column!r}")
        return values[column]

    def text(self, values: Mapping[str, Any], name: str) -> str:
        value = self.field(values, name)
        if not isinstance(value, str):
            raise BadRow(f"wrong type: {self.columns.get(name, name)!r} must be text, got {type(value).__name__}")
        if not value.strip():
            raise BadRow(f"empty field: {self.columns.get(name, name)!r}")
        return value


def recognise(names: list[str], data: DataConfig, task: Task, *, file: Path) -> Layout:
    """The layout of a file with these columns, for this task; `data.format` and `data.columns` have the last word.

    Raises DataError when nothing fits, listing what is there.
    """
    for canonical, column in data.columns.items():
        _demand(canonical, _CANONICAL, f"{file}: data.columns maps {canonical!r}, which no format has")
        _demand(column, names, f"{file}: data.columns.{canonical} names column {column!r}, which is not there")
    wanted = _FORMATS_OF[task] if data.format == "auto" else (data.format,)
    for format in wanted:
        found = {name: _column(name, names, data, aliases) for name, aliases in _COLUMNS[format].items()}
        if all(found.values()):
            return Layout(format, {**data.columns, **{name: column for name, column in found.items() if column}})
    layouts = "; ".join(f"{format}: {', '.join(_COLUMNS[format])}" for format in wanted)
    hint = (
        "plain text is for task: pretrain"
        if task == "sft" and "text" in names
        else "map columns with data.columns, as in {text: query, label: intent}"
    )
    raise DataError(f"{file}: columns {', '.join(names)} fit no layout of task {task} ({layouts})", hint)


def _demand(name: str, known: Sequence[str], problem: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise DataError(f"{problem} (there are: {', '.join(known)})", f"did you mean {near[0]!r}?" if near else "use one of these")


def _column(name: str, names: list[str], data: DataConfig, aliases: tuple[str, ...]) -> str | None:
    if name in data.columns:
        return data.columns[name]
    return next((alias for alias in aliases if alias in names), None)


def to_content(values: Mapping[str, Any], layout: Layout, task: Task, *, system_prompt: str | None) -> Content:
    """One row in the form its task learns from. Raises BadRow."""
    match layout.format:
        case "chat":
            return _chat(_turns(layout, values, "messages", "role", "content"), system_prompt)
        case "sharegpt":
            return _chat(_turns(layout, values, "conversations", "from", "value"), system_prompt)
        case "alpaca":
            extra = values.get(layout.columns.get("input", "input")) or ""
            user = layout.text(values, "instruction") + (f"\n\n{extra}" if extra else "")
            return _chat([("user", user), ("assistant", layout.text(values, "output"))], system_prompt)
        case "completion":
            return Completion(layout.text(values, "prompt"), layout.text(values, "completion"))
        case "classification":
            return _labelled(values, layout, task, system_prompt)
        case _:
            return Text(layout.text(values, "text"))


def _labelled(values: Mapping[str, Any], layout: Layout, task: Task, system_prompt: str | None) -> Content:
    label = layout.field(values, "label")
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise BadRow(f"wrong type: {layout.columns['label']!r} must be a name or a whole number, got {label!r:.20}")
    if not str(label).strip():
        raise BadRow(f"empty field: {layout.columns['label']!r}")
    text = layout.text(values, "text")
    name = str(label).strip()
    return Labelled(text, name) if task == "classify" else _chat([("user", text), ("assistant", name)], system_prompt)


def _turns(layout: Layout, values: Mapping[str, Any], column: str, role_key: str, content_key: str) -> list[tuple[str, str]]:
    messages = layout.field(values, column)
    if not isinstance(messages, (list, tuple)):
        raise BadRow(f"wrong type: {column!r} must be a list of messages, got {type(messages).__name__}")
    turns = []
    for position, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise BadRow(f"wrong type: message {position} must be an object, got {type(message).__name__}")
        if missing := {role_key, content_key} - message.keys():
            raise BadRow(f"missing field: message {position} has no {' and no '.join(map(repr, sorted(missing)))}")
        role, content = message[role_key], message[content_key]
        if role not in list(_ROLES):
            raise BadRow(f"unknown role: message {position} has {role!r:.20} (known: {', '.join(_ROLES)})")
        if not isinstance(content, str):
            raise BadRow(f"wrong type: message {position}: {content_key!r} must be text, got {type(content).__name__}")
        turns.append((_ROLES[role], content))
    return turns


def _chat(turns: list[tuple[str, str]], system_prompt: str | None) -> Chat:
    if not any(role == "assistant" and content.strip() for role, content in turns):
        raise BadRow("nothing to learn: no assistant message with content")
    if system_prompt and turns[0][0] != "system":
        turns = [("system", system_prompt), *turns]
    return Chat(tuple(turns))


def in_validation(key: str, fraction: float) -> bool:
    """Whether a row (or the group it belongs to) is held out: a function of its text alone, so it never moves."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_key(values: Mapping[str, Any], content: Content, group_by: str | None) -> str:
    """What the split hashes: the group's name, or the row's content, so that equal rows stay on one side. Raises BadRow."""
    return repr(content) if group_by is None else group_name(values, group_by)


def group_name(values: Mapping[str, Any], group_by: str) -> str:
    """Whose row it is, alike in every kind of file: 7, "7", "7 " and 7.0 (numbers of a column with gaps) are one. Raises BadRow."""
    value = values.get(group_by)
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    name = "" if value is None else str(value).strip()
    if not name:
        near = difflib.get_close_matches(group_by, values.keys() - {group_by}, n=1)
        raise BadRow(f"missing field: {group_by!r}, which data.group_by names" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return name
