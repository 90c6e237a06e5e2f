"""Adam's moments between rounds: what a training job keeps of one for the next, in files of its folder.

DiLoCo (Douillard et al. 2023, arXiv 2311.08105, section 3) keeps them at each worker. New ones would begin every round with steps of the
learning rate in each coordinate, however small its gradient: the fewer steps a round has, the more of it that is.

A round goes on from the moments of an earlier one, never from those of an attempt at itself: tried again it takes the steps that it would
have taken, and what is released after it follows from one attempt at each round. In a private job moments follow from noised sums and
from what came with the orders, and cost nothing more; those of rounds that were not private are none of a private round's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from privacy import disk
from trainers.errors import ConfigError

_SIDES = ("first", "second")


@dataclass(frozen=True)
class Moments:
    """Of all trained parameters, by name, after so many steps."""

    steps: int
    first: Mapping[str, torch.Tensor]
    second: Mapping[str, torch.Tensor]

    @property
    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for side in (self.first, self.second) for tensor in side.values())


def write(folder: Path, round: int, moments: Moments, *, private: bool) -> None:
    """After a round; on disk when it returns, mode 0600. What no attempt at this round, and no later one, goes on from is deleted.

    Raises OSError.
    """
    tensors = {f"{side}/{name}": t for side in _SIDES for name, t in getattr(moments, side).items()}
    metadata = {"steps": str(moments.steps), "private": str(private)}
    disk.write(folder / _name(round), [safetensors.torch.save(tensors, metadata)])
    for number in _numbers(folder, below=round)[:-1]:
        (folder / _name(number)).unlink(missing_ok=True)


def read(folder: Path, round: int, shapes: Mapping[str, torch.Size], *, private: bool) -> Moments | None:
    """To begin a round with: those of the last round before it; None where there are none, or none of its kind.

    Raises ConfigError for a file that cannot be read, or is of parameters of other names and shapes.
    """
    if not (numbers := _numbers(folder, below=round)):
        return None
    path = folder / _name(numbers[-1])
    try:
        with safe_open(path, framework="pt") as file:
            facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in list(file.keys())}
        steps, was_private = int(facts["steps"]), facts["private"] == str(True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not moments as this version writes them: {error}", "without the file the round has new ones") from error
    if was_private != private:
        return None
    if {name: tensor.shape for name, tensor in tensors.items()} != {f"{side}/{n}": s for side in _SIDES for n, s in shapes.items()}:
        raise ConfigError(f"{path}: moments of another adapter", "without the file the round has new ones")
    first, second = ({name: tensors[f"{side}/{name}"] for name in shapes} for side in _SIDES)
    return Moments(steps, first, second)


def _numbers(folder: Path, *, below: int) -> list[int]:
    """Of earlier rounds that have left moments, ascending."""
    found = (int(path.stem.removeprefix("moments-")) for path in folder.glob("moments-*.safetensors"))
    return sorted(number for number in found if number < below)


def _name(round: int) -> str:
    return f"moments-{round:06d}.safetensors"
