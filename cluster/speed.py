"""How fast a job runs on so many cards: the one model of time, for `consortium plan` and for what `consortium bench` projects.

Time is the sum of what a worker does one after the other: products, attention, reading and writing between them, communication that is not
hidden behind them. The efficiencies are named below, the same for every card and model; none was fitted to a measurement of ours.
"""

import difflib
import math
from dataclasses import dataclass

import psutil

from trainers.config import TrainConfig
from trainers.defaults import Shape
from trainers.errors import ConfigError
from trainers.flops import flops_per_token, peak_of
from trainers.memory import REDUCE_BUCKET, Footprint

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
    "all-gather; ZeRO-3: all weights gathered twice a pass, gradients reduced every pass, "
    f"on GPUs {HIDDEN:.0%} of it behind the computation",
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
    device: str = ""
    """Part of the name that its driver gives it"""


def _gpu(name: str, device: str, gib: float, bandwidth: float, link: float, network: float, per_node: int = 8) -> Gpu:
    return Gpu(name, gib * GIB, peak_of(device), bandwidth * GB, link * GB, network * GB, per_node, device)


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
class Setup:
    """A resolved job on so many cards, with what was counted on its model."""

    config: TrainConfig
    gpu: Gpu
    workers: int
    shape: Shape
    footprint: Footprint
    work: Work

    @property
    def hidden(self) -> float:
        """Share of the communication that can go on beside the computation; gloo's on a CPU does not."""
        return HIDDEN if self.config.zero.stage == 3 and self.footprint.device == "cuda" else 0.0


def find_gpu(name: str) -> Gpu:
    """Raises ConfigError with the nearest known name."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = [known for known in GPUS if known.startswith(name.lower())] or difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.4)
    raise ConfigError(f"--gpu {name}: not a GPU that is known here" + (f"; did you mean {near[0]}?" if near else ""),
                      f"one of {', '.join(GPUS)}")  # fmt: skip


def gpu_of(device: str) -> Gpu | None:
    """The card that the driver calls so; None for one that is not known here, and for CPUs."""
    return next((gpu for gpu in GPUS.values() if gpu.device and gpu.device in device), None)


def flops_of_token(setup: Setup) -> float:
    """Of the model, forward and backward: what MFU is a share of, see trainers.flops."""
    shape, full = setup.shape, setup.config.method.type == "full"
    return flops_per_token(
        linear=shape.linear,
        adapter=0 if full else setup.footprint.adapters,
        attention_width=shape.attention_width,
        layers=shape.layers,
        length=setup.work.seen_back,
        full=full,
    )


def token_seconds(setup: Setup, *, tokens: float, passes: int) -> Seconds:
    """Of one token on one worker, whose step is `passes` passes of `tokens` tokens."""
    config, gpu, shape, f, work = setup.config, setup.gpu, setup.shape, setup.footprint, setup.work
    assert gpu.flops is not None and config.zero.stage != "auto"
    full, again = config.method.type == "full", config.train.activation_checkpointing is True
    products = (6 if full else 4) * shape.linear + (2 * (shape.linear - f.head) if again else 0)
    products += 2 * f.head if tokens > f.chunk and config.zero.stage == 3 else 0  # where logits are made again in the backward pass
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
    moved += 30 * f.trained / setup.workers / (passes * tokens)  # gradients, masters, moments, weights: read and written
    bandwidth = moved / (MEMORY * gpu.bandwidth)
    communication = step_communication(f, gpu, setup.workers, config.zero.stage, passes=passes) / (passes * tokens)
    return Seconds(compute, bandwidth, exposed(communication, compute + bandwidth, setup.hidden))


def exposed(communication: float, computing: float, hidden: float) -> float:
    """Seconds of communication that are not behind so many of computing, where a share `hidden` of it can be."""
    return max((1 - hidden) * communication, communication - hidden * computing)


def computing_of(total: float, communication: float, hidden: float) -> float:
    """Seconds of computing in a step of `total` seconds with so many of communication: `exposed` undone."""
    mostly_hidden = total - (1 - hidden) * communication
    return mostly_hidden if mostly_hidden >= communication else (total - communication) / (1 - hidden)


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
