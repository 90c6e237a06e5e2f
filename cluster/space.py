"""What a search may try: `space.yaml` maps fields of a job to ranges. Imports no torch and no ray.

    seed: 0
    train.learning_rate: {loguniform: [1e-5, 1e-3]}
    method.rank: {choice: [8, 16, 32]}

Points are drawn here and not by Ray, a function of seed and number: a search that is continued, or made longer, tries the same points.
"""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from cluster.job import JobSpec, absolute, as_number, read_yaml, set_field
from trainers.config import validate
from trainers.errors import ConfigError

Kind = Literal["uniform", "loguniform", "choice", "randint"]
Point = dict[str, Any]

_FIXED = ("name", "output", "cluster", "tracking", "checkpoint", "task", "data.train", "data.validation", "data.validation_fraction",
          "data.group_by")  # fmt: skip
_EXAMPLES: dict[Kind, str] = {
    "uniform": "{uniform: [0.0, 0.1]}",
    "loguniform": "{loguniform: [1e-5, 1e-3]}",
    "choice": "{choice: [8, 16, 32]}",
    "randint": "{randint: [1, 4]}",
}
_DRAWS_A_POINT = 100
_DIGITS = 4
_LARGEST = 1e18


@dataclass(frozen=True)
class Range:
    """`values` are the choices, or the two ends; both ends of a `randint` can be drawn."""

    kind: Kind
    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        low, high = self.values[0], self.values[-1]
        match self.kind:
            case "uniform":
                return _rounded(rng.uniform(low, high))
            case "loguniform":
                return _rounded(math.exp(rng.uniform(math.log(low), math.log(high))))
            case "randint":
                return int(rng.integers(low, high, endpoint=True))
            case "choice":
                return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class Space:
    seed: int
    ranges: Mapping[str, Range]

    def points(self, count: int) -> list[Point]:
        """The first `count` different points; fewer where there are no more."""
        found: dict[str, Point] = {}
        for number in range(_DRAWS_A_POINT * count):
            if len(found) == count:
                break
            rng = np.random.default_rng([self.seed, number])
            point = {name: values.draw(rng) for name, values in self.ranges.items()}
            found.setdefault(json.dumps(point), point)
        return list(found.values())

    def as_dict(self) -> dict[str, Any]:
        """As the file has it."""
        return {"seed": self.seed, **{name: {values.kind: list(values.values)} for name, values in self.ranges.items()}}


def read_space(path: Path, job: JobSpec) -> Space:
    """The space of a file, each end and each choice of it tried on the job.

    Raises ConfigError: no such field (with the nearest name), not a range, or a value the field does not take.
    """
    values = read_yaml(path, "a space file maps fields to ranges, as in train.learning_rate: {loguniform: [1e-5, 1e-3]}")
    seed = values.pop("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"{path}: seed: expected a whole number of at least 0, got {seed}")
    ranges = {str(name): _range(f"{path}: {name}", body) for name, body in values.items()}
    if not ranges:
        raise ConfigError(f"{path}: no field to search", "as in train.learning_rate: {loguniform: [1e-5, 1e-3]}")
    for name, tried in ranges.items():
        if above := next((other for other in ranges if name.startswith(f"{other}.")), None):
            raise ConfigError(f"{path}: {name} and {above} are both searched, and one would undo the other", "keep one of them")
        if fixed := next((fixed for fixed in _FIXED if name == fixed or name.startswith(f"{fixed}.")), None):
            raise ConfigError(f"{path}: {name} cannot be searched", f"{fixed} says where a trial runs or what it is judged by")
        for value in tried.values:
            at_point(job, {name: value}, source=path)
    return Space(seed, ranges)


def at_point(job: JobSpec, point: Point, *, source: Path) -> JobSpec:
    """The job with the fields of a point set, paths among them relative to the space file `source`. Raises ConfigError."""
    values = job.model_dump()
    for name, value in point.items():
        set_field(values, name, value)
    return absolute(validate(JobSpec, values, source=str(source)), source.resolve().parent)


def _range(where: str, body: Any) -> Range:
    known = get_args(Kind)
    if not isinstance(body, Mapping) or len(body) != 1:
        raise ConfigError(f"{where}: expected one of {', '.join(known)} with its values, got {json.dumps(body, default=str)}",
                          "as in {choice: [8, 16, 32]}")  # fmt: skip
    kind, values = next(iter(body.items()))
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=1)
        raise ConfigError(f"{where}: unknown kind of range {kind}" + (f", did you mean {near[0]}?" if near else ""),
                          f"there are {', '.join(known)}")  # fmt: skip
    values = [as_number(value) for value in values] if isinstance(values, list) else values
    if problem := _problem(cast(Kind, kind), values):
        raise ConfigError(f"{where}: {kind}: {problem}, got {json.dumps(values, default=str)}", f"as in {_EXAMPLES[cast(Kind, kind)]}")
    return Range(cast(Kind, kind), tuple(values))


def _problem(kind: Kind, values: Any) -> str:
    """What is wrong with the values of a range; empty if nothing is."""
    if not isinstance(values, list) or not values:
        return "expected a list of values"
    if kind == "choice":
        return ""
    wanted = (int,) if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(value, wanted) and not isinstance(value, bool) and abs(value) < _LARGEST for value in values):
        return f"expected two {'whole ' if kind == 'randint' else ''}numbers below {_LARGEST:g}"
    if not values[0] < values[1]:
        return "expected the lower end first"
    return "expected numbers above 0" if kind == "loguniform" and values[0] <= 0 else ""


def _rounded(value: float) -> float:
    """To what a person would write."""
    return float(f"{value:.{_DIGITS}g}")
