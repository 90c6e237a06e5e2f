"""`consortium privacy plan`: noise, steps and epsilon by batch size, and what a ledger says to them."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from consortium.tables import print_whole
from privacy.accountant import REFINED_BELOW
from privacy.errors import PlanError
from privacy.filter import Filter
from privacy.ledger import Ledger
from privacy.planner import WEAK_ABOVE, Row, Wish, plan_rows, suggest_delta

console = Console(stderr=True, highlight=False, soft_wrap=True)


def plan_privacy(
    units: int,
    batch: int,
    *,
    epsilon: float | None,
    noise: float | None,
    delta: float | None,
    epochs: float | None,
    steps: int | None,
    spare_steps: int,
    ledger: Path | None,
    population: str | None,
    as_json: bool,
) -> None:
    """Print the table, or JSON. Raises PlanError, LedgerError."""
    filter = _filter(ledger, population)
    delta, reason = (delta, "as given") if delta is not None else suggest_delta(units, filter)
    rows = plan_rows(Wish(units, batch, delta, epsilon, noise, epochs, steps, spare_steps), filter)
    if as_json:
        print(json.dumps({"units": units, "delta": delta, "delta_reason": reason, "rows": [asdict(row) for row in rows]}))
    else:
        _show(units, delta, reason, rows, batch)
    if weak := [row.epsilon for row in rows if row.epsilon is not None and row.epsilon > WEAK_ABOVE]:
        console.print(f"  warning: epsilon {max(weak):.3g} is above {WEAK_ABOVE:g} and promises little", style="yellow")
    if epsilon is not None and epsilon < REFINED_BELOW:
        console.print(f"  only --batch {batch} was looked at: an epsilon below {REFINED_BELOW:g} takes minutes to calibrate")


def _filter(path: Path | None, population: str | None) -> Filter | None:
    if path is None and population is None:
        return None
    if path is None or population is None:
        raise PlanError("expected both of --ledger and --population, or neither", "consortium privacy ledger show lists populations")
    with Ledger.open(path) as ledger:
        return ledger.filter(population)


def _show(units: int, delta: float, reason: str, rows: list[Row], wished: int) -> None:
    out = Console(highlight=False, soft_wrap=True, markup=False)
    out.print(f"{units:,} units, delta {delta:g} ({reason})")
    table = Table("batch", "rate", "steps", "noise", "epsilon", "batch / noise", "ledger", box=None, padding=(0, 2))
    for row in rows:
        numbers = (_shown(row.noise, ".4g"), _shown(row.epsilon, ".3g"), _shown(row.signal, ".4g"))
        says = "-" if row.admitted is None else "admitted" if row.admitted else "refused"
        style = "bold" if row.batch == wished else ""
        table.add_row(str(row.batch), f"{row.batch / units:.3g}", str(row.steps), *numbers, says, style=style)
    print_whole(table)
    out.print(next(f"{row.batch}: {row.reason}" for row in rows if row.batch == wished))


def _shown(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)
