"""What a private step asks of whoever takes gradients unit by unit: privacy.dp_lora for adapters, privacy.dp_full for whole layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from privacy.errors import PlanError


@dataclass(frozen=True)
class Segment:
    """A stretch of tokens that is one record of a unit."""

    unit: int
    """Place among the units that are open together"""
    row: int
    start: int
    """Place in the row of the batch"""
    end: int
    weight: float
    """Of the record in its unit's loss; may depend on the unit's own rows only"""


@dataclass(frozen=True)
class Pass:
    """A forward pass over rows x width tokens. Tokens in no segment count for nobody."""

    segments: Sequence[Segment]
    rows: int
    width: int
    loss: Callable[[], torch.Tensor]
    """Computes it, a scalar summed over the tokens"""


class Gradients(ABC):
    """Gradients over all trained parameters, each a vector (numbers,) in float32."""

    bytes_of_a_unit: int
    """Kept for a unit while its passes are computed"""

    def __init__(self, parameters: Mapping[str, torch.Size], device: torch.device) -> None:
        self.device = device
        self._places: dict[str, tuple[int, torch.Size]] = {}
        self.size = 0
        """Numbers of a gradient"""
        for name, shape in parameters.items():
            self._places[name] = (self.size, shape)
            self.size += shape.numel()

    @abstractmethod
    def add_clipped(self, total: torch.Tensor, clip_norm: float, units: int, passes: Iterable[Pass]) -> float:
        """Compute all passes of so many units; add to `total` (numbers,) the gradient of each, scaled to a norm of at most `clip_norm`.

        The loss, summed over the passes.
        """

    def split(self, vector: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        """A vector (numbers,) as views by parameter."""
        for name, (start, shape) in self._places.items():
            yield name, vector[start : start + shape.numel()].view(shape)


def refuse_mixing(module: nn.Module) -> None:
    """Raises PlanError for layers that mix the examples of a batch."""
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
        raise PlanError("the model has batch normalisation, which mixes the examples of a batch", "no epsilon can be stated for it")
