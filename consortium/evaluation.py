"""The commands that use a trained model: evaluate, predict, export."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cluster.job import read_job
from consortium.tables import print_whole
from trainers.config import DataConfig, ModelConfig, Task
from trainers.data.formats import Chat, Completion
from trainers.data.masking import opening
from trainers.errors import ConfigError, DataError, ModelError
from trainers.evaluate import (
    ANSWER_TOKENS,
    Answer,
    Item,
    Scored,
    answers,
    chat_prompt,
    class_probabilities,
    read_items,
    reference_of,
    score,
    summarise,
    summarise_by,
)
from trainers.model import Loaded, base_of, load_base, load_finetuned, load_model_config, load_tokenizer, merge, shape_of
from trainers.report import read_events
from trainers.worker import quiet

console = Console(stderr=True, highlight=False, soft_wrap=True)
LONGEST = 4096


@dataclass(frozen=True)
class Target:
    """A trained model and what is known of how it was trained."""

    folder: Path
    model: ModelConfig
    task: Task
    data: DataConfig | None
    completes: bool = False
    """Whether it was trained on prompts and completions as they are, and not on conversations"""

    @property
    def max_length(self) -> int:
        known = shape_of(self.model, self.task).longest_input or LONGEST
        asked = self.data.max_length if self.data is not None else "auto"
        return min(known, LONGEST) if asked == "auto" else asked


def evaluate_model(
    path: Path,
    file: Path,
    *,
    by: str | None,
    label: str | None,
    terms: str | None,
    generate: bool,
    review: Path | None,
    base: bool,
    limit: int | None,
    as_json: bool,
) -> dict[str, Any]:
    """Score a model on a file and print the metrics. What cannot be done is told before anything is scored."""
    quiet()
    target = find_target(path)
    _check_asked(target.task, {"--label": label, "--terms": terms, "--generate": generate, "--review": review})
    data = (target.data or DataConfig(train=[file])).model_copy(update={"train": [file]})
    items = read_items(data, target.task, file, limit=limit)
    for option, column in (("--by", by), ("--label", label), ("--terms", terms)):
        if column is not None and column not in items[0].values:
            raise DataError(f"{option} {column}: no such column", f"there are: {', '.join(items[0].values)}")
    if review is not None:
        _open_sheet(review)
    loaded = load_target(target, base=base)
    with Console(stderr=True).status("scoring") as status:
        scored = score(
            loaded, target.task, items, max_length=target.max_length, label_column=label, terms_column=terms,
            generate=generate or (review is not None and target.task != "classify"),
            progress=lambda done, total: status.update(f"scoring {done}/{total}"),
        )  # fmt: skip
    metrics = summarise(scored)
    if by is not None:
        metrics["by"] = {by: summarise_by(scored, items, by)}
    if review is not None:
        _write_review(review, items, scored)
        console.print(f"  sheet for marking: {review}")
    if as_json:
        print(json.dumps(_finite(metrics), allow_nan=False))
    else:
        show_metrics(metrics, Console(highlight=False, soft_wrap=True))
    return metrics


def _check_asked(task: Task, asked: dict[str, object]) -> None:
    """Raise ConfigError for what a model of this task has no use for."""
    useless = {"classify": ("--label", "--terms", "--generate"), "pretrain": ("--label", "--terms", "--generate", "--review"), "sft": ()}
    if wrong := next((option for option in useless[task] if asked[option]), None):
        why = "says a class, and writes nothing" if task == "classify" else "was trained on plain text: there is no answer to compare with"
        raise ConfigError(f"{wrong}: the model {why}", "leave it out")


def _open_sheet(path: Path) -> None:
    """Make the file, for its owner only, before hours are spent on what goes into it. Raises ConfigError."""
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        raise ConfigError(f"--review {path}: {error.strerror or error}", "name a file in a folder you may write to") from error


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def predict_lines(path: Path, source: str, *, abstain_below: float) -> None:
    """Answer each line of a file or of standard input, one JSON object a line, in order."""
    quiet()
    target = find_target(path)
    loaded = load_target(target)
    for first, lines in _chunks(source, 64):
        texts = [_text_of(line, f"{source}:{number}") for number, line in zip(first, lines, strict=True)]
        for line, (answer, unread) in zip(lines, _predict(target, loaded, texts), strict=True):
            abstained = answer.confidence < abstain_below or (unread > 0 and not answer.text)
            text, confidence = None if abstained else answer.text, round(answer.confidence, 4)
            said: dict[str, Any] = {"input": line, "answer": text, "confidence": confidence, "abstained": abstained}
            said |= ({"cut": True} if answer.cut else {}) | ({"unread_tokens": unread} if unread else {})
            print(json.dumps(said, ensure_ascii=False), flush=True)


def export_model(path: Path, output: Path, *, merge: bool) -> None:
    """Write a trained model to a new directory: as it is, or with its adapter folded in."""
    if output.exists():
        raise ConfigError(f"{output} exists", "name a new directory")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror or error}", "name a directory you may write to") from error
    quiet()
    target = find_target(path)
    if merge:
        _merge(target, output)
    else:
        import shutil

        shutil.copytree(target.folder, output)
    console.print(f"  written: {output}")


def _merge(target: Target, output: Path) -> None:
    if not (target.folder / "adapter_config.json").exists():
        raise ConfigError(f"{target.folder} has no adapter to merge", "export it without --merge")
    full_precision = target.model.model_copy(update={"quantization": "none"})  # an adapter is folded into whole weights
    merge(load_finetuned(target.folder, full_precision, target.task, device=torch.device("cpu")), output)


def find_target(path: Path) -> Target:
    """A run directory, an adapter directory or a model directory. Raises ModelError when it is none of them."""
    if (path / "events.jsonl").exists():
        return _run_target(path)
    if (path / "adapter_config.json").exists():
        model, task = base_of(path), "sft"
        if json.loads((path / "adapter_config.json").read_text()).get("task_type") == "SEQ_CLS":
            task = "classify"
        return Target(path, _for_use(ModelConfig(path=model)), task, None)  # type: ignore[arg-type]
    if not (path / "config.json").exists():
        raise ModelError(f"{path}: neither a run, an adapter nor a model directory", "a run directory is OUTPUT/NAME of a job")
    model_config = _for_use(ModelConfig(path=str(path)))
    architectures = load_model_config(model_config).architectures or [""]
    return Target(path, model_config, "classify" if "SequenceClassification" in architectures[0] else "sft", None)


def _run_target(run_dir: Path) -> Target:
    job = read_job(run_dir)
    folder = run_dir / ("adapter" if job.method.type == "lora" else "model")
    if not folder.exists():
        raise ModelError(f"{run_dir} has no trained model yet", f"consortium resume {run_dir}")
    start = next((event for event in read_events(run_dir / "events.jsonl") if event["event"] == "start"), {})
    files = start.get("data", {}).get("files", [])[: len(job.data.train)]
    completes = bool(files) and all(file.get("format") == "completion" for file in files)
    return Target(folder, _for_use(job.model), job.task, job.data, completes)


def _for_use(model: ModelConfig) -> ModelConfig:
    dtype = model.dtype if model.dtype != "auto" else ("bfloat16" if torch.cuda.is_available() else "float32")
    return model.model_copy(update={"dtype": dtype})


def load_target(target: Target, *, base: bool = False) -> Loaded:
    """The trained model; with `base`, the one it was trained from. Raises ModelError."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not base:
        return load_finetuned(target.folder, target.model, target.task, device=device)
    if target.model.path == str(target.folder) or target.model.from_scratch or target.task == "classify":
        raise ConfigError("--base: there is no model before training to compare with", "it was made from random weights, or has a new head")
    tokenizer = load_tokenizer(target.model)
    model = load_base(target.model, target.task, tokenizer, labels=[], device=device, seed=0)
    return Loaded(model.to(device).eval(), model, tokenizer)


def show_metrics(metrics: dict[str, Any], out: Console) -> None:
    """Metrics as tables: the numbers, the classes worst first, the groups with their gaps."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, value in metrics.items():
        if isinstance(value, (int, float)):
            table.add_row(name, str(value) if isinstance(value, int) else f"{value:.4f}")
    out.print(table)
    if classes := metrics.get("per_class"):
        _show_classes(classes, out)
    for column, groups in metrics.get("by", {}).items():
        _show_groups(column, groups)


def _show_classes(classes: dict[str, dict[str, Any]], out: Console, most: int = 15) -> None:
    table = Table(box=None, padding=(0, 2))
    table.add_column("class", overflow="fold", min_width=min(40, max(map(len, classes))))
    for title in ("precision", "recall", "F1", "false positives", "rows"):
        table.add_column(title, justify="right")
    known = [entry for entry in classes.items() if entry[1]["f1"] is not None]
    worst = sorted(known, key=lambda entry: entry[1]["f1"])
    for name, scores in worst[:most]:
        values = [scores[key] for key in ("precision", "recall", "f1", "false_positive_rate")]
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values), str(scores["support"]))
    out.print(table)
    if len(worst) > most:
        out.print(f"  ... {len(worst) - most} more, none with a lower F1")
    if absent := len(classes) - len(known):
        out.print(f"  ... {absent} that occur neither in the rows nor in the answers")


def _show_groups(column: str, groups: dict[str, Any]) -> None:
    table = Table(column, *groups["groups"], "gap", box=None, padding=(0, 2))
    table.add_row("rows", *(str(values["rows"]) for values in groups["groups"].values()), "")
    for name, gap in groups["gaps"].items():
        values = (values.get(name) for values in groups["groups"].values())
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values), f"{gap['gap']:.3f}")
    print_whole(table)


def _write_review(path: Path, items: list[Item], scored: Scored) -> None:
    """A sheet an expert can mark: input, expected, answer, and empty columns for the marks."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        sheet = csv.writer(stream)
        sheet.writerow(["row", "input", "expected", "answer", "correct (y/n)", "harmful (y/n)", "comment"])
        for place, item in enumerate(items):
            if scored.hypotheses is not None:
                expected, answer = reference_of(item.content), scored.hypotheses[place]
            else:
                assert scored.truth is not None and scored.probabilities is not None
                expected, answer = scored.truth[place], scored.labels[int(scored.probabilities[place].argmax())]
            sheet.writerow([item.origin.rsplit(":", 1)[-1], _plain(item), _no_formula(expected), _no_formula(answer), "", "", ""])


def _plain(item: Item) -> str:
    content = item.content
    if isinstance(content, Chat):
        return _no_formula("\n".join(f"{role}: {said}" for role, said in content.turns[:-1]))
    return _no_formula(content.prompt if isinstance(content, Completion) else content.text)


def _no_formula(text: str) -> str:
    """A spreadsheet must show a customer's text, not run it."""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _chunks(source: str, size: int) -> Iterator[tuple[list[int], list[str]]]:
    """Lines that are not empty, with their numbers. Raises DataError for what cannot be read."""
    if source != "-" and not Path(source).is_file():
        raise DataError(f"--input {source}: no such file", "- reads standard input")
    numbers, lines = [], []
    with open(0 if source == "-" else source, "rb", closefd=source != "-") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                numbers.append(number)
                lines.append(_decoded(line, f"{source}:{number}"))
            if len(lines) == size:
                yield numbers, lines
                numbers, lines = [], []
    if lines:
        yield numbers, lines


def _decoded(line: bytes, origin: str) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{origin}: not UTF-8 ({error.reason})", "convert it, as in: iconv -f WINDOWS-1252 -t UTF-8") from error


def _predict(target: Target, loaded: Loaded, texts: list[str]) -> list[tuple[Answer, int]]:
    """Answers, and the tokens that were not read. A prompt of which not all could be read is not answered."""
    if target.task == "classify":
        found = class_probabilities(loaded, texts, max_length=target.max_length)
        names, unread = loaded.base.config.id2label, _beyond(loaded, texts, target.max_length, special=True)
        return [(Answer(names[int(row.argmax())], float(row.max()), False), beyond) for row, beyond in zip(found, unread, strict=True)]
    prompts = [opening(loaded.tokenizer) + text for text in texts]
    if target.task == "sft" and not target.completes:
        system = target.data.system_prompt if target.data is not None else None
        before = [("system", system)] if system else []
        prompts = [chat_prompt(loaded, [*before, ("user", text)]) for text in texts]
    longest = shape_of(target.model, target.task).longest_input
    unread = [0] * len(prompts) if longest is None else _beyond(loaded, prompts, max(1, longest - ANSWER_TOKENS), special=False)
    written = iter(answers(loaded, [prompt for prompt, beyond in zip(prompts, unread, strict=True) if not beyond]))
    return [(Answer("", 0.0, False) if beyond else next(written), beyond) for beyond in unread]


def _beyond(loaded: Loaded, texts: list[str], room: int, *, special: bool) -> list[int]:
    return [max(0, len(ids) - room) for ids in loaded.tokenizer(texts, add_special_tokens=special)["input_ids"]]


def _text_of(line: str, origin: str) -> str:
    """A line is the text itself, or a JSON object with a `text` or `prompt`. Raises DataError, by file and line."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return line
    text = values.get("text") or values.get("prompt")
    if not isinstance(text, str):
        raise DataError(f"{origin}: expected a text or prompt in the object", "one JSON object a line, or plain text lines")
    return text
