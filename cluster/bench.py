"""A benchmark: one job over a grid of methods, ZeRO stages, lengths and numbers of workers. The grid, running a point, comparing two.

Weak scaling: every worker computes the same number of tokens a step, whatever their number. Each point runs in worker processes of its
own, so that its peak of memory is its own, through the same launch as training.
"""

import json
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import ray
from pydantic import BaseModel, ValidationError, model_validator

from cluster.errors import ClusterTooSmall
from cluster.job import JobSpec, check_paths, load_job, read_values, write_job
from cluster.launch import check_shared, connected, place_workers, run_workers
from cluster.speed import COMMUNICATION
from trainers.config import LoraMethod, validate
from trainers.errors import ConfigError
from trainers.report import write_atomically

Method = Literal["full", "lora", "nf4", "int8"]
METHODS: tuple[Method, ...] = get_args(Method)
SCHEMA = 1
RESULTS = "bench.json"
FORMULAS = {
    "tokens a second": "tokens of the timed steps, padding there is none, over their time; a step takes as long as its slowest worker",
    "efficiency": "tokens a second of a worker over those with the fewest workers of the same method, stage and length",
    "MFU": "tokens a second of a worker × model FLOPs a token / the GPU's dense bf16 peak; a dash where the peak is not known",
    "limit": "tokens a second of all workers at an MFU of 1: more than any program can do",
    "communication": "share of a step during which a collective operation runs, waiting for others included, overlapped or not",
    "data": "share of a step spent waiting for its batch",
    "memory": "peak of one worker: allocated on the GPU, or resident of the process on a CPU",
    "cost": "price of a worker for an hour × workers / tokens an hour, for a million tokens",
    "predicted": "by the models of `consortium plan`, of the point's one pass a step; speed of known GPUs only; memory as it is measured: "
    "on a GPU without the context, on a CPU with 1,000 MiB of the process before it has a model",
    "projected": "from the most workers measured, by the models of `consortium plan`: the times of computing and of communication grow "
    "as theirs do, and so does memory. Assumed are "
    + "; ".join(COMMUNICATION)
    + ". Of a device whose links are not known the link is what the measured communication makes it, between machines as within one",
}


ENDED_BY_SYSTEM = "a worker was ended by the system, as happens when a machine runs out of memory"
_SIGNS_OF_DEATH = ("The actor died", "OutOfMemoryError", "SYSTEM_ERROR")
"""In what Ray says of a worker that was killed"""


@dataclass(frozen=True)
class Point:
    """What is measured. `stage` and `length` are "auto" where the job leaves them to the worker."""

    method: Method
    stage: int | str
    length: int | str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.method}-zero{self.stage}-length{self.length}-workers{self.workers}"

    @property
    def series(self) -> tuple[str, str, str]:
        """Points that differ in nothing but their workers."""
        return self.method, str(self.stage), str(self.length)


@dataclass(frozen=True)
class Record:
    """What became of a point: measured, failed for a reason, or projected, with a reason where it cannot be.

    Speeds are tokens a second, times seconds, shares of a step.
    """

    point: Point
    status: Literal["measured", "failed", "projected"]
    reason: str | None = None
    tokens_per_second: float | None = None
    tokens_per_second_per_worker: float | None = None
    efficiency: float | None = None
    step_seconds: dict[str, float] | None = None
    """p5, median and p95"""
    tokens_per_step: int | None = None
    flops_per_token: float | None = None
    mfu: float | None = None
    limit_tokens_per_second: float | None = None
    """At the peak of all its GPUs"""
    communication_share: float | None = None
    data_share: float | None = None
    peak_memory_bytes: int | None = None
    cost_per_million_tokens: float | None = None
    predicted_tokens_per_second: float | None = None
    """By the model of time of `consortium plan`, as the next one is by that of memory"""
    predicted_memory_bytes: int | None = None
    found: dict[str, Any] | None = None
    """All that the workers reported; of a projection, what it has in common with what is measured"""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self.point), **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "point"}}


def load_bench_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """A job file, which may lack the `data` and `task` that are not needed here. Raises ConfigError."""
    values = read_values(path, overrides)
    missing = [f"{name}={value}" for name, value in {"data": "generated", "task": "sft"}.items() if name not in values]
    return load_job(path, [*overrides, *missing])


def method_of(job: JobSpec) -> Method:
    if job.method.type == "full":
        return "full"
    return "lora" if job.model.quantization == "none" else job.model.quantization


def make_grid(
    job: JobSpec, workers: Sequence[int], methods: Sequence[Method] = (), stages: Sequence[int] = (), lengths: Sequence[int] = ()
) -> list[Point]:
    """The product of the lists, workers fastest; an empty one takes the job's value."""
    tried_stages: Sequence[int | str] = stages or [job.zero.stage]
    tried_lengths: Sequence[int | str] = lengths or [job.data.max_length]
    tried = product(methods or [method_of(job)], tried_stages, tried_lengths, sorted(set(workers)))
    return [Point(*values) for values in tried]


def job_at(job: JobSpec, point: Point, output: Path) -> JobSpec:
    """The job at a point, its run directory in `output`. Raises ConfigError where the point and the rest of the job exclude each other."""
    values = job.model_dump()
    if point.method != method_of(job):
        adapter = job.method if job.method.type == "lora" else LoraMethod()
        values["method"] = {"type": "full"} if point.method == "full" else adapter.model_dump()
        values["model"]["quantization"] = point.method if point.method in ("nf4", "int8") else "none"
    values["zero"]["stage"] = point.stage
    values["data"]["max_length"] = point.length
    values["cluster"] |= {"workers": point.workers, "max_failures": 0}
    values |= {"output": output, "name": point.name}
    return validate(JobSpec, values, source=point.name)


def run_points(
    job: JobSpec,
    output: Path,
    *,
    workers: Sequence[int],
    methods: Sequence[Method] = (),
    stages: Sequence[int] = (),
    lengths: Sequence[int] = (),
    steps: int,
) -> Generator[Record]:
    """Measure point after point on one cluster. No `workers`: as many as the job takes there.

    A point that fails is a record with its reason. Raises ConfigError, ModelError, ClusterUnreachable, and ClusterTooSmall where no point
    fits the cluster, all before anything is measured.
    """
    if job.cluster.address is None:
        check_paths(job.model_copy(update={"data": job.data.model_copy(update={"train": [], "validation": []})}))
    for point in make_grid(job, workers or [1], methods, stages, lengths):
        job_at(job, point, output)
    with connected(job.cluster.address, cpus=job.cluster.cpus_per_worker):
        resources = ray.cluster_resources()
        if not workers:
            workers = [place_workers(job, resources)[0].cluster.most]
        points = make_grid(job, workers, methods, stages, lengths)
        place_workers(job_at(job, points[0], output), resources)  # of each series the smallest comes first
        check_shared(output)
        for point in points:
            yield _run_point(job_at(job, point, output), point, resources, steps)


def _run_point(job: JobSpec, point: Point, resources: Mapping[str, float], steps: int) -> Record:
    try:
        job, _ = place_workers(job, resources)
    except ClusterTooSmall as small:
        return Record(point, "failed", small.message)
    folder = write_job(job)
    error = run_workers(job, str(folder), _work, {"folder": str(folder), "steps": steps})
    shutil.rmtree(folder / "ray", ignore_errors=True)
    if (folder / "result.json").exists():
        return make_record(point, json.loads((folder / "result.json").read_text()))
    told = (folder / "reason.txt").read_text() if (folder / "reason.txt").exists() else _in_one_line(error)
    return Record(point, "failed", told)


def _work(settings: dict[str, Any]) -> None:
    """What Ray runs in each worker."""
    from trainers.bench import measure

    measure(Path(settings["folder"]), steps=settings["steps"])


def _in_one_line(error: BaseException | None) -> str:
    """Of workers that could not say themselves why they ended."""
    text = str(error)
    if any(sign in text for sign in _SIGNS_OF_DEATH):
        return ENDED_BY_SYSTEM
    lines = text.strip().splitlines()
    return lines[-1] if lines else "the workers ended without a result"


def make_record(point: Point, found: dict[str, Any]) -> Record:
    """A point's record from what its workers reported (`trainers.bench.measure`); efficiency and cost need more than that."""
    times = found["step_seconds"]
    speed = found["tokens_per_step"] * len(times) / sum(times)
    each = speed / point.workers
    return Record(
        point,
        "measured",
        tokens_per_second=speed,
        tokens_per_second_per_worker=each,
        step_seconds={name: percentile(times, share) for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95))},
        tokens_per_step=found["tokens_per_step"],
        flops_per_token=found["flops_per_token"],
        mfu=each * found["flops_per_token"] / found["peak_flops"] if found["peak_flops"] else None,
        limit_tokens_per_second=point.workers * found["peak_flops"] / found["flops_per_token"] if found["peak_flops"] else None,
        communication_share=found["communication_share"],
        data_share=found["data_share"],
        peak_memory_bytes=found["peak_memory_bytes"],
        found=found,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest of the ordered values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarise(job: JobSpec, records: Sequence[Record], *, steps: int, price: float | None, finished: bool) -> dict[str, Any]:
    """All of a benchmark as plain JSON-able values."""
    measured = [record for record in records if record.status == "measured"]
    found: dict[str, Any] = next((record.found for record in measured if record.found), {})
    return {
        "schema": SCHEMA,
        "name": job.name,
        "model": job.model.name,
        "task": job.task,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": finished,
        "steps": steps,
        "price": price,
        "parameters": found.get("parameters"),
        "device": found.get("device"),
        "versions": found.get("versions"),
        "revision": _revision(),
        "formulas": FORMULAS
        | {f"FLOPs, {r.point.method}": r.found["flops_formula"] for r in records if r.status == "measured" and r.found},
        "points": [record.as_dict() for record in records],
    }


def _revision() -> str | None:
    """Of this program's checkout, if it runs from one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return git.stdout.strip() or None


def write_results(results: Mapping[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A benchmark's JSON. Raises ConfigError."""
    path = path / RESULTS if path.is_dir() else path
    hint = f"the {RESULTS} of `consortium bench`, or its directory"
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON", hint) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        got = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"{path}: expected a benchmark of schema {SCHEMA}, got {got}", hint)
    try:
        _Read.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}", hint) from error
    return found


class _Found(BaseModel):
    """What else is read of a measured or projected point."""

    zero_stage: int
    length: int


class _ReadPoint(BaseModel):
    """What is read of a point, by `compare` and for a plan's page."""

    method: Method
    stage: int | str
    length: int | str
    workers: int
    status: Literal["measured", "failed", "projected"]
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    found: _Found | None = None

    @model_validator(mode="after")
    def _check_found(self) -> "_ReadPoint":
        if self.status == "measured" and (self.found is None or self.tokens_per_second is None):
            raise ValueError("measured, without what was found")
        return self


class _Read(BaseModel):
    """What is read of a benchmark."""

    model: str
    device: str | None
    versions: dict[str, str] | None
    points: list[_ReadPoint]


@dataclass(frozen=True)
class Difference:
    """A point in two benchmarks. A ratio is second over first, None where one of them has no number."""

    point: Point
    speeds: tuple[float | None, float | None]
    memories: tuple[int | None, int | None]
    only_in: Literal["first", "second"] | None

    @property
    def speed_ratio(self) -> float | None:
        return _ratio(*self.speeds)

    @property
    def memory_ratio(self) -> float | None:
        return _ratio(*self.memories)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Point by point, in the order of the first and then of the second; projections are left out."""
    sides = [{_point(entry): entry for entry in side["points"] if entry["status"] != "projected"} for side in (first, second)]
    return [
        Difference(
            point,
            speeds=_pair(sides, point, "tokens_per_second"),
            memories=_pair(sides, point, "peak_memory_bytes"),
            only_in=None if point in sides[0] and point in sides[1] else "first" if point in sides[0] else "second",
        )
        for point in dict.fromkeys([*sides[0], *sides[1]])
    ]


def _point(entry: Mapping[str, Any]) -> Point:
    return Point(**{field.name: entry[field.name] for field in fields(Point)})


def _pair(sides: Sequence[Mapping[Point, Mapping[str, Any]]], point: Point, name: str) -> tuple[Any, Any]:
    one, other = (side.get(point, {}).get(name) for side in sides)
    return one, other


def _ratio(first: float | None, second: float | None) -> float | None:
    return second / first if first and second else None
