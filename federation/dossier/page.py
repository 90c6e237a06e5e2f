"""The dossier as one page that needs nothing else and can be printed, with its pictures and numbers in words."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.config import Timeouts
from federation.dossier.report import Dossier
from federation.files import translated, write_bytes
from privacy.statement import rounded_up
from trainers.pictures import COLOURS, DASHED, new_figure, svg
from trainers.report import number, templates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON, PAGE = "dossier.json", "dossier.html"
EXCHANGES = tuple(Timeouts.model_fields)
"""Their names, from exchange 0 on"""


def write_dossier(folder: Path, dossier: Dossier) -> Path:
    """Both files, for their owner only; the page. Raises FolderError."""
    with translated(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(folder / JSON, json.dumps(dossier, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    write_bytes(folder / PAGE, render(dossier).encode())
    return folder / PAGE


def render(dossier: Dossier) -> str:
    """The page."""
    drawn = {"metrics": _metrics_picture(dossier.get("rounds", [])), "budget": _budget_picture(dossier.get("budget"))}
    environment = templates(Path(__file__).parent, escape=True)
    environment.filters["epsilon"] = _epsilon
    return environment.get_template("dossier.html.j2").render(
        dossier=dossier,
        headline=_headline(dossier),
        metrics=metric_names(dossier.get("rounds", [])),
        errors=any(each["errors"] for each in dossier.get("rounds", [])),
        exchanges=EXCHANGES,
        pictures={name: svg(figure) for name, figure in drawn.items() if figure},
    )


def _epsilon(value: float | None) -> str:
    return "–" if value is None else f"{rounded_up(value, 3):.3f}"


def metric_names(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that any round reports, in the order of their first coming."""
    return list(dict.fromkeys(name for each in rounds for name in each["metrics"]))


def _headline(dossier: Dossier) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    checked = dossier["transcripts"]
    verdict = "not compared" if checked is None else "differ" if checked["findings"] else "agree" if len(checked["banks"]) > 1 else "sound"
    common = [("refusals", number(len(dossier["refusals"]))), ("transcripts", verdict)]
    if dossier["side"] == "bank":
        budget = dossier["budget"]
        spent = f"{_epsilon(budget['proven'])} of {budget['epsilon']:g}"
        return [("epsilon spent", spent), ("attempts asked for", number(len(dossier["attempts"]))), *common]
    training = [each for each in dossier["rounds"] if each["round"] <= dossier["terms"]["rounds"]]
    privacy = dossier["privacy"]
    return [
        ("rounds", f"{len(training)} of {dossier['terms']['rounds']}"),
        ("banks", number(len(dossier["roster"]["members"]))),
        ("epsilon a customer", f"{privacy['epsilon']:g}" if privacy else "no privacy"),
        *common,
    ]


def _metrics_picture(rounds: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Each metric that is a share, of the model after so many rounds; with standard errors where they are known."""
    names = [name for name in metric_names(rounds) if name != "count"]
    if not names:
        return None
    figure, axes = new_figure(9.2, 3.2)
    for name, colour in zip(names, ("accent", "second", "good", "warn"), strict=False):
        known = [each for each in rounds if name in each["metrics"]]
        after, values = [each["round"] - 1 for each in known], [each["metrics"][name] for each in known]
        errors = [each["errors"].get(name, 0.0) for each in known]
        axes.errorbar(after, values, errors, label=name, color=COLOURS[colour], marker="o", markersize=4, linewidth=1.7, capsize=3)
    axes.set(xlabel="rounds behind the model", ylabel=names[0] if len(names) == 1 else "")
    axes.locator_params(axis="x", integer=True)
    if len(names) > 1:
        axes.legend(frameon=False, labelcolor=COLOURS["muted"], fontsize=9)
    return figure


def _budget_picture(budget: Mapping[str, Any] | None) -> "Figure | None":
    """What counted against the population's budget, and the budget, over time."""
    if not budget or not budget["history"]:
        return None
    from matplotlib import rc_context

    figure, axes = new_figure(9.2, 3.2)
    times: Any = [datetime.fromisoformat(moment["time"]) for moment in budget["history"]]
    spent: dict[str, Any] = {"color": COLOURS["accent"], "linewidth": 1.7, "marker": "."}
    with rc_context({"date.converter": "concise"}):
        for name, label, style in (("proven", "spent", spent), ("granted", "granted", DASHED)):
            axes.step(times, [moment[name] for moment in budget["history"]], where="post", label=label, **style)
    axes.set(ylabel="epsilon")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=COLOURS["muted"], fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure
