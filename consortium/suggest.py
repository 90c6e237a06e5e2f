"""`consortium suggest`: values for a job's fields, with reasons."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.job import JobSpec, check_paths, load_job
from cluster.suggest import Facts, changes, suggest
from trainers.errors import ConfigError

console = Console(stderr=True, highlight=False, soft_wrap=True)


def suggest_values(path: Path, overrides: Sequence[str], gpu: str | None, *, as_json: bool) -> None:
    """Print what suits the job's data, model and hardware, and the command that takes it."""
    job = load_job(path, overrides)
    if job.privacy is not None:
        raise ConfigError("suggest: what it proposes follows from the rows, which are private here",
                          "`consortium privacy plan` proposes batch, steps and noise without looking at them")  # fmt: skip
    memory = _memory_here() if gpu is None else _memory_of(gpu)
    check_paths(job)
    facts = _facts(job, memory)
    chosen = changes(job, suggest(job, facts))
    if as_json:
        print(json.dumps([choice.as_dict() | {"now": now} for choice, now in chosen]))
        return
    where = "CPUs" if facts.gpu_bytes is None else f"{facts.workers} GPU(s) of {facts.gpu_bytes / 1e9:.0f} GB"
    console.print(f"[bold]{job.name}[/]  {facts.rows:,} rows to train on, {facts.shape.parameters:,} parameters, {where}")
    table = Table("field", "now", "suggested", "why", box=None, padding=(0, 2))
    for choice, now in chosen:
        table.add_row(choice.field, _shown(now), _shown(choice.value), choice.reason, style="dim" if now == choice.value else "")
    out = Console(highlight=False, soft_wrap=True)
    out.print(table)
    settings = [f"--set {shlex.quote(f'{choice.field}={_written(choice.value)}')}" for choice, now in chosen if now != choice.value]
    out.print(
        "\n" + (" ".join(["consortium train", shlex.quote(str(path)), *settings]) if settings else "the job has these values already")
    )


def _memory_of(gpu: str) -> float | None:
    """Of a GPU by its name, None for `cpu`. Raises ConfigError."""
    from cluster.speed import find_gpu

    return None if gpu.lower() == "cpu" else find_gpu(gpu).memory


def _facts(job: JobSpec, memory: float | None) -> Facts:
    import numpy as np

    from trainers.data.estimate import estimate
    from trainers.model import load_tokenizer, shape_of
    from trainers.worker import quiet

    quiet()
    if not job.model.path:
        raise ConfigError(f"model.shape: {job.model.shape} has no tokenizer to count tokens with", "give model.path")
    shape, found = shape_of(job.model, job.task), estimate(job.data, job.task, load_tokenizer(job.model))
    p99, longest = int(np.quantile(found.lengths, 0.99)), int(found.lengths.max())
    return Facts(found.rows, p99, longest, found.learnt, shape, memory, job.cluster.fewest)


def _memory_here() -> float | None:
    """Of this machine's first GPU, if it has one."""
    import torch

    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _written(value: object) -> str:
    return "null" if value is None else _shown(value)


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
