"""What `auto` means: each choice a rule of configuration, hardware and model shape, with the reason that is printed."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trainers.config import TrainConfig
from trainers.errors import ConfigError

_LONGEST_BY_DEFAULT = 4096
_EVALUATIONS_A_RUN = 10


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
        choices += [c for c in (*_zero(config, hardware, shape), *_micro_batch(config, hardware, shape)) if c not in choices]
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
    value = min(longest or _LONGEST_BY_DEFAULT, _LONGEST_BY_DEFAULT)
    return [
        Choice(
            "data.max_length",
            value,
            "the model's longest input" if value == longest else f"the model's longest input, at most {_LONGEST_BY_DEFAULT}",
        )
    ]


def _zero(config: TrainConfig, hardware: Hardware, shape: Shape) -> list[Choice]:
    if config.zero.stage != "auto":
        return []
    if config.zero.offload_params == "cpu":
        return [Choice("zero.stage", 3, "offloading parameters needs it")]
    if hardware.workers == 1:
        return [Choice("zero.stage", 1, "one worker: nothing to shard")]
    states = 12 * shape.parameters if config.method.type == "full" else 0
    needed = _weight_bytes(config, shape) + (2 * shape.parameters + states / hardware.workers if config.method.type == "full" else 0)
    if hardware.memory_bytes is not None and needed > 0.7 * hardware.memory_bytes and config.model.quantization == "none":
        return [Choice("zero.stage", 3, f"weights of {_gb(needed)} do not fit beside activations in {_gb(hardware.memory_bytes)}")]
    return [Choice("zero.stage", 2, "weights fit on each worker; gradients and optimizer states are sharded")]


def _micro_batch(config: TrainConfig, hardware: Hardware, shape: Shape) -> list[Choice]:
    length = config.data.max_length
    assert isinstance(length, int)
    tokens, checkpointing = config.train.micro_batch_tokens, config.train.activation_checkpointing
    choices = []
    if hardware.device == "cpu" or hardware.memory_bytes is None:
        chosen, reason, fits = max(2048, length), "enough to keep the cores busy", True
    else:
        room = (
            0.85 * hardware.memory_bytes
            - _weight_bytes(config, shape) / (hardware.workers if config.zero.stage == 3 else 1)
            - _state_bytes(config, hardware, shape)
        )
        per_token = 2 * shape.layers * (7 * shape.hidden_size + 4 * shape.intermediate_size)
        fits = room >= per_token * length
        if not fits or checkpointing is True:
            per_token = 2 * shape.layers * shape.hidden_size + per_token // shape.layers
        chosen = max(length, min(32768, int(room / per_token) // 256 * 256))
        reason = f"about {_gb(per_token * chosen)} of activations in {_gb(hardware.memory_bytes)}"
    if checkpointing == "auto":
        choices.append(
            Choice(
                "train.activation_checkpointing",
                not fits,
                "activations fit" if fits else "activations of one full-length example do not fit",
            )
        )
    if tokens == "auto":
        choices.append(Choice("train.micro_batch_tokens", chosen, reason))
    return choices


def _weight_bytes(config: TrainConfig, shape: Shape) -> float:
    per_parameter = {"none": 2.0 if config.model.dtype == "bfloat16" else 4.0, "nf4": 0.6, "int8": 1.1}
    return per_parameter[config.model.quantization] * shape.parameters


def _state_bytes(config: TrainConfig, hardware: Hardware, shape: Shape) -> float:
    if config.method.type != "full":
        return 20 * 0.01 * shape.parameters
    sharded = 12 * shape.parameters / hardware.workers if config.zero.offload_optimizer == "none" else 0
    return sharded + 2 * shape.parameters / (hardware.workers if config.zero.stage in (2, 3) else 1)


def _gb(value: float) -> str:
    return f"{value / 2**30:.1f} GiB"
