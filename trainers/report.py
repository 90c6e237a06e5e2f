"""From a run's events to `report.json`, `report.html` and the model card.

`build_report` is a pure function of the resolved configuration and the events; the rest of the file shows what it returns. The page is
self-contained: no script, no font and no picture from anywhere else.
"""

import copy
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainers.errors import DataError
from trainers.pictures import Series, draw

if TYPE_CHECKING:
    from jinja2 import Environment

Event = dict[str, Any]
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
        "privacy": next((event["claim"] for event in _of_kind(last, "statement")), None),
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
        "hyperparameters": _settings(config, start.get("choices") or []),
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
    write_atomically(run_dir / "report.json", text + "\n")
    write_atomically(run_dir / "report.html", render_html(report))
    return report


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one page that needs nothing else and can be printed."""
    template = templates(escape=True).get_template("report.html.j2")
    return template.render(
        report=report,
        headline=_headline(report),
        metric_rows=_metric_rows(report["metrics"]),
        by=_groupings(report["metrics"]),
        classes=_classes(report["metrics"]),
        confused=_most_confused(report["metrics"]),
        hyperparameters=list(_flat(report["hyperparameters"])),
        pictures=draw(report),
    )


def write_model_card(folder: Path, report: Mapping[str, Any], *, base_model: str, library: Library, privacy: str | None = None) -> None:
    """Write README.md, a Hugging Face model card, beside the weights; `privacy` is what a private run claims, in words.

    Of the machine it was made on it names files, not folders; `base_model` is written as given.
    Raises DataError, a ValueError, for an unknown library.
    """
    if library not in get_args(Library):
        raise DataError(f"library: expected peft or transformers, got {library!r}", "peft loads adapters")
    template = templates(escape=False).get_template("model_card.md.j2")
    text = template.render(
        report=report,
        base_model=base_model,
        library=library,
        tags=[tag for tag in ("consortium", "finance", report["task"], report["method"]) if tag],
        metric_rows=_metric_rows(report["metrics"]),
        hyperparameters=[(name, _without_folder(value)) for name, value in _flat(report["hyperparameters"])],
        auto_class="AutoModelForSequenceClassification" if report["task"] == "classify" else "AutoModelForCausalLM",
        labels=report["metrics"].get("labels", []),
        privacy=privacy,
    )
    write_atomically(folder / "README.md", text)


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


def _settings(config: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The blocks that decide what was learnt, `auto` replaced by what was chosen."""
    settings = {block: copy.deepcopy(config[block]) for block in ("train", "method", "zero") if block in config}
    for choice in choices:
        block, _, name = choice["field"].partition(".")
        if block in settings and settings[block].get(name) in ("auto", None):
            settings[block][name] = choice["value"]
    return settings


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


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# From facts to tables


def _headline(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The four to six numbers at the top of the page."""
    metrics = report["metrics"]
    scores = [(_words(name), number(metrics[name])) for name in HEADLINE_METRICS if metrics.get(name) is not None][:2]
    facts = [
        ("steps", number(report["steps"])),
        ("wall time", _duration(report["seconds"])),
        ("tokens a second", number(report["tokens_per_second"])),
        ("peak memory", size(report["peak_memory_bytes"])),
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


def templates(*folders: Path, escape: bool) -> "Environment":
    """The templates beside this file and in `folders`, with filters for numbers and sizes.

    Escaping is off for Markdown only, whose template puts every name through `cell` or `quoted`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (number, _exact, _words, _score, size, _duration, _base_name, _cell, _quoted):
        templates.filters[function.__name__.removeprefix("_")] = function
    return templates


def number(value: Any) -> str:
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
            return ", ".join(number(entry) for entry in value) or "none"
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


def size(count: int | None) -> str:
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
    return re.sub(r"([\\`*|<>\[\]&~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(number(value).split()))


def _quoted(value: Any) -> str:
    """A string literal that is the same in Python, JSON and YAML."""
    return json.dumps(str(value), ensure_ascii=False)
