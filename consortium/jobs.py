"""The commands for jobs on a cluster: submit, jobs list, status, logs, stop."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.job import load_job, read_values
from cluster.submit import Cluster, Job, check_submittable, effective_address, exit_code, packed, unpacked
from consortium.tables import print_whole
from trainers.errors import ConfigError

_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}  # paths may hold brackets
console = Console(stderr=True, **_PLAIN)


def submit_job(
    path: Path, overrides: Sequence[str], address: str | None, *, package: bool, wait: bool, shared: Sequence[Path] = ()
) -> None:
    """Send a job file with its data and start it; with `wait`, exit as the job does."""
    job = load_job(path, overrides)
    check_submittable(read_values(path, overrides), path.resolve().parent)
    cluster = _connect(address)
    if absent := [folder for folder in shared if not folder.is_dir()]:
        raise ConfigError(f"--shared {absent[0]}: no such folder", "a folder that is on this machine as on every node, as in /shared")
    with packed(job, package=package, shared=shared) as (folder, sizes):
        for name, size in sizes.items():
            console.print(f"  sends {name}: {size / 2**20:.1f} MiB")
        id = cluster.submit(folder, job)
    console.print(f"  submitted: {id}")
    if not wait:
        console.print(f"  consortium jobs logs {id} -f" + ("" if address is None else f" --address {address}"))
        return
    try:
        ended = cluster.follow(id, _write)
    except KeyboardInterrupt:
        console.print(f"\n  the job goes on: consortium jobs logs {id} -f; consortium jobs stop {id}")
        sys.exit(130)
    _show(ended)
    sys.exit(exit_code(ended))


def run_submitted() -> None:
    """On the cluster, in the folder that was sent: run its job, from the last checkpoint where there is one."""
    from consortium.training import run

    path = Path("job.yaml")
    with unpacked(load_job(path), path.resolve().parent) as job:
        run(job)


def list_jobs(address: str | None, *, as_json: bool) -> None:
    jobs = _connect(address).jobs()
    if as_json:
        print(json.dumps([asdict(job) for job in jobs]))
        return
    table = Table("id", "status", "exit", "started", "run directory", box=None, padding=(0, 2, 0, 0))
    for job in jobs:
        table.add_row(job.id, job.status, "" if job.exit_code is None else str(job.exit_code), _time(job.started), job.run_dir)
    if jobs:
        print_whole(table)
    else:
        print("no jobs")


def show_status(id: str, address: str | None, *, as_json: bool) -> None:
    job = _connect(address).job(id)
    if as_json:
        print(json.dumps(asdict(job)))
    else:
        _show(job, Console(**_PLAIN))


def show_logs(id: str, address: str | None, *, follow: bool) -> None:
    """What a job has printed; with `follow` until it is over, exiting as it did."""
    cluster = _connect(address)
    if not follow:
        _write(cluster.logs(id))
        return
    sys.exit(exit_code(cluster.follow(id, _write)))


def stop_job(id: str, address: str | None) -> None:
    _connect(address).stop(id)
    console.print(f"  asked to stop: {id}; submitted again it goes on from its last checkpoint")


def _connect(asked: str | None) -> Cluster:
    address, note = effective_address(asked)
    console.print(f"  cluster {address}" + (f" ({note})" if note else ""))
    return Cluster(address)


def _show(job: Job, out: Console = console) -> None:
    out.print(f"  {job.id}  {job.status}" + ("" if job.exit_code is None else f", exit code {job.exit_code}"))
    if job.message and job.status != "SUCCEEDED":
        out.print(f"  {job.message.splitlines()[0]}")
    out.print(f"  started {_time(job.started)}, ended {_time(job.ended)}\n  run directory {job.run_dir}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
