"""A copy of a file with pseudonyms in the place of personal data: rows, their order and all that is not replaced stay as they are."""

import codecs
import csv
import io
import itertools
import json
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from privacy.pii import Finding, NameFinder, find, normalise, pseudonym, replace
from privacy.pii_rules import Kind
from trainers.data.audit import field_names
from trainers.data.formats import delimiter_of, read_rows
from trainers.errors import DataError

_KEY_BYTES = 32


@dataclass
class Tally:
    """Of one kind: two values may share a pseudonym, of 24 bits."""

    findings: int = 0
    values: set[str] = field(default_factory=set)
    pseudonyms: set[str] = field(default_factory=set)


@dataclass
class _Redactor:
    key: bytes
    kinds: tuple[Kind, ...]
    names: NameFinder | None
    tallies: defaultdict[Kind, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def __call__(self, text: str, name: str) -> str:
        """A text of the field `name`, redacted."""
        return replace(text, self.found(text, name), self._pseudonym)

    def found(self, text: str, name: str) -> list[Finding]:
        return find(text, field=name, kinds=self.kinds, names=self.names)

    def _pseudonym(self, finding: Finding) -> str:
        tally, chosen = self.tallies[finding.kind], pseudonym(finding, self.key)
        tally.findings += 1
        tally.values.add(normalise(finding.kind, finding.value))
        tally.pseudonyms.add(chosen)
        return chosen


def load_key(path: Path) -> tuple[bytes, bool]:
    """The key of a file, and whether it was made now: 32 random bytes that only the owner can read. Raises DataError."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path), False
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "the key is made in a directory that is there") from error
    key = secrets.token_bytes(_KEY_BYTES)
    with os.fdopen(file, "wb") as stream:
        stream.write(key)
    return key, True


def _read_key(path: Path) -> bytes:
    try:
        key, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "--key names a file") from error
    if mode & 0o077:
        raise DataError(f"{path}: others than its owner may read the key (mode {mode:o})", f"chmod 600 {path}")
    if len(key) != _KEY_BYTES:
        raise DataError(f"{path}: {len(key)} bytes, expected a key of {_KEY_BYTES}", "name a new file, and a key is made")
    return key


def redact(
    file: Path, output: Path, key: bytes, *, kinds: Iterable[Kind] = tuple(Kind), names: NameFinder | None = None
) -> dict[Kind, Tally]:
    """Write `output`, readable by its owner only, and say what was replaced.

    Raises DataError, and writes nothing, when `output` is there already or of another kind than `file`, when a row cannot be read, and for
    findings that cannot be replaced: in the name of a field, or in a column of numbers of a Parquet file.
    """
    copy = check_paths(file, output)
    redactor = _Redactor(key, tuple(kinds), names)
    _refuse(file, redactor)
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
            copy(file, target, redactor)
        temporary.rename(output)
    except OSError as error:
        raise DataError(f"{output}: {error.strerror}", "OUT is a new file in a directory that is there") from error
    finally:
        temporary.unlink(missing_ok=True)
    return dict(redactor.tallies)


def check_paths(file: Path, output: Path) -> Callable[[Path, BinaryIO, _Redactor], None]:
    """How a file of this kind is copied. Raises DataError where it cannot be."""
    copies = {".jsonl": _copy_jsonl, ".json": _copy_jsonl, ".csv": _copy_csv, ".parquet": _copy_parquet}
    suffix = file.suffix.lower()
    if not file.exists():
        raise DataError(f"{file}: no such file", "expected JSONL, CSV or Parquet")
    if file.is_dir() or suffix not in copies:
        raise DataError(f"{file}: cannot be redacted, expected a file in {', '.join(copies)}", "save a dataset directory as Parquet first")
    if output.suffix.lower() != suffix:
        raise DataError(f"{output}: expected the format of {file}", f"name it {output.with_suffix(suffix)}")
    if output.exists():
        raise DataError(f"{output} is there already", "nothing is written over: name a new file")
    return copies[suffix]


def _refuse(file: Path, redactor: _Redactor) -> None:
    """What cannot be read cannot be redacted, and the name of a field cannot be replaced."""
    known: set[str] = set()
    for row in read_rows(file):
        if row.values is None:
            raise DataError(f"{file}:{row.line}: {row.problem}", "mend the row or take it out: it cannot be redacted as it is")
        for name in set(field_names(row.values)) - known:
            known.add(name)
            if found := redactor.found(name, ""):
                hint = "is the line with the names of the columns missing?" if file.suffix.lower() == ".csv" else "rename the field"
                raise DataError(f"{file}:{row.line}: the name of a field holds {found[0].kind} {found[0].masked}", hint)


# A JSON string and whether it is a key, the ends of objects, and numbers. What is not redacted is copied as it was written.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"(?P<key>\s*+:)?|[{}]|-?\d[\d.eE+-]*+')


def _copy_jsonl(file: Path, target: BinaryIO, redactor: _Redactor) -> None:
    with file.open(encoding="utf-8", newline="") as lines:
        for line in lines:
            target.write(_redact_json(line, redactor).encode())


def _redact_json(line: str, redactor: _Redactor) -> str:
    names = [""]

    def exchange(token: re.Match[str]) -> str:
        text = token[0]
        if text == "{":
            names.append("")
        elif text == "}":
            names.pop()
        elif token["key"]:
            names[-1] = json.loads(text.removesuffix(token["key"]))
        else:
            old = json.loads(text)
            new = old if isinstance(old, float) else redactor(str(old), names[-1])
            return text if new in (old, str(old)) else json.dumps(new, ensure_ascii=False)
        return text

    return _TOKEN.sub(exchange, line)


def _copy_csv(file: Path, target: BinaryIO, redactor: _Redactor) -> None:
    with file.open("rb") as start:
        target.write(codecs.BOM_UTF8 if start.read(3) == codecs.BOM_UTF8 else b"")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
        delimiter = delimiter_of(first)
        records = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
        text = io.TextIOWrapper(target, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n" if first.endswith("\r\n") else "\n")
        header = next(records, [])
        writer.writerow(header)
        for fields in records:
            writer.writerow([redactor(value, name) for value, name in zip(fields, header, strict=False)])
        text.detach()


def _copy_parquet(file: Path, target: BinaryIO, redactor: _Redactor) -> None:
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as source, pyarrow.parquet.ParquetWriter(target, source.schema_arrow) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            for position, schema in enumerate(table.schema):
                old = table.column(position).to_pylist()
                new = [_redact_value(value, schema.name, redactor, file) for value in old]
                if new != old:
                    table = table.set_column(position, schema, pyarrow.array(new, type=schema.type))
            writer.write_table(table)


def _redact_value(value: Any, name: str, redactor: _Redactor, file: Path) -> Any:
    match value:
        case str():
            return redactor(value, name)
        case int() if not isinstance(value, bool):
            if found := redactor.found(str(value), name):
                hint = "save the column as text first: a pseudonym is no number"
                raise DataError(f"{file}: column {name!r} holds {found[0].kind} {found[0].masked} as a number", hint)
            return value
        case Mapping():
            return {key: _redact_value(inner, str(key), redactor, file) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(_redact_value(inner, name, redactor, file) for inner in value)
        case _:
            return value
