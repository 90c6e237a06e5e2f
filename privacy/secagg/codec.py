"""How a message becomes bytes and back: one encoding for each value, and no length believed before it is checked.

Fields follow one another in the order of their dataclass, big-endian:

    int                    8 bytes, two's complement
    float                  8 bytes, IEEE 754, finite
    str                    1 byte of length, then UTF-8, not empty
    Annotated[bytes, n]    n bytes
    memoryview             8 bytes of length, then the bytes: a view on either side, never a copy
    tuple[X, ...]          2 bytes of count, then each
    a frozen dataclass     its fields

Nothing is optional and nothing can be written in two ways, so equal messages are equal bytes, and their hashes can be signed. MessagePack
and CBOR write one number in several ways and leave types and sizes to be checked afterwards: this page would be needed on top of them.
"""

import dataclasses
import hashlib
import math
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from privacy.errors import ProtocolError

Hash = Annotated[bytes, 32]
"""SHA-256"""
Buffer = bytes | memoryview

_DOMAIN = b"consortium secure aggregation 1"
"""The protocol and its version: in everything that is hashed, signed or derived"""
_FLOAT = struct.Struct(">d")


def labelled(what: str, *parts: bytes) -> bytes:
    """Parts with their meaning and lengths, so that no two meanings and no two divisions of the same bytes are alike."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in (_DOMAIN, what.encode(), *parts))


def hashed(what: str, *parts: bytes) -> bytes:
    """SHA-256 of the same."""
    return hashlib.sha256(labelled(what, *parts)).digest()


def names(banks: Iterable[str]) -> bytes:
    """Names of banks, to be hashed."""
    return labelled("banks", *(bank.encode() for bank in banks))


def encode(value: Any, kind: Any) -> Iterator[Buffer]:
    """The pieces of a value's encoding, in order."""
    if kind is int:
        if not -(2**63) <= value < 2**63:
            raise ProtocolError(f"the number {value} cannot be written: expected -2^63 to 2^63 - 1")
        yield value.to_bytes(8, "big", signed=True)
    elif kind is float:
        yield _FLOAT.pack(value)
    elif kind is str:
        text = value.encode()
        if not 0 < len(text) < 256:
            raise ProtocolError(f"the name {value[:40]!r} takes {len(text)} bytes, expected 1 to 255")
        yield len(text).to_bytes(1, "big")
        yield text
    elif kind is memoryview:
        yield len(value).to_bytes(8, "big")
        yield value
    elif get_origin(kind) is Annotated:
        assert len(value) == get_args(kind)[1]
        yield value
    elif get_origin(kind) is tuple:
        yield len(value).to_bytes(2, "big")
        for item in value:
            yield from encode(item, get_args(kind)[0])
    else:
        yield from encode_fields(value, kind)


def encode_fields(value: Any, kind: Any, without: str = "") -> Iterator[Buffer]:
    """A dataclass, but for one of its fields."""
    for name, inner in _fields(kind):
        if name != without:
            yield from encode(getattr(value, name), inner)


def decode(data: Buffer, kind: Any) -> Any:
    """The value that `encode` made these bytes of; ProtocolError if it made others."""
    reader = _Reader(data)
    value = reader.read(kind)
    if len(reader.left):
        raise ProtocolError(f"{len(reader.left)} bytes too many", "a message is one encoding, whole")
    return value


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Names and types, in the order they are written."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(kind))


class _Reader:
    def __init__(self, data: Buffer) -> None:
        self.left = memoryview(data)

    def take(self, count: int) -> memoryview:
        if count > len(self.left):
            raise ProtocolError(f"cut short: {count} bytes expected, {len(self.left)} left", "was the message truncated on its way?")
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def read(self, kind: Any) -> Any:
        if kind is int:
            return int.from_bytes(self.take(8), "big", signed=True)
        if kind is float:
            return self.real()
        if kind is str:
            return self.text()
        if kind is memoryview:
            return self.take(self.number(8)).toreadonly()
        if get_origin(kind) is Annotated:
            return bytes(self.take(get_args(kind)[1]))
        if get_origin(kind) is tuple:
            return tuple(self.read(get_args(kind)[0]) for _ in range(self.number(2)))
        return kind(**{name: self.read(inner) for name, inner in _fields(kind)})

    def real(self) -> float:
        (value,) = _FLOAT.unpack(self.take(8))
        if not math.isfinite(value):
            raise ProtocolError(f"expected a finite number, got {value}")
        return float(value)

    def text(self) -> str:
        try:
            if text := str(self.take(self.number(1)), "utf-8"):
                return text
        except UnicodeDecodeError as error:
            raise ProtocolError("a name that is not UTF-8") from error
        raise ProtocolError("an empty name")
