"""What is wrong with a job file, in words for the person who wrote it: pydantic's errors, one line for each mistake.

pydantic reports a value that fits no member of a union once for every member, under names of its own. Here a mistake has the path the user
wrote, and what was expected is read from the field's type.
"""

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_NOUNS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
}
_LIMITS = (("ge", "of at least"), ("gt", "above"), ("le", "of at most"), ("lt", "below"))
_UNKNOWN = ("extra_forbidden", "invalid_key")
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class _Expected:
    """A field's type, its limits, and its own words for both if it has any."""

    type: Any
    limits: tuple[Any, ...] = ()
    description: str | None = None


@dataclass(frozen=True)
class _Place:
    path: tuple[str, ...]
    block: Any
    """Type of what holds the last name of `path`"""
    expected: _Expected
    value: Any


def explain(model: type[BaseModel], values: Any, error: ValidationError) -> list[str]:
    """A line for each mistake in `values`: the field, what is expected there, what came."""
    problems = [(problem, _locate(model, values, problem)) for problem in error.errors()]
    meant = {place.path: _nearest(model, place) for problem, place in problems if problem["type"] in _UNKNOWN}
    lines = []
    for problem, place in problems:
        if problem["type"] == "missing" and place.path in meant.values():
            continue  # it is there, misspelt
        lines.append(_unknown(place.path, meant[place.path]) if place.path in meant else _line(problem, place))
    return list(dict.fromkeys(lines))


def _unknown(path: tuple[str, ...], meant: tuple[str, ...]) -> str:
    return f"unknown field {'.'.join(path)}" + (f", did you mean {'.'.join(meant)}?" if meant else "")


def _line(problem: Mapping[str, Any], place: _Place) -> str:
    field = ".".join(place.path) or "job"
    match problem["type"]:
        case "missing" if _is_model(place.block):
            return f"{field} is required"
        case "value_error":
            return str(problem["ctx"]["error"])
        case _:
            return f"{field}: expected {_in_words(place.expected)}, got {_shown(place.value)}"


def _locate(model: type[BaseModel], values: Any, problem: Mapping[str, Any]) -> _Place:
    """Follow pydantic's location through types and values alike; the branches of unions in it are not in the user's file."""
    place = _Place((), None, _Expected(model), values)
    for part in problem["loc"]:
        members = [member for member in _members(place.expected.type) if member is not types.NoneType]
        if len(members) > 1:
            tagged = [member for member in members if part in _tags(member)]
            if not tagged:  # a union of plain values: what fits none of them is one mistake
                return place
            written = isinstance(place.value, Mapping) and part in place.value
            path, value = ((*place.path, part), place.value[part]) if written else (place.path, place.value)
            place = _Place(path, tagged[0], _Expected(tagged[0]), value)
            continue
        inner = _inside(members[0], part)
        if problem["type"] == "missing" and not _is_model(members[0]):  # a tuple too short
            return _Place(place.path, members[0], place.expected, place.value)
        if inner is None and problem["type"] not in _UNKNOWN:
            return _Place(place.path, place.block, place.expected, problem["input"])
        value = _item(place.value, part, otherwise=problem["input"])
        place = _Place((*place.path, str(part)), members[0], inner or _Expected(Any), value)
    return place


def _nearest(model: type[BaseModel], place: _Place) -> tuple[str, ...]:
    """The field meant by a name that is not one; empty if there is none like it."""
    *above, name = place.path
    names = list(place.block.model_fields) if _is_model(place.block) else []
    if not above and (elsewhere := [path for path in _paths(model) if path[-1] == name]):
        return elsewhere[0]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.65)
    return (*above, near[0]) if near else ()


def _in_words(expected: _Expected) -> str:
    if expected.description:
        return expected.description
    *first, last = dict.fromkeys(_alternatives(expected.type, expected.limits))
    return f"{', '.join(first)} or {last}" if first else last


def _alternatives(kind: Any, limits: tuple[Any, ...]) -> Iterator[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if len(members := _members(kind)) > 1:
        for member in members:
            inner = _expected(member)
            if inner.description:
                yield inner.description
            else:
                yield from _alternatives(inner.type, inner.limits or limits)
    elif origin is Literal:
        yield from map(_plain, arguments)
    elif kind is types.NoneType:
        yield "null"
    elif kind is bool:
        yield from ("true", "false")
    elif origin is list:
        yield ("a non-empty list of " if any(isinstance(limit, annotated_types.MinLen) for limit in limits) else "a list of ") + _many(
            arguments[0]
        )
    elif origin is tuple:
        yield f"a list of {len(arguments)} {_many(arguments[0])}"
    elif _is_model(kind):
        names = list(kind.model_fields)
        yield f"a block of fields ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
    elif origin is dict:
        yield "a block of names and values"
    else:
        yield _NOUNS.get(kind, (str(kind), ""))[0] + _limits(limits)


def _many(kind: Any) -> str:
    inner = _expected(kind)
    return _NOUNS.get(inner.type, ("", "values"))[1] + _limits(inner.limits)


def _limits(limits: tuple[Any, ...]) -> str:
    found = [f"{words} {getattr(limit, name)}" for limit in limits for name, words in _LIMITS if hasattr(limit, name)]
    return f" {' and '.join(found)}" if found else ""


def _expected(annotation: Any) -> _Expected:
    """Of a field or a type expression, `Annotated` taken apart."""
    if isinstance(annotation, FieldInfo):
        inner = _expected(annotation.annotation)
        return _Expected(inner.type, (*inner.limits, *annotation.metadata), annotation.description or inner.description)
    if typing.get_origin(annotation) is not Annotated:
        return _Expected(annotation)
    kind, *extras = typing.get_args(annotation)
    limits = [limit for extra in extras for limit in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    described = [extra.description for extra in extras if isinstance(extra, FieldInfo) and extra.description]
    return _Expected(kind, tuple(limits), described[0] if described else None)


def _inside(kind: Any, part: Any) -> _Expected | None:
    """What is expected under the name or number `part` of a block or list."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if _is_model(kind):
        return _expected(kind.model_fields[part]) if part in kind.model_fields else None
    if origin is tuple:
        return _expected(arguments[part]) if part < len(arguments) else None
    return _expected(arguments[-1]) if origin in (list, dict) else None


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _tags(kind: Any) -> set[Any]:
    """What pydantic calls this member of a union of blocks: its name, or the one value of its `type` field."""
    if not _is_model(kind):
        return set()
    literals = [typing.get_args(field.annotation) for field in kind.model_fields.values() if typing.get_origin(field.annotation) is Literal]
    return {kind.__name__, *(values[0] for values in literals if len(values) == 1)}


def _paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a tree of blocks."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for member in _members(field.annotation):
            if _is_model(member):
                yield from _paths(member, (*above, name))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _item(value: Any, part: Any, *, otherwise: Any) -> Any:
    if isinstance(value, Mapping) and part in value:
        return value[part]
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else otherwise


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
