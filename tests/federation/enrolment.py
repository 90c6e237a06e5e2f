"""A federation whose banks have sent their requests, in temporary folders."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from federation.enrolment.home import Home
from federation.enrolment.member import Known
from federation.enrolment.registry import Registry
from federation.enrolment.roster import Roster, SignedRoster
from federation.files import read, write

NOW = datetime.now(UTC).replace(microsecond=0)
"""The commands and TLS itself go by this machine's clock"""
BANKS = ("alder", "birch", "cedar", "dogwood")


@dataclass(frozen=True)
class Federation:
    """A coordinator's folder and the banks'."""

    folder: Path
    registry: Registry
    homes: dict[str, Home]

    def join(self, name: str, *, rotate: bool = False) -> Known:
        """The bank makes keys, and is approved; its fingerprint, as the bank's people tell it."""
        if name not in self.homes:
            self.homes[name] = Home(self.folder / name)
        keys = self.homes[name].make_keys(name, rotate=rotate)
        told = Known(fingerprints={name: keys.member.fingerprint})
        self.registry.approve(self.homes[name].request(), told, NOW)
        return told

    @property
    def told(self) -> Known:
        """What everybody has told everybody by telephone."""
        return Known(fingerprints={name: home.keys[-1].member.fingerprint for name, home in self.homes.items()})

    def propose(self, *without: str) -> SignedRoster:
        return read(SignedRoster, self.registry.propose(without)[0])

    def sign(self, proposal: SignedRoster) -> SignedRoster:
        """All members do, and put it in force."""
        for _ in range(2):
            for name in proposal.roster.names:
                proposal = self.homes[name].sign(proposal, self.told)
        write(self.folder / "back.json", proposal)
        self.registry.gather([self.folder / "back.json"])
        return proposal


def make_federation(folder: Path, banks: tuple[str, ...] = BANKS, *hosts: str) -> Federation:
    """`hosts` are further names of the coordinator's machine."""
    made = Federation(folder, Registry.create(folder / "coordinator", "orchard", ["localhost", "127.0.0.1", *hosts], NOW), {})
    for name in banks:
        made.join(name)
    return made


def forged(roster: Roster, **changes: object) -> SignedRoster:
    """What a coordinator that lies could show."""
    return SignedRoster(roster=Roster.model_validate(dict(roster) | changes))
