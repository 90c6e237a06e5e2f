"""What a malicious coordinator, with banks that help it, tries on honest banks; and what banks try on an honest coordinator.

    python -m tests.privacy.secagg.attacks          plays them all, says what stopped each, prints them as a table

Each attack is a function that ends by asserting what has been gained: a vector is known that should not be, or what is wrong was accepted.
It never comes that far: it is stopped by a named error, after which whoever was attacked is as before. That the error comes from the guard
named beside the attack, and that the attack is a real one, is shown by removing the guard: then the function runs to its end.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from privacy.errors import Aborted, Inconsistent, Misbehaviour, PlanError, ProtocolError, Refused, SecAggError, VaultError
from privacy.secagg import shamir
from privacy.secagg.agreement import Secrets, members_hash, pair_masks, seal, self_mask, unseal
from privacy.secagg.client import Client
from privacy.secagg.fixed_point import unpack
from privacy.secagg.identity import Identity, Roster
from privacy.secagg.masks import add_masks
from privacy.secagg.messages import (
    Inbox,
    KeyList,
    Keys,
    Masked,
    Message,
    Online,
    Opened,
    Receipts,
    Reveal,
    Signed,
    Sum,
    View,
    Views,
    sign,
)
from privacy.secagg.rules import encoding
from privacy.secagg.server import Server
from privacy.secagg.vault import Vault
from tests.privacy.secagg.driver import POLICY, Federation, Vector, copy_of, federation, wire

VICTIM, LIAR = "bank0", "bank1"

Sets = Mapping[str, tuple[str, ...]]
"""For each bank, banks it is told of"""


@dataclass
class Coordinator:
    """A malicious one. It asks for what it likes, remembers all answers, and computes whatever these allow."""

    made: Federation
    clients: dict[str, Client] = field(init=False)
    keys: dict[str, Keys] = field(default_factory=dict)
    """Of the members"""
    vectors: dict[str, Masked] = field(default_factory=dict)
    held: defaultdict[tuple[str, str], dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    """Shares by kind and bank whose secret it is, each at its x"""

    def __post_init__(self) -> None:
        self.clients = self.made.clients()

    @property
    def names(self) -> tuple[str, ...]:
        return self.made.roster.names

    @property
    def session(self) -> bytes:
        return self.made.header.session

    def ask(self, bank: str, message: Message) -> Any:
        """The bank's answer. Where it refuses, nothing that it has on disk has changed."""
        before = copy_of(self.made.folder / bank)
        try:
            return (*self.clients[bank].on(wire(message)), None)[0]
        except SecAggError:
            assert copy_of(self.made.folder / bank) == before
            raise

    def list_keys(self, banks: Collection[str]) -> KeyList:
        return KeyList(self.session, tuple(self.ask(bank, self.made.header) for bank in banks))

    def inboxes(self, listed: KeyList, others: Mapping[str, KeyList] | None = None) -> dict[str, Inbox]:
        """What the banks of the list, some of which are shown another, have for each other."""
        self.keys = {keys.bank: keys for keys in listed.keys}
        boxes = [box for bank in self.keys for box in self.ask(bank, (others or {}).get(bank, listed)).boxes]
        return {bank: Inbox(self.session, tuple(box for box in boxes if box.receiver == bank)) for bank in self.keys}

    def mask(self, inboxes: Mapping[str, Inbox]) -> None:
        self.vectors = {bank: self.ask(bank, inbox) for bank, inbox in inboxes.items()}

    def reveal(self, online: Sets, shown: Sets | None = None) -> None:
        """Banks are told who is online, then shown the views of these, and have their shares collected."""
        views: dict[str, View] = {bank: self.ask(bank, Online(self.session, told)) for bank, told in online.items()}
        for bank, told in (shown or online).items():
            reveal: Reveal = self.ask(bank, Views(self.session, tuple(views[other] for other in told if other in views)))
            for kind, opened in (("seed", reveal.seeds), ("key", reveal.keys)):
                for each in opened:
                    self.held[kind, each.bank][self.made.roster.number(bank) + 1] = each.share

    def sum(self, banks: Collection[str]) -> Vector:
        """A session among these, as it should be."""
        self.mask(self.inboxes(self.list_keys(banks)))
        self.reveal(dict.fromkeys(banks, tuple(banks)))
        return self.unmasked(banks)

    def unmasked(self, banks: Collection[str]) -> Vector:
        """The sum of these banks' vectors alone: their own masks come off, and those they share with other members."""
        header, roster, members = self.made.header, self.made.roster, members_hash(self.keys.values())
        packed = (np.frombuffer(self.vectors[bank].packed, np.uint8) for bank in banks)
        total = np.sum([unpack(each, header.length, header.modulus_bits) for each in packed], axis=0, dtype=np.uint32)
        masks = [(self_mask(self.session, bank, self._rebuilt("seed", bank)), -1) for bank in banks]
        for other in self.keys.keys() - set(banks):
            for bank in banks:
                holder, peer, away = (other, bank, 1) if self._knows(other) else (bank, other, -1)
                pair = pair_masks(header, roster, members, holder, self._rebuilt("key", holder), [self.keys[peer]])
                masks += [(seed, away * added) for seed, added in pair]
        add_masks(total, masks)
        return encoding(header, roster).decode(total)

    def learns(self, *banks: str) -> None:
        np.testing.assert_array_equal(self.unmasked(banks), self.made.sum(banks))

    def _knows(self, bank: str) -> bool:
        return len(self.held["key", bank]) >= self.made.header.threshold

    def _rebuilt(self, kind: str, bank: str) -> bytes:
        return shamir.combine(self.held[kind, bank], self.made.header.threshold)


Play = Callable[[Coordinator], None]


@dataclass(frozen=True)
class Attack:
    play: Play
    banks: int
    error: type[SecAggError]
    words: str
    """The error's"""
    blames: tuple[str, ...]
    guards: Mapping[str, Callable[..., Any]]
    """Each stops it alone; with what to put in their places"""

    @property
    def story(self) -> str:
        return " ".join((self.play.__doc__ or "").split())


ATTACKS: dict[str, Attack] = {}


def gone(*_: object) -> None:
    """In the place of a guard."""


def attack(
    error: type[SecAggError], words: str, *guards: str | tuple[str, Callable[..., Any]], banks: int = 3, blames: tuple[str, ...] = ()
) -> Callable[[Play], Play]:
    """Puts a function into the catalogue. A guard without a replacement does nothing when it is removed; of several all go."""

    def enter(play: Play) -> Play:
        removed = dict((guard, gone) if isinstance(guard, str) else guard for guard in guards)
        ATTACKS[play.__name__] = Attack(play, banks, error, words, blames, removed)
        return play

    return enter


def _forgetful(exchanges: int) -> Callable[[Vault], Any]:
    """A vault that remembers only so many exchanges."""
    steps = Vault.steps
    return lambda vault: steps(vault)[:exchanges]


def _serve(made: Federation, kind: type[Message]) -> tuple[Server, Any]:
    """An honest coordinator that waits only for this message of the liar's; and the message, not yet sent."""
    clients, server = made.clients(), Server(made.header, made.roster)
    letters, held = server.start(), None
    while held is None:
        for answer in [answer for bank, message in letters for answer in clients[bank].on(wire(message))]:
            if type(answer) is kind and answer.bank == LIAR:
                held = answer
            else:
                letters = server.on(wire(answer)) or letters
    return server, held


def _submit(made: Federation, server: Server, message: Signed, **changes: object) -> None:
    """Changed and signed again by the liar. Where it is refused the coordinator is as before."""
    before = repr(vars(server))
    try:
        server.on(wire(sign(made.identities[1], replace(message, **changes))))
    except SecAggError:
        assert repr(vars(server)) == before or server.over
        raise


@attack(ProtocolError, "the signature is not bank1's", "client.Client._check_signature")
def swapped_keys(evil: Coordinator) -> None:
    """The coordinator shows a bank keys of its own in the place of all others', and opens its boxes."""
    listed = evil.list_keys(evil.names)
    own = {bank: Secrets.fresh() for bank in evil.names[1:]}
    swapped = KeyList(evil.session, (listed.keys[0], *(secrets.publish(evil.session, bank) for bank, secrets in own.items())))
    for box in evil.ask(VICTIM, swapped).boxes:
        x = evil.made.roster.number(box.receiver) + 1
        evil.held["seed", VICTIM][x], evil.held["key", VICTIM][x] = unseal(own[box.receiver].encryption, listed.keys[0], box)
    boxes = tuple(seal(secrets.encryption, bank, listed.keys[0], bytes(33), bytes(33)) for bank, secrets in own.items())
    evil.keys = {keys.bank: keys for keys in swapped.keys}
    evil.mask({VICTIM: Inbox(evil.session, boxes)})
    evil.learns(VICTIM)


@attack(Inconsistent, "bank1, bank2, bank3 signed another view", "client.Client._check_same", banks=4, blames=("bank1", "bank2", "bank3"))
def two_key_sets(evil: Coordinator) -> None:
    """A bank signs two sets of keys, and the coordinator shows one bank the second."""
    listed = evil.list_keys(evil.names)
    second = sign(evil.made.identities[3], replace(listed.keys[3], commitment=bytes(32)))
    evil.mask(evil.inboxes(listed, {VICTIM: replace(listed, keys=(*listed.keys[:3], second))}))
    evil.reveal(dict.fromkeys(evil.names, evil.names))
    assert evil.held["seed", VICTIM]


@attack(ProtocolError, "this session is over", ("vault.Vault.ended", lambda vault, session: False))
def an_old_header_again(evil: Coordinator) -> None:
    """The header of a session that is over comes again: who signs a second set of keys for it looks like a liar."""
    first = evil.ask(VICTIM, evil.made.header)
    evil.clients[VICTIM].end()
    second = evil.ask(VICTIM, evil.made.header)
    server = Server(evil.made.header, evil.made.roster)
    server.on(first)
    with suppress(Misbehaviour):
        server.on(second)
        raise AssertionError("an honest bank was not taken for a liar")


@attack(ProtocolError, "bank1 has signed for session", "client.Client._check_signature")
def a_box_of_an_old_session(evil: Coordinator) -> None:
    """A box of an old session is delivered in a new one: its giver looks like a liar."""
    old = evil.inboxes(evil.list_keys(evil.names))[VICTIM].boxes[0]
    for client in evil.clients.values():
        client.end()
    evil.made.next_header()
    inbox = evil.inboxes(evil.list_keys(evil.names))[VICTIM]
    with suppress(Misbehaviour):
        evil.ask(VICTIM, replace(inbox, boxes=(old, *inbox.boxes[1:])))
        raise AssertionError("an honest bank was not taken for a liar")


@attack(ProtocolError, "bank2 has signed for session", "client.Client._check_signature")
def different_models(evil: Coordinator) -> None:
    """Banks are sent different models, to single one out in the sum."""
    other = replace(evil.made.header, model=b"x" * 32)
    evil.clients["bank2"] = evil.made.client("bank2", model=other.model)
    listed = [evil.ask(bank, other if bank == "bank2" else evil.made.header) for bank in evil.names]
    assert evil.ask(VICTIM, KeyList(evil.session, tuple(listed)))


@attack(Inconsistent, "bank1, bank4 signed another view", "client.Client._check_same", banks=5, blames=("bank1", "bank4"))
def different_online_sets(evil: Coordinator) -> None:
    """Five banks are each told of another three that are online, such that the shares unmask a sum of two."""
    evil.mask(evil.inboxes(evil.list_keys(evil.names)))
    absent = {"bank0": "23", "bank1": "24", "bank2": "34", "bank3": "24", "bank4": "3"}
    evil.reveal({bank: tuple(other for other in evil.names if other[-1] not in out) for bank, out in absent.items()})
    evil.learns("bank0", "bank1")


@attack(ProtocolError, "expected each bank once", "identity.Roster.check_order")
def a_bank_counted_twice(evil: Coordinator) -> None:
    """A bank is told that it is online alone, named twice to reach the threshold, and shown its own view twice."""
    evil.mask(evil.inboxes(evil.list_keys(evil.names)))
    alone = {VICTIM: (VICTIM, VICTIM), "bank1": (VICTIM, "bank1"), "bank2": (VICTIM, "bank2")}
    evil.reveal(alone, {bank: (bank, bank) for bank in evil.names})
    evil.learns(VICTIM)


@attack(Aborted, "1 banks are left, 3 are needed", "client.check_left", banks=4)
def a_sum_of_too_few(evil: Coordinator) -> None:
    """Each bank is told that besides the victim only it is online."""
    evil.mask(evil.inboxes(evil.list_keys(evil.names)))
    evil.reveal({bank: tuple(sorted({VICTIM, bank})) for bank in evil.names}, {bank: (bank,) for bank in evil.names})
    evil.learns(VICTIM)


@attack(Refused, "threshold 2 for 5 banks of which 0 may collude: expected 3", "client.check_threshold", banks=5)
def a_lowered_threshold(evil: Coordinator) -> None:
    """The header asks for a threshold at which two pairs of banks can be told different things."""
    evil.made.next_header(threshold=2)
    evil.mask(evil.inboxes(evil.list_keys(evil.names)))
    one, two = ("bank0", "bank1", "bank4"), ("bank2", "bank3")
    evil.reveal(dict.fromkeys(one[:2], one) | dict.fromkeys(two, two))
    evil.learns("bank4")


@attack(Refused, "a roster of version 1, but this bank has seen version 1, which is another", "vault.Vault.check_roster")
def phantom_banks(evil: Coordinator) -> None:
    """A bank that is started again is given a roster in which all others are the coordinator's."""
    made = evil.made
    made.identities[1:] = [Identity.create(bank) for bank in evil.names[1:]]
    made.roster = Roster(1, 0, tuple((identity.name, identity.public) for identity in made.identities))
    made.next_header(roster=made.roster.hash)
    evil.clients = made.clients()
    np.testing.assert_array_equal(evil.sum(evil.names) - made.sum(evil.names[1:]), made.updates[VICTIM])


@attack(Refused, "this update has been masked in another session", "vault.Vault.claim", banks=4)
def a_round_again_with_one_bank_less(evil: Coordinator) -> None:
    """The coordinator says it lost the round, and repeats it without one bank: the difference of the sums is its vector."""
    with_victim = evil.sum(evil.names)
    for client in evil.clients.values():
        client.end()
    evil.made.next_header()
    evil.clients = evil.made.clients()
    evil.held.clear()
    without = evil.sum(evil.names[1:])
    np.testing.assert_array_equal(with_victim - without, evil.made.updates[VICTIM])


@attack(
    *(ProtocolError, "Online is out of order"),
    *(("vault.Vault.steps", _forgetful(3)), "vault.Vault.check_next", "vault.Vault.forget_secrets"),
)
def shares_asked_for_twice(evil: Coordinator) -> None:
    """Banks that have given shares are killed, started again, and told that the victim has vanished."""
    evil.sum(evil.names)
    rest = evil.names[1:]
    for bank in rest:
        evil.clients[bank] = evil.made.client(bank)
    evil.reveal(dict.fromkeys(rest, rest))
    evil.learns(VICTIM)


@attack(VaultError, "the session has gone on without this client", "vault.Vault.check_next", "vault.Vault.forget_secrets")
def two_clients_of_one_vault(evil: Coordinator) -> None:
    """The same, of banks that by mistake have two clients of one vault at work."""
    made, rest = evil.made, evil.names[1:]
    evil.mask(evil.inboxes(evil.list_keys(evil.names)))
    own = {bank: (made.identities[made.roster.number(bank)], evil.clients[bank]._expected, made.vaults[bank]) for bank in rest}
    twins = {bank: Client(who, made.roster, POLICY, expected, vault) for bank, (who, expected, vault) in own.items()}
    evil.reveal(dict.fromkeys(evil.names, evil.names))
    evil.clients |= twins
    evil.reveal(dict.fromkeys(rest, rest))
    evil.learns(VICTIM)


@attack(ProtocolError, "Inbox is out of order", ("vault.Vault.steps", _forgetful(2)), "vault.Vault.check_next")
def two_vectors_under_one_mask(evil: Coordinator) -> None:
    """A bank that has sent its vector is killed, started again with another update, and asked for its vector."""
    inboxes = evil.inboxes(evil.list_keys(evil.names))
    first, old = evil.ask(VICTIM, inboxes[VICTIM]), evil.made.updates[VICTIM]
    evil.made.updates = evil.made.fresh_updates()
    evil.clients[VICTIM] = evil.made.client(VICTIM)
    second = evil.ask(VICTIM, inboxes[VICTIM])
    masked = [unpack(np.frombuffer(each.packed, np.uint8), len(old), evil.made.header.modulus_bits) for each in (first, second)]
    difference = encoding(evil.made.header, evil.made.roster).decode(masked[1] - masked[0])
    np.testing.assert_array_equal(difference, evil.made.updates[VICTIM] - old)


@attack(Refused, "can wrap around", "fixed_point.FixedPoint.__post_init__")
def a_sum_that_wraps(evil: Coordinator) -> None:
    """The header asks for a unit so fine that the sum wraps around, and is wrong without a word."""
    evil.made.next_header(fraction_bits=14)
    evil.made.updates = {bank: np.full(7, 0.75, np.float32) + number / 256 for number, bank in enumerate(evil.names)}
    evil.clients = evil.made.clients()
    assert not np.array_equal(evil.sum(evil.names), evil.made.sum(evil.names))


@attack(Inconsistent, "bank0 signed another sum than this bank", "client.Client._check_same", blames=(VICTIM,))
def different_sums(evil: Coordinator) -> None:
    """One bank is sent another sum than the others."""
    evil.sum(evil.names)
    size, receipts = evil.made.header.packed_size, list[Any]()
    for number, bank in enumerate(evil.names):
        receipts.append(evil.ask(bank, Sum(evil.session, memoryview(bytes([number == 0]) * size))))
    evil.ask("bank1", Receipts(evil.session, tuple(receipts)))
    assert not np.array_equal(evil.clients[VICTIM].total(), evil.clients["bank1"].total())


@attack(ProtocolError, "expected shares of the seeds of those online and of the keys of those gone", "server.Server._check_reveal")
def an_id_in_both_lists(evil: Coordinator) -> None:
    """A bank gives the coordinator shares of both secrets of another."""
    server, reveal = _serve(evil.made, Reveal)
    _submit(evil.made, server, reveal, keys=(reveal.seeds[0],))
    assert server.exchange == 5


@attack(Misbehaviour, "bank1 has changed its share of bank0's seed", "server.Server._check_reveal", blames=(LIAR,))
def a_bad_share(evil: Coordinator) -> None:
    """A bank changes a share that it was given: the one that gave it looks like a liar."""
    server, reveal = _serve(evil.made, Reveal)
    try:
        _submit(evil.made, server, reveal, seeds=(Opened(VICTIM, bytes(33)), *reveal.seeds[1:]))
    except Misbehaviour as error:
        if error.banks != (VICTIM,):
            raise
    else:
        raise AssertionError("an honest bank was not taken for a liar")


@attack(ProtocolError, "a vector of 28 bytes, expected 14", "server.Server._check_content")
def an_oversized_vector(evil: Coordinator) -> None:
    """A bank sends a vector that is too long."""
    server, vector = _serve(evil.made, Masked)
    _submit(evil.made, server, vector, packed=memoryview(bytes(vector.packed) * 2))
    assert server.exchange == 3


@attack(ProtocolError, "a vector of 7 bytes, expected 14", "server.Server._check_content")
def a_truncated_vector(evil: Coordinator) -> None:
    """A bank sends a vector that is too short."""
    server, vector = _serve(evil.made, Masked)
    with suppress(PlanError):
        _submit(evil.made, server, vector, packed=vector.packed[:7])
    with suppress(Misbehaviour):
        server.on(vector)
        raise AssertionError("the session can still go on")


def play(attack: Attack) -> SecAggError:
    """What stops it."""
    with federation(attack.banks) as made:
        try:
            attack.play(Coordinator(made))
        except SecAggError as error:
            return error
    raise AssertionError(f"nothing stops {attack.story}")


def table() -> str:
    rows = ["| attack | stopped by | which says | and names |", "|---|---|---|---|"]
    for attack in ATTACKS.values():
        rows.append(f"| {attack.story} | `{attack.error.__name__}` | {attack.words} | {', '.join(attack.blames)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    for each in ATTACKS.values():
        print(f"{type(error := play(each)).__name__:14} {error.message}", file=sys.stderr)
    print(table())
