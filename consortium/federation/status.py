"""How a federation stands, seen from a coordinator's folder or a bank's: read anew from their files, which others write."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from federation.config import load_bank
from federation.dossier.page import metric_names
from federation.dossier.report import attempts_of, budget_of, record_of, run_of
from federation.enrolment.home import Home
from federation.errors import FactsError, FolderError
from federation.files import translated
from federation.rounds.record import decisions
from privacy.statement import rounded_up
from trainers.events import Tail
from trainers.report import number, size

Shown = Mapping[str, Any]
_LOOK_SECONDS = 1.0
_GOING_ON = ("running", "waiting")
_COLOURS = {"answered": "green", "refused": "red", "failed": "red", "unreachable": "yellow", "late": "yellow"}


def newest_run(home: Path) -> str:
    """The run of a coordinator that was last heard of. Raises FolderError."""
    if not (found := [*(home / "runs").glob("*/status.json")]):
        raise FolderError(f"{home}: no run was begun yet", f"consortium federation run NAME --home {home}")
    return max(found, key=lambda path: path.stat().st_mtime).parent.name


def read_run(home: Path, run: str) -> dict[str, Any]:
    """A run's status.json. Raises FolderError, FactsError."""
    path = run_of(home, run) / "status.json"
    with translated(path):
        text = path.read_bytes()
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise FactsError(f"{path}: not a status of ours ({error})", "the coordinator writes it anew when it goes on") from error


def read_bank(home: Path, config: Path) -> dict[str, Any]:
    """What a bank was asked, what it answered and what it has spent; the budget as the ledger has it now, if there is a bank.yaml."""
    bank, noted = Home(home), decisions(record_of(home))
    roster = bank.in_force
    return {
        "bank": bank.keys[-1].name,
        "federation": roster and roster.federation,
        "roster": roster and roster.version,
        "attempts": attempts_of(noted),
        "refusals": [{"time": each.time, "rule": each.rule, **each.asked} for each in noted if each.rule],
        "budget": budget_of(load_bank(config)) if config.exists() else None,
    }


def watch(home: Path, run: str, console: Console) -> None:
    """A run on a terminal until it is over, or Ctrl-C."""
    with Live(console=console, refresh_per_second=4) as live:
        try:
            while True:
                shown = read_run(home, run)
                live.update(of_run(shown, time.time()), refresh=True)
                if shown["state"] not in _GOING_ON:
                    return
                time.sleep(1)
        except KeyboardInterrupt:
            return


def follow(home: Path, run: str, is_over: Callable[[], bool]) -> dict[str, Any]:
    """Show a run until it or its process is over; its last status. On a terminal a table, else a line for each event."""
    console, folder = Console(highlight=False, markup=False, emoji=False), home / "runs" / run
    tail, began = Tail(folder / "events.jsonl"), time.time()
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        while True:
            over = is_over()
            shown: dict[str, Any] = read_run(home, run) if (folder / "status.json").exists() else {"state": "", "updated": 0.0}
            if live is not None and shown["state"]:
                live.update(of_run(shown, time.time()), refresh=True)
            for event in tail.new():
                if live is None:
                    print(line(event), flush=True)
            if over:
                return shown if shown["updated"] >= began else {"state": ""}
            time.sleep(_LOOK_SECONDS)


def line(event: Shown) -> str:
    """An event of a run, for a log."""
    match event["event"]:
        case "run_started":
            text = f"{event['run']} begins with round {event['round']} of {event['rounds']}"
        case "attempt":
            what = "evaluation of the final model" if event["kind"] == "evaluate" else f"round {event['round']}"
            text = f"{what}, attempt {event['attempt']}: {', '.join(event['banks'])}"
        case "exchange":
            moved = f"received {size(event['bytes_in'])}, sent {size(event['bytes_out'])}"
            text = f"  {event['name']}: {event['answered']} of {event['of']} banks, {event['seconds']:.1f} s, {moved}"
        case "refusal":
            text = f"  {event['bank']} refuses by {event['rule']}: asked {event['asked']}, allowed {event['allowed']}"
        case "failure" | "unreachable":
            text = f"  {event['bank']}: {event['message']}"
        case "round":
            metrics = "".join(f", {name} {number(value)}" for name, value in event["metrics"].items())
            text = f"  the sum of {', '.join(event['banks'])} in {event['seconds']:.1f} s{metrics}"
        case other:
            text = f"{other.replace('_', ' ')} {event.get('message', '')}".rstrip()
    return f"{time.strftime('%H:%M:%S', time.localtime(event['time']))}  {text}"


def of_run(shown: Shown, now: float) -> Group:
    """A run: where it is, what its banks do, what they report."""
    ended = shown["state"] not in _GOING_ON
    elapsed = timedelta(seconds=round((shown["updated"] if ended else now) - shown["started"]))
    what = "evaluation of the final model" if shown["kind"] == "evaluate" else f"round {shown['round']} of {shown['rounds']}"
    head = f"{shown['run']}  {shown['state']}  {what}, attempt {shown['attempt']}  {elapsed}"
    traffic = f"received {size(shown['bytes_in'])}, sent {size(shown['bytes_out'])}"
    quiet = "" if ended else f"; last change {timedelta(seconds=round(now - shown['updated']))} ago"
    parts: list[Text | Table] = [Text(head, style="bold"), *_exchange(shown["exchange"]), Text(traffic + quiet), _banks(shown["banks"])]
    if shown["message"]:
        parts.insert(1, Text(shown["message"], style="yellow"))
    if shown["metrics"]:
        parts.append(_metrics(shown["metrics"]))
    return Group(*parts)


def of_bank(shown: Shown) -> Group:
    """A bank: the newest attempts, the last refusal, the budget."""
    member = f"{shown['federation']}, version {shown['roster']} of the roster" if shown["federation"] else "no roster in force yet"
    parts: list[Text | Table] = [Text(f"{shown['bank']}  {member}", style="bold")]
    if (budget := shown["budget"]) is None:
        parts.append(Text("budget not shown: no bank.yaml here; name it with --bank"))
    else:
        parts.append(Text(f"epsilon spent by {budget['population']}: {rounded_up(budget['proven'], 3):.3f} of {budget['epsilon']:g}"))
    took_part = {(each["run"], each["round"]) for each in shown["attempts"] if {"Masked", "Contribution"} & {*each["released"]}}
    parts.append(Text(f"rounds contributed to: {len(took_part)}; refusals: {len(shown['refusals'])}"))
    if shown["refusals"]:
        last = shown["refusals"][-1]
        parts.append(
            Text(f"last refused {last['time']}: {last['rule']}: asked {last.get('asked', '–')}, allowed {last.get('allowed', '–')}")
        )
    table = Table("asked at", "run", "round", "attempt", "left the bank", "banks in the sum", "epsilon after", box=None, padding=(0, 2))
    for each in shown["attempts"][-10:]:
        refused = f"refused by {', '.join(each['rules'])}" if each["rules"] else ""
        left = "; ".join(filter(None, [", ".join(each["released"]).lower(), refused])) or "nothing"
        after = "–" if each["epsilon"] is None else f"{rounded_up(each['epsilon'], 3):.3f}"
        table.add_row(each["time"], each["run"], str(each["round"]), str(each["attempt"]), left, each["banks"] or "–", after)
    return Group(*parts, table if shown["attempts"] else Text("asked nothing yet"))


def _exchange(shown: Shown | None) -> list[Table]:
    if shown is None:
        return []
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, shown["of"]), completed=shown["answered"], width=30)
    grid.add_row(f"exchange {shown['number']}, {shown['name']}", bar, f"{shown['answered']} of {shown['of']} banks")
    return [grid]


def _banks(banks: Mapping[str, Shown]) -> Table:
    table = Table("bank", "", "", box=None, padding=(0, 2))
    for name, shown in banks.items():
        table.add_row(name, Text(shown["state"], style=_COLOURS.get(shown["state"], "")), shown["detail"])
    return table


def _metrics(metrics: list[Shown]) -> Table:
    names = metric_names([{"metrics": {name: value for name, value in each.items() if name != "round"}} for each in metrics])
    table = Table("model after round", *names, box=None, padding=(0, 2))
    for each in metrics[-10:]:
        table.add_row(str(each["round"] - 1), *(number(each.get(name)) for name in names))
    return table
