"""Adam's moments between rounds: what a training job keeps of one for the next, in a file of its own.

DiLoCo (Douillard et al. 2023, arXiv 2311.08105, section 3) keeps them at each worker. New ones would begin every round with steps of the
learning rate in each coordinate, however small its gradient: the fewer steps a round has, the more of it that is. In a private job they
follow from noised sums and from what came with the orders, and cost nothing more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from privacy import disk


@dataclass(frozen=True)
class Moments:
    """Of all trained parameters, by name, after so many steps."""

    steps: int
    first: Mapping[str, torch.Tensor]
    second: Mapping[str, torch.Tensor]

    @property
    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for side in (self.first, self.second) for tensor in side.values())

    def write(self, path: Path) -> None:
        """Whole or not at all, mode 0600. Raises OSError."""
        tensors = {f"{side}/{name}": t for side, of in (("first", self.first), ("second", self.second)) for name, t in of.items()}
        disk.write(path, [safetensors.torch.save(tensors, metadata={"steps": str(self.steps)})])

    @classmethod
    def read(cls, path: Path) -> "Moments | None":
        """None where there are none, or none that this version has written."""
        try:
            with safe_open(path, framework="pt") as file:
                steps = int(file.metadata()["steps"])
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        first, second = ({name.removeprefix(f"{side}/"): t for name, t in tensors.items() if name.startswith(f"{side}/")}
                         for side in ("first", "second"))  # fmt: skip
        return cls(steps, first, second)

    def fit(self, shapes: Mapping[str, torch.Size]) -> bool:
        """Whether they are of parameters of these names and shapes."""
        return all({name: tensor.shape for name, tensor in side.items()} == dict(shapes) for side in (self.first, self.second))
