"""What one worker's memory holds, term by term: the one model of memory, for `auto` (trainers.defaults) and for `consortium plan`.

Arithmetic on facts. What a model keeps for its backward pass is no formula here: it is counted on the model (trainers.footprint). What
ZeRO holds follows DeepSpeed 0.19's own allocations (runtime/zero/stage_1_and_2.py and stage3.py), with the settings of trainers.engine.
"""

from dataclasses import dataclass, fields
from typing import Literal

from privacy.noise import CHUNK as NOISE_CHUNK
from trainers.config import TrainConfig, ZeroConfig

REDUCE_BUCKET = 500_000_000
"""Most gradients, in numbers, that are reduced at a time; fewer where fewer are trained (trainers.engine.ds_config)."""
REUSE_DISTANCE = 1_000_000_000
"""Parameters between two uses of a weight below which ZeRO-3 keeps it whole: forth to the end and back, so the last half of them."""
PREFETCH = 50_000_000
"""Parameters ZeRO-3 gathers ahead of their use."""
SUB_GROUP = 1_000_000_000
"""Parameters ZeRO-3 updates at a time."""
PERSISTENT = 100_000
"""Weights of at most so many parameters stay whole under ZeRO-3."""

RESERVE = 0.10
"""Share of a card's memory that a plan leaves free: the allocator's fragments, a longer row than most."""
CONTEXT_BYTES = 600 * 2**20
"""Of a CUDA context with the libraries' kernels and workspaces. Taken from experience, not counted."""
CHANNEL_BYTES = 400 * 2**20
"""Of NCCL's channels where there is more than one worker. Taken from experience, not counted."""

_QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
"""nf4: half a byte, a scale of one byte to 64 numbers and, quantised twice, of four bytes to 256 scales (Dettmers et al. 2023)."""
_MASTER, _MOMENTS = 4, 8
_NOISE = 40
"""Bytes for a number in the making: five arrays of float64 (privacy.noise)."""


@dataclass(frozen=True)
class Footprint:
    """A model and how it is trained, as far as memory goes. Bytes are of one row of `row` tokens, numbers are parameters."""

    device: Literal["cuda", "cpu"]
    quantization: Literal["none", "nf4", "int8"]
    width: int
    """Bytes of a number of the forward and backward pass"""
    trained_width: int
    """Of a trained parameter: the same, or 4 in a private run"""
    parameters: int
    """Of the base model"""
    adapters: int
    trained: int
    of_unit: int
    """Numbers that a unit of a private run keeps while it is open: its gradient, or none where whole layers are trained"""
    quantized: int
    """Parameters of the linear layers in the blocks, which are those that quantisation takes"""
    largest: int
    """Of all weights"""
    largest_trained: int
    largest_quantized: int
    small: int
    """Parameters in weights of at most PERSISTENT"""
    block: int
    """Parameters of a block"""
    head: int
    vocabulary: int
    layers: int
    row: int
    """Tokens"""
    mask: int
    """Bytes for all blocks together of the mask of row x row that sdpa gets; 0 where attention goes over each example by itself"""
    mask_block: int
    """Bytes each block keeps of it: as numbers, with the other inputs of attention"""
    kept_first: int
    """Bytes kept for the backward pass by embedding, first block and last norm"""
    kept_block: int
    """By every other block"""
    input_first: int
    """As kept_first and kept_block, with activation checkpointing: what a block starts from"""
    input_block: int
    backward: float
    """Bytes that the backward pass of a block needs at its height beyond what is kept, for a row"""
    backward_fixed: float
    """The part of them that does not grow with rows: gradients of weights"""
    recomputed: float
    """As backward, with activation checkpointing: what the block keeps comes on top"""
    recomputed_fixed: float
    chunk: int
    """Tokens whose logits are made at a time"""
    logits: float
    """Bytes that head and loss need at their height, for a chunk of tokens that are all learnt"""
    logits_fixed: float
    """Those of the chunk at work, and gradients of the head"""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the height of a step, by what they are for. Their sum is the height: see `memory_of`."""

    weights: float
    """Not quantised ones; with ZeRO-3 this worker's share and what is never sharded"""
    quantized: float
    adapters: float
    gradients: float
    optimizer: float
    """float32 masters and AdamW's two moments"""
    communication: float
    """Buffers of the reduction; with ZeRO-3 the weights that are whole for the moment"""
    units: float
    """Gradients of the units of a private run that are open together"""
    private: float
    """What else a private step has: the sum, its noise if that lies in this memory, with ZeRO-3 the trained parameters whole"""
    context: float
    activations: float
    """Kept for the backward pass, and what a block's backward pass needs beyond the room of the logits"""
    dequantized: float
    mask: float
    logits: float
    step: float
    """What the update needs beyond the room of the activations, which are gone by then"""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def lasting(self) -> float:
        """What is there throughout, whatever the tokens of a pass."""
        return self.total - self.passing

    @property
    def passing(self) -> float:
        return self.activations + self.dequantized + self.mask + self.logits + self.step


def room(card_bytes: float) -> float:
    """Bytes of a card that a plan may fill."""
    return (1 - RESERVE) * card_bytes


def memory_of_job(config: TrainConfig, footprint: Footprint, *, workers: int) -> Memory:
    """One of `workers` workers of a resolved job."""
    train = config.train
    assert train.micro_batch_tokens != "auto" and train.activation_checkpointing != "auto"
    return memory_of(
        footprint,
        config.zero,
        workers=workers,
        tokens=train.micro_batch_tokens,
        checkpointing=train.activation_checkpointing,
        units=units_of(config),
    )


def units_of(config: TrainConfig) -> int:
    """Units whose gradients are open together: none in an ordinary run, one of a private run as long as nothing is decided."""
    if config.privacy is None:
        return 0
    return 1 if config.train.units_at_once == "auto" else config.train.units_at_once


def memory_of(footprint: Footprint, zero: ZeroConfig, *, workers: int, tokens: float, checkpointing: bool, units: int) -> Memory:
    """One of `workers` workers with passes of `tokens` tokens, `units` units open in a private run. `zero.stage` must be resolved.

    The height of a step is in the backward pass of the last block, everything kept and the logits' room free again, or in the update.
    More than one pass a step is assumed: gradients of the pass are there beside those summed so far. A private step hands over its sum
    after the last pass; in the room of these gradients and of their buffers are, before, the sums of the step that is replayed.
    """
    assert zero.stage != "auto"
    f, stage, offloaded = footprint, zero.stage, zero.offload_optimizer == "cpu"
    weights, adapters = _weights(f, zero, workers)
    gradients = _gradients(f, stage, workers, offloaded=offloaded)
    states = 0 if offloaded else _optimizer(f, stage) * f.trained / workers
    communication = _communication(f, zero, workers)
    rows = tokens / f.row
    kept = rows * (f.input_first + (f.layers - 1) * f.input_block if checkpointing else f.kept_first + (f.layers - 1) * f.kept_block)
    backward = f.recomputed_fixed + rows * f.recomputed if checkpointing else f.backward_fixed + rows * f.backward
    logits = f.logits_fixed * min(1, tokens / f.chunk) + f.logits * tokens / f.chunk
    activations = kept + max(0.0, backward - logits)
    dequantized = f.width * f.largest_quantized if f.quantization != "none" else 0
    mask = rows * (f.mask + f.mask_block * (1 if checkpointing else f.layers))
    passing = activations + dequantized + mask + logits
    step = 0 if offloaded else _step(f, stage, workers) - gradients - communication - passing
    return Memory(
        weights=weights,
        quantized=_QUANTIZED_BYTES.get(f.quantization, 0) * f.quantized,
        adapters=adapters,
        gradients=gradients,
        optimizer=states,
        communication=communication,
        units=_MASTER * units * f.of_unit,
        private=_private(f, stage, workers) if units else 0,
        context=(CONTEXT_BYTES + (CHANNEL_BYTES if workers > 1 else 0)) if f.device == "cuda" else 0,
        activations=activations,
        dequantized=dequantized,
        mask=mask,
        logits=logits,
        step=max(0.0, step),
    )


def _weights(f: Footprint, zero: ZeroConfig, workers: int) -> tuple[float, float]:
    """Of base model and adapters. ZeRO-3 shards what is not quantised, and keeps the small weights whole besides."""
    plain = f.parameters - (f.quantized if f.quantization != "none" else 0)
    if zero.stage != 3:
        return f.width * plain, f.trained_width * f.adapters
    share = 0 if zero.offload_params == "cpu" else 1 / workers
    return f.width * (plain * share + f.small), f.trained_width * f.adapters * share


def _gradients(f: Footprint, stage: int, workers: int, *, offloaded: bool) -> float:
    """ZeRO-1 keeps all until the step; ZeRO-2 this worker's share, of the pass and of those before; ZeRO-3 its share in one buffer.

    With an offloaded optimizer shares go to main memory as they come, through a buffer of the largest weight's size.
    """
    if offloaded:
        return f.trained_width * (f.trained if stage == 1 else f.largest_trained)
    return f.trained_width * {1: f.trained, 2: 2 * f.trained / workers, 3: f.trained / workers}[stage]


def _optimizer(f: Footprint, stage: int) -> int:
    """Bytes for a trained parameter. ZeRO-3 has no masters beside weights that are float32 themselves; ZeRO-1 and 2 do."""
    return _MOMENTS if stage == 3 and f.trained_width == _MASTER else _MASTER + _MOMENTS


def _communication(f: Footprint, zero: ZeroConfig, workers: int) -> float:
    """The bucket gradients are put together in, and its copy that is sent (with one worker and ZeRO-2 the bucket is sent itself).

    ZeRO-1 copies at the step only. ZeRO-3 besides holds whole weights: those used again within REUSE_DISTANCE, and those gathered ahead;
    a worker alone has them whole as they are, unless they come from main memory.
    """
    bucket = min(f.trained, REDUCE_BUCKET)
    if zero.stage == 1 or (zero.stage == 2 and workers == 1):
        return f.trained_width * bucket
    buffers = f.trained_width * (bucket + max(bucket, f.largest_trained))
    if zero.stage == 2 or (workers == 1 and zero.offload_params != "cpu"):
        return buffers
    whole = min(f.parameters + f.adapters - f.small, max(REUSE_DISTANCE // 2, f.largest) + PREFETCH + f.block)
    return buffers + f.width * whole


def _private(f: Footprint, stage: int, workers: int) -> float:
    """float32 vectors over all that is trained; the noise of this worker's share is made in main memory, beside the passes."""
    share = f.trained / workers
    noise = _MASTER * share + _NOISE * min(share, NOISE_CHUNK) if f.device == "cpu" else 0
    return _MASTER * f.trained * (2 if stage == 3 else 1) + noise


def _step(f: Footprint, stage: int, workers: int) -> float:
    """Bytes beyond weights and states at the height of the update: float32 gradients and AdamW's intermediate results of this share.

    torch's AdamW makes one such array on a GPU and two on a CPU. Before it, ZeRO-1 reduces: gradients move into the bucket, whose copy is
    sent, and of what comes back this share is kept.
    """
    share, bucket = f.trained / workers, min(f.trained, REDUCE_BUCKET)
    intermediate = 4 if f.device == "cuda" else 8
    if stage == 3:
        return f.trained_width * (share + bucket) + (4 + intermediate) * min(share, SUB_GROUP)
    update = (4 + intermediate) * share
    if stage == 2:
        return update
    return max(update, f.trained_width * (f.trained + share + bucket))
