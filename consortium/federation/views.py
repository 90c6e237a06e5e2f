"""`consortium federation report | status | export-transcript | verify-transcripts`: what a person looks at. They change nothing."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consortium.federation.options import BANK, BankHome

if TYPE_CHECKING:
    from federation.dossier.verify import Check
    from federation.enrolment.roster import Roster

app = typer.Typer()
Folder = Annotated[Path, typer.Option("--home", help="The bank's folder, or the coordinator's.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def report(
    home: Folder = BANK,
    run: Annotated[str | None, typer.Option(help="Of the coordinator: which run.")] = None,
    bank: Annotated[Path | None, typer.Option(help="Of a bank: its bank.yaml, else that in --home.", metavar="bank.yaml")] = None,
    transcript: Annotated[list[Path], typer.Option(help="Of a bank, as it exported it; may be repeated.", metavar="FILE")] = [],  # noqa: B006
    roster: Annotated[list[Path], typer.Option(help="Of a bank: an older one, with keys that were replaced.", metavar="ROSTER")] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="Where it goes; else report/ in --home.", metavar="DIR")] = None,
) -> None:
    """Write the dossier for compliance and regulator: one page that needs nothing else, and the same as JSON."""
    from federation.dossier.page import write_dossier
    from federation.dossier.report import bank_dossier, coordinator_dossier, side_of
    from federation.errors import FactsError

    if side_of(home) == "bank":
        dossier = bank_dossier(home, _bank_file(bank, home), transcript, _signed(roster))
    elif run is None:
        raise FactsError("a coordinator's dossier is of one run", f"name it with --run; {home / 'runs'} has them")
    else:
        dossier = coordinator_dossier(home, run, transcript)
    print(write_dossier(output or home / "report" / (run or ""), dossier))


@app.command()
def status(
    home: Folder = BANK,
    run: Annotated[str | None, typer.Option(help="Of the coordinator: which run, else the one last heard of.")] = None,
    bank: Annotated[Path | None, typer.Option(help="Of a bank: its bank.yaml, else that in --home.", metavar="bank.yaml")] = None,
    once: Annotated[bool, typer.Option("--once", help="Do not go on showing it.")] = False,
    as_json: AsJson = False,
) -> None:
    """How it stands. Coordinator: the run, round and exchange, live. Bank: what it was asked and did, and its own epsilon."""
    import time

    from rich.console import Console

    from consortium.federation.status import newest_run, of_bank, of_run, read_bank, read_run, watch
    from federation.dossier.report import side_of

    console = Console(highlight=False, markup=False, emoji=False)
    if side_of(home) == "bank":
        shown = read_bank(home, _bank_file(bank, home))
        drawn = of_bank(shown)
    else:
        run = run or newest_run(home)
        if console.is_terminal and not (once or as_json):
            watch(home, run, console)
            return
        shown = read_run(home, run)
        drawn = of_run(shown, time.time())
    if as_json:
        print(json.dumps(shown))
    else:
        console.width = max(console.width, 160)
        console.print(drawn)


@app.command("export-transcript")
def export_transcript(
    output: Annotated[Path, typer.Argument(help="New file, for the other banks and for auditors.", metavar="OUTPUT")],
    home: BankHome = BANK,
) -> None:
    """Bank: write its account of all sessions, signed by it. Hashes and signatures; nothing in it is secret."""
    from federation.dossier.report import transcript_of
    from federation.dossier.verify import export
    from federation.enrolment.home import Home

    bank = Home(home)
    lines = export(transcript_of(home), output, bank.keys_in(bank.roster_in_force).identity)
    print(f"{output}: {lines} lines, signed. Send it to the other banks, and not by way of the coordinator")


@app.command("verify-transcripts")
def verify_transcripts(
    transcripts: Annotated[list[Path], typer.Argument(help="As banks exported them.", metavar="FILE...")],
    home: BankHome = BANK,
    roster: Annotated[
        list[Path], typer.Option(help="In place of the one in force in --home; several where keys were replaced.", metavar="ROSTER")
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Bank or auditor: do the banks' accounts of all sessions agree? Exit code 1 where they do not."""
    from federation.dossier.verify import check, identities, read_exports
    from federation.enrolment.home import Home

    keys = identities(_signed(roster) or [Home(home).roster_in_force])
    found = check(read_exports(transcripts, keys), keys)
    if as_json:
        print(json.dumps(asdict(found) | {"others": found.others, "findings": [asdict(each) for each in found.findings]}))
    else:
        _show_check(found)
    if found.findings:
        raise typer.Exit(1)


def _bank_file(bank: Path | None, home: Path) -> Path:
    """FactsError for one that was named and is not there."""
    from federation.errors import FactsError

    if bank is not None and not bank.is_file():
        raise FactsError(f"--bank {bank}: no such file", "the bank.yaml that the bank takes part with")
    return bank or home / "bank.yaml"


def _signed(paths: list[Path]) -> "list[Roster]":
    from federation.enrolment.roster import SignedRoster
    from federation.files import read

    signed = [read(SignedRoster, path) for path in paths]
    for each in signed:
        each.check_complete()
    return [each.roster for each in signed]


def _show_check(found: "Check") -> None:
    from rich.table import Table

    from consortium.tables import print_whole
    from federation.dossier.page import EXCHANGES

    table = Table("session", "", *found.banks, "", box=None, padding=(0, 2))
    for session in found.sessions:
        reached = [f"to {EXCHANGES[session.reached[bank]]}" if bank in session.reached else "not in it" for bank in found.banks]
        table.add_row(session.session[:16], session.title, *reached, "DIFFER" if session.findings else "agree")
    print_whole(table)
    for finding in found.findings:
        print(f"session {finding.session[:16]}, {EXCHANGES[finding.exchange]}: {finding.what}")
    if found.others:
        print(f"not given: transcripts of {', '.join(found.others)}, which took part")
    count = f"{len(found.sessions)} session{'s' if len(found.sessions) != 1 else ''}"
    if found.findings:
        print(f"the transcripts DIFFER: {len(found.findings)} findings in {count}. Ask those named for a fresh one before anything else")
    else:
        print(f"{len(found.banks)} transcripts agree on {count}")
