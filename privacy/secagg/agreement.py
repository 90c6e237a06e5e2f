"""What a bank keeps secret in a session, and what two banks make of it between them: X25519 (RFC 7748), HKDF, AES-256-GCM.

Everything derived names the protocol's version, the session and both banks, so nothing derived for one purpose serves another.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.errors import Misbehaviour
from privacy.secagg.codec import hashed, labelled, names
from privacy.secagg.identity import Roster
from privacy.secagg.masks import SEED_BYTES, derive_seed
from privacy.secagg.messages import Box, Header, Keys
from privacy.secagg.shamir import SHARE_BYTES

_NONCE = bytes(12)


@dataclass(frozen=True, repr=False)
class Secrets:
    """A bank's, for one session."""

    encryption: bytes
    """X25519, for the boxes"""
    masking: bytes
    """X25519, for the masks of pairs; others get shares of it"""
    seed: bytes
    """Of its self-mask; others get shares of it"""

    @classmethod
    def fresh(cls) -> Self:
        return cls(*(os.urandom(SEED_BYTES) for _ in range(3)))

    def to_bytes(self) -> bytes:
        return self.encryption + self.masking + self.seed

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        return cls(*(data[start : start + SEED_BYTES] for start in range(0, 3 * SEED_BYTES, SEED_BYTES)))

    def publish(self, session: bytes, bank: str) -> Keys:
        """What others may see of it, unsigned."""
        return Keys(session, bank, public(self.encryption), public(self.masking), commitment(session, bank, self.seed))


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, key: bytes, whose: str) -> bytes:
    """The secret of a private key and another bank's public one; Misbehaviour for a point of small order, which agrees with all on zero."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError as error:
        raise Misbehaviour(f"{whose} has published a key that anybody agrees with", banks=(whose,)) from error


def commitment(session: bytes, bank: str, seed: bytes) -> bytes:
    return hashed("commitment", session, bank.encode(), seed)


def share_hash(session: bytes, giver: str, receiver: str, kind: str, share: bytes) -> bytes:
    """By which a share is known again. It hides the share, of which every value of 256 bits is as likely."""
    return hashed(f"share of a {kind}", session, giver.encode(), receiver.encode(), share)


def seal(private: bytes, giver: str, receiver: Keys, seed_share: bytes, key_share: bytes) -> Box:
    """A box, unsigned. Its key belongs to the session and this direction and encrypts this one message, so the nonce can be zero."""
    session, to = receiver.session, receiver.bank
    sealed = AESGCM(_box_key(private, receiver, giver, to)).encrypt(_NONCE, seed_share + key_share, _box_label(session, giver, to))
    return Box(session, giver, to, *_share_hashes(session, giver, to, seed_share, key_share), sealed)


def unseal(private: bytes, giver: Keys, box: Box) -> tuple[bytes, bytes]:
    """The shares of seed and key in a box whose signature has been verified. Misbehaviour unless they are what its hashes say."""
    label = _box_label(box.session, box.bank, box.receiver)
    try:
        opened = AESGCM(_box_key(private, giver, box.bank, box.receiver)).decrypt(_NONCE, box.sealed, label)
    except InvalidTag as error:
        raise Misbehaviour(f"{box.bank} has signed a box that does not open", banks=(box.bank,)) from error
    seed_share, key_share = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
    if (box.seed_share, box.key_share) != _share_hashes(box.session, box.bank, box.receiver, seed_share, key_share):
        raise Misbehaviour(f"{box.bank} has signed a box with other shares in it than it says", banks=(box.bank,))
    return seed_share, key_share


def _share_hashes(session: bytes, giver: str, receiver: str, seed_share: bytes, key_share: bytes) -> tuple[bytes, bytes]:
    return share_hash(session, giver, receiver, "seed", seed_share), share_hash(session, giver, receiver, "key", key_share)


def _box_key(private: bytes, other: Keys, giver: str, receiver: str) -> bytes:
    return derive_seed(agree(private, other.encryption, other.bank), _box_label(other.session, giver, receiver))


def _box_label(session: bytes, giver: str, receiver: str) -> bytes:
    return labelled("box", session, giver.encode(), receiver.encode())


def members_hash(members: Iterable[Keys]) -> bytes:
    """Of the members and the keys each has signed."""
    return hashed("members", *(keys.digest for keys in members))


def view_hash(members: bytes, online: Iterable[str]) -> bytes:
    return hashed("view", members, names(online))


def self_mask(session: bytes, bank: str, seed: bytes) -> bytes:
    """The seed of a bank's own mask."""
    return derive_seed(seed, labelled("self-mask", session, bank.encode()))


def pair_masks(header: Header, roster: Roster, members: bytes, bank: str, masking: bytes, peers: Iterable[Keys]) -> list[tuple[bytes, int]]:
    """The masks that `bank` adds for each peer; each peer subtracts the same (Bonawitz et al. 2017, section 4).

    The session covers all of the header already; model and configuration stand here for the reader.
    """
    masks = []
    for peer in peers:
        pair = sorted((bank, peer.bank), key=roster.number)
        info = labelled("pair", header.session, *(name.encode() for name in pair), header.model, header.config, members)
        masks.append((derive_seed(agree(masking, peer.masking, peer.bank), info), 1 if pair[0] == bank else -1))
    return masks
