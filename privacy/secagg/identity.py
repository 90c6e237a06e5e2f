"""Who takes part: an Ed25519 key for each bank (RFC 8032), and the roster that all of them have signed.

No key is ever learnt from the coordinator. That a key in the roster is the bank's own is for people to see, who compare `fingerprint`
by telephone or in a room; all that this code can do afterwards rests on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self
from unicodedata import normalize

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import ProtocolError, Refused
from privacy.secagg.codec import hashed


class Identity:
    """A bank's name and private key."""

    def __init__(self, name: str, private: bytes) -> None:
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(private)

    @classmethod
    def create(cls, name: str) -> Self:
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, text: bytes) -> bytes:
        return self._key.sign(text)


@dataclass(frozen=True)
class Roster:
    """The banks, in an order that numbers them for good."""

    version: int
    """Rises with every change; a bank never goes back"""
    colluders: int
    """c: how many banks may lie, and tell the coordinator all they know"""
    banks: tuple[tuple[str, bytes], ...]
    """Name and public key of each"""

    def __post_init__(self) -> None:
        keys = dict(self.banks)
        if not all(name.isprintable() and 0 < len(name.encode()) < 256 for name in keys):
            raise Refused("a roster with a name that cannot be written", "1 to 255 bytes of UTF-8, printable")
        if any(len(key) != 32 for key in keys.values()):
            raise Refused("a roster with a key that is not of 32 bytes", "Ed25519 public keys, raw")
        read = {normalize("NFKC", name).casefold() for name in keys}
        if not len(self.banks) == len(read) == len(set(keys.values())) or not 0 <= self.colluders <= len(keys) - 2:
            raise Refused(
                f"a roster of {len(self.banks)} banks of which {self.colluders} may collude: expected each name and key once, "
                "and two banks or more that do not collude",
                "a sum of one honest bank is that bank's vector",
            )

    @cached_property
    def keys(self) -> dict[str, Ed25519PublicKey]:
        return {name: Ed25519PublicKey.from_public_bytes(key) for name, key in self.banks}

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.banks)

    @cached_property
    def hash(self) -> bytes:
        entries = (part for name, key in self.banks for part in (name.encode(), key))
        return hashed("roster", str(self.version).encode(), str(self.colluders).encode(), *entries)

    def number(self, bank: str) -> int:
        """From 0; its shares are those at x = number + 1."""
        return self.names.index(bank)

    def check_signature(self, bank: str, signature: bytes, text: bytes) -> None:
        """ProtocolError unless the bank is here and has signed the text."""
        if bank not in self.keys:
            raise ProtocolError(f"{bank!r} is not in the roster of version {self.version}")
        try:
            self.keys[bank].verify(signature, text)
        except InvalidSignature as error:
            raise ProtocolError(f"the signature is not {bank}'s", "it, or what it signs, was changed on its way") from error

    def check_order(self, banks: Sequence[str]) -> None:
        """ProtocolError unless these are banks of the roster, each once and in its order."""
        if strangers := [bank for bank in banks if bank not in self.names]:
            raise ProtocolError(f"{strangers[0]!r} is not in the roster of version {self.version}")
        if list(banks) != [name for name in self.names if name in banks]:
            raise ProtocolError("expected each bank once and in the roster's order")


def fingerprint(public: bytes) -> str:
    """A bank's public key as people compare it: 8 groups of 8 hexadecimal digits."""
    digits = hashed("fingerprint", public).hex()
    return " ".join(digits[start : start + 8] for start in range(0, len(digits), 8))
