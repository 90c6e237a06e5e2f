"""What is in a file that should not be: personal data and secrets, rows twice, rows of the test set, and classes hardly there."""

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.pii import NameFinder, find
from privacy.pii_rules import Kind
from trainers.config import DataConfig, Task
from trainers.data.duplicates import Fingerprint, Index, Match, fingerprint
from trainers.data.formats import BadRow, Content, Labelled, Row, in_validation, read_rows, split_key
from trainers.errors import DataError

_PROSE = 3
"""Words from which a field is taken for text and not for an id, a label or a role."""


_UNLABELLED = "(none)"


@dataclass(frozen=True)
class Place:
    """Where something was found. The value itself is nowhere in an audit."""

    kind: Kind
    row: str
    """file:line"""
    column: str
    masked: str


@dataclass(frozen=True)
class Repeat:
    """A row that says what another one says."""

    row: str
    of: str
    similarity: float
    exact: bool
    """The same words in the same order"""


@dataclass(frozen=True)
class Leakage:
    """Test rows that are also in the training rows."""

    test_rows: int
    repeats: list[Repeat]


@dataclass(frozen=True)
class Balance:
    """Rows by class, most common first."""

    counts: dict[str, int]
    entropy: float
    """In bits"""
    evenness: float
    """Of the entropy that equal classes would have; 1 for a single class"""


@dataclass(frozen=True)
class Audit:
    """Of one file. `rows` are those that could be read."""

    file: str
    rows: int
    broken: int
    places: list[Place]
    repeats: list[Repeat]
    leakage: Leakage | None
    balance: Balance | None
    names_looked_for: bool

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind, and DUPLICATES and LEAKAGE: what can be failed on."""
        leaked = len(self.leakage.repeats) if self.leakage else 0
        found = Counter(str(place.kind) for place in self.places)
        return {**{kind: found[kind] for kind in Kind}, "DUPLICATES": len(self.repeats), "LEAKAGE": leaked}


def audit(
    file: Path,
    *,
    against: Sequence[Path] = (),
    job: tuple[DataConfig, Task] | None = None,
    label: str | None = None,
    names: NameFinder | None = None,
) -> Audit:
    """Read every row of a file. Test rows are those of `against`, else of the job's validation files, else of the job's split of this file.

    Raises DataError for a file as a whole, and for a label column that is not there.
    """
    tests = list(against) or (job[0].validation if job else [])
    tally = _Tally(names, label)
    for row, content in _contents(file, job):
        held_out = job is not None and not tests and _is_held_out(row, content, job[0])
        tally.add(row, content, held_out=held_out)
    for path in tests:
        for row in read_rows(path):
            tally.add_test(row)
    has_tests = bool(tests) or (job is not None and job[0].validation_fraction > 0)
    return tally.result(file, has_tests=has_tests)


def _contents(file: Path, job: tuple[DataConfig, Task] | None) -> Iterator[tuple[Row, Content | BadRow | None]]:
    if job is None:
        yield from ((row, None) for row in read_rows(file))
        return
    from trainers.data.prepare import contents

    yield from contents(*job, file)


def _is_held_out(row: Row, content: Content | BadRow | None, data: DataConfig) -> bool:
    """As training would split this file. A row that it would drop is on no side; here it counts as one to train on."""
    if content is None or isinstance(content, BadRow) or row.values is None:
        return False
    try:
        return in_validation(split_key(row.values, content, data.group_by), data.validation_fraction)
    except BadRow:
        return False


@dataclass
class _Tally:
    names: NameFinder | None
    label: str | None
    rows: int = 0
    broken: int = 0
    places: list[Place] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    known_names: set[str] = field(default_factory=set)
    trained: Index = field(default_factory=Index)
    tests: list[tuple[str, Fingerprint]] = field(default_factory=list)

    def add(self, row: Row, content: Content | BadRow | None, *, held_out: bool) -> None:
        if row.values is None:
            self.broken += 1
            return
        self.rows += 1
        self._look_at(row, row.values)
        self._count_label(row.values, content)
        if held_out:
            self.add_test(row)
        elif text := fingerprint(prose(row.values)):
            if match := self.trained.find(text):
                self.repeats.append(_repeat(_place(row), match))
            self.trained.add(text, _place(row))

    def add_test(self, row: Row) -> None:
        if row.values is not None and (text := fingerprint(prose(row.values))):
            self.tests.append((_place(row), text))

    def _look_at(self, row: Row, values: Mapping[str, Any]) -> None:
        for name in field_names(values):
            if name not in self.known_names:
                self.known_names.add(name)
                self._find(row, name, column="(name of a field)", field="")
        for column, name, text in texts(values):
            self._find(row, text, column=column, field=name)

    def _find(self, row: Row, text: str, *, column: str, field: str) -> None:
        for finding in find(text, field=field, names=self.names):
            self.places.append(Place(finding.kind, _place(row), column, finding.masked))

    def _count_label(self, values: Mapping[str, Any], content: Content | BadRow | None) -> None:
        if self.label is not None:
            self.labels[str(values[self.label]) if values.get(self.label) is not None else _UNLABELLED] += 1
        elif isinstance(content, Labelled):
            self.labels[content.label] += 1

    def result(self, file: Path, *, has_tests: bool) -> Audit:
        if self.label is not None and set(self.labels) == {_UNLABELLED}:
            near = difflib.get_close_matches(self.label, self.known_names, n=1)
            raise DataError(
                f"{file}: no row has a column {self.label!r} (there are: {', '.join(sorted(self.known_names))})",
                f"did you mean {near[0]!r}?" if near else "--label names the column of the classes",
            )
        matches = [(place, self.trained.find(text)) for place, text in self.tests]
        leaked = [_repeat(place, match) for place, match in matches if match is not None]
        return Audit(
            file=str(file),
            rows=self.rows,
            broken=self.broken,
            places=self.places,
            repeats=self.repeats,
            leakage=Leakage(len(self.tests), leaked) if has_tests else None,
            balance=_balance(self.labels) if self.labels else None,
            names_looked_for=self.names is not None,
        )


def _place(row: Row) -> str:
    return f"{row.file}:{row.line}"


def _repeat(place: str, match: Match) -> Repeat:
    return Repeat(place, match.place, round(match.similarity, 3), match.exact)


def _balance(labels: Counter[str]) -> Balance:
    total = labels.total()
    entropy = sum(count / total * math.log2(total / count) for count in labels.values())
    return Balance(dict(labels.most_common()), entropy, entropy / math.log2(len(labels)) if len(labels) > 1 else 1.0)


def texts(value: Any, column: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text in the values of a row, and every whole number as one: place (`messages[2].content`), field's name, text."""
    match value:
        case str():
            yield column, name, value
        case int() if not isinstance(value, bool):
            yield column, name, str(value)
        case Mapping():
            for key, inner in value.items():
                yield from texts(inner, f"{column}.{key}" if column else str(key), str(key))
        case list() | tuple():
            for position, inner in enumerate(value):
                yield from texts(inner, f"{column}[{position}]", name)


def field_names(value: Any) -> Iterator[str]:
    """Names of the fields of a row, at every depth."""
    match value:
        case Mapping():
            for key, inner in value.items():
                yield str(key)
                yield from field_names(inner)
        case list() | tuple():
            for inner in value:
                yield from field_names(inner)


def prose(values: Mapping[str, Any]) -> str:
    """What a row says: its texts of three words and more, or all where it has none: ids, labels and roles do not tell rows apart."""
    found = [text for _, _, text in texts(values)]
    return "\n".join([text for text in found if len(text.split()) >= _PROSE] or found)
