"""What `auto` means: each choice a rule of configuration, hardware and model shape, with the reason that is printed."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainers.config import TrainConfig
from trainers.errors import ConfigError

_LONGEST_BY_DEFAULT = 4096
_EVALUATIONS_A_RUN = 10
_CPU_TOKENS, _GPU_TOKENS = 2048, 32768
_USABLE_SHARE = 0.85
"""Of a GPU's memory; the rest is for CUDA itself, logits, communication and fragmentation."""
_LASTING_SHARE = 0.7
"""Above it, whole weights leave too little of a GPU for activations."""
_QUANTIZED_BYTES = {"nf4": 0.53, "int8": 1.0}


@dataclass(frozen=True)
class Hardware:
    device: Literal["cuda", "cpu"]
    workers: int
    memory_bytes: int | None = None
    """Of one GPU; None where it is not known."""


@dataclass(frozen=True)
class Shape:
    """What the rules need of a model's config.json."""

    parameters: int
    linear: int
    """Weights of linear layers, the head among them"""
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_width: int
    """Heads times their size; not the hidden size in all models"""
    longest_input: int | None


@dataclass(frozen=True)
class Choice:
    field: str
    value: Any
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def resolve(config: TrainConfig, hardware: Hardware, shape: Shape | None = None) -> tuple[TrainConfig, list[Choice]]:
    """The configuration with every `auto` that can be decided replaced, and what was chosen why.

    Without a `shape` (the model is not at hand) what depends on it stays `auto` for the worker. Raises ConfigError for a length the model
    was not made for.
    """
    choices = [*_precision(config, hardware), *_schedule(config)]
    if shape is not None:
        choices += _length(config, shape)
        config = apply(config, choices)
        more = _zero(config, hardware, shape)
        more += _micro_batch(apply(config, more), hardware, shape)
        choices += more
    return apply(config, choices), choices


def apply(config: TrainConfig, choices: list[Choice]) -> TrainConfig:
    values = config.model_dump()
    for choice in choices:
        block, name = choice.field.split(".")
        values[block][name] = choice.value
    return type(config).model_validate(values)


def intervals(config: TrainConfig, steps: int, *, evaluates: bool) -> tuple[int, int, list[Choice]]:
    """Steps between evaluations and between checkpoints of a run of `steps` steps."""
    choices = []
    often = max(1, math.ceil(steps / _EVALUATIONS_A_RUN))
    evaluate = often if config.train.eval_every == "auto" else config.train.eval_every
    save = evaluate if config.checkpoint.every == "auto" else config.checkpoint.every
    if config.train.eval_every == "auto" and evaluates:
        choices.append(Choice("train.eval_every", evaluate, f"about {_EVALUATIONS_A_RUN} evaluations in {steps} steps"))
    if config.checkpoint.every == "auto":
        choices.append(
            Choice("checkpoint.every", save, "as often as it is evaluated" if evaluates else f"about {_EVALUATIONS_A_RUN} in {steps} steps")
        )
    return evaluate, save, choices


def _precision(config: TrainConfig, hardware: Hardware) -> list[Choice]:
    if config.model.dtype != "auto":
        return []
    if hardware.device == "cuda":
        return [Choice("model.dtype", "bfloat16", "GPU: bfloat16 compute, float32 masters")]
    return [Choice("model.dtype", "float32", "CPU: most have no fast bfloat16")]


def _schedule(config: TrainConfig) -> list[Choice]:
    choices = []
    if config.train.epochs is None and config.train.max_steps is None:
        epochs = 1.0 if config.task == "pretrain" else 3.0
        choices.append(
            Choice("train.epochs", epochs, f"{config.task}: {'one pass over text' if epochs == 1 else 'a few passes over examples'}")
        )
    if config.train.learning_rate == "auto":
        if config.model.from_scratch:
            rate, reason = 1e-3, "random weights"
        elif config.method.type == "full":
            rate, reason = 2e-5, "all weights, pretrained"
        elif config.task == "classify":
            rate, reason = 1e-3, "adapters with a new classification head"
        else:
            rate, reason = 2e-4, "adapters (ten times the rate of full fine-tuning)"
        choices.append(Choice("train.learning_rate", rate, reason))
    return choices


def _length(config: TrainConfig, shape: Shape) -> list[Choice]:
    longest, asked = shape.longest_input, config.data.max_length
    if asked != "auto":
        if longest is not None and asked > longest:
            raise ConfigError(
                f"data.max_length: {asked} is beyond the model's {longest} positions", f"set data.max_length: {longest} or less"
            )
        return []
    if longest is None:
        return [Choice("data.max_length", _LONGEST_BY_DEFAULT, "the model names no longest input")]
    if longest <= _LONGEST_BY_DEFAULT:
        return [Choice("data.max_length", longest, "the model's longest input")]
    return [Choice("data.max_length", _LONGEST_BY_DEFAULT, f"of the model's {longest} positions; set more where examples are longer")]


def _zero(config: TrainConfig, hardware: Hardware, shape: Shape) -> list[Choice]:
    if config.zero.stage != "auto":
        return []
    if config.zero.offload_params == "cpu":
        return [Choice("zero.stage", 3, "offloading parameters needs it")]
    if hardware.workers == 1:
        return [Choice("zero.stage", 1, "one worker: nothing to shard")]
    needed = _lasting_bytes(config, hardware, shape, stage=2)
    if hardware.memory_bytes is None or needed <= _LASTING_SHARE * hardware.memory_bytes:
        return [Choice("zero.stage", 2, "weights fit on each worker; gradients and optimizer states are sharded")]
    if config.model.quantization != "none":
        return [Choice("zero.stage", 2, "quantised weights stay whole on each worker")]
    return [Choice("zero.stage", 3, f"weights are sharded too: with them whole, {_gb(needed)} of {_gb(hardware.memory_bytes)} were taken")]


def _micro_batch(config: TrainConfig, hardware: Hardware, shape: Shape) -> list[Choice]:
    """Tokens of a forward pass, and whether activations are computed again in the backward pass (Chen et al. 2016)."""
    length, tokens, checkpointing = config.data.max_length, config.train.micro_batch_tokens, config.train.activation_checkpointing
    assert isinstance(length, int) and config.zero.stage != "auto"
    choices = []
    if hardware.device == "cpu" or hardware.memory_bytes is None:
        if checkpointing == "auto":
            choices.append(Choice("train.activation_checkpointing", False, "main memory is taken to be large enough"))
        if tokens == "auto":
            choices.append(Choice("train.micro_batch_tokens", max(_CPU_TOKENS, length), "enough to keep the cores busy"))
        return choices
    lasting = _lasting_bytes(config, hardware, shape, stage=config.zero.stage)
    room = _USABLE_SHARE * hardware.memory_bytes - lasting
    if checkpointing == "auto":
        checkpointing = room < _activation_bytes(config, shape, checkpointing=False) * (length if tokens == "auto" else max(length, tokens))
        reason = "activations of a forward pass do not fit" if checkpointing else "activations fit"
        choices.append(Choice("train.activation_checkpointing", checkpointing, reason))
    if tokens == "auto":
        per_token = _activation_bytes(config, shape, checkpointing=checkpointing)
        chosen = max(length, min(_GPU_TOKENS, int(room / per_token) // 256 * 256))
        sizes = f"about {_gb(lasting)} that stay and {_gb(per_token * chosen)} of activations in {_gb(hardware.memory_bytes)}"
        reason = sizes if room >= per_token * chosen else f"one example of full length, and it may not fit: {sizes}"
        choices.append(Choice("train.micro_batch_tokens", chosen, reason))
    return choices


def _lasting_bytes(config: TrainConfig, hardware: Hardware, shape: Shape, *, stage: int) -> float:
    """Weights, gradients and AdamW's states on one worker (Rajbhandari et al. 2020, figure 1)."""
    width, trained, workers = _width(config), _trained_parameters(config, shape), hardware.workers
    weights = _weight_bytes(config, shape) / (workers if stage == 3 else 1)
    if config.zero.offload_params == "cpu":
        weights = width * shape.parameters / shape.layers  # what is gathered for one layer
    gradients = width * trained / (workers if stage >= 2 else 1)
    states = 12 * trained / workers if config.zero.offload_optimizer == "none" else 0
    return weights + gradients + states


def _weight_bytes(config: TrainConfig, shape: Shape) -> float:
    """Of the whole model. Quantisation is of linear layers: embeddings and the head, as large, stay as they are."""
    if config.model.quantization == "none":
        return _width(config) * shape.parameters
    outside = 2 * (shape.parameters - shape.linear)
    return _QUANTIZED_BYTES[config.model.quantization] * (shape.parameters - outside) + _width(config) * outside


def _trained_parameters(config: TrainConfig, shape: Shape) -> int:
    if config.method.type == "full":
        return shape.parameters
    widths = 4 * 2 * shape.hidden_size + 3 * (shape.hidden_size + shape.intermediate_size)  # in and out of seven linear layers
    return config.method.rank * shape.layers * widths


def _activation_bytes(config: TrainConfig, shape: Shape, *, checkpointing: bool) -> int:
    """For each token: what a block keeps for its backward pass, in every block; or every block's input and one block's rest."""
    block = 7 * shape.hidden_size + 4 * shape.intermediate_size
    return _width(config) * (shape.layers * shape.hidden_size + block if checkpointing else shape.layers * block)


def _width(config: TrainConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _gb(value: float) -> str:
    return f"{value / 2**30:.1f} GiB"
