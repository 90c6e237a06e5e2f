"""Runs sessions in memory: every message goes through its bytes, banks vanish, and whoever tests may change what is on its way."""

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from privacy.errors import SecAggError
from privacy.secagg.client import Client
from privacy.secagg.identity import Identity, Roster
from privacy.secagg.messages import Header, Message
from privacy.secagg.rules import Expected, Policy, least_threshold
from privacy.secagg.server import Letter, Server
from privacy.secagg.vault import Vault

Vector = npt.NDArray[np.float32]
Tamper = Callable[[Message], Message | None]
"""What arrives instead of a message; nothing if None"""

POLICY = Policy(least_members=2, most_clip=1.0, most_modulus_bits=32)
BITS = 16


def unchanged(message: Message) -> Message:
    return message


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: a session syncs some twenty files for each bank."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@dataclass
class Federation:
    """Banks with keys and vaults, and a header for their next session."""

    folder: Path
    banks: int
    colluders: int = 0
    length: int = 7
    identities: list[Identity] = field(init=False)
    roster: Roster = field(init=False)
    header: Header = field(init=False)
    updates: dict[str, Vector] = field(init=False)
    vaults: dict[str, Vault] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.identities = [Identity.create(f"bank{number}") for number in range(self.banks)]
        self.roster = Roster(1, self.colluders, tuple((identity.name, identity.public) for identity in self.identities))
        self.header = Header(
            *("run", 1, 1, bytes(16), b"m" * 32, b"c" * 32, self.length, 1.0, 8, BITS),
            least_members=self.colluders + 2,
            threshold=least_threshold(self.banks, self.colluders),
            roster=self.roster.hash,
            deadline=0,
        )
        self.updates = self.fresh_updates()

    def fresh_updates(self) -> dict[str, Vector]:
        """Multiples of 2^-8 below the clip: their encoding, and so their sum, is exact."""
        random = np.random.default_rng()
        return {bank: (random.integers(-255, 256, self.length) / 256).astype(np.float32) for bank in self.roster.names}

    def next_header(self, **changes: object) -> Header:
        """Of another attempt."""
        nonce = (int.from_bytes(self.header.nonce, "big") + 1).to_bytes(16, "big")
        self.header = replace(self.header, attempt=self.header.attempt + 1, nonce=nonce, **changes)  # type: ignore[arg-type]
        return self.header

    def client(self, bank: str, policy: Policy = POLICY, **expected: object) -> Client:
        """A new process of the bank, as it were: whatever it knows is from its vault."""
        if bank in self.vaults:
            self.vaults.pop(bank).close()
        self.vaults[bank] = Vault(self.folder / bank, bank)
        header = self.header
        own = replace(Expected(header.run, header.round, header.model, header.config, header.length), **expected)  # type: ignore[arg-type]
        return Client(self.identities[self.roster.number(bank)], self.roster, policy, own, self.vaults[bank], self.updates[bank])

    def clients(self) -> dict[str, Client]:
        return {bank: self.client(bank) for bank in self.roster.names}

    def close(self) -> None:
        for vault in self.vaults.values():
            vault.close()
        self.vaults.clear()

    def transcript(self, bank: str) -> Path:
        return self.folder / bank / "transcript.jsonl"

    def sum(self, banks: Collection[str]) -> Vector:
        return np.sum([self.updates[bank] for bank in banks], axis=0, dtype=np.float32)


@contextmanager
def federation(banks: int, colluders: int = 0, length: int = 7) -> Iterator[Federation]:
    with scratch() as folder:
        made = Federation(folder, banks, colluders, length)
        try:
            yield made
        finally:
            made.close()


@dataclass
class Session:
    """One run of the protocol. `refusals` are what banks and the coordinator raised on messages."""

    server: Server
    clients: dict[str, Client]
    drops: Mapping[str, int] = field(default_factory=dict)
    """The first exchange in which a bank's answer does not arrive"""
    to_bank: Callable[[str, Message], Message | None] = lambda bank, message: message
    to_server: Tamper = unchanged
    before: Callable[[str, Message], None] = lambda bank, message: None
    """Called before a bank is given a message"""
    refusals: list[SecAggError] = field(default_factory=list)

    def run(self) -> Vector:
        """To its end; the coordinator's sum. Raises what the coordinator raises when it closes an exchange."""
        letters = self.server.start()
        while letters:
            letters = self.exchange(letters)
        return self.server.total()

    def exchange(self, letters: list[Letter]) -> list[Letter]:
        """Deliver letters and answers; the letters that come of it."""
        for bank, message in letters:
            for answer in self.deliver(bank, message):
                if self.drops.get(bank, 99) > answer.exchange and (next_letters := self.submit(answer)):
                    return next_letters
        return [] if self.server.over else self.server.close_exchange()

    def deliver(self, bank: str, message: Message) -> list[Message]:
        """The bank's answer; the stored one if it was given before."""
        self.before(bank, message)
        arrived, client = self.to_bank(bank, wire(message)), self.clients[bank]
        try:
            if arrived is None:
                return []
            return client.resend() if client.exchange > arrived.exchange else client.on(wire(arrived))
        except SecAggError as error:
            self.refusals.append(error)
            return []

    def submit(self, answer: Message) -> list[Letter]:
        arrived = self.to_server(wire(answer))
        if arrived is None or self.server.over:
            return []
        exchange = self.server.exchange
        try:
            return self.server.on(wire(arrived))
        except SecAggError as error:
            if self.server.over or self.server.exchange != exchange:
                raise
            self.refusals.append(error)
            return []


def wire(message: Message) -> Message:
    """As it arrives."""
    return Message.from_bytes(message.to_bytes())


def copy_of(folder: Path) -> dict[str, bytes]:
    """All that a bank has on disk."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def restore(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
