"""The commands that train: train, resume, data inspect."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.job import JobSpec, has_begun, load_job, read_job
from consortium.tables import print_whole
from trainers.config import Task
from trainers.errors import ConfigError, Interrupted

console = Console(stderr=True, highlight=False, soft_wrap=True)


def train_job(path: Path, overrides: Sequence[str], *, resume: bool) -> None:
    """Train the job of a file. A run directory that has been trained in is continued only when asked."""
    job = load_job(path, overrides)
    started = has_begun(job)
    if started and not resume:
        raise ConfigError(
            f"{job.store_url or job.run_dir} already holds a run", "--resume continues it; another `name` (--set name=NAME) starts anew"
        )
    run(job)


def resume_run(run_dir: Path, *, workers: int | None) -> None:
    """Continue a run directory."""
    job = read_job(run_dir)
    cluster = job.cluster.model_copy(update={"workers": workers or job.cluster.workers})
    run(job.model_copy(update={"cluster": cluster, "output": run_dir.resolve().parent, "name": run_dir.resolve().name}))


def run(job: JobSpec) -> dict[str, Any]:
    """Launch a job, show its progress, print its result; the report."""
    console.print(f"[bold]{job.name}[/]  {job.task}, {job.method.type}, {escape(job.model.name)}")
    from cluster.launch import launch
    from trainers.progress import Display

    try:
        report = launch(job, Display(console))
    except KeyboardInterrupt:
        again = f"resume {job.run_dir}" if job.store_url is None else "train JOB.yaml --resume"
        raise Interrupted("interrupted", f"consortium {again} goes on from the last checkpoint") from None
    show_result(job, report)
    return report


def show_result(job: JobSpec, report: dict[str, Any]) -> None:
    """The result of a run as one table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    metrics = {name: value for name, value in report["metrics"].items() if isinstance(value, (int, float))}
    place, trained = job.store_url or job.run_dir, "adapter" if job.method.type == "lora" else "model"
    facts: dict[str, Any] = {name: f"{value:.4f}" for name, value in metrics.items()}
    facts |= {
        "steps": report["steps"],
        "restarts": report["restarts"],
        "tokens/s": "" if report["tokens_per_second"] is None else f"{report['tokens_per_second']:,.0f}",
        "padding": "" if report["padding_share"] is None else f"{report['padding_share']:.1%}",
        "peak memory a worker": "" if report["peak_memory_bytes"] is None else f"{report['peak_memory_bytes'] / 2**30:.2f} GiB",
        trained: f"{place}/{trained}",
        "report": f"{place}/report.html",
    }
    for name, value in {**facts, **_claim(job)}.items():
        if value != "":
            table.add_row(name, str(value))
    print_whole(table)


def _claim(job: JobSpec) -> dict[str, str]:
    """What a private run can state."""
    if job.privacy is None:
        return {}
    from privacy.statement import FILE, bound

    path = job.run_dir / FILE
    claim, mechanism = (json.loads(path.read_text())[name] for name in ("claim", "mechanism"))
    promised = f"{bound(claim)}, {mechanism['steps_charged']} steps charged"
    return {"privacy": promised, "statement": str(path), "losses": f"{job.run_dir}/private.jsonl, for the bank alone"}


def inspect_data(file: Path, job_file: Path | None, model: str | None, task: str | None, *, shown: int) -> None:
    """Show what a job would learn from a file."""
    from trainers.config import DataConfig, ModelConfig

    if job_file is None and model is None:
        raise ConfigError("the tokenizer decides what is learnt: which?", "give --job JOB.yaml or --model DIR")
    if job_file is not None and (said := "--model" if model else "--task" if task else ""):
        raise ConfigError(f"{said} and --job exclude each other", "the job file says model and task")
    if task not in (None, "sft", "pretrain", "classify"):
        raise ConfigError(f"--task {task}: expected sft, pretrain or classify")
    if job_file is not None:
        job = load_job(job_file)
        data, chosen, model_config = job.data.model_copy(update={"train": [file.resolve()]}), job.task, job.model
    else:
        data, chosen, model_config = DataConfig(train=[file.resolve()]), cast(Task, task or "sft"), ModelConfig(path=str(model))
    from consortium.inspect import show
    from trainers.data.inspect import inspect
    from trainers.model import load_tokenizer, shape_of

    tokenizer = load_tokenizer(model_config)
    longest = shape_of(model_config, chosen).longest_input or 4096
    max_length = min(longest, 4096) if data.max_length == "auto" else data.max_length
    show(inspect(data, chosen, tokenizer, max_length=max_length, shown=shown), Console(highlight=False))
