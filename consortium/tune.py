"""`consortium tune`: search over fields of a job."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.job import JobSpec, load_job
from cluster.space import Space, read_space
from consortium.tables import print_whole
from trainers.errors import ConfigError

console = Console(stderr=True, highlight=False, soft_wrap=True)


def tune_job(
    path: Path,
    space_file: Path,
    overrides: Sequence[str],
    *,
    trials: int,
    concurrent: int | None,
    scheduler: str,
    metric: str | None,
    resume: bool,
    output: Path | None,
) -> None:
    """Run a search, or go on with one, and print its trials; the best job is written beside them."""
    if scheduler not in ("asha", "random"):
        raise ConfigError(f"--scheduler {scheduler}: expected asha or random")
    job = load_job(path, [*overrides, *([f"checkpoint.best_by={metric}"] if metric else [])])
    if job.privacy is not None:
        raise ConfigError("tune: the best of several private runs is chosen by private rows, which no run's noise covers",
                          "tune on public data like it, and set the values found in the private job")  # fmt: skip
    space = read_space(space_file, job)
    folder = _folder(job, output)
    if (folder / "search.json").exists() and not resume:
        raise ConfigError(f"{folder} already holds a search", "--resume continues it; --output DIR starts another")
    _run(job, space, space_file, folder=folder, trials=trials, asha=scheduler == "asha", concurrent=concurrent)


def _folder(job: JobSpec, asked: Path | None) -> Path:
    if asked is None and not isinstance(job.output, Path):
        raise ConfigError(f"output {job.output} is a URL: a search needs a folder that all nodes share", "--output DIR")
    return (asked or Path(job.output) / f"{job.name}-tune").resolve()


def _run(job: JobSpec, space: Space, space_file: Path, *, folder: Path, trials: int, asha: bool, concurrent: int | None) -> None:
    from cluster.tune import Metric, Search, best_trial, run_search, write_best
    from cluster.tune_report import write_search_report

    metric: Metric = job.checkpoint.best_by or "eval_loss"
    search = Search(job, space, space_file, metric, trials, asha, concurrent, folder)
    count = len(space.points(trials))
    few = "" if count == trials else f" (the space has no more than {count} points)"
    console.print(f"[bold]{job.name}[/]  {count} trials{few} over {', '.join(space.ranges)}, judged by {metric}")
    try:
        done = run_search(search, lambda line: console.print(f"  {line}"))
    except KeyboardInterrupt:
        console.print("\ninterrupted: the same command with --resume keeps finished trials and goes on with the others")
        sys.exit(130)
    facts = write_search_report(search, done)
    _show(facts, metric)
    best = best_trial(done, metric)
    if best is not None:
        write_best(search, best, folder / "best.yaml")
        console.print(f"  best      {folder / 'best.yaml'}  ({best.name}, trained in {best.run_dir})")
    console.print(f"  report    {folder / 'report.html'}")


def _show(facts: dict[str, Any], metric: str) -> None:
    fields = [name for name in facts["space"] if name != "seed"]
    table = Table("trial", "outcome", metric, "done", *fields, box=None, padding=(0, 2))
    for trial in facts["trials"]:
        value = "-" if trial[metric] is None else f"{trial[metric]:.4f}"
        points = [f"{trial['point'][name]}" for name in fields]
        table.add_row(
            trial["trial"],
            trial["status"],
            value,
            f"{trial['percent']} %",
            *points,
            style="bold" if trial["trial"] == facts["best"] else "",
        )
    print_whole(table)
