"""What goes over the wire: facts, encoded by codec.py behind six bytes that say protocol, version and type.

Banks sign what they send; the signature covers protocol, version, type and all other fields, of which `session`, the header's hash, is one.
So nothing can be taken for another kind of message, or out of its session. The coordinator signs nothing: what it sends either carries
banks' signatures, or is a proposal that every bank compares with its own rules and that banks' signatures must bear out later.
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, ClassVar, Self, TypeVar

from privacy.errors import ProtocolError
from privacy.secagg.codec import Buffer, Hash, decode, encode_fields, labelled
from privacy.secagg.identity import Identity

Key = Annotated[bytes, 32]
Signature = Annotated[bytes, 64]
Share = Annotated[bytes, 33]
Sealed = Annotated[bytes, 82]
"""Two shares and the tag of 16 bytes"""

_MAGIC = b"CSA\x01"
UNSIGNED = bytes(64)


@dataclass(frozen=True)
class Message:
    exchange: ClassVar[int]
    """In which it is sent"""

    @cached_property
    def digest(self) -> bytes:
        """What is signed and what transcripts hold: SHA-256 over all but the signature. A vector is read where it lies."""
        sha = hashlib.sha256(labelled(type(self).__name__))
        for piece in encode_fields(self, type(self), without="signature"):
            sha.update(piece)
        return sha.digest()

    def known_from(self, other: "Message") -> Self:
        """This message; its digest, if it is known, is taken from one alike but for the signature, so that no vector is hashed twice."""
        if "digest" in vars(other):
            vars(self)["digest"] = other.digest
        return self

    def pieces(self) -> list[Buffer]:
        """The encoding, in pieces of which a vector is one, uncopied."""
        return [_MAGIC, _TYPES.index(type(self)).to_bytes(2, "big"), *encode_fields(self, type(self))]

    def to_bytes(self) -> bytes:
        return b"".join(self.pieces())

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """A message of this class; `Message.from_bytes` takes any. Vectors are views of `data`. Raises ProtocolError."""
        view = memoryview(data)
        number = int.from_bytes(view[4:6], "big")
        if view[:4] != _MAGIC or number >= len(_TYPES):
            raise ProtocolError("not a message of this protocol and version", "all banks and the coordinator run the same version")
        message = decode(view[6:], _TYPES[number])
        if not isinstance(message, cls):
            raise ProtocolError(f"expected {cls.__name__}, got {type(message).__name__}")
        return message


@dataclass(frozen=True)
class Header(Message):
    """0, coordinator: what is to be summed, and under which conditions. Its digest is the session."""

    exchange = 0
    run: str
    round: int
    attempt: int
    nonce: Annotated[bytes, 16]
    model: Hash
    """The global model's hash"""
    config: Hash
    """Of all else that banks are to agree on"""
    length: int
    """Coordinates of the vector"""
    clip: float
    """This and the next two: see FixedPoint"""
    fraction_bits: int
    modulus_bits: int
    least_members: int
    """n_min: with fewer no bank sends a vector"""
    threshold: int
    """t: how many banks' shares rebuild a secret, and how many must have signed the online set"""
    roster: Hash
    """Of the roster, with its version and number of colluders"""
    deadline: int
    """The coordinator's; the protocol has no clock"""

    @property
    def session(self) -> bytes:
        return self.digest

    @property
    def packed_size(self) -> int:
        """Bytes of a vector."""
        return -(-self.length * self.modulus_bits // 8)


@dataclass(frozen=True)
class InSession(Message):
    session: Hash


@dataclass(frozen=True)
class Signed(InSession):
    """By a bank of the roster."""

    bank: str
    signature: Signature = field(default=UNSIGNED, kw_only=True)


@dataclass(frozen=True)
class Keys(Signed):
    """0, bank: its X25519 keys of this session, and what binds it to its self-mask seed."""

    exchange = 0
    encryption: Key
    masking: Key
    commitment: Hash


@dataclass(frozen=True)
class KeyList(InSession):
    """1, coordinator: the keys of all that answered, in the roster's order."""

    exchange = 1
    keys: tuple[Keys, ...]


@dataclass(frozen=True)
class Box(Signed):
    """A share of a bank's self-mask seed and one of its masking key, encrypted for one other; and their hashes, by which anybody sees later
    whether it was the giver or the receiver who changed one."""

    exchange = 1
    receiver: str
    seed_share: Hash
    key_share: Hash
    sealed: Sealed


@dataclass(frozen=True)
class Shares(Signed):
    """1, bank: a box for each other bank of the list."""

    exchange = 1
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Inbox(InSession):
    """2, coordinator: the boxes for one bank; it and their givers are the members."""

    exchange = 2
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Masked(Signed):
    """2, bank: its vector under all its masks, packed."""

    exchange = 2
    packed: memoryview


@dataclass(frozen=True)
class Online(InSession):
    """3, coordinator: the members whose vectors arrived."""

    exchange = 3
    banks: tuple[str, ...]


@dataclass(frozen=True)
class View(Signed):
    """3, bank: which members, with which keys, and which of them online, it was shown; the consistency check."""

    exchange = 3
    view: Hash


@dataclass(frozen=True)
class Views(InSession):
    """4, coordinator: the views that arrived."""

    exchange = 4
    views: tuple[View, ...]


@dataclass(frozen=True)
class Opened:
    """One share, of this bank's secret."""

    bank: str
    share: Share


@dataclass(frozen=True)
class Reveal(Signed):
    """4, bank: of every member one share, of the self-mask seed of those online and of the masking key of those gone."""

    exchange = 4
    seeds: tuple[Opened, ...]
    keys: tuple[Opened, ...]


@dataclass(frozen=True)
class Sum(InSession):
    """5, coordinator: the sum of the vectors of those online, packed."""

    exchange = 5
    packed: memoryview


@dataclass(frozen=True)
class Receipt(Signed):
    """5, bank: the digest of the sum it was sent."""

    exchange = 5
    total: Hash


@dataclass(frozen=True)
class Receipts(InSession):
    """6, coordinator: the receipts that arrived."""

    exchange = 6
    receipts: tuple[Receipt, ...]


_TYPES: tuple[type[Message], ...] = (
    *(Header, Keys, KeyList, Box, Shares, Inbox, Masked),
    *(Online, View, Views, Reveal, Sum, Receipt, Receipts),
)

S = TypeVar("S", bound=Signed)


def sign(identity: Identity, message: S) -> S:
    return replace(message, signature=identity.sign(message.digest)).known_from(message)
