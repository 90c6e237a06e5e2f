"""`consortium privacy ledger`: the compliance officer's acts, and what anyone may look at."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from consortium.tables import print_whole
from privacy.ledger import Head, Ledger, Status, verify
from privacy.planner import WEAK_ABOVE

console = Console(stderr=True, highlight=False, soft_wrap=True)
_out = Console(highlight=False, soft_wrap=True, markup=False)


def create_ledger(path: Path) -> None:
    with Ledger.create(path) as ledger:
        _out.print(f"created {path}: ledger {ledger.id}")
        _show_head(ledger.head())


def grant_budget(path: Path, population: str, epsilon: float, delta: float, by: str, *, replace: bool) -> None:
    with Ledger.open(path) as ledger:
        ledger.grant(population, epsilon, delta, by=by, replace=replace)
        _out.print(f"granted to {population}: epsilon {epsilon:g} at delta {delta:g}, for all that is ever released of its rows")
        if epsilon > WEAK_ABOVE:
            console.print(f"  warning: epsilon {epsilon:g} is above {WEAK_ABOVE:g} and promises little", style="yellow")
        _show_head(ledger.head())


def attach_file(path: Path, population: str, file: Path, units: int) -> None:
    from trainers.data.prepare import describe_file

    with Ledger.open(path) as ledger:
        digest = describe_file(file)["sha256"]
        ledger.attach(population, digest, str(file.resolve()), units)
        _out.print(f"attached to {population}: {file}, sha256 {digest}, {units:,} units")
        _show_head(ledger.head())


def close_reservation(path: Path, id: str) -> None:
    with Ledger.open(path) as ledger:
        reservation = ledger.reservation(id)
        reservation.close()
        held = reservation.held
        _out.print(f"closed {id} of {held.run}: {held.charged} steps stay spent, {held.event.steps - held.charged} are given back")


def show_ledger(path: Path, population: str | None, *, as_json: bool) -> None:
    """Budgets, files, reservations and the head; of one population or of all."""
    with Ledger.open(path) as ledger:
        book, head = ledger.book(), ledger.head()
        standing = {name: ledger.status(name) for name in ([population] if population is not None else book.grants)}
    if as_json:
        populations = {name: _as_dict(status) for name, status in standing.items()}
        print(json.dumps({"ledger": book.id, "head": asdict(head), "populations": populations}))
        return
    for name, status in standing.items():
        _show(name, status)
    _show_head(head)


def verify_ledger(path: Path, noted: str | None) -> None:
    head = verify(path, noted)
    _out.print(f"{head.number} rows, each follows from the one before" + ("" if noted is None else ", and the noted head is among them"))
    _show_head(head)


def _show(name: str, status: Status) -> None:
    grant, filter = status.grant, status.filter
    by = f", granted by {grant.by}" if grant.by else ""
    _out.print(f"{name}  epsilon {grant.epsilon:g} at delta {grant.delta:g}{by}", style="bold")
    order = "no order yet" if filter.order is None else f"Renyi divergence of order {filter.order:g}"
    _out.print(f"  proven for all that is reserved or taken: epsilon {filter.proven:.4g}; remaining: {filter.remaining:.4g} ({order})")
    _out.print(f"  by PLD, had all been chosen beforehand: {status.epsilon_charged:.4g} taken, {status.epsilon_reserved:.4g} with reserved")
    for file in status.files:
        _out.print(f"  {file.units:,} units  {file.path}  sha256 {file.sha256[:16]}")
    table = Table("reservation", "run", "noise", "rate", "steps", "charged", "", box=None, padding=(0, 2))
    for held in status.reservations:
        event, state = held.event, "closed" if held.closed else "open"
        noise, rate = f"{event.noise_multiplier:.4g}", f"{event.sampling_rate:.3g}"
        table.add_row(held.id, held.run, noise, rate, str(event.steps), str(held.charged), state)
    if status.reservations:
        print_whole(table)


def _show_head(head: Head) -> None:
    _out.print(f"head: row {head.number}, {head.hash}\n  note it where this file's writers cannot: verify --head finds rows cut off since")


def _as_dict(status: Status) -> dict[str, Any]:
    filter = status.filter
    return {
        "grant": asdict(status.grant),
        "order": filter.order,
        "proven": filter.proven,
        "remaining": filter.remaining,
        "epsilon_charged": status.epsilon_charged,
        "epsilon_reserved": status.epsilon_reserved,
        "files": [asdict(file) for file in status.files],
        "reservations": [asdict(held) for held in status.reservations],
    }
