"""A bank's account of its sessions: hashes of all it signed, sent and received, each line chained to the one before it.

Nothing in it is secret, so banks exchange these files, past the coordinator, and compare. What one bank signed and another received, and
what the coordinator should have shown to all alike, stands under the same words in both: a difference shows where somebody lied.

One JSON object a line, synced before the answer it speaks of is given out. A line torn by a crash had not been relied on, and is cut off;
it is written again when the session goes on. Like the ledger's, the chain shows changed and lost lines, and not a lost end. It is followed
through the newest session when a transcript is opened, however long that is, and from its beginning by `verify_transcripts`.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from privacy.errors import VaultError
from privacy.secagg.codec import hashed, names
from privacy.secagg.messages import Box, Header, Inbox, KeyList, Message, Online, Receipts, Shares, Signed, Sum, Views

_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What lines raise that somebody has changed"""


@dataclass(frozen=True)
class Fact:
    """Something of a session that is the same for every bank that knows of it."""

    session: str
    exchange: int
    what: str
    digest: str

    def __post_init__(self) -> None:
        if [type(value) for value in astuple(self)] != [str, int, str, str]:
            raise TypeError("a fact that is none")


@dataclass(frozen=True)
class Difference:
    """The first thing on which two transcripts differ."""

    session: str
    exchange: int
    what: str
    banks: tuple[str, str]
    """Whose transcripts"""


def facts(session: bytes, message: Message) -> Iterator[Fact]:
    """What a message says, and what the messages in it say."""

    def fact(what: str, digest: bytes) -> Fact:
        return Fact(session.hex(), message.exchange, what, digest.hex())

    inner: Sequence[Message] = ()
    match message:
        case Header() | Online() | Sum():
            yield fact(type(message).__name__.lower(), message.digest)
        case KeyList():
            yield fact("banks with keys", hashed("banks", names(keys.bank for keys in message.keys)))
            inner = message.keys
        case Shares():
            inner = message.boxes
        case Inbox():
            members = {box.bank for box in message.boxes} | {box.receiver for box in message.boxes}
            yield fact("members", hashed("members", names(sorted(members))))
            inner = message.boxes
        case Views():
            inner = message.views
        case Receipts():
            inner = message.receipts
        case Box():
            yield fact(f"box from {message.bank} to {message.receiver}", message.digest)
        case Signed():
            yield fact(f"{type(message).__name__.lower()} of {message.bank}", message.digest)
    for part in inner:
        yield from facts(session, part)


class Transcript:
    """An open one, written by one process."""

    def __init__(self, path: Path, bank: str) -> None:
        """Opens or makes it. Raises VaultError where it is another bank's, or the chain is broken in the newest session."""
        os.close(os.open(path, os.O_CREAT, 0o600))
        self._path, self._head, self._size = path, b"", _mapped(path).rfind(b"\n") + 1
        if not self._size:
            self._append([{"bank": bank}])
        whose, known, self._head = _read_newest(path)
        if whose != bank:
            raise VaultError(f"{path}: the transcript of {whose}, not of {bank}", "each bank has a vault of its own")
        self._noted = {(fact.session, fact.what) for fact in known}

    def note(self, session: bytes, *messages: Message) -> None:
        """What these say; on disk when this returns. What was noted before is not again."""
        new = {(fact.session, fact.what): fact for message in messages for fact in facts(session, message)}
        rows = [fact for key, fact in new.items() if key not in self._noted]
        if rows:
            self._append([asdict(fact) for fact in rows])
            self._noted |= new.keys()

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        lines, head = [], self._head
        for row in rows:
            head = _chain(head, row)
            lines.append(json.dumps(row | {"hash": head.hex()}) + "\n")
        with self._path.open("r+b") as file:
            file.truncate(self._size)  # where a full disk took half of the lines last time
            file.seek(self._size)
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self._head = head


def verify_transcripts(paths: Sequence[Path]) -> Difference | None:
    """The first difference between banks' transcripts: in the earliest session and its earliest exchange. Raises VaultError for one whose
    chain is broken."""
    claims: dict[tuple[str, str], tuple[str, Fact]] = {}
    sessions: dict[str, int] = {}
    found: list[Difference] = []
    for path in paths:
        bank, known, _ = _read(path)
        for fact in known:
            sessions.setdefault(fact.session, len(sessions))
            other, said = claims.setdefault((fact.session, fact.what), (bank, fact))
            if said != fact:
                found.append(Difference(fact.session, fact.exchange, fact.what, (other, bank)))
    return min(found, key=lambda each: (sessions[each.session], each.exchange), default=None)


def _read(path: Path) -> tuple[str, list[Fact], bytes]:
    """Whose it is, what it says, and the last hash; a last line that is not whole is left out."""
    head, rows = b"", list[dict[str, Any]]()
    try:
        for line in path.read_bytes().split(b"\n")[:-1]:
            row, claimed = _parse(line)
            if (head := _chain(head, row)) != claimed:
                raise ValueError("its hash does not follow from the line before it")
            rows.append(row)
        return rows[0]["bank"], [Fact(**row) for row in rows[1:]], head
    except _BROKEN as error:
        raise VaultError(f"{path}, line {len(rows) + 1}: {error}", "it proves nothing any more: find out who wrote to it") from error


def _read_newest(path: Path) -> tuple[str, list[Fact], bytes]:
    """The same, but only what the newest session's lines say, followed backwards from the end."""
    data, known = _mapped(path), list[Fact]()
    try:
        first, _ = _parse(data[: data.find(b"\n")])
        _, head = _parse(next(_backwards(data)))
        for (row, claimed), (_, before) in pairwise(map(_parse, _backwards(data))):
            fact = Fact(**row)
            if known and fact.session != known[0].session:
                break
            if _chain(before, row) != claimed:
                return _read(path)
            known.append(fact)
        return first["bank"], known, head
    except _BROKEN:
        return _read(path)  # it says in which line


def _backwards(data: mmap.mmap | bytes) -> Iterator[bytes]:
    """The whole lines, the last first."""
    end = data.rfind(b"\n")
    while end >= 0:
        start = data.rfind(b"\n", 0, end) + 1
        yield data[start:end]
        end = start - 1


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def _parse(line: bytes) -> tuple[dict[str, Any], bytes]:
    """What it says, and its hash."""
    row = json.loads(line)
    return row, bytes.fromhex(row.pop("hash"))


def _chain(before: bytes, row: dict[str, Any]) -> bytes:
    return hashed("line", before, json.dumps(row, sort_keys=True).encode())
