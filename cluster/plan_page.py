"""A plan to look at: what memory a worker needs beside what its card has, and speed beside its limit and what was measured; one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.bench import method_of
from cluster.bench_page import STAGE_MARKERS, scale_speed
from cluster.job import JobSpec
from cluster.plan import Plan, Row
from cluster.speed import gpu_of
from trainers.errors import ConfigError
from trainers.memory import Memory, room
from trainers.pictures import COLOURS, DASHED, new_figure, svg
from trainers.report import number, size, templates, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GIB = 2**30
_PARTS: dict[str, tuple[tuple[str, ...], str, float]] = {
    "weights": (("weights", "quantized", "dequantized", "adapters"), "accent", 0.9),
    "gradients": (("gradients", "units", "private"), "second", 0.9),
    "optimizer": (("optimizer", "step"), "second", 0.45),
    "activations": (("activations", "mask", "logits"), "good", 0.75),
    "communication, context": (("communication", "context"), "muted", 0.5),
}
"""What a bar is made of: terms of `Memory`, and how they are drawn"""
_STAGE_COLOURS = {1: "accent", 2: "second", 3: "good"}
Entry = Mapping[str, Any]
"""A point of a benchmark"""
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, headings and cells"""


def of_this_plan(measured: Mapping[str, Any], plan: Plan, job: JobSpec) -> list[Entry]:
    """The points of a benchmark (`cluster.bench.read_results`) that were measured of what is planned. Raises ConfigError if none was."""
    card, device = gpu_of(measured["device"] or ""), measured["device"]
    if (card and card.name) != (plan.gpu.name if plan.gpu.flops else None):
        raise ConfigError(f"the benchmark is of {device}, the plan of {plan.gpu.name}", "say with --gpu what it was measured on")
    method = method_of(job)
    points = [point for point in measured["points"] if point["status"] == "measured"]
    fitting = [point for point in points if (point["method"], point["found"]["length"]) == (method, plan.max_length)]
    if measured["model"] != job.model.name or not fitting:
        known = sorted({f"{point['method']}, rows of {point['found']['length']}" for point in points})
        raise ConfigError(
            f"the benchmark has nothing of {job.model.name}, {method}, rows of {plan.max_length} tokens",
            f"it is of {measured['model']}: {'; '.join(known) or 'no point was measured'}",
        )
    return fitting


def write_page(plan: Plan, job: JobSpec, tables: Sequence[Table], notes: Sequence[str], measured: Sequence[Entry], path: Path) -> None:
    """Write the page, with what the screen has too: tables, and notes below them."""
    speed = _draw_speed(plan, measured)
    template = templates(Path(__file__).parent, escape=True).get_template("plan.html.j2")
    page = template.render(
        job=job, plan=plan, tables=tables, notes=notes, headline=_headline(plan), measured=bool(measured),
        memory=svg(_draw_memory(plan, measured)), speed=None if speed is None else svg(speed),
    )  # fmt: skip
    write_atomically(path, page)


def _headline(plan: Plan) -> list[tuple[str, str]]:
    row = plan.cheapest
    if row is None:
        return [("fits", "nothing")]
    speed = row.tokens_per_second
    return [
        ("cheapest that fits", f"{row.gpus} x {plan.gpu.name}, ZeRO-{row.stage}"),
        *([("tokens a second", number(round(speed)))] if speed is not None else []),
        ("memory of a worker", size(round(row.memory.total))),
        *([("hours", _rounded(row.hours))] if row.hours is not None else []),
        *([("cost", _rounded(row.cost))] if row.cost is not None else []),
    ]


def _rounded(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _draw_memory(plan: Plan, measured: Sequence[Entry]) -> "Figure":
    """A bar for each row, of what takes the memory; the card, and what of it may be used. A bar that goes beyond does not fit."""
    rows = list(reversed(plan.rows))
    figure, axes = new_figure(9.2, 1.1 + 0.3 * len(rows))
    places, left = range(len(rows)), [0.0] * len(rows)
    for name, (terms, colour, alpha) in _PARTS.items():
        widths = [_sum(row.memory, terms) / _GIB for row in rows]
        axes.barh(places, widths, left=left, height=0.68, color=COLOURS[colour], alpha=alpha, linewidth=0, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    cards = [plan.gpu.memory / (1 if plan.gpu.flops else row.gpus) for row in rows]
    for place, card in zip(places, cards, strict=True):
        axes.vlines(room(int(card)) / _GIB, place - 0.42, place + 0.42, color=COLOURS["ink"], linewidth=1.4)
    axes.plot([], [], color=COLOURS["ink"], linewidth=1.4, label="what may be used")
    _draw_peaks(axes, rows, measured)
    axes.set_yticks(places, [_name(row) for row in rows])
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.6)
    axes.set(xlabel="GiB of a worker", xlim=(0, 1.04 * max(*left, room(int(max(cards))) / _GIB)))
    _legend(axes)
    return figure


def _draw_peaks(axes: "Axes", rows: Sequence[Row], measured: Sequence[Entry]) -> None:
    found = [(point["peak_memory_bytes"] / _GIB, place) for point in measured for place, row in enumerate(rows)
             if _is_of(point, row) and point["peak_memory_bytes"]]  # fmt: skip
    if found:
        axes.plot(*zip(*found, strict=True), "D", color=COLOURS["ink"], markersize=4.5, label="measured, peak", zorder=4)


def _draw_speed(plan: Plan, measured: Sequence[Entry]) -> "Figure | None":
    """Tokens a second over GPUs: lines as predicted, dashed beyond what was asked for, hollow where it does not fit; dotted the limit."""
    known = [row for row in plan.rows if row.tokens_per_second is not None]
    if not known and not measured:
        return None
    figure, axes = new_figure(9.2, 3.8)
    for stage in dict.fromkeys(row.stage for row in plan.rows):
        looks: dict[str, Any] = {"color": COLOURS[_STAGE_COLOURS[stage]], "marker": STAGE_MARKERS[str(stage)], "markersize": 5}
        mine = [row for row in known if row.stage == stage]
        fits, tight = [row for row in mine if row.fits], [row for row in mine if not row.fits]
        near, far = [row for row in fits if not row.projected], [row for row in fits if row.projected]
        hollow: dict[str, Any] = {"markerfacecolor": "none"}
        if fits:
            axes.plot(*_columns(near), linewidth=1.5, label=f"ZeRO {stage}, predicted", **looks)
        if far:
            axes.plot(*_columns([*near[-1:], *far]), linestyle=DASHED["linestyle"], linewidth=1.2, **looks)
        if tight:
            axes.plot(*_columns(tight), linestyle="none", label=f"ZeRO {stage}, does not fit", **looks | hollow)
        if points := sorted((point["workers"], point["tokens_per_second"]) for point in measured if point["found"]["zero_stage"] == stage):
            ringed: dict[str, Any] = {"markersize": 9, "markeredgecolor": COLOURS["ink"], "linestyle": "none"}
            axes.plot(*zip(*points, strict=True), label=f"ZeRO {stage}, measured", zorder=4, **looks | ringed)
    if known:
        limits = sorted({(row.gpus, row.limit_tokens_per_second) for row in known})
        axes.plot(*zip(*limits, strict=True), label="limit: every FLOP of the cards", **DASHED | {"linestyle": ":", "linewidth": 1.5})
    counts = sorted({row.gpus for row in plan.rows} | {point["workers"] for point in measured})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    scale_speed(axes)
    axes.set(xlabel="GPUs" if plan.gpu.flops else "workers", ylabel="tokens a second")
    _legend(axes)
    return figure


def _columns(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [row.gpus for row in rows], [row.tokens_per_second or 0 for row in rows]


def _legend(axes: "Axes") -> None:
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=COLOURS["muted"], fontsize=9)


def _is_of(point: Entry, row: Row) -> bool:
    return (point["workers"], point["found"]["zero_stage"]) == (row.gpus, row.stage)


def _name(row: Row) -> str:
    return f"{row.gpus} x ZeRO-{row.stage}{'*' if row.chosen else '  '}"


def _sum(memory: Memory, terms: Sequence[str]) -> float:
    return float(sum(getattr(memory, term) for term in terms))
