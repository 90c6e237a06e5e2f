"""Rows of examples to the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from trainers.data.prepare import Sample

NO_TARGET = -100


@dataclass
class Batch:
    """One forward pass of one worker: R rows of W tokens.

    Packed rows hold several examples whose position ids start again at 0, which is how attention tells them apart; they need no mask.
    `weight` is 0 for a dummy, which makes the collective calls of a pass and teaches nothing.
    """

    input_ids: torch.Tensor
    """(R, W) int64"""
    position_ids: torch.Tensor
    """(R, W) int64"""
    attention_mask: torch.Tensor | None
    """(R, W) int64, 1 for a token; None for packed rows"""
    targets: torch.Tensor
    """(R, W) int64, the token each position should predict, or NO_TARGET; for classify (R,), the class of each row"""
    weight: float = 1.0

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        mask = None if self.attention_mask is None else move(self.attention_mask)
        return Batch(move(self.input_ids), move(self.position_ids), mask, move(self.targets), self.weight)


def collate(rows: Sequence[Sequence[Sample]], *, packed: bool, classify: bool, pad_id: int, weight: float = 1.0) -> Batch:
    """Tensors from rows of samples; without packing each row is one sample, padded on the right."""
    width = max(sum(len(sample.ids) for sample in row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), NO_TARGET, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            end = start + len(sample.ids)
            ids[number, start:end] = sample.ids
            positions[number, start:end] = np.arange(len(sample.ids))
            targets[number, start : end - 1] = np.where(sample.learnt[1:], sample.ids[1:], NO_TARGET)
            mask[number, start:end] = 1
            start = end
    if classify:
        targets = np.array([row[0].label for row in rows], dtype=np.int64)
    tensors = [torch.from_numpy(array) for array in (ids, positions, mask, targets)]
    return Batch(tensors[0], tensors[1], None if packed else tensors[2], tensors[3], weight)
