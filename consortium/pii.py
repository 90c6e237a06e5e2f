"""`consortium data audit` and `consortium data redact`."""

import difflib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.job import load_job
from privacy.pii import NameFinder
from privacy.pii_rules import Kind
from trainers.data.audit import Audit, Balance, Repeat, audit
from trainers.data.redact import check_paths, load_key, redact
from trainers.errors import ConfigError

_LISTED = 5
_CLASSES = 20
_PLUG_INS = "consortium.names"
"""Entry points of other packages that find names: a function of a text, to pairs of where names begin and end."""


def audit_data(
    file: Path, job_file: Path | None, against: Path | None, *, label: str | None, names: str | None, fail_on: str | None, as_json: bool
) -> None:
    """Print an audit; exit code 1 when something of `fail_on` was found."""
    failing = _chosen(fail_on, [*Kind, "DUPLICATES", "LEAKAGE"], "--fail-on") if fail_on else []
    job = load_job(job_file) if job_file else None
    found = audit(
        file,
        against=[against] if against else [],
        job=(job.data, job.task) if job else None,
        label=label,
        names=_name_finder(names),
    )
    if as_json:
        print(json.dumps({"counts": found.counts, **asdict(found)}))
    else:
        _show(found, Console(highlight=False, soft_wrap=True))
    sys.exit(1 if any(found.counts[kind] for kind in failing) else 0)


def redact_data(file: Path, output: Path, key_file: Path, *, kinds: str | None, names: str | None) -> None:
    """Write the redacted copy, and say how much was replaced."""
    wanted = [Kind(kind) for kind in _chosen(kinds, list(Kind), "--kinds")] if kinds else list(Kind)
    finder = _name_finder(names)
    check_paths(file, output)
    key, made = load_key(key_file)
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    if made:
        err.print(f"made the key {key_file}: keep it secret, and where the data may go, away from them", markup=False)
    tallies = redact(file, output, key, kinds=wanted, names=finder)
    table = _table("kind", "replaced", "values", "pseudonyms")
    for kind in sorted(tallies):
        tally = tallies[kind]
        table.add_row(kind, *(f"{number:,}" for number in (tally.findings, len(tally.values), len(tally.pseudonyms))))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table if tallies else "nothing was found to replace")
    console.print(f"{output}  {_about_names(finder is not None)}", markup=False)


def _chosen(listed: str, known: Sequence[str], option: str) -> list[str]:
    chosen = [word.strip().upper() for word in listed.split(",") if word.strip()]
    for word in chosen:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            raise ConfigError(f"{option}: no kind {word} (there are: {', '.join(known)})", f"did you mean {near[0]}?" if near else "")
    return chosen


def _name_finder(name: str | None) -> NameFinder | None:
    """The plug-in: an entry point by its name, or a function as `module:function`. Raises ConfigError."""
    if name is None:
        return None
    installed = {point.name: point for point in entry_points(group=_PLUG_INS)}
    if name not in installed and ":" not in name:
        raise ConfigError(
            f"--names {name}: no such plug-in (installed: {', '.join(installed) or 'none'})",
            f"expected an entry point of the group {_PLUG_INS}, or module:function",
        )
    point = installed.get(name) or EntryPoint(name, name, _PLUG_INS)
    try:
        finder: NameFinder = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--names {name}: {error}", "module:function is imported as Python does: is it on PYTHONPATH?") from error
    return finder


def _about_names(looked_for: bool) -> str:
    return "names of people were looked for by the plug-in" if looked_for else "names of people were not looked for (--names PLUG-IN does)"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position and column != "where" else "left")
    return table


def _show(found: Audit, console: Console) -> None:
    console.print(f"{found.file}: {found.rows:,} rows" + (f", {found.broken:,} that cannot be read" if found.broken else ""), markup=False)
    _show_places(found, console)
    console.print()
    console.print(f"duplicates    {_repeats(found.repeats)}")
    _list(found.repeats, console)
    if found.leakage:
        leaked, rows = found.leakage.repeats, found.leakage.test_rows
        console.print(f"leakage       {_repeats(leaked)} of {rows:,} test rows")
        _list(leaked, console)
    else:
        console.print("leakage       not looked for: --against TEST.jsonl or --job JOB.yaml says what the test rows are")
    if found.balance:
        _show_balance(found.balance, console)


def _show_places(found: Audit, console: Console) -> None:
    counts = Counter(str(place.kind) for place in found.places)
    for kind in Kind:
        if counts[kind]:
            console.print(f"\n[bold]{kind}[/]  {counts[kind]:,}")
        places = [place for place in found.places if place.kind == kind]
        for place in places[:_LISTED]:
            console.print(f"  {place.row}  {place.column}  {place.masked}", markup=False)
        if len(places) > _LISTED:
            console.print(f"  and {len(places) - _LISTED:,} more (--json lists them all)")
    absent = [kind for kind in Kind if not counts[kind] and kind != Kind.NAME]
    console.print(f"\nnot found: {', '.join(absent) or 'none of the kinds'}; {_about_names(found.names_looked_for)}", markup=False)


def _repeats(repeats: Sequence[Repeat]) -> str:
    exact = sum(repeat.exact for repeat in repeats)
    return f"{exact:,} exact, {len(repeats) - exact:,} near"


def _list(repeats: Sequence[Repeat], console: Console) -> None:
    for repeat in repeats[:_LISTED]:
        console.print(f"  {repeat.row} is {'' if repeat.exact else f'{repeat.similarity:.0%} of '}{repeat.of}", markup=False)


def _show_balance(balance: Balance, console: Console) -> None:
    *_, (smallest, rows) = balance.counts.items()
    console.print(
        f"classes       {len(balance.counts)}, entropy {balance.entropy:.2f} bits ({balance.evenness:.0%} of even), "
        f"smallest {escape(repr(smallest))} with {rows:,}"
    )
    for label, count in list(balance.counts.items())[:_CLASSES]:
        console.print(f"  {count:8,}  {escape(label)}")
