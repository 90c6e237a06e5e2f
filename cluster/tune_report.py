"""What a search has found, for people: a table, pictures, and one page that needs nothing else."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.space import Range
from cluster.tune import Metric, Search, Trial, best_of, best_trial
from trainers.pictures import COLOURS, style, svg
from trainers.report import number, templates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OUTCOMES = (("finished", ("finished",)), ("stopped early", ("stopped",)), ("failed", ("failed", "lost")), ("not done", ("waiting",)))
_WIDTH, _ROW_HEIGHT, _PNG_DPI = 9.2, 2.9, 130


def write_search_report(search: Search, trials: Sequence[Trial]) -> dict[str, Any]:
    """Write trials.json, report.html and report.png to the folder of a search; what trials.json holds."""
    facts = summarise(search, trials)
    (search.folder / "trials.json").write_text(json.dumps(facts, indent=1) + "\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = draw_search(trials, search.space.ranges, search.metric)
        figure.savefig(search.folder / "report.png", dpi=_PNG_DPI, facecolor="white")
        (search.folder / "report.html").write_text(render(search, facts, svg(figure)), encoding="utf-8")
    return facts


def summarise(search: Search, trials: Sequence[Trial]) -> dict[str, Any]:
    """The search as plain values, trials best first."""
    best = best_trial(trials, search.metric)
    return {
        "name": search.job.name,
        "metric": search.metric,
        "scheduler": "asha" if search.asha else "random",
        "space": search.space.as_dict(),
        "best": best.name if best else None,
        "trials": [
            {
                "trial": trial.name,
                "status": trial.status,
                search.metric: trial.best,
                "percent": round(trial.curve[-1][0]) if trial.curve else 0,
                "seconds": round(trial.seconds, 1),
                "point": trial.point,
                "curve": [[step, value] for _, step, value in trial.curve],
                "problem": trial.problem,
            }
            for trial in ranked(trials, search.metric)
        ],
    }


def ranked(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Finished ones first, the best of them first; those without a value last."""
    sign = 1 if metric == "eval_loss" else -1
    return sorted(
        trials, key=lambda trial: (trial.status != "finished", trial.best is None, sign * (trial.best or 0), trial.number)
    )  # fmt: skip


def render(search: Search, facts: Mapping[str, Any], picture: str) -> str:
    """One HTML page, readable offline: nothing is fetched, nothing runs."""
    template = templates(Path(__file__).parent, escape=True).get_template("tune.html.j2")
    return template.render(
        facts=facts, headline=_headline(facts), metric=search.metric, fields=list(search.space.ranges), picture=picture, job=search.job
    )


def _headline(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    metric, trials = facts["metric"], facts["trials"]
    best = next((trial[metric] for trial in trials if trial["trial"] == facts["best"]), None)
    outcomes = [(word, sum(trial["status"] in statuses for trial in trials)) for word, statuses in _OUTCOMES]
    return [(f"best {metric.replace('_', ' ')}", number(best)), *((word, number(count)) for word, count in outcomes)]


def draw_search(trials: Sequence[Trial], ranges: Mapping[str, Range], metric: Metric) -> "Figure":
    """The best value so far by trial, and the value against each searched field; trials stopped early are crosses."""
    from matplotlib.figure import Figure

    rows = 1 + math.ceil(len(ranges) / 2)
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * rows), layout="constrained", facecolor="none")
    grid = figure.add_gridspec(rows, 2)
    judged = [trial for trial in trials if trial.best is not None]
    _draw_course(figure.add_subplot(grid[0, :]), judged, metric)
    for place, (name, values) in enumerate(ranges.items()):
        _draw_field(figure.add_subplot(grid[1 + place // 2, place % 2]), judged, name, values, metric)
    return figure


def _draw_course(axes: "Axes", trials: Sequence[Trial], metric: Metric) -> None:
    from matplotlib.ticker import MaxNLocator

    style(axes)
    numbers = [trial.number for trial in trials]
    so_far = [
        best_of([earlier.best for earlier in trials[: place + 1] if earlier.best is not None], metric) for place in range(len(trials))
    ]
    axes.plot(numbers, np.array(so_far, dtype=float), color=COLOURS["muted"], linewidth=1.2, drawstyle="steps-post", label="best so far")
    _scatter(axes, numbers, trials)
    axes.set(xlabel="trial", ylabel=metric.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=COLOURS["muted"], fontsize=9)


def _draw_field(axes: "Axes", trials: Sequence[Trial], name: str, values: Range, metric: Metric) -> None:
    from matplotlib.ticker import MaxNLocator

    style(axes)
    if values.kind == "choice":
        options = [json.dumps(value) for value in values.values]
        _scatter(axes, [options.index(json.dumps(trial.point[name])) for trial in trials], trials)
        axes.set_xticks(range(len(options)), [option.strip('"') for option in options], parse_math=False)
        axes.set_xlim(-0.5, len(options) - 0.5)
    else:
        _scatter(axes, [trial.point[name] for trial in trials], trials)
        axes.set_xscale("log" if values.kind == "loguniform" else "linear")
        if values.kind == "randint":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=name, ylabel=metric.replace("_", " "))


def _scatter(axes: "Axes", places: Sequence[float], trials: Sequence[Trial]) -> None:
    for label, marker, colour, wanted in (("finished", "o", "accent", True), ("stopped early", "x", "second", False)):
        chosen = [(place, trial.best) for place, trial in zip(places, trials, strict=True) if (trial.status == "finished") is wanted]
        if chosen:
            across, up = zip(*chosen, strict=True)
            axes.scatter(across, up, marker=marker, color=COLOURS[colour], s=26, label=label, zorder=3)
