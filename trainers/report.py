"""From a run's events to `report.json`, `report.html` and the model card.

`build_report` is a pure function of the resolved configuration and the events; the rest of the file shows what it
returns. The page is self-contained: no script, no font and no picture from anywhere else. Its pictures are inline SVG
whose colours are the page's own CSS variables, so that they follow it from light to dark.
"""

import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainers.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Event = dict[str, Any]
Series = list[list[Any]]
Library = Literal["peft", "transformers"]

HEADLINE_METRICS = ("macro_f1", "accuracy", "rougeL", "exact_match", "eval_loss", "perplexity")
"""The first two that a run has stand at the top of its report."""

METRIC_NOTES = {
    "accuracy": "share of rows given the right label",
    "macro_f1": "F1 averaged over classes, each counting alike",
    "macro_precision": "precision averaged over classes, each counting alike",
    "macro_recall": "recall averaged over classes, each counting alike",
    "expected_calibration_error": "mean distance between confidence and accuracy; 0 is best",
    "brier_score": "squared error of the probabilities; 0 is best, 2 is worst",
    "eval_loss": "mean cross-entropy on validation data, in nats",
    "perplexity": "exponential of the mean loss a token; 1 is best",
    "exact_match": "share of texts equal to their reference",
    "bleu": "sacreBLEU of the corpus, 0 to 100",
    "rouge1": "overlap of single words with the reference (F)",
    "rouge2": "overlap of word pairs with the reference (F)",
    "rougeL": "longest common subsequence with the reference (F)",
    "term_coverage": "share of required terms that the texts use",
}


def read_events(path: Path) -> list[Event]:
    """The events of a run. A line torn by a crash, the last of the file or the last before a restart, is left out.

    Raises DataError, a ValueError, that names any other line which is not an event.
    """
    lines = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
    events = [_parse_event(line) for _, line in lines]
    for (number, line), event, following in zip(lines, events, [*events, None][1:], strict=True):
        is_last_of_attempt = number == lines[-1][0] or (following is not None and following["event"] == "start")
        if event is None and not is_last_of_attempt:
            raise DataError(
                f"{path}:{number}: expected a JSON object with 'event' and 'time', got {line[:60]!r}",
                "the file was changed or damaged: restore it, or remove this line",
            )
    return [event for event in events if event is not None]


def build_report(config: dict[str, Any], events: Iterable[Event]) -> dict[str, Any]:
    """What happened in a run, as plain JSON-able values; a number that is not finite becomes None.

    A restart from step S makes void what was logged for later steps: the series show each step once, as last done.
    Until the run ends, `metrics` are those of its last evaluation; `metrics_step` says of when.
    """
    attempts = _split_attempts(events)
    last = attempts[-1] if attempts else []
    starts = [start for attempt in attempts for start in _of_kind(attempt, "start")]
    ends, failures = _of_kind(last, "end"), _of_kind(last, "failure")
    start, end = starts[-1] if starts else {}, ends[-1] if ends else {}
    steps, evaluations, repeated = _replay(attempts)
    measured = end if "metrics" in end else evaluations[-1] if evaluations else {}
    model = config.get("model")
    report = {
        "name": config.get("name"),
        "task": config.get("task"),
        "status": _status(last),
        "model": model.get("path") if isinstance(model, Mapping) else model,
        "method": start.get("method"),
        "zero_stage": start.get("zero_stage"),
        "workers": start.get("workers"),
        "device": start.get("device"),
        "restarts": max(0, len(starts) - 1),
        "steps": _last_step(last) or 0,
        "steps_repeated": repeated,
        "train_loss": _series(steps, "loss"),
        "eval_loss": _series([{**entry["metrics"], "step": entry["step"]} for entry in evaluations], "eval_loss"),
        "learning_rate": _series(steps, "learning_rate"),
        "throughput": _series(steps, "tokens_per_second"),
        "metrics": measured.get("metrics") or {},
        "metrics_step": measured.get("step"),
        "best": end.get("best"),
        "tokens": sum(event.get("tokens", 0) for event in steps),
        "tokens_per_second": end.get("tokens_per_second", _mean(steps, "tokens_per_second", weight="seconds")),
        "padding_share": end.get("padding_share", _mean(steps, "padding_share", weight="tokens")),
        "mfu": _mean(steps, "mfu", weight="seconds"),
        "peak_memory_bytes": end.get("peak_memory_bytes"),
        "seconds": sum(attempt[-1]["time"] - attempt[0]["time"] for attempt in attempts),
        "parameters": start.get("parameters"),
        "versions": start.get("versions"),
        "data": start.get("data"),
        "choices": start.get("choices"),
        "attempts": [_attempt_row(number, attempt, is_last=attempt is last) for number, attempt in enumerate(attempts, 1)],
        "warnings": [
            {"step": event.get("step"), "message": event["message"]}
            for attempt in attempts
            for event in attempt
            if event["event"] == "warning"
        ],
        "failure": {key: failures[-1].get(key) for key in ("step", "error", "message", "hint")} if failures else None,
        "hyperparameters": {block: config[block] for block in ("train", "method", "zero") if block in config},
    }
    return dict(_finite(report))


def write_report(run_dir: Path) -> dict[str, Any]:
    """Write report.json and report.html from the config.json and events.jsonl beside them; returns the report.

    Raises OSError when one of the two is missing, DataError when one is damaged.
    """
    path = run_dir / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: expected a resolved job in JSON ({error})", "restore it, or start anew") from error
    report = build_report(config, read_events(run_dir / "events.jsonl"))
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    _write_atomically(run_dir / "report.json", text + "\n")
    _write_atomically(run_dir / "report.html", render_html(report))
    return report


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one page that needs nothing else and can be printed."""
    template = _templates(escape=True).get_template("report.html.j2")
    return template.render(
        report=report,
        headline=_headline(report),
        metric_rows=_metric_rows(report["metrics"]),
        by=_groupings(report["metrics"]),
        classes=_classes(report["metrics"]),
        confused=_most_confused(report["metrics"]),
        hyperparameters=list(_flat(report["hyperparameters"])),
        pictures=_pictures(report),
    )


def write_model_card(folder: Path, report: Mapping[str, Any], *, base_model: str, library: Library) -> None:
    """Write README.md, a Hugging Face model card, beside the weights.

    Of the machine it was made on it names files, not folders; `base_model` is written as given.
    Raises DataError, a ValueError, for an unknown library.
    """
    if library not in get_args(Library):
        raise DataError(f"library: expected peft or transformers, got {library!r}", "peft loads adapters")
    template = _templates(escape=False).get_template("model_card.md.j2")
    text = template.render(
        report=report,
        base_model=base_model,
        library=library,
        tags=[tag for tag in ("consortium", "finance", report["task"], report["method"]) if tag],
        metric_rows=_metric_rows(report["metrics"]),
        hyperparameters=[(name, _without_folder(value)) for name, value in _flat(report["hyperparameters"])],
        auto_class="AutoModelForSequenceClassification" if report["task"] == "classify" else "AutoModelForCausalLM",
        labels=report["metrics"].get("labels", []),
    )
    _write_atomically(folder / "README.md", text)


# From events to facts


def _parse_event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event and "time" in event else None


def _split_attempts(events: Iterable[Event]) -> list[list[Event]]:
    attempts: list[list[Event]] = []
    for event in events:
        if event["event"] == "start" or not attempts:
            attempts.append([])
        attempts[-1].append(event)
    return attempts


def _replay(attempts: Sequence[Sequence[Event]]) -> tuple[list[Event], list[Event], int]:
    """Steps and evaluations as they count, in order, and how many steps were done more than once."""
    steps: dict[int, Event] = {}
    evaluations: dict[int, Event] = {}
    repeated = 0
    for attempt in attempts:
        if attempt[0]["event"] == "start":
            resumed = attempt[0].get("step", 0)
            repeated += max(0, max(steps, default=0) - resumed)
            steps = {step: event for step, event in steps.items() if step <= resumed}
            evaluations = {step: event for step, event in evaluations.items() if step <= resumed}
        steps |= {event["step"]: event for event in attempt if event["event"] == "step"}
        evaluations |= {event["step"]: event for event in attempt if event["event"] == "eval"}
    return [steps[step] for step in sorted(steps)], [evaluations[step] for step in sorted(evaluations)], repeated


def _of_kind(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def _last_step(events: Sequence[Event]) -> int | None:
    return max((event["step"] for event in events if event.get("step") is not None), default=None)


def _status(attempt: Sequence[Event]) -> str:
    for event in reversed(attempt):
        if event["event"] == "end":
            return str(event["status"])
        if event["event"] == "failure":
            return "failed"
    return "running"


def _attempt_row(number: int, attempt: Sequence[Event], *, is_last: bool) -> dict[str, Any]:
    """How one attempt began and ended; one that left no last word was interrupted."""
    start = attempt[0] if attempt[0]["event"] == "start" else {}
    failures, status = _of_kind(attempt, "failure"), _status(attempt)
    return {
        "attempt": number,
        **{key: start.get(key) for key in ("step", "workers", "zero_stage", "device")},
        "seconds": attempt[-1]["time"] - attempt[0]["time"],
        "last_step": _last_step(attempt),
        "outcome": "interrupted" if status == "running" and not is_last else status,
        "reason": f"{failures[-1]['error']}: {failures[-1]['message']}" if failures else None,
    }


def _series(events: Sequence[Event], key: str) -> Series:
    return [[event["step"], event[key]] for event in events if key in event]


def _mean(events: Sequence[Event], key: str, *, weight: str) -> float | None:
    """Weighted mean of `key` over the events that have it: tokens a second, weighted by seconds, is all by all."""
    known = [(event[key], event.get(weight, 1)) for event in events if event.get(key) is not None]
    total = sum(share for _, share in known)
    return sum(value * share for value, share in known) / total if total else None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# From facts to tables


def _headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The four to six numbers at the top of the page."""
    metrics = report["metrics"]
    scores = [(_words(name), _number(metrics[name])) for name in HEADLINE_METRICS if metrics.get(name) is not None][:2]
    facts = [
        ("steps", _number(report["steps"])),
        ("wall time", _duration(report["seconds"])),
        ("tokens a second", _number(report["tokens_per_second"])),
        ("peak memory", _size(report["peak_memory_bytes"])),
    ]
    return [*scores, *facts]


def _metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Name, value and meaning of each metric that is one number."""
    numbers = {name: value for name, value in metrics.items() if value is None or isinstance(value, int | float)}
    return [(name, value, METRIC_NOTES.get(name, "")) for name, value in numbers.items()]


def _groupings(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`metrics["by"]` ready for tables: one result of `by_group`, or several by the name of their column."""
    by = metrics.get("by") or {}
    named = {"group": by} if "groups" in by else by
    tables = []
    for name, grouping in named.items():
        columns = dict.fromkeys(metric for row in grouping["groups"].values() for metric in row if metric != "rows")
        tables.append({**grouping, "name": name, "columns": list(columns)})
    return tables


def _classes(metrics: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Per-class scores, worst F1 first; classes that have none come last."""
    return sorted(metrics.get("per_class", {}).items(), key=lambda item: (item[1]["f1"] is None, item[1]["f1"] or 0))


def _most_confused(metrics: Mapping[str, Any], most: int = 10) -> list[tuple[str, str, int]]:
    """(truth, predicted, rows) of the commonest mistakes."""
    labels = metrics.get("labels", [])
    counts = [
        (labels[row], labels[column], count)
        for row, entries in enumerate(metrics.get("confusion_matrix", []))
        for column, count in enumerate(entries)
        if count and row != column
    ]
    return sorted(counts, key=lambda mistake: -mistake[2])[:most]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"train": {"epochs": 3}}` as `("train.epochs", 3)`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _without_folder(value: Any) -> Any:
    """The base name of what looks like a path of this machine."""
    if isinstance(value, list):
        return [_without_folder(entry) for entry in value]
    is_path = isinstance(value, str) and re.match(r"(file:|~|\.{0,2}[/\\]|[A-Za-z]:[/\\])", value)
    return _base_name(value) if is_path else value


def _base_name(path: str) -> str:
    return PureWindowsPath(path).name  # takes both kinds of slash


def _templates(*, escape: bool) -> "Environment":
    """Escaping is off for Markdown only, whose template puts every name through `cell` or `quoted`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (_number, _exact, _words, _score, _size, _duration, _base_name, _cell, _quoted):
        templates.filters[function.__name__.removeprefix("_")] = function
    return templates


def _number(value: Any) -> str:
    """A value for people: thousands apart, about four digits, a dash for what is not known."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            size = abs(value)
            if size >= 1000:
                return f"{value:,.0f}"
            if size >= 10:
                return f"{value:.2f}"
            return f"{value:.4f}" if size >= 0.001 else f"{value:g}" if size == 0 else f"{value:.2e}"
        case list() | tuple():
            return ", ".join(_number(entry) for entry in value) or "none"
        case _:
            return str(value)


def _exact(value: Any) -> str:
    """A setting as the job file would have it, not rounded."""
    if isinstance(value, list):
        return ", ".join(map(_exact, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _words(name: str) -> str:
    return name.replace("_", " ").replace(" f1", " F1")


def _score(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _cell(value: Any) -> str:
    """Text that stays within its cell of a Markdown table, and is no markup."""
    return re.sub(r"([\\`*|<>\[\]&~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(_number(value).split()))


def _quoted(value: Any) -> str:
    """A string literal that is the same in Python, JSON and YAML."""
    return json.dumps(str(value), ensure_ascii=False)


# From facts to pictures

_COLOURS = {"ink": "#26313c", "muted": "#6d7781", "line": "#d9d7d1", "accent": "#2b628e", "second": "#b8561e"}
"""CSS variables of the page, by the colour that stands for each while matplotlib draws."""

_HEAT = ((0.21, 0.46, 0.68, 0.25), (0.21, 0.46, 0.68, 1.0))
"""From pale to full blue: the page shows through, light or dark."""

_DASHED: dict[str, Any] = {"color": _COLOURS["muted"], "linestyle": (0, (4, 3)), "linewidth": 1}
MOST_NUMBERED_CLASSES = 20
"""With more, the confusion matrix has no room for numbers."""
MOST_STRONG_POINTS = 60
"""A longer curve is drawn twice: every point pale, running means strong."""


def _pictures(report: Mapping[str, Any]) -> dict[str, str]:
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
        return {name: _svg(figure) for name, figure in drawn.items() if figure is not None}


def _loss_picture(report: Mapping[str, Any]) -> "Figure | None":
    """Training and validation loss; dashed lines where the run was restarted, a ring at the best checkpoint."""
    training, validation = _known(report["train_loss"]), _known(report["eval_loss"])
    if not training and not validation:
        return None
    figure, axes = _figure(9.2, 3.5)
    for step in {attempt["step"] or 0 for attempt in report["attempts"][1:]}:
        axes.axvline(step, label="restart", zorder=1, **_DASHED)
    if len(training) > MOST_STRONG_POINTS:
        axes.plot(*_columns(_averaged(training, 2000)), color=_COLOURS["accent"], alpha=0.3, linewidth=0.8)
    _plot(axes, _averaged(training, MOST_STRONG_POINTS), "accent", label="training")
    _plot(axes, validation, "second", label="validation", marker="o")
    best = (report["best"] or {}).get("step")
    for step, loss in [point for point in validation if point[0] == best]:
        axes.plot(step, loss, "o", markersize=10, fillstyle="none", color=_COLOURS["ink"], label=f"best, step {best}")
    axes.set(xlabel="step", ylabel="loss")
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one for all restarts
    legend = axes.legend(entries.values(), entries, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=_COLOURS["muted"], fontsize=9)
    return figure


def _line_picture(series: Series, what: str) -> "Figure | None":
    if not _known(series):
        return None
    figure, axes = _figure(4.5, 2.6)
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
    figure, axes = _figure(9.2, min(9.2, 2.2 + 0.42 * len(labels)))
    filled = np.ma.masked_equal(heat, 0)
    axes.imshow(filled, cmap=shades, interpolation="none", vmin=0, vmax=max(heat.max(), 1), aspect="auto")
    axes.set_xticks(range(len(labels)), short, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(labels)), short, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set(xlabel="predicted", ylabel="truth")
    for row, column in np.argwhere(heat) if len(labels) <= MOST_NUMBERED_CLASSES else []:
        colour = "white" if heat[row, column] > 0.6 * heat.max() else _COLOURS["ink"]
        axes.text(column, row, f"{matrix[row][column]:,}", ha="center", va="center", color=colour, fontsize=size)
    return figure


def _reliability_picture(bins: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Accuracy against confidence above, rows of each bin below."""
    filled = [entry for entry in bins if entry["count"]]
    if not filled:
        return None
    confidence, accuracy, count = ([entry[key] for entry in filled] for key in ("confidence", "accuracy", "count"))
    figure, axes = _figure(4.5, 4.2, height_ratios=(3.2, 1))
    axes.plot([0, 1], [0, 1], **_DASHED)
    axes.plot(confidence, accuracy, color=_COLOURS["accent"], linewidth=1.5, marker="o", markersize=4)
    axes.set(ylabel="accuracy", xlim=(0, 1.01), ylim=(0, 1.03))
    below = figure.axes[1]
    below.bar(confidence, count, width=0.03, color=_COLOURS["accent"])
    below.set(xlabel="confidence", ylabel="rows", xlim=(0, 1.01))
    return figure


def _plot(axes: "Axes", series: Series, colour: str, **style: Any) -> None:
    """A line; a single point, which has no line, as a dot."""
    if series:
        style = {"marker": "o" if len(series) == 1 else None, "markersize": 3.5, "linewidth": 1.7, **style}
        axes.plot(*_columns(series), color=_COLOURS[colour], **style)


def _figure(width: float, height: float, height_ratios: Sequence[float] = (1,)) -> "tuple[Figure, Axes]":
    """A figure of one or more axes below each other, in the page's colours; returns the first axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    column = figure.subplots(len(height_ratios), 1, squeeze=False, height_ratios=height_ratios)[:, 0]
    for axes in column:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_COLOURS["line"])
        axes.grid(axis="y", color=_COLOURS["line"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(color=_COLOURS["line"], labelcolor=_COLOURS["muted"], labelsize=8.5)
        axes.xaxis.label.set(color=_COLOURS["muted"], fontsize=9)
        axes.yaxis.label.set(color=_COLOURS["muted"], fontsize=9)
    return figure, column[0]


def _svg(figure: "Figure") -> str:
    """The figure as an SVG element whose text is text and whose colours are the page's."""
    from matplotlib import rc_context

    target = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "consortium", "font.family": "sans-serif"}):
        figure.savefig(target, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = target.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing, count=2)
    for name, colour in _COLOURS.items():
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
