"""Memory, time and cost of a job before it is launched: by number of GPUs and ZeRO stage. Needs no GPU, no weights and no Ray.

Memory is trainers.memory, the model that `auto` decides by; time is cluster.speed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cluster.job import JobSpec
from cluster.speed import Gpu, Seconds, Setup, Work, flops_of_token, token_seconds
from trainers.config import TrainConfig
from trainers.defaults import LESS_FOR_UNITS, Hardware, Measure, Shape, refusal, resolve
from trainers.errors import ModelError
from trainers.memory import Footprint, Memory, memory_of_job, room

_LESS_MEMORY = "more GPUs with ZeRO-3, model.quantization: nf4, a smaller data.max_length, or zero.offload_optimizer: cpu"


@dataclass(frozen=True)
class Row:
    """One way to run the job. Hours and cost are None where they cannot be known, speed and its limit where the device's peak is not."""

    gpus: int
    stage: Literal[1, 2, 3]
    chosen: bool
    """The stage that `zero.stage: auto` takes on so many"""
    micro_batch_tokens: int
    checkpointing: bool
    units_at_once: int | None
    """Of a private job"""
    memory: Memory
    fits: bool
    refused: str
    """Why a private job would not start on them; empty where it would"""
    seconds: Seconds | None
    tokens_per_second: float | None
    limit_tokens_per_second: float | None
    """At the peak of all its cards, with nothing to do but the model's products"""
    hours: float | None
    cost: float | None
    projected: bool


@dataclass(frozen=True)
class Offer:
    """What there is to run on."""

    gpu: Gpu
    counts: Sequence[int]
    projected: Sequence[int] = ()
    """Numbers of cards to look at, but not to choose"""
    price: float | None = None
    """Of a GPU hour"""


@dataclass(frozen=True)
class Plan:
    gpu: Gpu
    price: float | None
    """Of a GPU hour"""
    work: Work
    max_length: int
    rows: list[Row]
    cheapest: Row | None
    why: str


def make_plan(job: JobSpec, offer: Offer, *, shape: Shape, measure: Measure, work: Callable[[TrainConfig], Work]) -> Plan:
    """Every number of GPUs with every ZeRO stage that the job leaves open. `work` is told the job with its length decided.

    Raises ConfigError, and ModelError where the model's memory cannot be counted.
    """
    gpu = offer.gpu
    known = _remembering(measure)
    resolved, _ = resolve(job, _hardware(gpu, 1), shape, known)
    found = work(resolved)
    rows = []
    for count in (*offer.counts, *offer.projected):
        chosen = resolve(job, _hardware(gpu, count), shape, known)[0].zero.stage
        for stage in _stages(job, count):
            fixed = job.model_copy(update={"zero": job.zero.model_copy(update={"stage": stage})})
            config, _ = resolve(fixed, _hardware(gpu, count), shape, known)
            row = _row(Setup(config, gpu, count, shape, known(config), found), offer.price)
            rows.append(replace(row, chosen=stage == chosen, projected=count in offer.projected))
    cheapest, why = _cheapest([row for row in rows if not row.projected])
    assert isinstance(resolved.data.max_length, int)
    return Plan(gpu, offer.price, found, resolved.data.max_length, rows, cheapest, why)


def _stages(job: JobSpec, count: int) -> Sequence[Literal[1, 2, 3]]:
    """Those worth looking at: one worker has nothing to shard, quantised weights stay whole."""
    if job.zero.stage != "auto":
        return (job.zero.stage,)
    if job.zero.offload_params == "cpu":
        return (3,)
    if count == 1:
        return (1,)
    return (1, 2) if job.model.quantization != "none" else (1, 2, 3)


def _hardware(gpu: Gpu, workers: int) -> Hardware:
    return Hardware("cpu" if gpu.flops is None else "cuda", workers, int(gpu.memory / (1 if gpu.flops else workers)))


def _remembering(measure: Measure) -> Callable[[TrainConfig], Footprint]:
    """`measure`, once for each way in which the blocks are built: ZeRO-3 has its own. Raises ModelError where it finds nothing."""
    known: dict[bool, Footprint | None] = {}

    def remembered(config: TrainConfig) -> Footprint:
        key = config.zero.stage == 3
        if key not in known:
            known[key] = measure(config)
        found = known[key]
        if found is None:
            raise ModelError(f"{config.model.name}: what this model takes cannot be counted without running it",
                             "its shapes depend on values, or its kernels are its own: try it with train.max_steps: 2")  # fmt: skip
        return found

    return remembered


def _row(setup: Setup, price: float | None) -> Row:
    config, gpu, count, work = setup.config, setup.gpu, setup.workers, setup.work
    tokens, checkpointing, stage = config.train.micro_batch_tokens, config.train.activation_checkpointing, config.zero.stage
    assert isinstance(tokens, int) and isinstance(checkpointing, bool) and stage != "auto"
    memory, available = memory_of_job(config, setup.footprint, workers=count), _hardware(gpu, count).memory_bytes
    assert available is not None
    seconds = speed = hours = None
    if gpu.flops is not None:
        a_step = config.train.global_batch_size * work.mean_length
        passes = math.ceil(a_step / (count * tokens))
        a_pass = max(a_step / (count * passes), min(tokens, work.mean_length))  # a worker without an example computes one and discards it
        seconds = token_seconds(setup, tokens=a_pass, passes=passes)
        speed = a_step / (seconds.total * passes * a_pass)
        hours = None if work.tokens is None else work.tokens / speed / 3600
    return Row(
        gpus=count,
        stage=stage,
        chosen=False,
        micro_batch_tokens=tokens,
        checkpointing=checkpointing,
        units_at_once=None if config.train.units_at_once == "auto" else config.train.units_at_once,
        memory=memory,
        fits=memory.total <= room(available),
        refused=refusal(config, memory, available),
        seconds=seconds,
        tokens_per_second=speed,
        limit_tokens_per_second=None if gpu.flops is None else count * gpu.flops / flops_of_token(setup),
        hours=hours,
        cost=None if hours is None or price is None else hours * count * price,
        projected=False,
    )


def _cheapest(rows: Sequence[Row]) -> tuple[Row | None, str]:
    """By GPU hours, which is by cost; of the same within a hundredth the most GPUs, with the stage `auto` takes. And why, in words."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        refused = min(rows, key=lambda row: row.memory.total).refused
        return None, f"{refused}: {LESS_FOR_UNITS}" if refused else f"nothing fits: {_LESS_MEMORY}"
    if any(row.tokens_per_second is None for row in fitting):
        fewest = min(fitting, key=lambda row: (row.gpus, not row.chosen))
        return fewest, "the fewest workers that fit; the speed of this device is not known"
    least = min(_gpu_seconds(row) for row in fitting)
    near = [row for row in fitting if _gpu_seconds(row) <= 1.01 * least]
    fastest = max(near, key=lambda row: row.tokens_per_second or 0)
    best = next((row for row in near if row.gpus == fastest.gpus and row.chosen), fastest)
    tight = [row for row in rows if not row.fits]
    reasons = ["the most GPUs within 1 % of the fewest GPU hours"]
    if best.seconds is not None and best.gpus > 1:
        reasons.append(f"communication takes {best.seconds.communication / best.seconds.total:.1%} of a step")
    if best.checkpointing:
        reasons.append("activations are computed again")
    if tight:
        reasons.append(f"{len(tight)} of {len(rows)} configurations do not fit")
    return best, "; ".join(reasons)


def _gpu_seconds(row: Row) -> float:
    assert row.tokens_per_second is not None
    return row.gpus / row.tokens_per_second
