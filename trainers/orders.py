"""A round as it is ordered of a training process, and what comes back: safetensors, with all else as JSON in the header.

An adapter's tensors have PEFT's names on disk and are float32. Both sides read what another process wrote: nothing is unpickled. Imports
no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from privacy.errors import ConsortiumError
from privacy.plan import PrivacyPlan
from trainers.errors import ConfigError

READY, STOP = "ready", "stop"
"""Requests without content: answered, with nothing, when the model is loaded; and as the last thing."""

Adapter = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class PrivateSteps:
    """On which budget private steps are taken."""

    plan: PrivacyPlan
    reservation: str
    """Id in the job's ledger"""


@dataclass(frozen=True)
class Evaluation:
    """Of the adapter as it came, on the rows held out."""

    most_units: float
    """What its two numbers are shares of"""
    noise_multiplier: float | None = None
    """None where the rows are public"""
    reservation: str | None = None


@dataclass(frozen=True)
class Order:
    """One round."""

    round: int
    attempt: int
    steps: int
    """0 for a round that only evaluates"""
    learning_rate: float
    adapter: Adapter
    private: PrivateSteps | None = None
    evaluation: Evaluation | None = None
    keep_moments: bool = False
    """Go on with the optimizer's moments of the round before, and keep them for the next one"""

    def pack(self) -> bytes:
        return _pack(self.adapter, replace(self, adapter={}))

    @staticmethod
    def unpack(content: bytes) -> "Order":
        """Raises ConfigError."""
        facts, adapter = _unpack(content)
        try:
            private, evaluation = facts.pop("private"), facts.pop("evaluation")
            return Order(
                **facts,
                adapter=adapter,
                private=private and PrivateSteps(PrivacyPlan(**private["plan"]), private["reservation"]),
                evaluation=evaluation and Evaluation(**evaluation),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _other_version(error) from error


@dataclass(frozen=True)
class Done:
    """What came of a round. All but the adapter and the metrics stays with the bank."""

    adapter: Adapter
    """After the steps; empty where none were asked for"""
    metrics: tuple[float, ...]
    """Of an evaluation: correctness summed over units, and units; both over `most_units`"""
    steps: int
    """Taken: fewer than ordered where the reservation held fewer"""
    charged: int
    """Steps of it that this took"""
    verdicts: dict[str, bool | None]
    """Of the private steps' own tests, by name; none has failed"""
    seconds: float

    def pack(self) -> bytes:
        return _pack(self.adapter, replace(self, adapter={}))


@dataclass(frozen=True)
class Failed:
    """Why nothing came of it: what a ConsortiumError says."""

    error: str
    message: str
    hint: str

    @staticmethod
    def of(error: ConsortiumError) -> "Failed":
        return Failed(type(error).__name__, error.message, error.hint)

    def pack(self) -> bytes:
        return _pack({}, self)


def unpack_answer(content: bytes) -> Done | Failed:
    """Raises ConfigError."""
    facts, adapter = _unpack(content)
    try:
        if "error" in facts:
            return Failed(**facts)
        return Done(**facts | {"metrics": tuple(facts["metrics"])}, adapter=adapter)
    except (KeyError, TypeError) as error:
        raise _other_version(error) from error


def _pack(adapter: Adapter, rest: Order | Done | Failed) -> bytes:
    facts = asdict(rest)
    facts.pop("adapter", None)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in adapter.items()}
    return safetensors.numpy.save(tensors, metadata={"facts": json.dumps(facts, allow_nan=False)})


def _unpack(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return dict(json.loads(header["__metadata__"]["facts"])), tensors
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _other_version(error) from error


def _other_version(error: Exception) -> ConfigError:
    return ConfigError(f"not a round as this version writes it: {error!r}", "both processes have to run the same version")
