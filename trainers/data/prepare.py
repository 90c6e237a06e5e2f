"""Rows to tokens on disk, once per run: an Arrow file that every worker maps into its memory, so the data may be larger than it.

One worker prepares while the others wait. What was made is kept beside a key of all it depends on; a restarted run finds it again.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainers.config import DataConfig, Task
from trainers.data.formats import (
    BadRow,
    Content,
    Labelled,
    Layout,
    Row,
    group_name,
    in_validation,
    read_rows,
    recognise,
    split_key,
    to_content,
)
from trainers.data.masking import PLAIN_TEMPLATE, Encoded, encode
from trainers.errors import DataError

_FORMAT_VERSION = 3
_ROWS_TOGETHER = 256
_BAD_ROWS_SHOWN = 20

TRAIN, VALIDATION = 0, 1


@dataclass(frozen=True)
class Sample:
    """One example as the model sees it, and where it came from."""

    ids: np.ndarray
    learnt: np.ndarray
    label: int
    origin: str


@dataclass
class Prepared:
    """The examples of one side of the split. `lengths` and `targets` (loss tokens, or 1 for classify) are in memory, tokens on disk."""

    rows: Any
    lengths: np.ndarray
    targets: np.ndarray
    units: np.ndarray
    """Whose each example is, as a number: of those with one value of `group_by`, else of each row for itself"""
    labels: list[str]
    files: list[str]
    labels_met: list[str]
    """In the order that examples refer to them by."""

    def number_classes_as(self, labels: list[str]) -> None:
        """Let `Sample.label` be the place in these labels: those of the model's head, which may be others and in another order."""
        self.labels = labels

    def __len__(self) -> int:
        return len(self.lengths)

    def samples(self, indices: Iterable[int]) -> list[Sample]:
        class_of = [self.labels.index(label) for label in self.labels_met] or [0]
        rows = self.rows[[int(i) for i in indices]]
        columns = (rows["ids"], rows["learnt"], rows["label"], rows["file"], rows["line"])
        return [
            Sample(np.asarray(ids), np.asarray(learnt, dtype=bool), class_of[label], f"{self.files[file]}:{line}")
            for ids, learnt, label, file, line in zip(*columns, strict=True)
        ]


@dataclass
class Summary:
    """What preparation did, for the report and for `consortium data inspect`."""

    files: list[dict[str, Any]] = field(default_factory=list)
    labels_met: list[str] = field(default_factory=list)
    labels_given: list[str] = field(default_factory=list)
    train_rows: int = 0
    validation_rows: int = 0
    truncated: int = 0
    bad: int = 0
    bad_rows: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """In the order of the classes: as given, or by value where all are whole numbers, else by name."""
        if self.labels_given:
            return self.labels_given
        numbered = all(label.removeprefix("-").isdecimal() for label in self.labels_met)
        return sorted(self.labels_met, key=lambda label: (int(label) if numbered else 0, label))


def prepare(
    data: DataConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    max_length: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Write the examples of all files to `folder` (readable by its owner only), unless what is there is up to date.

    Raises DataError naming file and line of bad rows (`data.on_bad_row: error`), when there is nothing to train on or a file changed.
    """
    summary = Summary([describe_file(path) for path in [*data.train, *data.validation]], labels_given=data.labels)
    key = _key(data, task, tokenizer, max_length, summary.files)
    manifest = folder / "prepared.json"
    if manifest.exists() and (found := json.loads(manifest.read_text()))["key"] == key:
        return Summary(**found["summary"])
    for file in summary.files:
        file["format"] = _format(data, task, Path(file["path"]))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    manifest.unlink(missing_ok=True)  # it speaks of the examples that are overwritten now
    examples = _examples(data, task, tokenizer, summary, max_length=max_length, progress=progress)
    _write(examples, folder / "examples.arrow")
    _refuse(data, summary)
    _refuse_changed(summary)
    temporary = manifest.with_suffix(".tmp")
    temporary.write_text(json.dumps({"key": key, "summary": asdict(summary)}))
    temporary.chmod(0o600)
    temporary.rename(manifest)
    return summary


def read_summary(folder: Path) -> Summary:
    """Of what `prepare` wrote."""
    return Summary(**json.loads((folder / "prepared.json").read_text())["summary"])


def load(folder: Path) -> tuple[Prepared, Prepared]:
    """The training and the validation side of what `prepare` wrote."""
    from datasets import Dataset

    summary = read_summary(folder)
    rows = Dataset.from_file(str(folder / "examples.arrow"))
    side, lengths, targets, units = (rows.data.column(name).to_numpy() for name in ("side", "length", "targets", "unit"))
    files = [file["path"] for file in summary.files]

    def part(wanted: int) -> Prepared:
        index = np.flatnonzero(side == wanted)
        return Prepared(rows.select(index), lengths[index], targets[index], units[index], summary.labels, files, summary.labels_met)

    return part(TRAIN), part(VALIDATION)


def describe_file(path: Path) -> dict[str, Any]:
    """Path, SHA-256 and size of a file; of a directory, over its files and their names in order. Raises DataError where it cannot be."""
    digest, size = hashlib.sha256(), 0
    try:
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not part.is_dir():
                bytes_of_part = part.stat().st_size
                size += bytes_of_part
                if part != path:
                    digest.update(f"{part.relative_to(path).as_posix()}\0{bytes_of_part}\0".encode(errors="surrogateescape"))
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", "paths in a job file are relative to the job file") from error
    return {"path": str(path), "sha256": digest.hexdigest(), "bytes": size, "rows": 0}


def _key(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, files: list[dict[str, Any]]) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    files = [{**file, "rows": None} for file in files]
    writing = [vocabulary, tokenizer.special_tokens_map, tokenizer.chat_template, PLAIN_TEMPLATE]
    parts = [_FORMAT_VERSION, data.model_dump(mode="json"), task, max_length, files, *writing]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def contents(data: DataConfig, task: Task, path: Path) -> Iterator[tuple[Row, Content | BadRow]]:
    """Every row of a file with what it says, or why it cannot be read. The first rows together decide the layout."""
    rows = read_rows(path)
    first = list(itertools.islice(rows, _ROWS_TOGETHER))
    layout = _layout(first, data, task, path)
    for row in itertools.chain(first, rows):
        if row.values is None:
            yield row, BadRow(row.problem)
            continue
        layout = layout or recognise(list(row.values), data, task, file=path)
        try:
            content = to_content(row.values, layout, task, system_prompt=data.system_prompt)
        except BadRow as problem:
            yield row, problem
            continue
        known = not data.labels or not isinstance(content, Labelled) or content.label in data.labels
        yield row, content if known else BadRow("unknown label: it is none of data.labels")


def _layout(first: Sequence[Row], data: DataConfig, task: Task, path: Path) -> Layout | None:
    names = list(dict.fromkeys(name for row in first for name in row.values or ()))
    return recognise(names, data, task, file=path) if names else None


def _format(data: DataConfig, task: Task, path: Path) -> str | None:
    """The format of a file's rows, as `contents` reads them."""
    layout = _layout(list(itertools.islice(read_rows(path), _ROWS_TOGETHER)), data, task, path)
    return layout.format if layout else None


@dataclass(frozen=True)
class Outcome:
    """What became of a row: examples of one side of the split, or a problem."""

    file: int
    """Place in the files of `train` and `validation` together"""
    row: Row
    examples: list[Encoded]
    side: int = TRAIN
    problem: BadRow | None = None


def outcomes(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Iterator[Outcome]:
    """Every row of every file in order, encoded; a few hundred are in memory at a time. Raises DataError for a file as a whole."""
    truncate = data.over_length == "truncate"
    learnt_from: set[bytes] = set()
    for file, path in enumerate([*data.train, *data.validation]):
        rows = contents(data, task, path)
        while batch := list(itertools.islice(rows, _ROWS_TOGETHER)):
            encoded = encode([content for _, content in batch], tokenizer, max_length=max_length, truncate=truncate)
            for (row, content), examples in zip(batch, encoded, strict=True):
                yield _outcome(data, file, row, content, examples, learnt_from)


def _outcome(
    data: DataConfig, file: int, row: Row, content: Content | BadRow, examples: list[Encoded] | BadRow, learnt_from: set[bytes]
) -> Outcome:
    if isinstance(examples, BadRow):
        return Outcome(file, row, [], problem=examples)
    assert not isinstance(content, BadRow)
    try:
        return Outcome(file, row, examples, _side(data, file, row, content, learnt_from))
    except BadRow as problem:
        return Outcome(file, row, [], problem=problem)


def _side(data: DataConfig, file: int, row: Row, content: Content, learnt_from: set[bytes]) -> int:
    """Of the split. `learnt_from` collects the groups of the training files, of which no validation file may have one. Raises BadRow."""
    if not data.validation:
        key = split_key(row.values or {}, content, data.group_by)
        return VALIDATION if in_validation(key, data.validation_fraction) else TRAIN
    side = VALIDATION if file >= len(data.train) else TRAIN
    if data.group_by is not None:
        group = hashlib.sha256(split_key(row.values or {}, content, data.group_by).encode()).digest()
        if side == TRAIN:
            learnt_from.add(group)
        elif group in learnt_from:
            raise BadRow(f"on both sides: {data.group_by!r} of this validation row is that of a training row")
    return side


def _examples(
    data: DataConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    summary: Summary,
    *,
    max_length: int,
    progress: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    met: dict[str, int] = {}
    numbers: dict[bytes, int] = {}
    for done, outcome in enumerate(outcomes(data, task, tokenizer, max_length=max_length), 1):
        summary.files[outcome.file]["rows"] += 1
        if outcome.problem:
            _note_bad(data, outcome.row, outcome.problem, summary)
            continue
        summary.train_rows += outcome.side == TRAIN
        summary.validation_rows += outcome.side == VALIDATION
        unit = numbers.setdefault(_unit(data, outcome), len(numbers))
        for example in outcome.examples:
            summary.truncated += example.cut > 0
            yield _record(example, task, met, unit=unit, file=outcome.file, line=outcome.row.line, side=outcome.side)
        if done % _ROWS_TOGETHER == 0:
            progress(done)
    summary.labels_met = list(met)


def _unit(data: DataConfig, outcome: Outcome) -> bytes:
    """Of `group_by`'s value where there is one, else the row's own; a digest, as there may be millions."""
    values = outcome.row.values or {}
    own = f"{outcome.file}:{outcome.row.line}" if data.group_by is None else group_name(values, data.group_by)
    return hashlib.sha256(own.encode()).digest()


def _record(example: Encoded, task: Task, met: dict[str, int], *, unit: int, file: int, line: int, side: int) -> dict[str, Any]:
    label = met.setdefault(example.label, len(met)) if task == "classify" else 0
    targets = 1 if task == "classify" else sum(example.learnt[1:])
    return {"ids": example.ids, "learnt": example.learnt, "length": len(example.ids), "targets": targets,
            "label": label, "unit": unit, "file": file, "line": line, "side": side}  # fmt: skip


def _write(examples: Iterator[dict[str, Any]], path: Path) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    numbers = {name: Value("int32") for name in ("length", "targets", "label", "unit", "file", "line")}
    features = Features({"ids": List(Value("int32")), "learnt": List(Value("bool")), **numbers, "side": Value("int8")})
    with ArrowWriter(path=str(path), features=features) as writer:
        for example in examples:
            writer.write(example)
        writer.finalize()
    path.chmod(0o600)


def _note_bad(data: DataConfig, row: Row, problem: BadRow, summary: Summary) -> None:
    summary.bad += 1
    if len(summary.bad_rows) < _BAD_ROWS_SHOWN:
        summary.bad_rows.append(f"{row.file}:{row.line}: {problem}")
    if data.on_bad_row == "error" and summary.bad >= _BAD_ROWS_SHOWN:
        _refuse(data, summary)


def _refuse(data: DataConfig, summary: Summary) -> None:
    if summary.bad and data.on_bad_row == "error":
        count = f"{summary.bad} or more bad rows" if summary.bad >= _BAD_ROWS_SHOWN else f"{summary.bad} bad row{'s' * (summary.bad > 1)}"
        listed = "".join(f"\n  {line}" for line in summary.bad_rows)
        raise DataError(f"{count}:{listed}", _bad_row_hint(summary))
    if not summary.train_rows:
        raise DataError("no row to train on", f"{summary.bad} bad rows were skipped" if summary.bad else "the files are empty")


def _refuse_changed(summary: Summary) -> None:
    """The hash speaks of what was read only where it is the same afterwards."""
    for file in summary.files:
        if describe_file(Path(file["path"]))["sha256"] != file["sha256"]:
            raise DataError(f"{file['path']} changed while it was read", "train again when nothing writes to it any more")


def _bad_row_hint(summary: Summary) -> str:
    if all("over length" in line for line in summary.bad_rows):
        return "raise data.max_length, or set data.over_length: truncate, or data.on_bad_row: skip"
    return "mend the rows, or leave them out with data.on_bad_row: skip; `consortium data inspect` shows them all"
