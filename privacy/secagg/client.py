"""A bank's side of a session of secure aggregation; to be read with the paper open.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), the protocol of figure 4 with the lines
for active adversaries, on the complete graph:

    exchange   the coordinator sends        the bank answers                    in the paper
    0          header                       its signed keys, a commitment       AdvertiseKeys
    1          everybody's signed keys      shares of its secrets, encrypted    ShareKeys
    2          the shares meant for it      its masked vector                   MaskedInputCollection
    3          who is online                its signature on that               ConsistencyCheck
    4          their signatures             shares that unmask the sum          Unmasking
    5          the sum                      its signature on that               -
    6          their signatures             -                                   -

It differs from the paper in that keys, masks and signatures are bound to the header, and so to the model and configuration; a commitment
to the self-mask seed and signed hashes of all shares say who is to blame when a secret cannot be rebuilt; what comes back is signed too.

Who learns what:
- The coordinator learns the sum of the vectors of those online, who was there when, and the masking keys of those gone, whose vectors stay
  under their self-masks. With up to c banks it learns what these know besides: the sum of the others, of which there are two or more.
- A bank learns the sum. Shares it holds are of random secrets and say nothing below the threshold.
- Neither can make an honest bank give more, whatever is sent to it. They can end a session, or make its sum wrong: nothing here says that
  vectors were honest, nor that the coordinator added them up. With fewer than t receipts nobody knows that all were told the same sum.

The state is the list of messages received and answered, in the vault before an answer leaves it. A message that is refused changes nothing.
A bank that was killed goes on where its vault says; its first answer to each exchange remains the only one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from privacy.errors import Inconsistent, PlanError, ProtocolError, Refused, SecAggError
from privacy.secagg import shamir
from privacy.secagg.agreement import Secrets, members_hash, pair_masks, seal, self_mask, unseal, view_hash
from privacy.secagg.fixed_point import pack, unpack
from privacy.secagg.identity import Identity, Roster
from privacy.secagg.masks import add_masks
from privacy.secagg.messages import (
    Box,
    Header,
    Inbox,
    InSession,
    KeyList,
    Keys,
    Masked,
    Message,
    Online,
    Opened,
    Receipt,
    Receipts,
    Reveal,
    Shares,
    Sum,
    View,
    Views,
    sign,
)
from privacy.secagg.rules import Expected, Policy, check_header, check_left, check_members, check_proposal, check_threshold, encoding
from privacy.secagg.vault import Step, Vault
from privacy.stream import Stream

M = TypeVar("M", bound=Message)


class Client:
    """One bank in one session: the one in its vault if that is live, else the next whose header arrives. Methods raise SecAggError."""

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        policy: Policy,
        expected: Expected,
        vault: Vault,
        update: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """`update` is what is to be summed, let go of when it is masked; a bank that was restarted after exchange 2 goes on without."""
        roster.check_order([identity.name])
        vault.check_roster(roster)
        self._identity, self._roster, self._policy, self._expected, self._vault = identity, roster, policy, expected, vault
        self._update = update
        self._steps = vault.steps()
        if self._steps:
            self._settle()

    @property
    def name(self) -> str:
        return self._identity.name

    @property
    def exchange(self) -> int:
        """The next; 7 when the session is complete."""
        return len(self._steps)

    def on(self, message: Message) -> list[Message]:
        """The bank's answer, on disk when this returns. A message that is refused raises and changes nothing."""
        with self._placed(message):
            step = Step(message, self._answer(message))
        step = self._vault.store(self.exchange, step)
        self._steps = [*(Step(before.received, None) for before in self._steps), step]  # the masked vector leaves memory with the next
        return self.resend()

    def check(self, inbox: Inbox) -> None:
        """Raise what `on` would of these boxes, before an update is made for them. Nothing changes."""
        with self._placed(inbox):
            self._check_turn(inbox)
            self._check_inbox(inbox)

    def resend(self) -> list[Message]:
        """The last answer again, as it is stored."""
        if not self._steps:
            return []
        self._settle()
        return [sent] if (sent := self._steps[-1].sent) else []

    def total(self) -> npt.NDArray[np.float32]:
        """The sum. Receipts, in exchange 6, say whether everybody was sent the same. Raises ProtocolError before exchange 5."""
        if self.exchange <= Sum.exchange:
            raise ProtocolError(f"{self.name} has not been sent a sum", f"the session is at exchange {self.exchange}")
        packed = np.frombuffer(self._received(Sum).packed, np.uint8)
        return encoding(self._header, self._roster).decode(unpack(packed, self._header.length, self._header.modulus_bits))

    def end(self) -> None:
        """Erase the session, complete or given up. It can never be taken up again, nor can a masked update be used in another."""
        if self._steps:
            self._vault.end(self._header.session)
        self._steps = []

    def _settle(self) -> None:
        """What follows from the last step, and is done again after a restart: lines in the transcript, secrets that have served erased."""
        self._vault.note(self._header.session, self._steps[-1])
        if self.exchange > Reveal.exchange:
            self._vault.forget_secrets()
        if self.exchange > Masked.exchange:
            self._update = None

    @contextmanager
    def _placed(self, message: Message) -> Iterator[None]:
        """An error says where it was."""
        try:
            yield
        except SecAggError as error:
            session = message.session if isinstance(message, Header | InSession) else b""
            place = f"{self.name}, session {session.hex()[:8]}, exchange {self.exchange}"
            raise error.at(place) from error.__cause__

    def _check_turn(self, message: Message) -> None:
        """Of the session that is live, and nobody else has answered for this bank."""
        self._vault.check_next(self.exchange)
        if self._steps:
            self._settle()  # where a full disk was in the way the first time
            self._check_header(self._header)
            if isinstance(message, InSession) and message.session != self._header.session:
                raise ProtocolError(f"the bank is in session {self._header.session.hex()[:8]}", "messages of another session are dropped")

    def _answer(self, message: Message) -> Message | None:
        self._check_turn(message)
        match self.exchange, message:
            case 0, Header():
                return self._advertise_keys(message)
            case 1, KeyList():
                return self._share_secrets(message)
            case 2, Inbox():
                return self._mask_update(message)
            case 3, Online():
                return self._sign_view(message)
            case 4, Views():
                return self._reveal_shares(message)
            case 5, Sum():
                return self._sign_sum(message)
            case 6, Receipts():
                self._compare_receipts(message)
                return None
        raise ProtocolError(
            f"{type(message).__name__} is out of order",
            "resend() gives the last answer again; end() gives the session up",
        )

    def _advertise_keys(self, header: Header) -> Keys:
        """0. Fresh secrets, on disk before their public halves leave."""
        self._check_header(header)
        if self._vault.ended(header.session):
            raise ProtocolError("this session is over", "a new attempt has a fresh nonce")
        secrets = Secrets.fresh()
        self._vault.keep("secrets", secrets.to_bytes())
        return sign(self._identity, secrets.publish(header.session, self.name))

    def _share_secrets(self, listed: KeyList) -> Shares:
        """1. With t of these shares the coordinator will learn one of the two secrets, never both."""
        self._check_list(listed)
        secrets, holders, threshold = self._secrets, len(self._roster.names), self._header.threshold
        seed_shares = shamir.split(secrets.seed, holders, threshold)
        key_shares = shamir.split(secrets.masking, holders, threshold)
        self._vault.keep("share", seed_shares[self._roster.number(self.name)])
        boxes = []
        for keys in listed.keys:
            if keys.bank != self.name:
                x = self._roster.number(keys.bank)
                boxes.append(sign(self._identity, seal(secrets.encryption, self.name, keys, seed_shares[x], key_shares[x])))
        return sign(self._identity, Shares(self._header.session, self.name, tuple(boxes)))

    def _mask_update(self, inbox: Inbox) -> Masked:
        """2. The one vector that these keys mask; the update's digest is on disk before it leaves."""
        self._check_inbox(inbox)
        if self._update is None or self._update.shape != (self._header.length,) or self._update.dtype != np.float32:
            shape = None if self._update is None else (self._update.dtype, self._update.shape)
            raise Refused(f"no update to mask: expected float32 of shape ({self._header.length},), got {shape}")
        members = self._members(inbox)
        try:
            vector = encoding(self._header, self._roster).encode(self._update, Stream())
        except PlanError as error:
            raise Refused(f"the update's {error.message}", error.hint) from error
        peers = [keys for keys in members if keys.bank != self.name]
        masks = pair_masks(self._header, self._roster, members_hash(members), self.name, self._secrets.masking, peers)
        add_masks(vector, [(self_mask(self._header.session, self.name, self._secrets.seed), 1), *masks])
        packed = pack(vector, self._header.modulus_bits).data
        self._vault.claim(hashlib.sha256(np.ascontiguousarray(self._update).data).digest(), self._header.session)
        return sign(self._identity, Masked(self._header.session, self.name, packed))

    def _sign_view(self, online: Online) -> View:
        """3. The bank's one word on who is online; with t such words it will help to unmask their sum, and no other."""
        self._roster.check_order(online.banks)
        if self.name not in online.banks or not set(online.banks) <= {keys.bank for keys in self._members()}:
            raise ProtocolError("the online set must hold this bank, and only members")
        check_left(self._header, len(online.banks))
        return sign(self._identity, View(self._header.session, self.name, self._view(online)))

    def _reveal_shares(self, views: Views) -> Reveal:
        """4. Of each member one share: of its self-mask seed if it is online, of its masking key if not."""
        online = self._received(Online)
        self._check_signed(views.views)
        self._check_same({view.bank: view.view for view in views.views}, self._view(online), "view of members and those online")
        secrets, keys = self._secrets, self._keys
        shares = {box.bank: unseal(secrets.encryption, keys[box.bank], box) for box in self._received(Inbox).boxes}
        seeds = {bank: seed for bank, (seed, _) in shares.items()} | {self.name: self._vault.secret("share")}
        return sign(
            self._identity,
            Reveal(
                self._header.session,
                self.name,
                seeds=tuple(Opened(bank, seeds[bank]) for bank in online.banks),
                keys=tuple(Opened(gone.bank, shares[gone.bank][1]) for gone in self._members() if gone.bank not in online.banks),
            ),
        )

    def _sign_sum(self, total: Sum) -> Receipt:
        """5."""
        if (size := len(total.packed)) != (expected := self._header.packed_size):
            raise ProtocolError(f"a sum of {size} bytes, expected {expected}")
        return sign(self._identity, Receipt(self._header.session, self.name, total.digest))

    def _compare_receipts(self, receipts: Receipts) -> None:
        """6. With t receipts for it, no honest bank of these members was sent another sum."""
        self._check_signed(receipts.receipts)
        self._check_same({receipt.bank: receipt.total for receipt in receipts.receipts}, self._received(Sum).digest, "sum")

    def _check_header(self, header: Header) -> None:
        check_header(header, self._roster)
        check_proposal(header, self._expected, self._policy)

    def _check_list(self, listed: KeyList) -> None:
        """Signed by banks of the roster for this very session, enough of them, this one's as it made them."""
        self._roster.check_order([keys.bank for keys in listed.keys])
        check_members(self._header, len(listed.keys))
        check_threshold(self._header, self._roster, len(listed.keys))
        for keys in listed.keys:
            self._check_signature(keys)
        if self._steps[0].sent not in listed.keys:
            raise ProtocolError("the list does not have the keys that this bank signed")

    def _check_inbox(self, inbox: Inbox) -> None:
        """From banks of the list to this one, enough of them, and holding what their givers signed."""
        secrets, keys, givers = self._secrets, self._keys, [box.bank for box in inbox.boxes]
        self._roster.check_order(givers)
        if not set(givers) <= keys.keys() - {self.name}:
            raise ProtocolError("a box of a bank whose keys were not in the list")
        check_members(self._header, len(givers) + 1)
        for box in inbox.boxes:
            self._check_signature(box)
            if box.receiver != self.name:
                raise ProtocolError(f"a box from {box.bank} to {box.receiver!r}")
            unseal(secrets.encryption, keys[box.bank], box)

    def _check_signed(self, signed: tuple[View, ...] | tuple[Receipt, ...]) -> None:
        """By t or more of those online."""
        banks = [each.bank for each in signed]
        self._roster.check_order(banks)
        if not set(banks) <= set(self._received(Online).banks):
            raise ProtocolError("a signature of a bank that is not online")
        for each in signed:
            self._check_signature(each)
        check_left(self._header, len(banks))

    def _check_signature(self, signed: Keys | Box | View | Receipt) -> None:
        if signed.session != self._header.session:
            raise ProtocolError(f"{signed.bank} has signed for session {signed.session.hex()[:8]}, under another header than this bank")
        self._roster.check_signature(signed.bank, signed.signature, signed.digest)

    def _check_same(self, signed: dict[str, bytes], own: bytes, what: str) -> None:
        if others := tuple(bank for bank, digest in signed.items() if digest != own):
            raise Inconsistent(
                f"{', '.join(others)} signed another {what} than this bank",
                "the coordinator lies or they do: compare transcripts past the coordinator",
                others,
            )

    def _received(self, kind: type[M]) -> M:
        """What the bank was sent in the exchange of this kind of message."""
        message = self._steps[kind.exchange].received
        assert isinstance(message, kind)
        return message

    @property
    def _header(self) -> Header:
        return self._received(Header)

    @property
    def _secrets(self) -> Secrets:
        return Secrets.from_bytes(self._vault.secret("secrets"))

    @property
    def _keys(self) -> dict[str, Keys]:
        return {keys.bank: keys for keys in self._received(KeyList).keys}

    def _members(self, inbox: Inbox | None = None) -> list[Keys]:
        """Those whose shares arrived, and this bank, in the roster's order."""
        banks = {box.bank for box in (inbox or self._received(Inbox)).boxes} | {self.name}
        return [keys for bank, keys in self._keys.items() if bank in banks]

    def _view(self, online: Online) -> bytes:
        return view_hash(members_hash(self._members()), online.banks)
