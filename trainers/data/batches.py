"""Rows of examples to the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F

from trainers.data.packing import Layout, common
from trainers.data.prepare import Sample

NO_TARGET = -100


@dataclass
class Batch:
    """One forward pass of one worker: R rows of W tokens, or one of all its tokens where rows lie one behind the other.

    Where a row holds several examples their position ids start again at 0, which is how attention tells them apart without a mask.
    `weight` is 0 for a dummy, which makes the collective calls of a pass and teaches nothing.
    """

    input_ids: torch.Tensor
    """(R, W) int64"""
    position_ids: torch.Tensor
    """(R, W) int64"""
    attention_mask: torch.Tensor | None
    """(R, W) int64, 1 for a token; None but for rows of an example each"""
    targets: torch.Tensor
    """(R, W) int64, the token each position should predict, or NO_TARGET; for classify (R,), the class of each row"""
    learnt: torch.Tensor | None
    """(N,) int64, the places of all targets, rows counted through; where their number is not one that comes again (see
    trainers.data.packing.common), the last place, which never has one, fills it up. None for classify"""
    weight: float = 1.0
    blocks: torch.Tensor | None = None
    """(1, 1, B, 2) int32, on the CPU: of rows that lie one behind the other, how many are how wide; see trainers.attention"""

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        mask, learnt = (None if tensor is None else move(tensor) for tensor in (self.attention_mask, self.learnt))
        return Batch(move(self.input_ids), move(self.position_ids), mask, move(self.targets), learnt, self.weight, self.blocks)


def collate(
    rows: Sequence[Sequence[Sample]],
    *,
    layout: Layout,
    classify: bool,
    pad_id: int,
    widths: Sequence[int] | None = None,
    weight: float = 1.0,
) -> Batch:
    """Tensors from rows of samples, padded on the right to these widths, by default that of the widest."""
    lengths = [sum(len(sample.ids) for sample in row) for row in rows]
    widths = [max(lengths)] * len(rows) if widths is None else widths
    *begins, total = np.cumsum([0, *widths])
    ids = np.full(total, pad_id, dtype=np.int64)
    positions = np.zeros(total, dtype=np.int64)
    targets = np.full(total, NO_TARGET, dtype=np.int64)
    mask = np.zeros(total, dtype=np.int64)
    for start, row in zip(begins, rows, strict=True):
        for sample in row:
            end = start + len(sample.ids)
            ids[start:end] = sample.ids
            positions[start:end] = np.arange(len(sample.ids))
            targets[start : end - 1] = np.where(sample.learnt[1:], sample.ids[1:], NO_TARGET)
            mask[start:end] = 1
            start = end
    in_one = layout in ("blocks", "ragged")
    shape = (1, total) if in_one else (len(rows), widths[0])
    tensors = [torch.from_numpy(array).view(shape) for array in (ids, positions, mask, targets)]
    learnt = None if classify else places_of(tensors[3])
    if classify:
        tensors[3] = torch.tensor([row[0].label for row in rows])
    blocks = torch.tensor([[[(len(list(same)), width) for width, same in groupby(widths)]]], dtype=torch.int32) if in_one else None
    return Batch(tensors[0], tensors[1], tensors[2] if layout == "padded" else None, tensors[3], learnt, weight, blocks)


def places_of(targets: torch.Tensor) -> torch.Tensor:
    """`Batch.learnt` of targets (R, W), the last of which is NO_TARGET or their number one that comes again."""
    places = (targets.flatten() != NO_TARGET).nonzero()[:, 0]
    return F.pad(places, (0, common(max(1, len(places))) - len(places)), value=targets.numel() - 1)
