"""Who takes part, with which keys: a document that every bank in it has signed, version after version.

The coordinator writes it and is not trusted with it. A version counts when all its members have signed its hash, and a bank signs only if

- its own line holds its own keys,
- it has confirmed each peer's fingerprint over another channel (`Known`), or the key is that of the roster in force, or has been signed
  by the key that is there: a coordinator cannot enrol banks that do not exist,
- its version is above all it has signed, and it follows the roster in force here: no roll-back; two rosters under one version are a Fork.

So banks join, leave and change their keys by the signatures of all who are members afterwards; a rotation needs that of the old key too.
Signatures are over SHA-256 of the canonical JSON (`Facts.canonical`).
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, model_validator

from federation.enrolment.member import Known, Member, Name, check_distinct, signed_by
from federation.errors import FactsError, Fork, NotTrusted
from federation.files import Digest, Facts, Signature
from privacy.secagg import identity
from privacy.secagg.codec import hashed

NO_ROSTER = bytes(32)
"""In place of the hash of the one before, in a first roster"""


class Roster(Facts):
    """One version. What was made holds together: names in order and apart, each key once, enough banks for its colluders."""

    format: Literal[1] = 1
    federation: Name
    version: int = Field(ge=1, lt=2**63)
    """Rises with every proposal; those that not all have signed leave gaps"""
    previous: Digest
    """Hash of the roster in force when this one was proposed"""
    colluders: int = Field(ge=0)
    """c: how many banks may lie, and tell the coordinator all they know"""
    coordinator: Digest
    """Its Ed25519 public key"""
    authority: Digest
    """SHA-256 of the public key of its certificate authority"""
    members: tuple[Member, ...]

    @model_validator(mode="after")
    def _check(self) -> "Roster":
        if list(self.names) != sorted(self.names):
            raise FactsError("members: expected in the order of their names")
        check_distinct(self.names)
        for key in ("node", "tls"):
            if len({getattr(member, key) for member in self.members}) < len(self.members):
                raise FactsError(f"members: two of them have one {key} key")
        if self.coordinator in {member.identity for member in self.members}:
            raise FactsError("coordinator: has the key of a member")
        self.for_sums  # noqa: B018  # Refused, for too few banks or a key twice
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def hash(self) -> bytes:
        return hashed("federation roster", self.canonical)

    @property
    def for_sums(self) -> identity.Roster:
        """The part that secure aggregation rests on. Raises privacy.errors.Refused."""
        return identity.Roster(self.version, self.colluders, tuple((member.name, member.identity) for member in self.members))

    def member(self, name: str) -> Member:
        """NotTrusted if it is not in here."""
        for member in self.members:
            if member.name == name:
                return member
        raise NotTrusted(f"{name} is not in the roster of version {self.version}", "has the coordinator approved its request?")


class SignedRoster(Facts):
    """A roster with the signatures it has so far. One that was made has no wrong one."""

    roster: Roster
    signatures: Mapping[str, Signature] = {}
    """By the members' identities, over the roster's hash"""

    @model_validator(mode="after")
    def _check(self) -> "SignedRoster":
        keys = {member.name: member.identity for member in self.roster.members}
        for name, signature in self.signatures.items():
            if name not in keys or not signed_by(keys[name], signature, self.roster.hash):
                raise FactsError(f"signatures: what stands for {name} is not its signature of this roster")
        return self

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.roster.names if name not in self.signatures)

    def check_complete(self) -> None:
        """NotTrusted unless all have signed."""
        if self.missing:
            raise NotTrusted(f"version {self.roster.version} is not signed by {', '.join(self.missing)}", "it counts when all have signed")

    def adding(self, signatures: Mapping[str, bytes]) -> "SignedRoster":
        return SignedRoster(roster=self.roster, signatures={**self.signatures, **signatures})


class Seen(Facts):
    """The newest roster that a bank has signed."""

    version: int
    hash: Digest

    def check(self, roster: Roster) -> None:
        """NotTrusted for an older one, Fork for another of the same version."""
        if roster.version < self.version:
            raise NotTrusted(
                f"version {roster.version} of the roster, but this bank has signed version {self.version}", "versions only rise"
            )
        if roster.version == self.version and roster.hash != self.hash:
            raise Fork(
                f"a roster of version {roster.version} with hash {roster.hash.hex()[:16]}, but this bank has signed another of that "
                f"version, {self.hash.hex()[:16]}",
                "somebody shows banks different rosters: tell the other banks, and compare hashes with them, before anything else",
            )


def check_follows(new: Roster, old: Roster) -> None:
    """NotTrusted unless the new roster may take the place of the old one, in force; Fork for another of the same version."""
    if new.federation != old.federation:
        raise NotTrusted(f"a roster of {new.federation}, but this bank is in {old.federation}", "a folder serves one federation")
    if new.version == old.version:
        Seen(version=old.version, hash=old.hash).check(new)
    if new.version <= old.version or new.previous != old.hash:
        raise NotTrusted(
            f"version {new.version} of the roster does not follow from version {old.version}, which is in force here",
            "the coordinator has to propose it again, on top of the roster that all have signed",
        )
    for member in new.members:
        if member.name in old.names:
            member.check_succeeds(old.member(member.name).identity)


def strangers(new: Roster, old: Roster | None, own: str, known: Known) -> Iterator[Member]:
    """Peers whose fingerprint nobody has confirmed, `check_follows` having passed. NotTrusted where another one was."""
    trusted = (own, *(old.names if old else ()))
    return (member for member in new.members if member.name not in trusted and not known.check(member))


def changes(new: Roster, old: Roster | None) -> Iterator[str]:
    """What a person should know before signing, in words."""
    if old is None:
        yield f"members: {', '.join(new.names)}; of them {new.colluders} may collude with the coordinator"
        return
    for name in new.names:
        if name not in old.names:
            yield f"joins: {name}"
        elif new.member(name).identity != old.member(name).identity:
            yield f"has a new key, signed by its old one: {name}"
    yield from (f"leaves: {name}" for name in old.names if name not in new.names)
    if new.colluders != old.colluders:
        yield f"banks that may collude: {new.colluders}, before {old.colluders}"
    if new.coordinator != old.coordinator:
        yield "the coordinator has another key"
    if new.authority != old.authority:
        yield "certificates are issued by another authority"
