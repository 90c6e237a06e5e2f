"""Rows of one file dealt to banks, for simulations. A unit, which is a customer or else a row, is never at two banks.

iid            at random, as many units to each bank
dirichlet:A    as many to each bank too, of classes that the bank likes: its shares of the classes are drawn from a Dirichlet
               distribution around those of all units (Hsu et al. 2019, arXiv 1909.06335, section 3). A is its parameter for a class of
               average size: the smaller, the less banks have in common. Of a class that is used up a bank takes another that it likes,
               and when there is none, what is left.
by:COLUMN      units with one value of the column together, the values dealt so that banks become about as large
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from federation.errors import FactsError
from trainers.config import DataConfig, Task
from trainers.data.formats import BadRow, Labelled, group_name
from trainers.data.prepare import contents
from trainers.errors import DataError

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Partition:
    kind: Literal["iid", "dirichlet", "by"]
    alpha: float = 1.0
    """Of dirichlet"""
    column: str = ""
    """Of by"""

    @staticmethod
    def parse(text: str) -> "Partition":
        """Raises FactsError."""
        kind, _, value = text.partition(":")
        match kind:
            case "iid" if not value:
                return Partition("iid")
            case "by" if value:
                return Partition("by", column=value)
            case "dirichlet":
                try:
                    if 0 < (alpha := float(value)) < float("inf"):
                        return Partition("dirichlet", alpha)
                except ValueError:
                    pass
        raise FactsError(f"partition {text}: expected iid, dirichlet:ALPHA or by:COLUMN", "as in dirichlet:0.5 or by:region")


@dataclass(frozen=True)
class Share:
    """What is dealt to one bank."""

    rows: Sequence[Values]
    """As the file has them"""
    units: int


def split(path: Path, how: Partition, banks: int, *, task: Task, unit: str | None, seed: int) -> list[Share]:
    """The rows of a file, in their order at each bank. `unit` is the column that tells customers apart; None takes each row for itself.

    Raises DataError for rows that cannot be read, FactsError where they cannot be dealt.
    """
    columns = {"--partition by:": how.column, "--unit ": unit}
    units: dict[str, list[int]] = {}
    rows: list[Values] = []
    kinds: list[str] = []
    for number, (row, content) in enumerate(contents(DataConfig(train=[path]), task, path)):
        values = row.values or {}
        try:
            if isinstance(content, BadRow):
                raise content
            if missing := [f"{option}{column}" for option, column in columns.items() if column and column not in values]:
                raise FactsError(f"{missing[0]}: {row.file}:{row.line} has no such column", f"it has {', '.join(map(str, values))}")
            units.setdefault(group_name(values, unit) if unit else str(number), []).append(number)
            kinds.append(_kind(how, values, content))
        except BadRow as problem:
            raise DataError(f"{row.file}:{row.line}: {problem}", "mend the row, or leave it out") from problem
        rows.append(values)
    if len(units) < banks:
        raise FactsError(f"{path}: {len(units)} units for {banks} banks", "each bank has one at least")
    of_units = [Counter(kinds[number] for number in numbers).most_common(1)[0][0] for numbers in units.values()]
    dealt = deal(how, of_units, banks, np.random.default_rng(seed))
    mine: list[list[int]] = [[] for _ in range(banks)]
    for bank, numbers in zip(dealt, units.values(), strict=True):
        mine[bank] += numbers
    return [Share([rows[number] for number in sorted(mine[bank])], int((dealt == bank).sum())) for bank in range(banks)]


def deal(how: Partition, kinds: Sequence[str], banks: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which bank each unit is at. `kinds` are the units' classes, or their values of the column. Raises FactsError."""
    match how.kind:
        case "iid":
            return random.permutation(len(kinds)) % banks
        case "dirichlet":
            return _by_liking(how.alpha, kinds, banks, random)
        case "by":
            return _together(how.column, kinds, banks)


def _by_liking(alpha: float, kinds: Sequence[str], banks: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    classes, counts = np.unique(kinds, return_inverse=True, return_counts=True)[1:]
    likings = random.dirichlet(alpha * counts / counts.mean(), size=banks)
    pools = [[*random.permutation(np.flatnonzero(classes == number))] for number in range(len(counts))]
    dealt, left = np.empty(len(kinds), np.int64), counts.astype(np.float64)
    for turn in range(len(kinds)):
        liked = likings[turn % banks] * (left > 0)
        shares = liked if liked.any() else left
        chosen = random.choice(len(left), p=shares / shares.sum())
        dealt[pools[chosen].pop()] = turn % banks
        left[chosen] -= 1
    return dealt


def _together(column: str, kinds: Sequence[str], banks: int) -> npt.NDArray[np.int64]:
    counts = Counter(kinds)
    if len(counts) < banks:
        raise FactsError(f"{column} has {len(counts)} values for {banks} banks", "a bank has one at least: fewer banks, or another column")
    sizes, place = [0] * banks, dict[str, int]()
    for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        place[value] = sizes.index(min(sizes))
        sizes[place[value]] += count
    return np.array([place[kind] for kind in kinds])


def _kind(how: Partition, values: Values, content: object) -> str:
    match how.kind:
        case "by":
            return group_name(values, how.column)
        case "dirichlet":
            if not isinstance(content, Labelled):
                raise FactsError("dirichlet deals rows by their classes, and these have none", "by:COLUMN deals them by any column")
            return content.label
        case "iid":
            return ""
