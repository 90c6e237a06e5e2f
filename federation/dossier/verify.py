"""Whether banks' transcripts bear one another out: at any bank or at an auditor's, without the coordinator and without a network.

A bank hands out its transcript (privacy/secagg/transcript.py) with one more line, its signature of all the lines before. So nobody can
show a transcript as another bank's, and a bank cannot disown its own. What is looked at:

- Each line follows from the one before it, and the file is signed by the bank's identity in a roster.
- All that stands there as said by a bank is signed by that bank. A line that is not was made up by the bank whose transcript it is in.
- What a bank signed for others stands in its own transcript; else it was cut out there, or moved from another session by who holds it.
- What two banks have of one thing is the same; else the coordinator showed them different things, or somebody lies.
- An attempt at a round is one session.
- Each receipt is for the sum that the bank which holds it was sent.

A session that all banks have cut out leaves no trace.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from federation.enrolment.member import signed_by
from federation.enrolment.roster import Roster
from federation.errors import FolderError, NotTrusted
from federation.files import translated, write_bytes
from privacy import chain
from privacy.errors import VaultError
from privacy.secagg.codec import labelled
from privacy.secagg.identity import Identity
from privacy.secagg.messages import Receipt
from privacy.secagg.transcript import Fact, differences, read

Identities = Mapping[str, frozenset[bytes]]
"""Ed25519 public keys that banks have had, by name"""
Transcripts = Mapping[str, Sequence[Fact]]
"""By bank"""

_SIGNED = re.compile(r"(?:keys|shares|masked|view|reveal|receipt) of (?P<bank>[!-~]+)|box from (?P<giver>[!-~]+) to [!-~]+")
_HEADER = re.compile(r"header of (round \d+, attempt \d+, run [ -~]+)")
_SAID = ("banks with keys", "members", "online", "sum")
_HASH, _HEX = re.compile("[0-9a-f]{64}"), re.compile("([0-9a-f]{2})*")


@dataclass(frozen=True)
class Finding:
    """Something that cannot be if all were honest."""

    session: str
    exchange: int
    banks: tuple[str, ...]
    """Whom it concerns"""
    what: str
    """In words"""


@dataclass(frozen=True)
class Session:
    """One session, as the transcripts have it."""

    session: str
    title: str
    """Round, attempt and run, as its header says"""
    reached: Mapping[str, int]
    """By bank whose transcript tells of it: the last exchange that stands there"""
    others: tuple[str, ...]
    """Banks that signed something in it, but whose transcript was not given"""
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Check:
    """What came of it."""

    banks: tuple[str, ...]
    """Whose transcripts were compared"""
    sessions: tuple[Session, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for session in self.sessions for finding in session.findings)

    @property
    def others(self) -> tuple[str, ...]:
        """Banks that took part, but whose transcript was not given."""
        return tuple(sorted({bank for session in self.sessions for bank in session.others}))


def identities(rosters: Iterable[Roster]) -> Identities:
    """Of all members, over several versions where keys were replaced."""
    keys: dict[str, frozenset[bytes]] = {}
    for member in (member for roster in rosters for member in roster.members):
        keys[member.name] = keys.get(member.name, frozenset()) | {member.identity}
    return keys


def export(transcript: Path, output: Path, identity: Identity) -> int:
    """A copy with the bank's signature, to be sent to the other banks; how many lines it has. Raises FolderError, VaultError."""
    if output.exists():
        raise FolderError(f"{output}: is there already", "name a new file: nothing of yours is to be written over")
    bank, known, end = read(transcript) if transcript.exists() else ("", [], chain.START)
    if bank != identity.name:
        found = f"the transcript of {bank}" if bank else "no transcript"
        raise VaultError(
            f"{transcript}: {found}, expected that of {identity.name}", "is it the right folder, and was the bank in a session?"
        )
    with translated(transcript):
        whole = transcript.read_bytes()[: end.size]
    row = {"signed": end.hash.hex(), "signature": identity.sign(_text(end.hash)).hex()}
    write_bytes(output, whole)
    with translated(output):
        chain.add(output, end, [row])
    return len(known)


def read_exports(paths: Sequence[Path], keys: Identities) -> dict[str, list[Fact]]:
    """What each says, by the bank that signed it. Raises VaultError, naming the line, for one that was changed; NotTrusted where it is not
    signed by its bank, or a bank has two."""
    transcripts: dict[str, list[Fact]] = {}
    for path in paths:
        bank, known = _read_export(path, keys)
        if bank in transcripts:
            raise NotTrusted(f"{path}: a second transcript of {bank}", "give one of each bank, the newest")
        transcripts[bank] = known
    return transcripts


def check(transcripts: Transcripts, keys: Identities) -> Check:
    """Compare them. One alone is compared with the signatures of other banks that stand in it."""
    made_up = {bank: {fact for fact in known if not _is_signed(fact, keys)} for bank, known in transcripts.items()}
    sound = {bank: [fact for fact in known if fact not in made_up[bank]] for bank, known in transcripts.items()}
    findings = [*_made_up(made_up), *_cut_out(sound), *_two_stories(sound), *_opened_twice(sound), *_other_receipts(sound)]
    sessions = dict.fromkeys(fact.session for known in transcripts.values() for fact in known)
    return Check(tuple(transcripts), tuple(_session(session, sound, findings) for session in sessions))


def _session(session: str, transcripts: Transcripts, findings: Iterable[Finding]) -> Session:
    told = {bank: [fact for fact in known if fact.session == session] for bank, known in transcripts.items()}
    facts = [fact for known in told.values() for fact in known]
    return Session(
        session,
        next((match[1] for fact in facts if (match := _HEADER.fullmatch(fact.what))), "its header is in none of these transcripts"),
        {bank: max(fact.exchange for fact in known) for bank, known in told.items() if known},
        tuple(sorted({bank for fact in facts if (bank := _signer(fact.what)) and bank not in transcripts})),
        tuple(sorted((each for each in findings if each.session == session), key=lambda each: each.exchange)),
    )


def _made_up(made_up: Mapping[str, Iterable[Fact]]) -> Iterator[Finding]:
    for bank, known in made_up.items():
        for fact in known:
            yield Finding(fact.session, fact.exchange, (bank,), f"{bank} has a line for {fact.what} that {_signer(fact.what)} did not sign")


def _cut_out(transcripts: Transcripts) -> Iterator[Finding]:
    """What a bank signed, as another holds it, and its own transcript lacks; of a session that is gone whole only that."""
    own = {bank: {(fact.session, fact.what) for fact in known} for bank, known in transcripts.items()}
    sessions = {bank: {session for session, _ in known} for bank, known in own.items()}
    seen: set[tuple[str, str, str]] = set()
    for holder, fact in _facts(transcripts):
        signer = _signer(fact.what)
        if signer is None or signer not in own or (fact.session, fact.what) in own[signer]:
            continue
        lacks = f"its {fact.what}" if fact.session in sessions[signer] else "this session"
        if (signer, fact.session, lacks) not in seen:
            seen.add((signer, fact.session, lacks))
            what = f"the transcript of {signer} lacks {lacks}; {holder} has {fact.what} with its signature"
            yield Finding(fact.session, fact.exchange, (signer, holder), what)


def _two_stories(transcripts: Transcripts) -> Iterator[Finding]:
    for found in differences(transcripts):
        pair = " and ".join(found.banks)
        if signer := _signer(found.what):
            what = f"{pair} have different {found.what}, each with its signature: it signed both, or one of them is of another session"
        else:
            what = f"{pair} were not shown the same {found.what}"
        yield Finding(found.session, found.exchange, tuple(dict.fromkeys(filter(None, (signer, *found.banks)))), what)


def _opened_twice(transcripts: Transcripts) -> Iterator[Finding]:
    """An attempt is one session: banks that are shown two of it are shown different things."""
    told: dict[str, dict[str, set[str]]] = {}
    for bank, fact in _facts(transcripts):
        if match := _HEADER.fullmatch(fact.what):
            told.setdefault(match[1], {}).setdefault(fact.session, set()).add(bank)
    for title, sessions in told.items():
        for session, banks in sessions.items() if len(sessions) > 1 else ():
            others = ", ".join(sorted(other[:16] for other in sessions if other != session))
            yield Finding(
                session, 0, tuple(sorted(banks)), f"{title} is session {others} too: the coordinator has opened it more than once"
            )


def _other_receipts(transcripts: Transcripts) -> Iterator[Finding]:
    sums = {(holder, fact.session): fact.digest for holder, fact in _facts(transcripts) if fact.what == "sum"}
    for holder, fact in _facts(transcripts):
        if fact.what.startswith("receipt of "):
            signer, total = _signer(fact.what) or "", sums.get((holder, fact.session))
            if total is None or fact.digest != _receipt(fact.session, signer, total):
                what = f"the receipt of {signer} that {holder} holds is for another sum than {holder} was sent"
                yield Finding(fact.session, fact.exchange, tuple(dict.fromkeys((signer, holder))), what)


def _facts(transcripts: Transcripts) -> Iterator[tuple[str, Fact]]:
    """With whose transcript each is in."""
    return ((bank, fact) for bank, known in transcripts.items() for fact in known)


def _receipt(session: str, bank: str, total: str) -> str:
    """The digest of a receipt for this sum."""
    return Receipt(bytes.fromhex(session), bank, bytes.fromhex(total)).digest.hex()


def _signer(what: str) -> str | None:
    """The bank whose message it is; None where the coordinator said it."""
    match = _SIGNED.fullmatch(what)
    return match and (match["bank"] or match["giver"])


def _is_signed(fact: Fact, keys: Identities) -> bool:
    """By the bank whose message it is; what the coordinator said need not be."""
    if (signer := _signer(fact.what)) is None:
        return True
    signature, digest = bytes.fromhex(fact.signature), bytes.fromhex(fact.digest)
    return any(signed_by(key, signature, digest) for key in keys.get(signer, ()))


def _read_export(path: Path, keys: Identities) -> tuple[str, list[Fact]]:
    with translated(path):
        path.stat()
    rows, end = chain.follow(path, VaultError)
    try:
        first, *lines, last = rows
        bank, known = first["bank"], [Fact(**row) for row in lines]
        head, signature = bytes.fromhex(last["signed"]), bytes.fromhex(last["signature"])
        if not all(map(_is_fact, known)):
            raise ValueError("a line that no bank writes")
    except chain.BROKEN as error:
        raise VaultError(
            f"{path}: not a transcript that its bank has signed", "ask the bank for one: consortium federation export-transcript OUTPUT"
        ) from error
    if bank not in keys:
        raise NotTrusted(f"{path}: of {bank!a}, which is in no roster given here", "give the rosters it was in, with --roster")
    if chain.link(head, last) != end.hash or not any(signed_by(key, signature, _text(head)) for key in keys[bank]):
        raise NotTrusted(f"{path}: not signed by {bank}", "ask the bank itself for its transcript, and not who sent this one")
    return bank, known


def _is_fact(fact: Fact) -> bool:
    """Whether it could be one: what follows, and whoever reads it on a terminal, can rely on its form."""
    what = fact.what in _SAID or _HEADER.fullmatch(fact.what) or _SIGNED.fullmatch(fact.what)
    hashes = _HASH.fullmatch(fact.session) and _HASH.fullmatch(fact.digest) and _HEX.fullmatch(fact.signature)
    return bool(what and hashes) and 0 <= fact.exchange <= Receipt.exchange


def _text(head: bytes) -> bytes:
    """What a bank signs: the hash of its last line stands for all up to it, the first of which names the bank."""
    return labelled("federation transcript", head)
