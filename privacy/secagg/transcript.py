"""A bank's account of its sessions: hashes of all it signed, sent and received, each line chained to the one before it.

Nothing in it is secret, so banks exchange these files, past the coordinator, and compare. What one bank signed and another received, and
what the coordinator should have shown to all alike, stands under the same words in both: a difference shows where somebody lied. What a
bank signed stands there with its signature, so that nobody can put words into another's mouth.

Lines are on disk before the answer they speak of is given out; what a crash tore is written again when the session goes on. Their chain
(privacy/chain.py) is followed through the newest session when a transcript is opened, however long that is, and from its beginning by
`verify_transcripts`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from itertools import pairwise
from pathlib import Path

from privacy import chain
from privacy.errors import VaultError
from privacy.secagg.codec import hashed, names
from privacy.secagg.messages import Box, Header, Inbox, KeyList, Message, Online, Receipts, Shares, Signed, Sum, Views


@dataclass(frozen=True)
class Fact:
    """Something of a session that is the same for every bank that knows of it."""

    session: str
    exchange: int
    what: str
    digest: str
    signature: str = field(default="", compare=False)
    """Of the digest, by the bank whose message it is; empty for what the coordinator said"""

    def __post_init__(self) -> None:
        if [type(value) for value in astuple(self)] != [str, int, str, str, str]:
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

    def fact(what: str, digest: bytes, signature: bytes = b"") -> Fact:
        return Fact(session.hex(), message.exchange, what, digest.hex(), signature.hex())

    inner: Sequence[Message] = ()
    match message:
        case Header():
            yield fact(f"header of round {message.round}, attempt {message.attempt}, run {message.run}", message.digest)
        case Online() | Sum():
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
            yield fact(f"box from {message.bank} to {message.receiver}", message.digest, message.signature)
        case Signed():
            yield fact(f"{type(message).__name__.lower()} of {message.bank}", message.digest, message.signature)
    for part in inner:
        yield from facts(session, part)


class Transcript:
    """An open one, written by one process."""

    def __init__(self, path: Path, bank: str) -> None:
        """Opens or makes it. Raises VaultError where it is another bank's, or the chain is broken in the newest session."""
        self._path = path
        whose, known, self._end = _read_newest(path)
        if not self._end.size:
            whose, self._end = bank, chain.add(path, chain.START, [{"bank": bank}])
        if whose != bank:
            raise VaultError(f"{path}: the transcript of {whose}, not of {bank}", "each bank has a vault of its own")
        self._noted = {(fact.session, fact.what) for fact in known}

    def note(self, session: bytes, *messages: Message) -> None:
        """What these say; on disk when this returns. What was noted before is not again."""
        new = {(fact.session, fact.what): fact for message in messages for fact in facts(session, message)}
        rows = [fact for key, fact in new.items() if key not in self._noted]
        if rows:
            self._end = chain.add(self._path, self._end, [asdict(fact) for fact in rows])
            self._noted |= new.keys()


def verify_transcripts(paths: Sequence[Path]) -> Difference | None:
    """The first difference between banks' transcripts. Raises VaultError for one whose chain is broken."""
    return next(iter(differences({bank: known for bank, known, _ in map(read, paths)})), None)


def differences(transcripts: Mapping[str, Sequence[Fact]]) -> list[Difference]:
    """All between these banks' transcripts, those of the earliest session and its earliest exchange first."""
    claims: dict[tuple[str, str], tuple[str, Fact]] = {}
    sessions: dict[str, int] = {}
    found: list[Difference] = []
    for bank, known in transcripts.items():
        for fact in known:
            sessions.setdefault(fact.session, len(sessions))
            other, said = claims.setdefault((fact.session, fact.what), (bank, fact))
            if said != fact:
                found.append(Difference(fact.session, fact.exchange, fact.what, (other, bank)))
    return sorted(found, key=lambda each: (sessions[each.session], each.exchange))


def read(path: Path) -> tuple[str, list[Fact], chain.End]:
    """Whose it is, what it says, and where it ends. Raises VaultError where its chain is broken."""
    rows, end = chain.follow(path, VaultError)
    try:
        return rows[0]["bank"], [Fact(**row) for row in rows[1:]], end
    except chain.BROKEN as error:
        raise VaultError(f"{path}: not what a bank writes: {error!r}", "it proves nothing: is it the right file?") from error


def _read_newest(path: Path) -> tuple[str, list[Fact], chain.End]:
    """The same, but only what the newest session's lines say, followed backwards from the end; nothing of a file without lines."""
    data, known = chain.mapped(path), list[Fact]()
    size = data.rfind(b"\n") + 1
    if not size:
        return "", known, chain.START
    try:
        first, _ = chain.parse(data[: data.find(b"\n")])
        _, head = chain.parse(next(chain.backwards(data)))
        for (row, claimed), (_, before) in pairwise(map(chain.parse, chain.backwards(data))):
            fact = Fact(**row)
            if known and fact.session != known[0].session:
                break
            if chain.link(before, row) != claimed:
                return read(path)
            known.append(fact)
        return first["bank"], known, chain.End(size, head)
    except chain.BROKEN:
        return read(path)  # it says in which line
