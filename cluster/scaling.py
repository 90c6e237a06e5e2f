"""What is made of the points that a benchmark measured: efficiencies, costs, and numbers of workers nobody measured.

A projection starts from a measured point and changes it as the models of `consortium plan` say: cluster.speed and trainers.memory.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.bench import Record, job_at
from cluster.job import JobSpec
from cluster.speed import Gpu, Setup, Work, computing_of, exposed, gpu_of, step_communication, token_seconds
from trainers.defaults import Shape
from trainers.memory import Footprint, memory_of_job


def complete(records: Sequence[Record], job: JobSpec, *, projected: Sequence[int] = (), price: float | None = None) -> list[Record]:
    """The records of a job with efficiencies, projections to these numbers of workers, and costs at a price of a worker for an hour."""
    done = []
    for series in dict.fromkeys(record.point.series for record in records):
        mine = [record for record in records if record.point.series == series]
        mine = [_with_prediction(record, job) if record.status == "measured" else record for record in mine]
        measured = [record for record in mine if record.status == "measured"]
        mine += [project(job, measured[-1], workers) for workers in projected if measured]
        done += [_with_efficiency(record, measured) for record in mine]
    return [_with_cost(record, price) for record in done]


_PROCESS_BYTES = 1000 * 2**20
"""Of a worker on a CPU before it has a model: Python, torch, DeepSpeed, transformers, Ray. Taken from experience, not counted."""


def _with_prediction(record: Record, job: JobSpec) -> Record:
    """Where the model's memory can be counted. Predicted without a look at what was measured but the tokens of its one pass a step.

    Memory as it is measured: of the GPU's allocator, which does not see the context; of the whole process on a CPU.
    """
    assert record.found is not None and record.tokens_per_step is not None
    if record.found["footprint"] is None:
        return record
    setup, tokens = _setup(job, record), record.tokens_per_step // record.point.workers
    train = setup.config.train.model_copy(update={"micro_batch_tokens": tokens})
    setup = replace(setup, config=setup.config.model_copy(update={"train": train}))
    speed = None if setup.gpu.flops is None else setup.workers / token_seconds(setup, tokens=tokens, passes=1).total
    memory = memory_of_job(setup.config, setup.footprint, workers=setup.workers)
    measurable = memory.total - memory.context if setup.footprint.device == "cuda" else memory.total + _PROCESS_BYTES
    return replace(record, predicted_tokens_per_second=speed, predicted_memory_bytes=round(measurable))


def _with_efficiency(record: Record, measured: Sequence[Record]) -> Record:
    each = record.tokens_per_second_per_worker
    if each is None:
        return record
    return replace(record, efficiency=each / (measured[0].tokens_per_second_per_worker or each))


def _with_cost(record: Record, price: float | None) -> Record:
    if price is None or record.tokens_per_second is None:
        return record
    return replace(record, cost_per_million_tokens=1e6 * price * record.point.workers / (3600 * record.tokens_per_second))


def project(job: JobSpec, last: Record, workers: int) -> Record:
    """What more workers may do than the measured point has, by FORMULAS["projected"]."""
    point, found = replace(last.point, workers=workers), last.found
    if workers <= last.point.workers:
        return Record(point, "projected", f"nothing to project: as many as {last.point.workers} are measured")
    if last.point.workers < 2:
        return Record(point, "projected", "nothing to project from: communication shows with two workers or more")
    assert last.tokens_per_step and last.tokens_per_second and last.communication_share is not None and found
    if found["footprint"] is None:
        return Record(point, "projected", "nothing to project from: what this model sends cannot be counted without running it")
    step = last.tokens_per_step / last.tokens_per_second
    here = _with_link(_setup(job, last), last.communication_share * step)
    there = replace(here, workers=workers)
    computing = computing_of(step, last.communication_share * step, here.hidden) * _computing(there) / _computing(here)
    communication = last.communication_share * step * _communication(there) / _communication(here)
    seconds = computing + exposed(communication, computing, here.hidden)
    tokens = last.tokens_per_step // last.point.workers * workers
    each = tokens / seconds / workers
    return Record(
        point,
        "projected",
        tokens_per_second=tokens / seconds,
        tokens_per_second_per_worker=each,
        tokens_per_step=tokens,
        flops_per_token=last.flops_per_token,
        mfu=last.mfu * each / last.tokens_per_second_per_worker if last.mfu and last.tokens_per_second_per_worker else None,
        limit_tokens_per_second=last.limit_tokens_per_second and last.limit_tokens_per_second * workers / last.point.workers,
        communication_share=min(1.0, communication / seconds),
        peak_memory_bytes=None if last.peak_memory_bytes is None else round(last.peak_memory_bytes + _memory(there) - _memory(here)),
        found={name: found[name] for name in ("zero_stage", "length")},
    )


def _setup(job: JobSpec, record: Record) -> Setup:
    """The job as it was measured, on the card it was measured on, if that is a known one; else on one that never waits."""
    found: dict[str, Any] = record.found or {}
    config = job_at(job, replace(record.point, stage=found["zero_stage"], length=found["length"]), Path())
    decided = {name: found["settings"][name] for name in ("micro_batch_tokens", "activation_checkpointing")}
    config = config.model_copy(update={"train": config.train.model_copy(update=decided)})
    work = Work(None, found["length"], found["length"], "generated rows")
    gpu = gpu_of(found["device"]) or Gpu("unknown", 0, None, 0, math.inf, math.inf)
    return Setup(config, gpu, record.point.workers, Shape(**found["shape"]), Footprint(**found["footprint"]), work)


def _with_link(setup: Setup, communication: float) -> Setup:
    """The same; an unknown card with the link that explains so many seconds of communication."""
    if setup.gpu.link < math.inf:
        return setup
    hops = _communication(setup)
    over_one = _communication(replace(setup, gpu=replace(setup.gpu, link=1, network=1))) - hops
    link = over_one / (communication - hops) if communication > hops else math.inf
    return replace(setup, gpu=replace(setup.gpu, link=link, network=link))


def _communication(setup: Setup) -> float:
    assert setup.config.zero.stage != "auto"
    return step_communication(setup.footprint, setup.gpu, setup.workers, setup.config.zero.stage, passes=1)


def _computing(setup: Setup) -> float:
    """Seconds of a token, in proportion: 1 for a card whose speed is not known, where more workers change nothing."""
    tokens = setup.config.train.micro_batch_tokens
    assert isinstance(tokens, int)
    if setup.gpu.flops is None:
        return 1.0
    seconds = token_seconds(setup, tokens=tokens, passes=1)
    return seconds.compute + seconds.bandwidth


def _memory(setup: Setup) -> float:
    return memory_of_job(setup.config, setup.footprint, workers=setup.workers).total
