"""Files to examples: JSONL, CSV, Parquet and Hugging Face dataset directories, in the layouts people have.

Every row is read on its own, so that a bad one is named by file and line and the others are not lost.
"""

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.config import DataConfig, Format, Task
from trainers.errors import DataError

csv.field_size_limit(1 << 26)  # the default of 128 KiB refuses long documents


class BadRow(ValueError):
    """A row that cannot be learnt from, and why."""


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
    try:
        yield from _reader(path)(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})", "convert it: iconv -t UTF-8") from error


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    if path.is_dir():
        return _read_dataset
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown kind of file", f"expected {', '.join(readers)} or a Hugging Face dataset directory")
    return readers[path.suffix]


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                yield Row(path, number, None, f"broken JSON: {error.msg} at column {error.colno}")
                continue
            if isinstance(values, dict):
                yield Row(path, number, values)
            else:
                yield Row(path, number, None, f"expected a JSON object, got {type(values).__name__}")


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        records = csv.DictReader(lines)
        for values in records:
            short = [name for name, value in values.items() if value is None]
            if None in values or short:
                yield Row(
                    path, records.line_num, None, f"expected {len(records.fieldnames or [])} fields, got {'fewer' if short else 'more'}"
                )
            else:
                yield Row(path, records.line_num, values)


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
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{path}: not a dataset saved by datasets.save_to_disk", "name the file inside it instead") from error
    if isinstance(dataset, DatasetDict):
        raise DataError(f"{path}: has several splits ({', '.join(dataset)})", f"name one of them: {path / next(iter(dataset))}")
    yield from (Row(path, number, row) for number, row in enumerate(dataset, 1))


@dataclass(frozen=True)
class Layout:
    """Which format a file is in and where its canonical fields stand."""

    format: Format
    columns: Mapping[str, str]

    def field(self, values: Mapping[str, Any], name: str) -> Any:
        column = self.columns.get(name, name)
        if column not in values or values[column] is None:
            raise BadRow(f"missing field {column!r}")
        return values[column]

    def text(self, values: Mapping[str, Any], name: str) -> str:
        value = self.field(values, name)
        if not isinstance(value, str):
            raise BadRow(f"{self.columns.get(name, name)!r} must be text, got {type(value).__name__}")
        if not value.strip():
            raise BadRow(f"{self.columns.get(name, name)!r} is empty")
        return value


def recognise(names: list[str], data: DataConfig, task: Task, *, file: Path) -> Layout:
    """The layout of a file with these columns, for this task; `data.format` and `data.columns` have the last word.

    Raises DataError when nothing fits, listing what is there.
    """
    for canonical, column in data.columns.items():
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            raise DataError(f"{file}: data.columns.{canonical} names column {column!r}, which is not there (columns: {', '.join(names)})",
                            f"did you mean {near[0]!r}?" if near else "map it to one of these")  # fmt: skip
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


def _column(name: str, names: list[str], data: DataConfig, aliases: tuple[str, ...]) -> str | None:
    if name in data.columns:
        return data.columns[name]
    return next((alias for alias in aliases if alias in names), None)


def to_content(values: Mapping[str, Any], layout: Layout, task: Task, *, system_prompt: str | None) -> Content:
    """One row in the form its task learns from. Raises BadRow."""
    match layout.format:
        case "chat":
            return _chat(_turns(layout.field(values, "messages"), "role", "content"), system_prompt)
        case "sharegpt":
            return _chat(_turns(layout.field(values, "conversations"), "from", "value"), system_prompt)
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
    if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
        raise BadRow(f"{layout.columns['label']!r} must be a name or a whole number, got {label!r}")
    text = layout.text(values, "text")
    return Labelled(text, str(label)) if task == "classify" else _chat([("user", text), ("assistant", str(label))], system_prompt)


def _turns(messages: Any, role_key: str, content_key: str) -> list[tuple[str, str]]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise BadRow(f"expected a list of messages, got {messages!r:.60}")
    turns = []
    for position, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or role_key not in message or content_key not in message:
            raise BadRow(f"message {position} needs {role_key!r} and {content_key!r}, got {message!r:.60}")
        role, content = _ROLES.get(message[role_key]), message[content_key]
        if role is None:
            raise BadRow(f"message {position} has the unknown role {message[role_key]!r} (known: {', '.join(_ROLES)})")
        if not isinstance(content, str):
            raise BadRow(f"message {position}: content must be text, got {type(content).__name__}")
        turns.append((role, content))
    return turns


def _chat(turns: list[tuple[str, str]], system_prompt: str | None) -> Chat:
    if not any(role == "assistant" and content.strip() for role, content in turns):
        raise BadRow("no assistant message with content: nothing to learn")
    if system_prompt and turns[0][0] != "system":
        turns = [("system", system_prompt), *turns]
    return Chat(tuple(turns))


def in_validation(key: str, fraction: float) -> bool:
    """Whether a row (or the group it belongs to) is held out: a function of its text alone, so it never moves."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_key(values: Mapping[str, Any], content: Content, group_by: str | None) -> str:
    """What the split hashes: the group's name, or the row's content, so that equal rows stay on one side. Raises BadRow."""
    if group_by is None:
        return repr(content)
    if values.get(group_by) in (None, ""):
        raise BadRow(f"data.group_by names {group_by!r}, which this row lacks")
    return str(values[group_by])
