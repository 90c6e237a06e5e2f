"""The commands that measure: bench, and bench compare."""

import contextlib
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.bench import (
    METHODS,
    RESULTS,
    Difference,
    Record,
    compare,
    load_bench_job,
    read_results,
    run_points,
    summarise,
    write_results,
)
from cluster.bench_page import PAGE, table, write_page
from cluster.errors import WorkersFailed
from cluster.scaling import complete
from consortium.options import beyond, finite, numbers, parts
from consortium.tables import print_whole
from trainers.errors import ConfigError
from trainers.report import number, size

T = TypeVar("T")
STAGES = (1, 2, 3)
console = Console(stderr=True, highlight=False, soft_wrap=True)


def run_bench(
    path: Path,
    overrides: Sequence[str],
    *,
    workers: str | None,
    methods: str | None,
    stages: str | None,
    lengths: str | None,
    projected: str | None,
    steps: int,
    price: float | None,
    output: Path | None,
) -> None:
    """Measure a job over a grid: a table on screen, JSON, page and picture in `output`. Ctrl-C keeps what is measured."""
    counts, further = _numbers("--workers", workers), _numbers("--project", projected)
    chosen = _among("--method", parts("--method", methods, example=_EXAMPLES["--method"]), METHODS)
    zero = _among("--zero", _numbers("--zero", stages), STAGES)
    seq = _numbers("--seq", lengths, least=2)
    finite("--price", price)
    beyond(further, counts)
    job = load_bench_job(path, overrides)
    folder = job.output if isinstance(job.output, Path) else Path("runs")
    output = (output or folder / f"{job.name}-bench-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    if (output / RESULTS).exists():
        raise ConfigError(f"{output} already holds a benchmark", "give another --output")
    console.print(f"[bold]{job.name}[/]  benchmark of {job.model.name}, {steps} steps a point")
    points = run_points(job, output / "points", workers=counts, methods=chosen, stages=zero, lengths=seq, steps=steps)
    records: list[Record] = []

    def results(*, finished: bool) -> dict[str, Any]:
        return summarise(job, complete(records, job, projected=further, price=price), steps=steps, price=price, finished=finished)

    try:
        with contextlib.closing(points):
            for record in points:
                records.append(record)
                console.print(f"  {record.point.name}  {record.reason or f'{record.tokens_per_second:,.0f} tokens/s'}", markup=False)
                write_results(results(finished=False), output)
        finished = True
    except KeyboardInterrupt:
        finished = False
        console.print("  interrupted: what is measured is kept")
    if records:
        found = results(finished=finished)
        write_results(found, output)
        write_page(found, output)
        _show(found, output)
    if not finished:
        sys.exit(130)
    if all(record.status == "failed" for record in records):
        raise WorkersFailed(f"no point could be measured: {records[0].reason}", f"all reasons are in {output / RESULTS}")


def compare_benches(first: Path, second: Path) -> None:
    """Show two benchmarks point by point: speed, memory and their ratios, second over first."""
    one, other = read_results(first), read_results(second)
    for name in ("model", "device", "versions"):
        if one[name] != other[name]:
            console.print(f"  another {name}: {_changed(one[name], other[name])}", markup=False)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("point")
    for heading in ("tokens/s", "tokens/s", "ratio", "memory", "memory", "ratio"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for row in compare(one, other):
        shown.add_row(row.point.name, *_cells(row), f"only in {first if row.only_in == 'first' else second}" if row.only_in else "")
    print_whole(shown)


def _show(results: dict[str, Any], output: Path) -> None:
    headings, rows = table(results)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if place in (0, len(headings) - 1) else "right", no_wrap=place < len(headings) - 1)
    for row in rows:
        shown.add_row(*row)
    print_whole(shown)
    for name, formula in results["formulas"].items():
        projects = name == "projected" and any(entry["status"] == "projected" for entry in results["points"])
        if projects or name == "MFU" or name.startswith("FLOPs"):
            console.print(f"  {name}: {formula}", markup=False)
    console.print(f"  page  {output / PAGE}", markup=False)


def _cells(row: Difference) -> list[str]:
    speeds = [number(None if speed is None else round(speed)) for speed in row.speeds]
    ratios = [number(None) if ratio is None else f"{ratio:.3f}" for ratio in (row.speed_ratio, row.memory_ratio)]
    return [*speeds, ratios[0], *map(size, row.memories), ratios[1]]


def _changed(first: Any, second: Any) -> str:
    """Of two dictionaries only what differs."""
    if isinstance(first, dict) and isinstance(second, dict):
        return "; ".join(f"{key} {first.get(key)}, {second.get(key)}" for key in first | second if first.get(key) != second.get(key))
    return f"{first}, {second}"


def _numbers(option: str, text: str | None, *, least: int = 1) -> list[int]:
    return numbers(option, text, example=_EXAMPLES[option], least=least)


def _among(option: str, values: Sequence[Any], known: Sequence[T]) -> list[T]:
    for value in values:
        if value not in known:
            raise ConfigError(f"{option} {value}: expected of {', '.join(map(str, known))}", f"as in {option} {_EXAMPLES[option]}")
    return list(values)


_EXAMPLES = {"--workers": "1,2,4,8", "--method": "lora,full,nf4", "--zero": "1,2,3", "--seq": "512,2048", "--project": "64,512"}
