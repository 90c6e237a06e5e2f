"""What a bank tells of itself: its name, its public keys, and the request that carries them to the coordinator."""

import hashlib
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import NameOID
from pydantic import AfterValidator, Field, model_validator

from federation.errors import FactsError, NotTrusted
from federation.files import Digest, Facts, Signature, read, write
from privacy.secagg.codec import labelled
from privacy.secagg.identity import fingerprint

_LETTERS = frozenset(string.ascii_lowercase + string.digits + ".-")
_LONGEST_NAME = 63


def check_name(name: str) -> str:
    """The name; FactsError unless it is one that nobody can mistake for another alphabet's."""
    if not 0 < len(name) <= _LONGEST_NAME or not _LETTERS.issuperset(name) or not name[0].isalnum():
        raise FactsError(
            f"the name {name!a}: expected up to {_LONGEST_NAME} of a-z, 0-9, . and -, a letter or digit first",
            "as in bank-of-ulm: no capitals, no other alphabets, so that no two names look alike",
        )
    return name


def check_distinct(names: Iterable[str]) -> None:
    """FactsError where two look alike to a hurried reader, as bank-1 and bank-l do."""
    seen: dict[str, str] = {}
    for name in names:
        drawn = name.translate(_DRAWN_ALIKE).replace("rn", "m").replace("vv", "w").replace("cl", "d")
        if (other := seen.setdefault(drawn, name)) != name:
            raise FactsError(f"the names {other} and {name} look alike", "one of the two has to make its keys under another name")


_DRAWN_ALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", ".": None, "-": None})
Name = Annotated[str, AfterValidator(check_name)]


def _check_node_key(line: str) -> str:
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FactsError("a node key that is not an OpenSSH public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1" or ssh_line(key) != line:
        raise FactsError("a node key that is not one line of ecdsa-sha2-nistp384 without a comment")
    return line


class Member(Facts):
    """A bank's line in the roster."""

    name: Name
    identity: Digest
    """Ed25519 public key: signs rosters, requests and the messages of secure aggregation"""
    node: Annotated[str, AfterValidator(_check_node_key)]
    """EC P-384 public key in OpenSSH's format: what Flower registers a node by"""
    tls: Digest
    """SHA-256 of the public key of its TLS certificates: one that is renewed needs no new roster"""
    succeeds: Signature | None = None
    """By the identity that this one replaces, if there was one"""

    @property
    def keys(self) -> "Member":
        """Name and keys alone, whatever they succeed."""
        return self.model_copy(update={"succeeds": None})

    @property
    def succession(self) -> bytes:
        """What the identity before this one signs."""
        return labelled("federation succession", self.keys.canonical)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    def check_succeeds(self, identity: bytes) -> None:
        """NotTrusted unless it is the same bank's: by the same identity, or signed by that one."""
        if self.identity != identity and not signed_by(identity, self.succeeds or b"", self.succession):
            raise NotTrusted(
                f"{self.name} has another key than before, and the key before has not signed it",
                f"ask {self.name} by telephone; if it lost its key, it has to be removed and join under another name",
            )


class Request(Facts):
    """A bank's wish to take part, by mail. One that was made holds together: signed by its identity, and by its TLS key."""

    format: Literal[1] = 1
    member: Member
    csr: str
    """For its TLS certificate, PKCS 10 in PEM"""
    signature: Signature

    @staticmethod
    def text(member: Member, csr: str) -> bytes:
        """What the bank signs."""
        return labelled("federation request", member.canonical, csr.encode())

    @model_validator(mode="after")
    def _check(self) -> "Request":
        if not signed_by(self.member.identity, self.signature, self.text(self.member, self.csr)):
            raise FactsError(f"the request of {self.member.name} is not signed by the key in it")
        if key_hash(self.tls_key) != self.member.tls:
            raise FactsError("csr: not for the TLS key of the request")
        return self

    @property
    def tls_key(self) -> ec.EllipticCurvePublicKey:
        try:
            csr = x509.load_pem_x509_csr(self.csr.encode())
            key, valid = csr.public_key(), csr.is_signature_valid
        except (ValueError, UnsupportedAlgorithm) as error:
            raise FactsError("csr: not a certificate request in PEM") from error
        if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise FactsError("csr: expected one for a key on an elliptic curve, and signed by it")
        return key


class Known(Facts):
    """Fingerprints by name, that a person has compared over another channel than the coordinator."""

    fingerprints: Mapping[str, str] = Field({}, description="names and fingerprints")

    @classmethod
    def of(cls, folder: Path) -> "Known":
        """Those that are kept in a folder, at first none."""
        return read(cls, path) if (path := folder / "known.json").exists() else cls()

    def keep(self, folder: Path) -> None:
        write(folder / "known.json", self)

    def check(self, member: Member) -> bool:
        """Whether its key was confirmed. NotTrusted if another one was."""
        if (confirmed := self.fingerprints.get(member.name)) is None:
            return False
        if "".join(confirmed.split()).lower() != member.fingerprint.replace(" ", ""):
            raise NotTrusted(
                f"the key shown for {member.name} is not the one whose fingerprint was given for it",
                f"a slip in typing, or somebody else's key: ask {member.name} itself, and not the sender of this file",
            )
        return True

    def adding(self, fingerprints: Mapping[str, str]) -> "Known":
        """These too, in place of what was there for the same names."""
        return Known(fingerprints={**self.fingerprints, **fingerprints})


def signed_by(identity: bytes, signature: bytes, text: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, text)
    except InvalidSignature:
        return False
    return True


def key_hash(key: PublicKeyTypes) -> bytes:
    """SHA-256 of its SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7)."""
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).digest()


def ssh_line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def distinguished(name: str) -> x509.Name:
    """As the subject of a certificate."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
