"""Sessions of secure aggregation among enrolled banks, whose vaults are then in their folders."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from federation.dossier.verify import export
from federation.enrolment.roster import Roster
from privacy.errors import SecAggError
from privacy.secagg.messages import Message
from privacy.secagg.server import Server
from tests.federation.enrolment import Federation
from tests.privacy.secagg import driver

Lie = Callable[[str, Message], Message | None]


class Sessions:
    """Of banks of a roster that is in force."""

    def __init__(self, made: Federation, roster: Roster, scratch: Path) -> None:
        self.made, self.roster = made, roster
        self.driven = driver.Federation(scratch, len(roster.members), roster.colluders)
        self.driven.identities = [made.homes[name].keys_in(roster).identity for name in roster.names]
        self.driven.roster = roster.for_sums
        self.driven.header = replace(self.driven.header, roster=roster.for_sums.hash)
        self.driven.updates = self.driven.fresh_updates()

    def run(self, lie: Lie = lambda bank, message: message, drops: dict[str, int] | None = None) -> str:
        """One session, to its end or to where somebody notices; its name."""
        session = driver.Session(Server(self.driven.header, self.driven.roster), self.driven.clients(), drops or {}, to_bank=lie)
        with suppress(SecAggError):
            session.run()
        for client in session.clients.values():
            client.end()
        name = self.driven.header.session.hex()
        self.driven.next_header()
        self.driven.updates = self.driven.fresh_updates()
        return name

    def transcript(self, bank: str) -> Path:
        return self.driven.transcript(bank)

    def export(self, folder: Path) -> list[Path]:
        """As each bank hands its transcript out."""
        for bank in self.roster.names:
            export(self.transcript(bank), folder / f"{bank}.transcript", self.made.homes[bank].keys_in(self.roster).identity)
        return [folder / f"{bank}.transcript" for bank in self.roster.names]


@contextmanager
def sessions(made: Federation) -> Iterator[Sessions]:
    """After all have signed a first roster."""
    roster = made.sign(made.propose()).roster
    with driver.scratch() as scratch:
        run = Sessions(made, roster, scratch)
        try:
            yield run
        finally:
            run.driven.close()
