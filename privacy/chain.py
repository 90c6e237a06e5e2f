"""Lines that are only ever added to a file: one JSON object each, chained to the line before it by SHA-256.

What has been added is on disk when the function returns. A line torn by a crash had not been relied on: who reads leaves it out, who writes
cuts it off. Like a ledger's, the chain shows changed, lost, added and swapped lines. It shows neither that an end was cut off, nor that
someone who may write to the file calculated the chain anew: for this others keep a note of a hash.
"""

import fcntl
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy import disk
from privacy.errors import ConsortiumError
from privacy.secagg.codec import hashed

Row = dict[str, Any]
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What lines raise that somebody has changed"""


@dataclass(frozen=True)
class End:
    """Where a file's whole lines end."""

    size: int = 0
    """Bytes"""
    hash: bytes = b""
    """Of the last line; stands for all up to it"""


START = End()


def follow(path: Path, error: type[ConsortiumError]) -> tuple[list[Row], End]:
    """The whole lines, none where there is no file, and their end. Raises `error`, naming the first line that does not follow from the one
    before."""
    rows, end = list[Row](), START
    try:
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
            row, claimed = parse(line)
            if (hash := link(end.hash, row)) != claimed:
                raise ValueError("its hash does not follow from the line before it")
            rows.append(row)
            end = End(end.size + len(line) + 1, hash)
    except BROKEN as cause:
        raise error(f"{path}, line {len(rows) + 1}: {cause}", "it proves nothing any more: find out who wrote to it") from cause
    return rows, end


def mapped(path: Path) -> mmap.mmap | bytes:
    """A file whose lines are to be looked at from its end; empty where there is none."""
    if not path.exists() or not path.stat().st_size:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def backwards(data: mmap.mmap | bytes) -> Iterator[bytes]:
    """The whole lines, the last first."""
    end = data.rfind(b"\n")
    while end >= 0:
        start = data.rfind(b"\n", 0, end) + 1
        yield data[start:end]
        end = start - 1


def add(path: Path, end: End, rows: Iterable[Row]) -> End:
    """Put rows after `end`, where the file's whole lines end. For the one process that writes; raises OSError."""
    start, lines = end, list[bytes]()
    for row in rows:
        hash = link(end.hash, row)
        lines.append(json.dumps(row | {"hash": hash.hex()}, allow_nan=False).encode() + b"\n")
        end = End(end.size + len(lines[-1]), hash)
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+b") as file:
        file.truncate(start.size)  # where a crash or a full disk left half of the lines
        file.seek(start.size)
        file.write(b"".join(lines))
        file.flush()
        os.fsync(file.fileno())
    if not start.size:
        disk.sync(path.parent)
    return end


def append(path: Path, rows: Iterable[Row], error: type[ConsortiumError]) -> None:
    """Put rows at the end, where other processes may do the same. Raises `error`, OSError."""
    with open(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        add(path, follow(path, error)[1], rows)


def parse(line: bytes) -> tuple[Row, bytes]:
    """What a line says, and the hash it claims."""
    row = json.loads(line)
    return row, bytes.fromhex(row.pop("hash"))


def link(before: bytes, row: Row) -> bytes:
    """The hash of a row after the line of hash `before`."""
    return hashed("line", before, json.dumps(row, sort_keys=True).encode())
