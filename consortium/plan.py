"""`consortium plan`: memory, time and cost by number of GPUs and ZeRO stage, as tables or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.bench import read_results
from cluster.job import JobSpec, load_job
from cluster.plan import Offer, Plan, Row, make_plan
from cluster.plan_page import of_this_plan, write_page
from cluster.speed import ASSUMPTIONS, COMMUNICATION, Work, find_gpu
from consortium.options import beyond, finite, numbers
from consortium.tables import print_whole
from trainers.config import TrainConfig
from trainers.errors import ConfigError, ModelError
from trainers.memory import RESERVE

Cells = tuple[str, list[str], list[list[str]]]
"""Title, headings and rows of a table"""
_GIB = 2**30
_NO_ROOM = "does not fit"
_TERMS = {
    "weights": "weights",
    "quantized": "quantised",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "communication": "communication",
    "units": "units",
    "private": "private sum",
    "context": "context",
    "activations": "activations",
    "dequantized": "dequantised",
    "mask": "mask",
    "logits": "logits",
    "step": "update",
}


def plan_job(
    path: Path,
    overrides: Sequence[str],
    *,
    gpus: str,
    gpu: str,
    price: float | None,
    project: str | None,
    tokens: float | None,
    as_json: bool,
    page: Path | None = None,
    benchmark: Path | None = None,
) -> None:
    """Print the plan of a job file; with `page` also write it as one, with the points that a benchmark of the job has measured."""
    _check_page(page, benchmark)
    measured = None if benchmark is None else read_results(benchmark)
    card, counts, projected = find_gpu(gpu), numbers("--gpus", gpus, example="1,8"), numbers("--project", project, example="64,512")
    beyond(projected, counts)
    finite("--price", price)
    finite("--tokens", tokens)
    job = load_job(path, overrides)
    if tokens is not None and job.train.max_steps is not None:
        raise ConfigError("--tokens: train.max_steps already says how much there is to do", "leave one of them out")
    from trainers.footprint import measure
    from trainers.model import shape_of
    from trainers.worker import quiet

    quiet()
    plan = make_plan(
        job,
        Offer(card, counts, projected, price),
        shape=shape_of(job.model, job.task),
        measure=partial(measure, device="cpu" if card.flops is None else "cuda"),
        work=partial(_work, tokens=tokens),
    )
    points = [] if measured is None else of_this_plan(measured, plan, job)
    if page is not None:
        tables = [_memory_cells(plan.rows), _time_cells(plan, job.train.global_batch_size)]
        notes = [_what(plan, job), plan.work.source, "".join(_verdict(plan)), *_notes(plan)]
        try:
            write_page(plan, job, tables, notes, points, page)
        except OSError as error:
            raise ConfigError(f"--page {page}: {error.strerror}", "name a place where files can be written") from error
    if as_json:
        print(json.dumps(_as_dict(plan), allow_nan=False))
        return
    _show(plan, job, Console(highlight=False, soft_wrap=True))
    if page is not None:
        print(f"  page  {page}")


def _check_page(page: Path | None, benchmark: Path | None) -> None:
    """That there is a page for what is measured, and that no job file or data are written over by one."""
    if benchmark is not None and page is None:
        raise ConfigError("--measured: measured points are drawn on a page", "name one with --page plan.html")
    if page is not None and page.suffix != ".html":
        raise ConfigError(f"--page {page}: expected a name that ends in .html", "as in --page plan.html; a page of that name is replaced")
    if page is not None and not page.parent.is_dir():
        raise ConfigError(f"--page {page}: no directory {page.parent}", "make it, or name one that is there")


def _work(config: TrainConfig, *, tokens: float | None) -> Work:
    """What the job has to go through: estimated from its data where these and the tokenizer are at hand, else what `tokens` says."""
    longest = config.data.max_length
    assert isinstance(longest, int)
    epochs, steps = config.train.epochs, config.train.max_steps
    missing = next((f"no {path}" for path in config.data.train if not path.exists()), None)
    if not config.model.path:
        missing = "a shape has no tokenizer"
    if tokens is None and missing is None:
        try:
            return _estimated(config, longest)
        except ModelError as error:
            missing = error.message
    mean, assumed = float(longest), f"examples taken to be {longest} tokens long"
    if steps is not None:
        return Work(steps * config.train.global_batch_size * mean, mean, mean, f"{steps} steps, {assumed}")
    if tokens is not None:
        return Work(tokens * (epochs or 1), mean, mean, f"--tokens {tokens:,.0f} an epoch, {epochs:g} epochs, {assumed}")
    return Work(None, mean, mean, f"hours need data ({missing}): give --tokens N, the tokens of an epoch; {assumed}")


def _estimated(config: TrainConfig, longest: int) -> Work:
    from trainers.data.estimate import estimate
    from trainers.model import load_tokenizer

    found = estimate(config.data, config.task, load_tokenizer(config.model), max_length=longest)
    epochs, steps = config.train.epochs, config.train.max_steps
    total = found.tokens * (epochs or 0) if steps is None else steps * config.train.global_batch_size * found.mean_length
    how_long = f"{epochs:g} epochs" if steps is None else f"{steps} steps"
    source = f"estimate from a sample of {found.sampled:,} rows, of {found.rows:,} to train on: {found.tokens:,.0f} tokens an epoch"
    source += f", {how_long}; the mean example has {found.mean_length:,.0f}"
    return Work(total, found.mean_length, found.square_mean, source)


def _as_dict(plan: Plan) -> dict[str, Any]:
    return {
        "gpu": plan.gpu.name,
        "card_bytes": plan.gpu.memory,
        "reserve": RESERVE,
        "price": plan.price,
        "max_length": plan.max_length,
        "work": asdict(plan.work),
        "rows": [_row_dict(row) for row in plan.rows],
        "cheapest": None if plan.cheapest is None else _row_dict(plan.cheapest),
        "why": plan.why,
        "assumptions": [ASSUMPTIONS, *(COMMUNICATION if any(row.projected for row in plan.rows) else ())],
    }


def _row_dict(row: Row) -> dict[str, Any]:
    return asdict(row) | {"total_bytes": row.memory.total, "bound": row.seconds.bound if row.seconds else None}


def _show(plan: Plan, job: JobSpec, out: Console) -> None:
    out.print(f"[bold]{job.name}[/]  {_what(plan, job)}")
    out.print(f"  {plan.work.source}\n")
    for cells in (_memory_cells(plan.rows), _time_cells(plan, job.train.global_batch_size)):
        print_whole(_on_screen(cells))
        out.print()
    verdict, why = _verdict(plan)
    out.print(f"[{'bold' if plan.cheapest else 'red'}]{verdict}[/]{why}")
    for note in _notes(plan):
        out.print(f"  {note}", style="dim")


def _what(plan: Plan, job: JobSpec) -> str:
    gpu, quantized = plan.gpu, f", {job.model.quantization}" if job.model.quantization != "none" else ""
    card = gpu.name if gpu.flops is None else f"{gpu.name} ({gpu.memory / _GIB:g} GiB, {RESERVE:.0%} of it kept free)"
    return f"{job.model.name}, {job.method.type}{quantized}, rows of {plan.max_length} tokens on {card}"


def _memory_cells(rows: Sequence[Row]) -> Cells:
    """GiB of one worker; terms that are nothing in every row are left out."""
    shown = [term for term in _TERMS if any(getattr(row.memory, term) >= 0.005 * _GIB for row in rows)]
    cells = [
        [*_head(row), f"{row.micro_batch_tokens:,}", *(f"{getattr(row.memory, term) / _GIB:.2f}" for term in shown),
         f"{row.memory.total / _GIB:.1f}", "fits" if row.fits else _NO_ROOM]
        for row in rows
    ]  # fmt: skip
    return "GiB of a worker", ["GPUs", "ZeRO", "tokens", *(_TERMS[term] for term in shown), "total", ""], cells


def _time_cells(plan: Plan, batch: int) -> Cells:
    """Of the rows that fit."""
    cells = []
    for row in plan.rows:
        if row.fits:
            idle = f"{row.gpus - batch} of them have no example in a step" if row.gpus > batch else ""
            cells.append([
                *_head(row),
                "computed again" if row.checkpointing else "kept",
                "?" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
                "" if row.seconds is None else row.seconds.bound,
                _amount(row.hours),
                _amount(row.cost),
                ", ".join(note for note in ("projected" if row.projected else "", idle) if note),
            ])  # fmt: skip
    return "Time and cost", ["GPUs", "ZeRO", "activations", "tokens/s", "bound by", "hours", "cost", ""], cells


def _on_screen(cells: Cells) -> Table:
    title, headings, rows = cells
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for name in headings:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(Text(cell, style="red" if cell == _NO_ROOM else "") for cell in row))
    return table


def _amount(value: float | None) -> str:
    """Of hours or money; little ones with two digits that say something."""
    return "?" if value is None else f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def _head(row: Row) -> tuple[str, str]:
    return str(row.gpus), f"{row.stage}{'*' if row.chosen else ' '}"


def _verdict(plan: Plan) -> tuple[str, str]:
    """What to take, and why."""
    row = plan.cheapest
    if row is None:
        return plan.why, ""
    sums = "" if row.hours is None else f", {_amount(row.hours)} hours"
    sums += "" if row.cost is None else f", {_amount(row.cost)}"
    return f"cheapest that fits: {row.gpus} x {plan.gpu.name}, ZeRO-{row.stage}", f"{sums}: {plan.why}   (* what auto takes)"


def _notes(plan: Plan) -> list[str]:
    notes = [f"a prediction, none of it measured: {ASSUMPTIONS}"]
    if any(row.projected for row in plan.rows):
        notes += ["projected rows assume:", *(f"- {line}" for line in COMMUNICATION)]
    return notes
