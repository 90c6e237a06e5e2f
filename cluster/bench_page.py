"""A benchmark to look at: its table, its curves as a PNG, and both on one page that needs nothing else."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.pictures import COLOURS, DASHED, style, svg
from trainers.report import number, size, templates, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, PICTURE = "bench.html", "bench.png"
_METHOD_COLOURS = {"lora": "accent", "full": "second", "nf4": "good", "int8": "warn"}
STAGE_MARKERS = {"1": "o", "2": "s", "3": "^", "auto": "D"}
_BESIDE = 0.02
"""Of a panel's width, from one series' points to the next one's"""
_MOST_IDEAL_LINES = 3
_GIB = 2**30

Entry = Mapping[str, Any]
"""A point of the results"""


def write_page(results: Mapping[str, Any], output: Path) -> None:
    """Write bench.html, and bench.png if there is a point to draw."""
    figure = draw(results["points"])
    if figure is not None:
        figure.savefig(output / PICTURE, dpi=150, facecolor="white")
    template = templates(Path(__file__).parent, escape=True).get_template("bench.html.j2")
    headings, rows = table(results)
    picture = svg(figure) if figure is not None else None
    page = template.render(
        results=results, headings=headings, rows=rows, picture=picture, headline=_headline(results["points"]),
        beside=_beside_the_plan(results["points"]),
    )  # fmt: skip
    write_atomically(output / PAGE, page)


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each point; the last says what is to be said of it."""
    headings = ["method", "ZeRO", "length", "workers", "tokens/s", "a worker", "efficiency", "step ms", "p5 to p95", "GFLOP/token", "MFU",
                "comm.", "data", "memory", "cost/M", ""]  # fmt: skip
    rows = [_cells(entry) for entry in results["points"]]
    shown = [place for place, name in enumerate(headings) if name != "cost/M" or results["price"] is not None]
    return [headings[place] for place in shown], [[row[place] for place in shown] for row in rows]


def _cells(entry: Entry) -> list[str]:
    found, times, flops = entry["found"] or {}, entry["step_seconds"] or {}, entry["flops_per_token"]
    p5, median, p95 = (_milliseconds(times.get(name)) for name in ("p5", "median", "p95"))
    return [
        entry["method"],
        str(found.get("zero_stage", entry["stage"])),
        str(found.get("length", entry["length"])),
        str(entry["workers"]),
        number(_whole(entry["tokens_per_second"])),
        number(_whole(entry["tokens_per_second_per_worker"])),
        _percent(entry["efficiency"], digits=0),
        median,
        f"{p5} to {p95}" if times else "–",
        number(None) if flops is None else f"{flops / 1e9:.3g}",
        _percent(entry["mfu"]),
        _percent(entry["communication_share"]),
        _percent(entry["data_share"]),
        size(entry["peak_memory_bytes"]),
        number(None) if entry["cost_per_million_tokens"] is None else f"{entry['cost_per_million_tokens']:.3g}",
        entry["reason"] or ("projected" if entry["status"] == "projected" else ""),
    ]


def _beside_the_plan(points: Sequence[Entry]) -> list[list[str]]:
    """Of each point with a prediction: its name, speed predicted and measured over it, memory predicted and measured over it."""
    rows = []
    for entry in points:
        speed, memory = entry.get("predicted_tokens_per_second"), entry.get("predicted_memory_bytes")
        if memory is not None:
            name = f"{entry['method']}, ZeRO {entry['found']['zero_stage']}, length {entry['found']['length']}, workers {entry['workers']}"
            ratios = [_ratio(entry["tokens_per_second"], speed), _ratio(entry["peak_memory_bytes"], memory)]
            rows.append([name, number(_whole(speed)), ratios[0], size(memory), ratios[1]])
    return rows


def _ratio(measured: float | None, predicted: float | None) -> str:
    return f"{measured / predicted:.2f}" if measured and predicted else "–"


def _headline(points: Sequence[Entry]) -> list[tuple[str, str]]:
    measured = [entry for entry in points if entry["status"] == "measured"]
    if not measured:
        return [("points measured", f"0 of {len(points)}")]
    fastest = max(measured, key=lambda entry: entry["tokens_per_second"])
    most = max(entry["workers"] for entry in measured)
    efficiency = max(entry["efficiency"] for entry in measured if entry["workers"] == most)
    return [
        ("points measured", f"{len(measured)} of {sum(entry['status'] != 'projected' for entry in points)}"),
        ("most tokens a second", number(round(fastest["tokens_per_second"]))),
        ("most a worker", number(round(max(entry["tokens_per_second_per_worker"] for entry in measured)))),
        (f"best efficiency, {most} worker{'s' * (most > 1)}", _percent(efficiency, digits=0)),
    ]


def draw(points: Sequence[Entry]) -> "Figure | None":
    """Tokens a second and peak memory over workers, a row of panels for each length that has points; projected ones dashed and hollow."""
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(entry["length"] for entry in points if entry["tokens_per_second"] is not None))
    if not lengths:
        return None
    figure = Figure(figsize=(9.2, 0.6 + 3.2 * len(lengths)), layout="constrained", facecolor="none")
    panels = figure.subplots(len(lengths), 2, squeeze=False)
    for (speed, memory), length in zip(panels, lengths, strict=True):
        here = [entry for entry in points if entry["length"] == length]
        _panel(speed, here, "tokens_per_second", f"tokens a second, length {length}", unit=1, ideal=True)
        _panel(memory, here, "peak_memory_bytes", f"peak memory of a worker, GiB, length {length}", unit=_GIB, ideal=False)
        _expect(speed, here, "predicted_tokens_per_second", unit=1)
        _expect(memory, here, "predicted_memory_bytes", unit=_GIB)
        _limit(speed, here)
        scale_speed(speed)
        memory.set_ylim(0, 1.08 * memory.get_ylim()[1])
    handles = {label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    legend = figure.legend(handles.values(), handles, loc="outside upper left", ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=COLOURS["muted"], fontsize=9)
    return figure


def _panel(axes: "Axes", points: Sequence[Entry], value: str, title: str, *, unit: float, ideal: bool) -> None:
    style(axes)
    places = _places(points)
    series: dict[tuple[str, str], list[Entry]] = {}
    for entry in points:
        if entry[value] is not None:
            series.setdefault((entry["method"], str(entry["stage"])), []).append(entry)
    for (method, stage), mine in series.items():
        beside = places[method, stage]
        looks: dict[str, Any] = {"color": COLOURS[_METHOD_COLOURS[method]], "marker": STAGE_MARKERS[stage], "markersize": 4.5}
        measured = [entry for entry in mine if entry["status"] == "measured"]
        label = f"{method}, ZeRO {stage}"
        axes.plot(*_columns(measured, value, unit, beside), linewidth=1.7, label=label, **looks)
        if beyond := [entry for entry in mine if entry["status"] == "projected"]:
            further = _columns([*measured[-1:], *beyond], value, unit, beside)
            axes.plot(*further, linestyle=DASHED["linestyle"], linewidth=1.3, markerfacecolor="none", label=f"{label}, projected", **looks)
        if ideal and len(series) <= _MOST_IDEAL_LINES and len(mine) > 1:
            counts, values = _columns(mine, value, unit, beside)
            axes.plot(counts, [values[0] * count / counts[0] for count in counts], color=COLOURS["line"], linewidth=1, zorder=1)
    axes.set_xscale("log", base=2)
    counts = sorted({entry["workers"] for entry in points})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="workers")
    axes.set_title(title, loc="left", fontsize=9, color=COLOURS["muted"])


def _expect(axes: "Axes", points: Sequence[Entry], value: str, *, unit: float) -> None:
    """Large hollow markers where the plan has the points, each in its method's colour and its stage's shape."""
    foretold = [entry for entry in points if entry.get(value) is not None]
    looks: dict[str, Any] = {"linestyle": "none", "markersize": 9, "markerfacecolor": "none", "zorder": 3}
    for (method, stage), beside in _places(points).items():
        mine = [entry for entry in foretold if (entry["method"], str(entry["stage"])) == (method, stage)]
        shape: dict[str, Any] = {"marker": STAGE_MARKERS[stage], "markeredgecolor": COLOURS[_METHOD_COLOURS[method]]}
        axes.plot(*_columns(mine, value, unit, beside), **looks, **shape)
    if foretold:
        axes.plot([], [], marker="o", markeredgecolor=COLOURS["muted"], label="as the plan has it", **looks)


def _limit(axes: "Axes", points: Sequence[Entry]) -> None:
    """What the peak of the GPUs allows, of each method: their FLOPs a token differ."""
    for method in dict.fromkeys(entry["method"] for entry in points):
        mine = {entry["workers"]: entry for entry in points if entry["method"] == method and entry.get("limit_tokens_per_second")}
        if mine:
            places = _columns([mine[count] for count in sorted(mine)], "limit_tokens_per_second", 1)
            marker: dict[str, Any] = {"marker": "_", "markersize": 14} if len(mine) == 1 else {}
            axes.plot(*places, linestyle=":", linewidth=1.5, color=COLOURS[_METHOD_COLOURS[method]], label=f"{method}, limit", **marker)


def scale_speed(axes: "Axes") -> None:
    """Logarithmic, so that speed in proportion to the workers is a straight line."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:,.0f}" if tick >= 1000 else f"{tick:g}")
    axes.yaxis.minorticks_off()


def _places(points: Sequence[Entry]) -> dict[tuple[str, str], float]:
    """A factor for the number of workers, by method and stage, so that what is measured at one number stands side by side."""
    series = list(dict.fromkeys((entry["method"], str(entry["stage"])) for entry in points))
    counts = [entry["workers"] for entry in points]
    octaves = max(1.0, math.log2(max(counts) / min(counts)))
    return {each: 2 ** (_BESIDE * octaves * (place - (len(series) - 1) / 2)) for place, each in enumerate(series)}


def _columns(entries: Sequence[Entry], value: str, unit: float, beside: float = 1.0) -> tuple[list[float], list[float]]:
    return [entry["workers"] * beside for entry in entries], [entry[value] / unit for entry in entries]


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.1f}"


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _percent(share: float | None, *, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"
