"""`consortium federation`: who takes part, with which keys. Everything heavy is imported inside the commands.

A peer's fingerprint is printed nowhere: it has to come from the peer, or comparing it would prove nothing.
"""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consortium.federation.options import BANK, COORDINATOR, BankHome, CoordinatorHome

if TYPE_CHECKING:
    from federation.enrolment.keys import Keys
    from federation.enrolment.member import Known, Member
    from federation.enrolment.roster import Roster

app = typer.Typer()
roster_app = typer.Typer(help="Rosters: who takes part, version after version.", no_args_is_help=True)
app.add_typer(roster_app, name="roster")

KnownFile = Annotated[
    Path | None, typer.Option("--known", help='Fingerprints from another channel: {"fingerprints": {"NAME": "..."}}.', metavar="FILE")
]
RosterFile = Annotated[Path, typer.Argument(help="As the coordinator sent it.", metavar="ROSTER")]


@app.command()
def init(
    home: Annotated[Path, typer.Argument(help="New directory.", metavar="DIR")],
    name: Annotated[str, typer.Option(help="Of the federation.")],
    host: Annotated[list[str], typer.Option(help="Name or address of this machine, as banks reach it; may be repeated.")],
) -> None:
    """Coordinator: make a certificate authority, keys and a federation.yaml."""
    from federation.enrolment.registry import Registry

    Registry.create(home, name, host, _now())
    print(f"{home}: federation.yaml, a certificate authority, and a certificate for {', '.join(host)}")


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="The bank's, as all will see it: a-z, 0-9, . and -", metavar="NAME")],
    home: BankHome = BANK,
    rotate: Annotated[bool, typer.Option("--rotate", help="Others beside those there are, to replace them.")] = False,
) -> None:
    """Bank: make keys at home. Private ones never leave the folder."""
    from federation.enrolment.home import Home

    keys = Home(home).make_keys(name, rotate=rotate)
    print(f"{home}: new keys of {name}. Next: consortium federation request OUTPUT --home {home}")
    _print_own(keys)


@app.command()
def request(
    output: Annotated[Path, typer.Argument(help="New file, to be mailed to the coordinator.", metavar="OUTPUT")], home: BankHome = BANK
) -> None:
    """Bank: write the public keys into a request; new keys are signed by those of the roster in force."""
    from federation.enrolment.home import Home
    from federation.errors import FolderError
    from federation.files import write

    bank = Home(home)
    made = bank.request()
    if output.exists():
        raise FolderError(f"{output}: is there already", "name a new file: nothing of yours is to be written over")
    write(output, made)
    print(f"{output}: nothing in it is secret")
    _print_own(bank.keys[-1])


@app.command()
def approve(
    requests: Annotated[list[Path], typer.Argument(help="As banks sent them.", metavar="REQUEST...")],
    home: CoordinatorHome = COORDINATOR,
    known: KnownFile = None,
) -> None:
    """Coordinator: take banks' requests, each fingerprint typed in as the bank has told it, and issue their certificates."""
    from federation.enrolment.member import Request
    from federation.enrolment.registry import Registry
    from federation.files import read

    registry = Registry(home)
    for path in requests:
        request = read(Request, path)
        confirmed = _adding(registry.known, known)
        if not registry.is_confirmed(request, confirmed):
            confirmed = _ask([request.member], confirmed, "--known FILE")
        certificate = registry.approve(request, confirmed, _now())
        print(f"approved {request.member.name}: send it {certificate}")
    print("When all are here: consortium federation roster propose")


@app.command()
def accept(
    certificate: Annotated[Path, typer.Argument(help="As the coordinator sent it.", metavar="CERTIFICATE")], home: BankHome = BANK
) -> None:
    """Bank: check and keep the TLS certificate that the coordinator sent."""
    from federation.enrolment.home import Home

    kept = Home(home).accept(certificate, _now())
    print(f"kept in {home}; it ends at {kept.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


@app.command()
def renew(home: CoordinatorHome = COORDINATOR) -> None:
    """Coordinator: fresh certificates for the same keys, its own and the banks'. The roster stays as it is."""
    from federation.enrolment.registry import Registry

    for path in Registry(home).renew(_now()):
        print(path)


@app.command("sign-roster")
def sign_roster(
    roster: RosterFile,
    home: BankHome = BANK,
    known: KnownFile = None,
    vouched: Annotated[Path | None, typer.Option(help="Peers' identity keys as certificates (PEM), with --trust.", metavar="FILE")] = None,
    trust: Annotated[Path | None, typer.Option(help="Whose certificates those are: an authority you trust.", metavar="CA.pem")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether to sign.")] = False,
) -> None:
    """Bank: sign a roster, each new peer's fingerprint typed in as the peer has told it. Run again when all have signed: then it counts."""
    from federation.enrolment.home import Home
    from federation.enrolment.roster import SignedRoster, changes
    from federation.files import read, write

    bank, proposal = Home(home), read(SignedRoster, roster)
    confirmed = _adding(bank.known, known)
    if vouched or trust:
        confirmed = confirmed.adding(_vouched(vouched, trust, proposal.roster))
    missing, own = bank.unconfirmed(proposal, confirmed), bank.keys_in(proposal.roster)
    if own.name not in proposal.signatures:
        print(f"version {proposal.roster.version}, hash {proposal.roster.hash.hex()}")
        for line in changes(proposal.roster, bank.in_force):
            print(f"  {line}")
        _print_own(own)
        confirmed = _ask(missing, confirmed, "--known FILE and --yes")
        if not yes and _answer(f"sign version {proposal.roster.version} as {own.name}? [y/N] ", "--yes") not in ("y", "yes"):
            print("not signed")
            raise typer.Exit(1)
    signed = bank.sign(proposal, confirmed)
    write(roster, signed)
    print(f"signed as {own.name}; version {signed.roster.version} is {'not yet' if signed.missing else 'now'} in force here")
    if signed.missing:
        print(f"  send {roster} back: signatures of {', '.join(signed.missing)} are to come")


@roster_app.command("propose")
def propose(
    home: CoordinatorHome = COORDINATOR,
    without: Annotated[list[str], typer.Option(help="A bank that is to leave; may be repeated.", metavar="NAME")] = [],  # noqa: B006
) -> None:
    """Coordinator: write the next version, of all who are approved, for the banks to sign."""
    from federation.enrolment.registry import Registry

    path, roster = Registry(home).propose(without)
    print(f"{path}: version {roster.version} with {', '.join(roster.names)}\n  send it to each of them, and gather what comes back")


@roster_app.command("gather")
def gather(
    copies: Annotated[list[Path], typer.Argument(help="As banks sent them back.", metavar="COPY...")], home: CoordinatorHome = COORDINATOR
) -> None:
    """Coordinator: put the banks' signatures together."""
    from federation.enrolment.registry import Registry

    signed = Registry(home).gather(copies)
    version = f"version {signed.roster.version}"
    print(
        f"{version} is signed by all: send it to each" if not signed.missing else f"{version} is not signed by {', '.join(signed.missing)}"
    )


@roster_app.command("show")
def show(roster: RosterFile) -> None:
    """Who is in a roster, and who has signed it."""
    from rich.table import Table

    from consortium.tables import print_whole
    from federation.enrolment.roster import SignedRoster
    from federation.files import read

    signed = read(SignedRoster, roster)
    facts = signed.roster
    print(f"{facts.federation}, version {facts.version}; {facts.colluders} of {len(facts.members)} may collude")
    print(f"hash {facts.hash.hex()}\n  after {facts.previous.hex()}")
    table = Table("bank", "has signed", box=None, padding=(0, 2))
    for name in facts.names:
        table.add_row(name, "no" if name in signed.missing else "yes")
    print_whole(table)


@roster_app.command("verify")
def verify(
    roster: RosterFile,
    after: Annotated[Path | None, typer.Option(help="The version before it: does it follow?", metavar="ROSTER")] = None,
) -> None:
    """Whether all have signed a roster, and whether it may follow another."""
    from federation.enrolment.roster import SignedRoster, check_follows
    from federation.files import read

    signed = read(SignedRoster, roster)
    signed.check_complete()
    if after:
        check_follows(signed.roster, read(SignedRoster, after).roster)
    print(f"version {signed.roster.version} is signed by all {len(signed.roster.names)}" + (f", and follows {after}" if after else ""))
    print(f"hash {signed.roster.hash.hex()}")


def _print_own(keys: "Keys") -> None:
    print(
        f"fingerprint of {keys.name}, for the other banks to hear from you, and not by way of the coordinator:\n  {keys.member.fingerprint}"
    )


def _adding(known: "Known", file: Path | None) -> "Known":
    from federation.enrolment.member import Known
    from federation.files import read

    return known.adding(read(Known, file).fingerprints) if file else known


def _vouched(file: Path | None, trust: Path | None, roster: "Roster") -> dict[str, str]:
    from federation.enrolment.authority import load, vouched
    from federation.enrolment.member import key_hash
    from federation.errors import FactsError, NotTrusted

    if not (file and trust):
        raise FactsError("--vouched and --trust go together", "certificates of the peers' identity keys, and who has issued them")
    authority = load(trust)[0]
    if key_hash(authority.public_key()) == roster.authority:
        raise NotTrusted(f"{trust} is the coordinator's own authority", "it could vouch for banks that do not exist")
    return vouched(load(file), authority, _now())


def _ask(members: "Iterable[Member]", known: "Known", otherwise: str) -> "Known":
    """With what is typed in for each; NotTrusted for a fingerprint that is not that of the key shown. `otherwise` are options."""
    for member in members:
        known = known.adding({member.name: _answer(f"fingerprint of {member.name}, as it told you itself: ", otherwise)})
        known.check(member)
    return known


def _answer(question: str, otherwise: str) -> str:
    from federation.errors import FactsError

    print(question, end="", file=sys.stderr, flush=True)
    if not (line := sys.stdin.readline()):
        raise FactsError("nobody is there to answer", f"run it at a terminal, or with {otherwise}")
    return line.strip().lower()


def _now() -> datetime:
    return datetime.now(UTC)
