"""`consortium doctor`: a line for each check, with what to do."""

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from cluster.doctor import Check, checks

_MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]"}


def examine(output: str, address: str | None, *, as_json: bool) -> None:
    """Print the checks as they are made; exit code 1 when one of them prevents training."""
    out, done = Console(highlight=False, soft_wrap=True), []
    for check in checks(output, address):
        done.append(check)
        if not as_json:
            _show(check, out)
    if as_json:
        print(json.dumps([asdict(check) for check in done]))
    sys.exit(1 if any(check.status == "problem" for check in done) else 0)


def _show(check: Check, out: Console) -> None:
    out.print(
        f"{_MARKS[check.status]}  {check.name:22}{escape(check.found)}"
        + (f"\n{'':31}[dim]-> {escape(check.todo)}[/]" if check.todo else "")
    )
