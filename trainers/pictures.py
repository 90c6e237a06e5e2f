"""The pictures of a report: inline SVG in the page's colours, which are CSS variables, so that they follow it from light to dark."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = list[list[Any]]
"""Points [step, value]; the value None where it was not finite."""

COLOURS = {"ink": "#26313c", "muted": "#6d7781", "line": "#d9d7d1", "accent": "#2b628e", "second": "#b8561e", "good": "#2d6e49",
           "warn": "#8b5a00"}  # fmt: skip
"""CSS variables of the page, by the colour that stands for each while matplotlib draws."""

_HEAT = ((0.21, 0.46, 0.68, 0.25), (0.21, 0.46, 0.68, 1.0))
"""From pale to full blue: the page shows through, light or dark."""

DASHED: dict[str, Any] = {"color": COLOURS["muted"], "linestyle": (0, (4, 3)), "linewidth": 1}
MOST_NUMBERED_CLASSES = 20
"""With more, the confusion matrix has no room for numbers."""
MOST_STRONG_POINTS = 60
"""A longer curve is drawn twice: every point pale, running means strong."""


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """Inline SVG by name; a picture without data is absent."""
    metrics = report["metrics"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser's fonts draw the text
        drawn = {
            "loss": _loss_picture(report),
            "learning_rate": _line_picture(report["learning_rate"], "learning rate"),
            "throughput": _line_picture(report["throughput"], "tokens a second"),
            "confusion": _confusion_picture(metrics.get("labels"), metrics.get("confusion_matrix")),
            "reliability": _reliability_picture(metrics.get("calibration_bins", [])),
        }
        return {name: svg(figure) for name, figure in drawn.items() if figure is not None}


def _loss_picture(report: Mapping[str, Any]) -> "Figure | None":
    """Training and validation loss; dashed lines where the run was restarted, a ring at the best checkpoint."""
    training, validation = _known(report["train_loss"]), _known(report["eval_loss"])
    if not training and not validation:
        return None
    figure, axes = new_figure(9.2, 3.5)
    for step in {attempt["step"] or 0 for attempt in report["attempts"][1:]}:
        axes.axvline(step, label="restart", zorder=1, **DASHED)
    if len(training) > MOST_STRONG_POINTS:
        axes.plot(*_columns(_averaged(training, 2000)), color=COLOURS["accent"], alpha=0.3, linewidth=0.8)
    _plot(axes, _averaged(training, MOST_STRONG_POINTS), "accent", label="training")
    _plot(axes, validation, "second", label="validation", marker="o")
    best = (report["best"] or {}).get("step")
    for step, loss in [point for point in validation if point[0] == best]:
        axes.plot(step, loss, "o", markersize=10, fillstyle="none", color=COLOURS["ink"], label=f"best, step {best}")
    axes.set(xlabel="step", ylabel="loss")
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one for all restarts
    legend = axes.legend(entries.values(), entries, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=COLOURS["muted"], fontsize=9)
    return figure


def _line_picture(series: Series, what: str) -> "Figure | None":
    if not _known(series):
        return None
    figure, axes = new_figure(4.5, 2.6)
    _plot(axes, _averaged(_known(series), 200), "accent")
    axes.set(xlabel="step", ylabel=what)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}")
    return figure


def _confusion_picture(labels: Sequence[str] | None, matrix: Sequence[Sequence[int]] | None) -> "Figure | None":
    """Counts as shades, on a logarithmic scale, with numbers where there is room for them."""
    if not labels or not matrix:
        return None
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    heat = np.log1p(np.asarray(matrix, dtype=float))
    shades = LinearSegmentedColormap.from_list("heat", _HEAT)
    size = min(8.5, 440 / len(labels))
    short = [label if len(label) <= 36 else label[:35] + "…" for label in labels]
    figure, axes = new_figure(9.2, min(9.2, 2.2 + 0.42 * len(labels)))
    filled = np.ma.masked_equal(heat, 0)
    axes.imshow(filled, cmap=shades, interpolation="none", vmin=0, vmax=max(heat.max(), 1), aspect="auto")
    axes.set_xticks(range(len(labels)), short, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(labels)), short, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set(xlabel="predicted", ylabel="truth")
    for row, column in np.argwhere(heat) if len(labels) <= MOST_NUMBERED_CLASSES else []:
        colour = "white" if heat[row, column] > 0.6 * heat.max() else COLOURS["ink"]
        axes.text(column, row, f"{matrix[row][column]:,}", ha="center", va="center", color=colour, fontsize=size)
    return figure


def _reliability_picture(bins: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Accuracy against confidence above, rows of each bin below."""
    filled = [entry for entry in bins if entry["count"]]
    if not filled:
        return None
    confidence, accuracy, count = ([entry[key] for entry in filled] for key in ("confidence", "accuracy", "count"))
    figure, axes = new_figure(4.5, 4.2, height_ratios=(3.2, 1))
    axes.plot([0, 1], [0, 1], **DASHED)
    axes.plot(confidence, accuracy, color=COLOURS["accent"], linewidth=1.5, marker="o", markersize=4)
    axes.set(ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.03))
    below = figure.axes[1]
    below.bar(confidence, count, width=0.03, color=COLOURS["accent"])
    below.set(xlabel="confidence", ylabel="rows", xlim=(0, 1.01))
    return figure


def _plot(axes: "Axes", series: Series, colour: str, **style: Any) -> None:
    """A line; a single point, which has no line, as a dot."""
    if series:
        style = {"marker": "o" if len(series) == 1 else None, "markersize": 3.5, "linewidth": 1.7, **style}
        axes.plot(*_columns(series), color=COLOURS[colour], **style)


def new_figure(width: float, height: float, height_ratios: Sequence[float] = (1,)) -> "tuple[Figure, Axes]":
    """A figure of one or more axes below each other, in the page's colours; returns the first axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    column = figure.subplots(len(height_ratios), 1, squeeze=False, height_ratios=height_ratios)[:, 0]
    for axes in column:
        style(axes)
    return figure, column[0]


def style(axes: "Axes") -> None:
    """Axes in the page's colours."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["line"])
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(color=COLOURS["line"], labelcolor=COLOURS["muted"], labelsize=8.5)
    axes.xaxis.label.set(color=COLOURS["muted"], fontsize=9)
    axes.yaxis.label.set(color=COLOURS["muted"], fontsize=9)


def svg(figure: "Figure") -> str:
    """The figure as an SVG element whose text is text and whose colours are the page's."""
    from matplotlib import rc_context

    target = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "consortium", "font.family": "sans-serif"}):
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = target.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing, count=2)
    for name, colour in COLOURS.items():
        drawing = drawing.replace(f": {colour}", f": var(--{name})")
    return drawing


def _known(series: Series) -> Series:
    return [point for point in series if point[1] is not None]


def _averaged(series: Series, most: int) -> Series:
    """At most `most` points, each the mean of its neighbours."""
    stride = math.ceil(len(series) / most)
    parts = [series[begin : begin + stride] for begin in range(0, len(series), max(1, stride))]
    return [[sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)] for part in parts]


def _columns(series: Series) -> tuple[list[Any], list[Any]]:
    return [step for step, _ in series], [value for _, value in series]
