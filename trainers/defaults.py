"""What `auto` means: each choice a rule of configuration, hardware and model shape, with the reason that is printed."""

import bisect
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from privacy.plan import batch_cap
from trainers.config import TrainConfig
from trainers.errors import ConfigError
from trainers.memory import Footprint, Memory, memory_of, memory_of_job, room, units_of

_LONGEST_BY_DEFAULT = 4096
_EVALUATIONS_A_RUN = 10
_CPU_TOKENS, _GPU_TOKENS = 2048, 32768
_LASTING_SHARE = 0.7
"""Above it, whole weights leave too little of a GPU for activations."""
_TOKENS_STEP = 256
LESS_FOR_UNITS = "lower method.lora.rank or train.units_at_once, name fewer method.lora.targets, or use model.quantization: nf4"
_UNCOUNTED = "what this model takes cannot be counted without running it"

Measure = Callable[[TrainConfig], Footprint | None]
"""trainers.footprint.measure for the device, or its like; called only where memory decides something"""


@dataclass(frozen=True)
class Hardware:
    device: Literal["cuda", "cpu"]
    workers: int
    memory_bytes: int | None = None
    """Of one GPU, or a worker's share of main memory; None where it is not known."""

    @property
    def card_bytes(self) -> int | None:
        """Main memory is taken to be large enough for all but the gradients of units."""
        return self.memory_bytes if self.device == "cuda" else None


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


def resolve(
    config: TrainConfig, hardware: Hardware, shape: Shape | None = None, measure: Measure = lambda config: None
) -> tuple[TrainConfig, list[Choice]]:
    """The configuration with every `auto` that can be decided replaced, and what was chosen why.

    Without a `shape` (the model is not at hand) what depends on it stays `auto` for the worker. Where `measure` has no footprint of the
    model the careful choice is made. Raises ConfigError for a length the model was not made for.
    """
    choices = [*_precision(config, hardware), *_schedule(config)]
    if shape is not None:
        choices += _length(config, shape)
        config = apply(config, choices)
        more = _zero(config, hardware, measure)
        more += _units(apply(config, more), hardware, measure)
        more += _micro_batch(apply(config, more), hardware, measure)
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
    if config.private_full:
        return [Choice("model.dtype", "float32", "private full fine-tuning: weights as their gradients")]
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


def _zero(config: TrainConfig, hardware: Hardware, measure: Measure) -> list[Choice]:
    if config.zero.stage != "auto":
        return []
    if config.zero.offload_params == "cpu":
        return [Choice("zero.stage", 3, "offloading parameters needs it")]
    if hardware.workers == 1:
        return [Choice("zero.stage", 1, "one worker: nothing to shard")]
    fit = "private full fine-tuning: weights have to be whole" if config.private_full else "weights fit"
    whole = Choice("zero.stage", 2, f"{fit} on each worker; gradients and optimizer states are sharded")
    if hardware.card_bytes is None or config.private_full:
        return [whole]
    footprint = measure(config)
    if footprint is None:
        return [Choice("zero.stage", 2, f"gradients and optimizer states are sharded; {_UNCOUNTED}")]
    zero = config.zero.model_copy(update={"stage": 2})
    needed = memory_of(footprint, zero, workers=hardware.workers, tokens=0, checkpointing=True, units=units_of(config)).lasting
    if needed <= _LASTING_SHARE * hardware.card_bytes:
        return [whole]
    if config.model.quantization != "none":
        return [Choice("zero.stage", 2, "quantised weights stay whole on each worker")]
    return [Choice("zero.stage", 3, f"weights are sharded too: with them whole, {_gb(needed)} of {_gb(hardware.card_bytes)} were taken")]


def _units(config: TrainConfig, hardware: Hardware, measure: Measure) -> list[Choice]:
    """Half of what a pass of one example leaves is for gradients of units, the other for more tokens; never more units than a step has."""
    privacy, length, checkpointing = config.privacy, config.data.max_length, config.train.activation_checkpointing
    assert isinstance(length, int)
    if privacy is None or config.train.units_at_once != "auto":
        return []
    share = math.ceil(batch_cap(privacy.units, config.train.global_batch_size) / hardware.workers)
    if config.private_full:
        return [Choice("train.units_at_once", share, "all of a step: a record leaves its norm, and no gradient")]
    if hardware.memory_bytes is None or (footprint := measure(config)) is None:
        return [Choice("train.units_at_once", 1, f"one after the other: {_UNCOUNTED}")]
    careful = checkpointing is not False
    one = memory_of(footprint, config.zero, workers=hardware.workers, tokens=length, checkpointing=careful, units=1)
    fitting = 1 + max(0, int((room(hardware.memory_bytes) - one.total) / 2 / one.units))
    number = min(fitting, share)
    why = "a worker's share of the largest step" if number == share else f"what fits in {_gb(hardware.memory_bytes)} beside activations"
    return [Choice("train.units_at_once", number, f"{why}: their gradients take {_gb(number * one.units)}")]


def check_room_for_units(config: TrainConfig, hardware: Hardware, measure: Measure) -> None:
    """Raises ConfigError for a resolved private job whose units' gradients do not fit beside what else stays."""
    if config.privacy is None or hardware.memory_bytes is None or (footprint := measure(config)) is None:
        return
    if refused := refusal(config, memory_of_job(config, footprint, workers=hardware.workers), hardware.memory_bytes):
        raise ConfigError(refused, LESS_FOR_UNITS)


def refusal(config: TrainConfig, memory: Memory, memory_bytes: float) -> str:
    """Why a resolved private job must not start, as far as memory goes; empty where it may."""
    if not memory.units or memory.lasting <= room(memory_bytes):
        return ""
    number = config.train.units_at_once
    units = "the gradient of one unit takes" if number == 1 else f"train.units_at_once: the gradients of {number} units take"
    rest = f"{_gb(memory.lasting - memory.units)} for what else stays"
    return f"{units} {_gb(memory.units)}, beside {rest}: more than {_gb(room(memory_bytes))} of {_gb(memory_bytes)}"


def _micro_batch(config: TrainConfig, hardware: Hardware, measure: Measure) -> list[Choice]:
    """Tokens of a forward pass, and whether activations are computed again in the backward pass (Chen et al. 2016)."""
    length, tokens, checkpointing = config.data.max_length, config.train.micro_batch_tokens, config.train.activation_checkpointing
    assert isinstance(length, int) and config.zero.stage != "auto"
    if "auto" not in (tokens, checkpointing):
        return []
    if hardware.card_bytes is None:
        careful = Choice("train.activation_checkpointing", False, "main memory is taken to be large enough")
        pass_ = Choice("train.micro_batch_tokens", max(_CPU_TOKENS, length), "enough to keep the cores busy")
        return [choice for choice, value in ((careful, checkpointing), (pass_, tokens)) if value == "auto"]
    footprint = measure(config)
    if footprint is None:
        careful = Choice("train.activation_checkpointing", True, _UNCOUNTED)
        pass_ = Choice("train.micro_batch_tokens", length, f"one example of full length: {_UNCOUNTED}")
        return [choice for choice, value in ((careful, checkpointing), (pass_, tokens)) if value == "auto"]

    def needed(tokens: int, checkpointing: bool) -> Memory:
        return memory_of(
            footprint, config.zero, workers=hardware.workers, tokens=tokens, checkpointing=checkpointing, units=units_of(config)
        )

    choices, available = [], room(hardware.card_bytes)
    if checkpointing == "auto":
        checkpointing = needed(length if tokens == "auto" else max(length, tokens), False).total > available
        reason = "activations of a forward pass do not fit" if checkpointing else "activations fit"
        choices.append(Choice("train.activation_checkpointing", checkpointing, reason))
    if tokens == "auto":
        steps = range(_TOKENS_STEP, _GPU_TOKENS + 1, _TOKENS_STEP)
        fitting = bisect.bisect_right(steps, available, key=lambda tokens: needed(tokens, checkpointing).total)
        chosen = max(length, fitting * _TOKENS_STEP)
        memory = needed(chosen, checkpointing)
        sizes = f"about {_gb(memory.lasting)} that stay and {_gb(memory.passing)} of activations in {_gb(hardware.card_bytes)}"
        reason = sizes if memory.total <= available else f"one example of full length, and it may not fit: {sizes}"
        choices.append(Choice("train.micro_batch_tokens", chosen, reason))
    return choices


def _gb(value: float) -> str:
    return f"{value / 2**30:.1f} GiB"
