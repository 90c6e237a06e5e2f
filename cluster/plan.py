"""Memory, time and cost of a job before it is launched: by number of GPUs and ZeRO stage. Needs no GPU, no weights and no Ray.

Memory is trainers.memory, the model that `auto` decides by. Time is the sum of what a worker does one after the other: products, attention,
reading and writing between them, communication that is not hidden behind them. The efficiencies are named below, the same for every
card and model; none was fitted to a measurement of ours.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from cluster.job import JobSpec
from trainers.config import TrainConfig
from trainers.defaults import Hardware, Measure, Shape, resolve
from trainers.errors import ConfigError, ModelError
from trainers.flops import peak_of
from trainers.memory import REDUCE_BUCKET, Footprint, Memory, memory_of, room

GIB, GB = 2**30, 1e9

GEMM = 0.70
"""Share of the dense peak that large bf16 products reach: 600-790 of an H100's 989 TFLOP/s in common benchmarks."""
FLASH, MASKED = 0.45, 0.25
"""The same of attention: the kernel that skips what is masked, and the one that reads a dense mask and computes all."""
SKINNY = 0.10
"""The same of an adapter's products, a few numbers wide, which wait for memory."""
MEMORY = 0.80
"""Share of the memory's bandwidth that reading and writing in long stretches reaches."""
LINK = 0.75
"""Share of a link's bandwidth that collectives reach."""
HIDDEN = 0.80
"""Share of ZeRO-3's gathering that can go on beside the computation."""
PASSES_OVER_KEPT = 4
"""Every number kept for the backward pass is written and read, and so is its gradient."""

ASSUMPTIONS = (
    f"products at {GEMM:.0%} of the dense bf16 peak, attention at {FLASH:.0%} (flash) or {MASKED:.0%} (dense mask), "
    f"adapters' at {SKINNY:.0%}, memory at {MEMORY:.0%} of its bandwidth"
)
COMMUNICATION = (
    f"rings of all workers, a collective of V bytes on n workers takes V (n-1)/n over {LINK:.0%} of the slowest link (all-reduce: twice), "
    "and 3.4 us for each hop within a node, 14 us between nodes (NCCL's own tuning tables)",
    "ZeRO-1: one all-reduce of the gradients a step and one all-gather of what was updated; ZeRO-2: an all-reduce every pass, the same "
    f"all-gather; ZeRO-3: all weights gathered twice a pass, gradients reduced every pass, {HIDDEN:.0%} of it behind the computation",
    "every node alike, nothing else on the network, no worker ever waits for another or fails",
)
_HOP, _NETWORK_HOP = 3.4e-6, 14e-6


@dataclass(frozen=True)
class Gpu:
    """A card as its vendor's data sheet has it; memory as torch sees it. Bytes, bytes a second and FLOP/s of one card, one direction."""

    name: str
    memory: float
    flops: float | None
    bandwidth: float
    link: float
    """To the other cards of its node"""
    network: float
    """Its share of the node's network: one adapter a card in data-centre nodes"""
    per_node: int = 8


def _gpu(name: str, device: str, gib: float, bandwidth: float, link: float, network: float, per_node: int = 8) -> Gpu:
    return Gpu(name, gib * GIB, peak_of(device), bandwidth * GB, link * GB, network * GB, per_node)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h200", "H200", 139, 4800, 450, 50),  # NVIDIA H200 data sheet: HBM3e 4.8 TB/s, NVLink 900 GB/s both ways; 400 Gbit/s a card
        _gpu("h100", "H100", 79, 3350, 450, 50),  # NVIDIA H100 SXM data sheet: HBM3 3.35 TB/s, NVLink 900 GB/s both ways
        _gpu("a100-80", "A100", 79, 2039, 300, 25),  # NVIDIA A100 80GB SXM data sheet: 2.039 TB/s, NVLink 600 GB/s; 200 Gbit/s a card
        _gpu("l40s", "L40S", 44, 864, 32, 12.5),  # NVIDIA L40S data sheet: GDDR6 864 GB/s, PCIe 4.0 x16 64 GB/s both ways; 100 Gbit/s
        _gpu("rtx4090", "4090", 23.5, 1008, 32, 3, 4),  # NVIDIA RTX 4090: GDDR6X 1008 GB/s, PCIe 4.0 x16; 25 Gbit/s assumed
        Gpu("cpu", psutil.virtual_memory().total, None, 0, 0, 0),  # this machine's, shared by all workers
    )
}


@dataclass(frozen=True)
class Work:
    """What a job has to go through."""

    tokens: float | None
    """Of the whole job; None where nobody knows"""
    mean_length: float
    """Tokens of an example"""
    seen_back: float
    """Mean of the squared length over the mean length, see flops.flops_per_token"""
    source: str
    """Where the numbers come from, in words"""


@dataclass(frozen=True)
class Seconds:
    """Of a token on one worker, by what takes them."""

    compute: float
    bandwidth: float
    communication: float

    @property
    def total(self) -> float:
        return self.compute + self.bandwidth + self.communication

    @property
    def bound(self) -> str:
        shares = {"compute": self.compute, "memory bandwidth": self.bandwidth, "communication": self.communication}
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True)
class Row:
    """One way to run the job. Hours and cost are None where they cannot be known, speed where the device's peak is not."""

    gpus: int
    stage: Literal[1, 2, 3]
    chosen: bool
    """The stage that `zero.stage: auto` takes on so many"""
    micro_batch_tokens: int
    checkpointing: bool
    memory: Memory
    fits: bool
    seconds: Seconds | None
    tokens_per_second: float | None
    hours: float | None
    cost: float | None
    projected: bool


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


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError with the nearest known name."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = [known for known in GPUS if known.startswith(name.lower())] or difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.4)
    raise ConfigError(f"--gpu {name}: not a GPU that is known here" + (f"; did you mean {near[0]}?" if near else ""),
                      f"one of {', '.join(GPUS)}")  # fmt: skip


def make_plan(
    job: JobSpec,
    gpu: Gpu,
    counts: Sequence[int],
    projected: Sequence[int],
    *,
    shape: Shape,
    measure: Measure,
    work: Callable[[TrainConfig], Work],
    price: float | None,
) -> Plan:
    """Every number of GPUs with every ZeRO stage that the job leaves open. `work` is told the job with its length decided.

    Raises ConfigError, and ModelError where the model's memory cannot be counted.
    """
    known = _remembering(measure)
    resolved, _ = resolve(job, _hardware(gpu, 1), shape, known)
    found = work(resolved)
    rows = []
    for count in (*counts, *projected):
        chosen = resolve(job, _hardware(gpu, count), shape, known)[0].zero.stage
        for stage in _stages(job, count):
            fixed = job.model_copy(update={"zero": job.zero.model_copy(update={"stage": stage})})
            config, _ = resolve(fixed, _hardware(gpu, count), shape, known)
            row = _row(config, gpu, count, shape, known, found, price)
            rows.append(replace(row, chosen=stage == chosen, projected=count in projected))
    cheapest, why = _cheapest([row for row in rows if not row.projected], found)
    assert isinstance(resolved.data.max_length, int)
    return Plan(gpu, price, found, resolved.data.max_length, rows, cheapest, why)


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
    return Hardware("cpu", workers) if gpu.flops is None else Hardware("cuda", workers, int(gpu.memory))


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


def _row(
    config: TrainConfig, gpu: Gpu, count: int, shape: Shape, measure: Callable[[TrainConfig], Footprint], work: Work, price: float | None
) -> Row:
    """A resolved job on so many cards."""
    tokens, checkpointing, stage = config.train.micro_batch_tokens, config.train.activation_checkpointing, config.zero.stage
    assert isinstance(tokens, int) and isinstance(checkpointing, bool) and stage != "auto"
    footprint = measure(config)
    memory = memory_of(footprint, config.zero, workers=count, tokens=tokens, checkpointing=checkpointing)
    seconds = speed = hours = None
    if gpu.flops is not None:
        a_step = config.train.global_batch_size * work.mean_length
        passes = math.ceil(a_step / (count * tokens))
        a_pass = max(a_step / (count * passes), min(tokens, work.mean_length))  # a worker without an example computes one and discards it
        seconds = token_seconds(config, gpu, count, shape, footprint, work, tokens=a_pass, passes=passes)
        speed = a_step / (seconds.total * passes * a_pass)
        hours = None if work.tokens is None else work.tokens / speed / 3600
    return Row(
        gpus=count,
        stage=stage,
        chosen=False,
        micro_batch_tokens=tokens,
        checkpointing=checkpointing,
        memory=memory,
        fits=memory.total <= room(gpu.memory / (1 if gpu.flops else count)),
        seconds=seconds,
        tokens_per_second=speed,
        hours=hours,
        cost=None if hours is None or price is None else hours * count * price,
        projected=False,
    )


def token_seconds(
    config: TrainConfig, gpu: Gpu, workers: int, shape: Shape, footprint: Footprint, work: Work, *, tokens: float, passes: int
) -> Seconds:
    """Of one token on one worker, whose step is `passes` passes of `tokens` tokens."""
    assert gpu.flops is not None
    f, full, again = footprint, config.method.type == "full", config.train.activation_checkpointing is True
    products = (6 if full else 4) * shape.linear + (2 * (shape.linear - f.head) if again else 0)
    products += 2 * f.head if tokens > f.chunk else 0  # logits are made again in the backward pass
    passes_of_attention = 3.5 + again  # the backward pass makes the scores again
    if f.mask:
        seen, reached = 2 * min(f.row, 2 * work.seen_back), MASKED
    else:
        seen, reached = work.seen_back, FLASH
    attention = passes_of_attention * 2 * seen * shape.attention_width * shape.layers
    compute = products / (GEMM * gpu.flops) + attention / (reached * gpu.flops) + 6 * f.adapters / (SKINNY * gpu.flops)
    kept = (f.kept_first + (f.layers - 1) * f.kept_block) / f.row
    moved = PASSES_OVER_KEPT * kept + 16 * f.vocabulary  # logits are written and read in two precisions, forth and back
    moved += 2 * 2.5 * f.quantized / tokens if f.quantization != "none" else 0  # read, written and read again as numbers, forth and back
    moved += 30 * f.trained / workers / (passes * tokens)  # gradients, masters, moments, weights: read and written
    communication = step_communication(f, gpu, workers, int(config.zero.stage), passes=passes)
    exposed = communication / (passes * tokens)
    bandwidth = moved / (MEMORY * gpu.bandwidth)
    if config.zero.stage == 3:
        exposed = max((1 - HIDDEN) * exposed, exposed - HIDDEN * (compute + bandwidth))
    return Seconds(compute, bandwidth, exposed)


def step_communication(footprint: Footprint, gpu: Gpu, workers: int, stage: int, *, passes: int) -> float:
    """Seconds that a step's collectives take, hidden or not."""
    if workers == 1:
        return 0.0
    f = footprint
    buckets = math.ceil(f.trained / REDUCE_BUCKET)

    def ring(payload: float, calls: int) -> float:
        nodes = math.ceil(workers / gpu.per_node)
        slowest = gpu.link if nodes == 1 else min(gpu.link, gpu.network)
        hops = (workers - nodes) * _HOP + (nodes * _NETWORK_HOP if nodes > 1 else _HOP)
        return payload * (workers - 1) / workers / (LINK * slowest) + calls * hops

    gradients = f.width * f.trained
    if stage == 3:
        weights = f.width * (f.parameters + f.adapters - f.small)
        return passes * (2 * ring(weights, f.layers) + ring(gradients, buckets))
    return (passes if stage == 2 else 1) * 2 * ring(gradients, buckets) + ring(gradients, 1)


def _cheapest(rows: Sequence[Row], work: Work) -> tuple[Row | None, str]:
    """By GPU hours, which is by cost; of the same within a hundredth the fastest. And why, in words."""
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return (
            None,
            "nothing fits: more GPUs with ZeRO-3, model.quantization: nf4, a smaller data.max_length, or zero.offload_optimizer: cpu",
        )
    if any(row.tokens_per_second is None for row in fitting):
        return min(fitting, key=lambda row: row.gpus), "the fewest workers that fit; the speed of this device is not known"
    least = min(_gpu_seconds(row) for row in fitting)
    best = max((row for row in fitting if _gpu_seconds(row) <= 1.01 * least), key=lambda row: row.tokens_per_second or 0)
    tight = [row for row in rows if not row.fits]
    reasons = ["fewest GPU hours for a token of all that fit"]
    if best.seconds is not None and best.gpus > 1:
        reasons.append(f"communication takes {best.seconds.communication / best.seconds.total:.1%} of a step")
    if best.checkpointing:
        reasons.append("activations are computed again, as they do not fit otherwise")
    if tight:
        reasons.append(f"{len(tight)} of {len(rows)} configurations do not fit")
    return best, "; ".join(reasons)


def _gpu_seconds(row: Row) -> float:
    assert row.tokens_per_second is not None
    return row.gpus / row.tokens_per_second
