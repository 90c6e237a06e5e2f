"""The coordinator's side of a session of secure aggregation: it passes on, adds up, and unmasks the sum. What it says is in client.py.

It believes no bank either. A message is checked when it comes: sender, session, order, size, signature; and a share against the hash that
its giver signed, so a changed one is refused with the name of who changed it. Of the shares left, any t rebuild a secret; if what they
rebuild is not what the bank published, that bank gave out shares of something else. No subsets have to be tried.

It holds the sum, and one vector while it is added. It keeps nothing on disk: if it dies the banks' updates stay masked, and another
session needs fresh ones.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy.errors import Inconsistent, Misbehaviour, PlanError, ProtocolError, SecAggError
from privacy.secagg import shamir
from privacy.secagg.agreement import Secrets, agree, commitment, members_hash, pair_masks, public, self_mask, share_hash, view_hash
from privacy.secagg.fixed_point import pack, unpack
from privacy.secagg.identity import Roster
from privacy.secagg.masks import add_masks
from privacy.secagg.messages import (
    Box,
    Header,
    Inbox,
    KeyList,
    Keys,
    Masked,
    Message,
    Online,
    Receipt,
    Receipts,
    Reveal,
    Shares,
    Signed,
    Sum,
    View,
    Views,
)
from privacy.secagg.rules import check_header, check_left, check_members, check_threshold, encoding

_EXPECTED = (Keys, Shares, Masked, View, Reveal, Receipt)
_STRETCH = 2**20  # coordinates added at a time


class Letter(NamedTuple):
    """A message and the bank it is for."""

    bank: str
    message: Message


class Server:
    """The coordinator in one session. Methods raise SecAggError."""

    def __init__(self, header: Header, roster: Roster) -> None:
        check_header(header, roster)
        self.header, self.exchange, self.over = header, 0, False
        self._roster, self._encoding = roster, encoding(header, roster)
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, Shares] = {}
        self._inboxes: dict[str, list[Box]] = {}
        self._vectors: dict[str, None] = {}
        self._views: dict[str, View] = {}
        self._reveals: dict[str, Reveal] = {}
        self._receipts: dict[str, Receipt] = {}
        self._seen: dict[tuple[str, type[Message]], bytes] = {}
        self._sum = np.zeros(header.length, np.uint32)

    def start(self) -> list[Letter]:
        return [Letter(bank, self.header) for bank in self._roster.names]

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The banks whose answers this exchange still lacks, in the roster's order."""
        if self.over:
            return ()
        asked = (self._roster.names, *self._arrived)[self.exchange]
        return tuple(bank for bank in self._roster.names if bank in asked and bank not in self._arrived[self.exchange])

    def on(self, message: Message) -> list[Letter]:
        """Take a bank's message in; what to send when it was the last of its exchange, which is closed then.

        A message that is refused raises and changes nothing.
        """
        if self.over:
            raise ProtocolError("the session is over", "another has a fresh nonce")
        if not isinstance(message, _EXPECTED):
            raise ProtocolError(f"{type(message).__name__} is nothing that a bank sends")
        bank = message.bank
        try:
            self._check(message)
        except SecAggError as error:
            raise error.at(f"message of {bank!r}, session {self.header.session.hex()[:8]}, exchange {self.exchange}") from error.__cause__
        self._seen[bank, type(message)] = message.digest
        if isinstance(message, Masked):
            self._add(message)
            self._vectors[bank] = None
        else:
            self._arrived[self.exchange][bank] = message
        return [] if self.waiting_for else self.close_exchange()

    def close_exchange(self) -> list[Letter]:
        """Go on with the banks that have answered; what to send to them. Aborted, and the session over, where they are too few."""
        if self.over:
            raise ProtocolError("the session is over", "another has a fresh nonce")
        closing = (self._list_keys, self._deliver, self._announce, self._pass_views, self._unmask, self._pass_receipts)[self.exchange]
        try:
            letters = closing()
        except SecAggError as error:
            self.over = True
            raise error.at(f"session {self.header.session.hex()[:8]}, exchange {self.exchange}") from error.__cause__
        self.exchange += 1
        self.over = self.exchange == len(_EXPECTED)
        return letters

    def total(self) -> npt.NDArray[np.float32]:
        """The sum. Raises ProtocolError before it is unmasked."""
        if self.exchange <= Reveal.exchange:
            raise ProtocolError(f"the sum is masked, the session at exchange {self.exchange}")
        return self._encoding.decode(self._sum)

    def _list_keys(self) -> list[Letter]:
        """1. To those with keys, everybody's."""
        check_members(self.header, len(self._keys))
        check_threshold(self.header, self._roster, len(self._keys))
        return self._to(self._keys, KeyList(self.header.session, tuple(self._keys[bank] for bank in self._ordered(self._keys))))

    def _deliver(self) -> list[Letter]:
        """2. To those whose shares arrived, who are the members, what is for each."""
        check_members(self.header, len(self._shares))
        self._inboxes = {bank: [] for bank in self._ordered(self._shares)}
        for giver in self._inboxes:
            for box in self._shares[giver].boxes:
                if box.receiver in self._inboxes:
                    self._inboxes[box.receiver].append(box)
        return [Letter(bank, Inbox(self.header.session, tuple(inbox))) for bank, inbox in self._inboxes.items()]

    def _announce(self) -> list[Letter]:
        """3. To those whose vectors arrived, who they are."""
        check_left(self.header, len(self._vectors))
        return self._to(self._vectors, Online(self.header.session, self._online))

    def _pass_views(self) -> list[Letter]:
        """4. To those who signed their view, all of these."""
        check_left(self.header, len(self._views))
        return self._to(self._views, Views(self.header.session, tuple(self._views[bank] for bank in self._ordered(self._views))))

    def _unmask(self) -> list[Letter]:
        """5. The self-masks of those online come off, and what those gone would have cancelled. To those who gave shares, the sum."""
        check_left(self.header, len(self._reveals))
        members, online = self._members, [self._keys[bank] for bank in self._online]
        masks = [(self_mask(self.header.session, bank, self._rebuild(bank)), -1) for bank in self._online]
        for gone in self._gone:
            masks += pair_masks(self.header, self._roster, members, gone, self._rebuild(gone), online)
        add_masks(self._sum, masks)
        return self._to(self._reveals, Sum(self.header.session, pack(self._sum, self.header.modulus_bits).data))

    def _pass_receipts(self) -> list[Letter]:
        """6. To those who signed for the sum, all of these signatures."""
        check_left(self.header, len(self._receipts))
        receipts = tuple(self._receipts[bank] for bank in self._ordered(self._receipts))
        return self._to(self._receipts, Receipts(self.header.session, receipts))

    def _check(self, message: Signed) -> None:
        """Is it what this bank is to send now? Two different ones it has signed are proof of misbehaviour at any time."""
        self._check_signature(message)
        bank = message.bank
        if seen := self._seen.get((bank, type(message))):
            if seen != message.digest:
                raise Misbehaviour(f"{bank} has signed two different {type(message).__name__}", banks=(bank,))
            raise ProtocolError(f"{type(message).__name__} came a second time")
        if bank not in self.waiting_for or not isinstance(message, _EXPECTED[self.exchange]):
            raise ProtocolError(f"{type(message).__name__} is out of order", "the session goes on without those that answer too late")
        self._check_content(bank, message)

    def _check_signature(self, signed: Signed) -> None:
        if signed.session != self.header.session:
            raise ProtocolError(f"it is for session {signed.session.hex()[:8]}")
        self._roster.check_signature(signed.bank, signed.signature, signed.digest)

    def _check_content(self, bank: str, message: Signed) -> None:
        match message:
            case Keys():
                for key in (message.encryption, message.masking):
                    agree(Secrets.fresh().masking, key, bank)
            case Shares():
                expected = [(bank, other) for other in self._ordered(self._keys) if other != bank]
                if [(box.bank, box.receiver) for box in message.boxes] != expected:
                    raise ProtocolError("expected one box for each other bank, in the roster's order")
                for box in message.boxes:
                    self._check_signature(box)
            case Masked():
                if len(message.packed) != self.header.packed_size:
                    raise ProtocolError(f"a vector of {len(message.packed)} bytes, expected {self.header.packed_size}")
            case View():
                if message.view != view_hash(self._members, self._online):
                    raise Inconsistent(f"{bank} signed another view than it was sent", "compare transcripts", (bank,))
            case Reveal():
                self._check_reveal(message)

    def _check_reveal(self, reveal: Reveal) -> None:
        """One share of every member, of the right kind, each the one its giver signed the hash of. Its own it has from nobody."""
        if tuple(each.bank for each in reveal.seeds) != self._online or tuple(each.bank for each in reveal.keys) != self._gone:
            raise ProtocolError("expected shares of the seeds of those online and of the keys of those gone, in the roster's order")
        boxes = {box.bank: box for box in self._inboxes[reveal.bank]}
        for kind, opened in (("seed", reveal.seeds), ("key", reveal.keys)):
            for each in opened:
                if each.bank != reveal.bank:
                    box, given = boxes[each.bank], share_hash(reveal.session, each.bank, reveal.bank, kind, each.share)
                    if given != (box.seed_share if kind == "seed" else box.key_share):
                        raise Misbehaviour(f"{reveal.bank} has changed its share of {each.bank}'s {kind}", banks=(reveal.bank,))

    def _rebuild(self, bank: str) -> bytes:
        """The self-mask seed of a bank that is online, the masking key of one that is gone, as it was published."""
        online = bank in self._vectors
        shares = {
            self._roster.number(giver) + 1: each.share
            for giver, reveal in self._reveals.items()
            for each in (reveal.seeds if online else reveal.keys)
            if each.bank == bank
        }
        try:
            secret = shamir.combine(shares, self.header.threshold)
            if online and commitment(self.header.session, bank, secret) == self._keys[bank].commitment:
                return secret
            if not online and public(secret) == self._keys[bank].masking:
                return secret
        except PlanError:
            pass
        raise Misbehaviour(f"{bank} gave out shares of another secret than it published", "leave it out of the next session", (bank,))

    def _add(self, vector: Masked) -> None:
        bits, packed = self.header.modulus_bits, np.frombuffer(vector.packed, np.uint8)
        for start in range(0, self.header.length, _STRETCH):
            part = self._sum[start : start + _STRETCH]
            first = start * bits // 8
            part += unpack(packed[first : first + -(-len(part) * bits // 8)], len(part), bits)

    def _ordered(self, banks: Collection[str]) -> tuple[str, ...]:
        return tuple(bank for bank in self._roster.names if bank in banks)

    def _to(self, banks: Mapping[str, object], message: Message) -> list[Letter]:
        return [Letter(bank, message) for bank in self._ordered(banks)]

    @property
    def _online(self) -> tuple[str, ...]:
        return self._ordered(self._vectors)

    @property
    def _gone(self) -> tuple[str, ...]:
        """Members whose vectors did not arrive."""
        return self._ordered(self._shares.keys() - self._vectors.keys())

    @property
    def _members(self) -> bytes:
        return members_hash(self._keys[bank] for bank in self._ordered(self._shares))

    @property
    def _arrived(self) -> tuple[dict[str, Any], ...]:
        """What has come in each exchange, by bank; of a vector only whose."""
        return (self._keys, self._shares, self._vectors, self._views, self._reveals, self._receipts)
