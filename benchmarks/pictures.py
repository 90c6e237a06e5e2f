"""The pictures of the results page, one function a benchmark. They follow the reader from light to dark."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from claims import (
    BETWEEN,
    CASES_OF_PEERS,
    EXCHANGES,
    GB,
    ROUND_CASES,
    Stored,
    by_exchange,
    case_name,
    cases_of_peers,
    rounds,
    step,
    trainer,
)

from cluster import bench_page
from trainers import pictures
from trainers.pictures import COLOURS, DASHED, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_COLOURS = Path(pictures.__file__).with_name("page.css.j2").read_text().partition("@media print")[0]


def svg(figure: "Figure") -> str:
    """A file of its own. Coordinates are rounded, so that another processor's last digit makes no other picture."""
    rounded = re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.2f}", pictures.svg(figure))
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    looks = f"<style>{PAGE_COLOURS}svg {{ background: var(--paper); }}</style>"
    return rounded.replace("<svg", f"<svg {names}", 1).replace(">", f">\n{looks}", 1)


def peers(stored: Stored) -> "Figure":
    """Tokens a second, with the slowest and the fastest round, a panel for each case."""
    cases = {CASES_OF_PEERS[case]: part["results"] for case, part in cases_of_peers(stored).items()}
    heights = [1.6 + len(found) for found in cases.values()]
    figure, _ = new_figure(7.2, 0.42 * sum(heights), heights)
    for axes, (case, found) in zip(figure.axes, cases.items(), strict=True):
        spreads = [(row["slowest"], row["fastest"]) for row in found]
        _bars(axes, [trainer(row) for row in found], [row["tokens_per_second"] for row in found], spreads)
        axes.set_xlabel(f"{case}: real tokens a second")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def scaling(stored: Stored) -> "Figure":
    """As the page of `consortium bench` has it."""
    figure = bench_page.draw(stored["results"])
    assert figure is not None
    return figure


def dp_overhead(stored: Stored) -> "Figure":
    """Ratios to the ordinary step, with quartiles."""
    found = stored["results"]
    figure, axes = new_figure(7.2, 0.7 + 0.42 * len(found))
    quartiles = [statistics.quantiles(row["ratios"], n=4) for row in found]
    _bars(axes, [step(row) for row in found], [middle for _, middle, _ in quartiles], [(low, high) for low, _, high in quartiles])
    axes.axvline(1, **DASHED)
    axes.set_xlabel("time of a step over that of our ordinary one")
    return figure


def plan_truth(stored: Stored) -> "Figure":
    """Predicted against measured, one point a row."""
    figure, axes = new_figure(5.4, 4.4)
    ends = (1.5, 90)
    axes.plot(ends, ends, label="predicted as measured", **DASHED)
    for kind, colour, marker in (("tensors", "accent", "o"), ("process", "second", "s"), ("gpu", "good", "^")):
        if rows := [row for row in stored["results"] if row["kind"] == kind]:
            axes.scatter([row["truth"] / GB for row in rows], [row["predicted"] / GB for row in rows], s=22, color=COLOURS[colour],
                         marker=marker, alpha=0.8, linewidths=0, label=kind)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, GB", ylabel="predicted, GB")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axes.minorticks_off()
    _legend(axes)
    return figure


def dp_utility(stored: Stored) -> "Figure":
    """Accuracy over epsilon; a dashed line without privacy."""
    figure, axes = new_figure(5.4, 3.2)
    private = sorted((row for row in stored["results"] if row["epsilon"] is not None), key=lambda row: row["epsilon"])
    ordinary = [100 * row["accuracy"] for row in stored["results"] if row["epsilon"] is None]
    if ordinary:
        axes.axhline(statistics.mean(ordinary), label="without privacy", **DASHED)
    epsilons = sorted({row["epsilon"] for row in private})
    means = [statistics.mean(100 * row["accuracy"] for row in private if row["epsilon"] == epsilon) for epsilon in epsilons]
    axes.plot(epsilons, means, color=COLOURS["accent"], linewidth=1.7)
    axes.plot([row["epsilon"] for row in private], [100 * row["accuracy"] for row in private], "o", color=COLOURS["accent"], markersize=5,
              label="private, one run a point")  # fmt: skip
    axes.set(xscale="log", xlim=(0.9, 9), ylim=(0, 100), xlabel="epsilon", ylabel="test accuracy, %")
    axes.xaxis.set_ticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.minorticks_off()
    _legend(axes)
    return figure


def secagg(stored: Stored) -> "Figure":
    """Seconds by number of banks, of a bank and of the server; nobody vanishes, the fewest numbers."""
    from matplotlib.figure import Figure

    elements = min(row["case"]["elements"] for row in stored["results"])
    figure = Figure(figsize=(9.2, 3.4), layout="constrained", facecolor="none")
    panels = figure.subplots(1, 2)
    for axes, who in zip(panels, ("a bank", "the server"), strict=True):
        pictures.style(axes)
        for contender, colour, marker in (("ours", "accent", "o"), ("Flower", "second", "s"), ("plain sum", "muted", "^")):
            runs: dict[int, list[float]] = {}
            for row in stored["results"]:
                if (row["contender"], row["case"]["elements"], row["case"]["vanished"]) == (contender, elements, 0):
                    seconds = sum(row["bank_seconds"]) if who == "a bank" else row["server_seconds"]
                    runs.setdefault(row["case"]["banks"], []).append(seconds)
            axes.plot(list(runs), [statistics.median(each) for each in runs.values()], color=COLOURS[colour], marker=marker, markersize=4.5,
                      linewidth=1.7, label=contender)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="banks", ylabel=f"seconds of {who}")
        axes.set_ylim(bottom=0.001)
        axes.set_xticks(list(runs), [str(count) for count in runs])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
    _legend(panels[0])
    return figure


def federated_round(stored: Stored) -> "Figure":
    """Seconds of a round, stacked by exchange."""
    splits = {f"{case_name(case)}: {name}": by_exchange(rounds(stored, case, name)) for case in ROUND_CASES for name in ("ours", "Flower")}
    bars = [(name, split) for name, split in splits.items() if split]
    figure, axes = new_figure(7.2, 1.1 + 0.34 * len(bars))
    left = [0.0] * len(bars)
    for place, exchange in enumerate((*EXCHANGES, BETWEEN)):
        lengths = [found.get(exchange, 0.0) for _, found in bars]
        colour = "muted" if exchange == BETWEEN else ("accent", "second", "good", "warn")[place % 4]
        axes.barh(range(len(bars)), lengths, left=left, height=0.6, color=COLOURS[colour], alpha=0.8 if place < 4 else 0.5, linewidth=0,
                  label=exchange)  # fmt: skip
        left = [start + length for start, length in zip(left, lengths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.6)
    axes.set_xlabel("seconds of a round, by exchange")
    _legend(axes)
    return figure


def federated_utility(stored: Stored) -> "Figure":
    """Accuracy round by round of the first seed; dashed what has no rounds, with its name at the left."""
    figure, axes = new_figure(7.2, 3.9)
    first = [row for row in stored["results"] if row["seed"] == 0]
    colours = {"ffa": "accent", "fedsvd": "second", "fedavg": "good"}
    for row in first:
        if "by_round" in row:
            private = row["epsilon"] is not None
            reached = [int(each) for each in row["by_round"]], [100 * each for each in row["by_round"].values()]
            axes.plot(*reached, color=COLOURS[colours[row["what"]]], linewidth=1.7, linestyle=":" if private else "-",
                      marker="s" if private else "o", markersize=4.5, clip_on=False,
                      label=row["what"] + (f", epsilon {row['epsilon']:g}" if private else ""))  # fmt: skip
    names = {"pooled": "pooled", "flower": "Flower's FedAvg", "alone": "best bank alone"}
    last = max((int(each) for row in first for each in row.get("by_round", {})), default=1)
    for row in first:
        if row["what"] in names:
            axes.axhline(100 * row["accuracy"], **DASHED)
            axes.text(0.01 * last, 100 * row["accuracy"] + 1, names[row["what"]], va="bottom", fontsize=8, color=COLOURS["muted"])
    axes.set(xlim=(0, last), ylim=(0, 100), xlabel="round", ylabel="test accuracy, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)
    return figure


def _bars(axes: "Axes", names: Sequence[str], lengths: Sequence[float], spreads: Sequence[tuple[float, float]]) -> None:
    """Ours in one colour, others in another; the first on top."""
    for place, (name, length, (low, high)) in enumerate(zip(names, lengths, spreads, strict=True)):
        axes.barh(place, length, height=0.6, color=COLOURS["accent" if name.startswith("ours") else "second"], alpha=0.75, linewidth=0)
        axes.plot((low, high), (place, place), color=COLOURS["ink"], linewidth=1.2, marker="|", markersize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=COLOURS["line"], linewidth=0.6)


def _legend(axes: "Axes") -> None:
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=COLOURS["muted"], fontsize=9)
