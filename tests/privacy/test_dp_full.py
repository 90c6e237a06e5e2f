"""Ghost clipping against one record at a time through the same layers and autograd."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from privacy.dp_full import GhostGradients
from privacy.errors import PlanError
from privacy.gradients import Pass
from tests.privacy.records import CLIP, RECORDS, gradient, make_base, padded_loss, segments
from trainers.model import freeze_tables

ALL = list(range(len(RECORDS)))


def _make(family: str, folder: Path) -> Any:
    base = make_base(family, folder, dtype="float32").eval()
    freeze_tables(base)
    return base


def _ghosts(base: Any) -> GhostGradients:
    return GhostGradients(base, {name: p for name, p in base.named_parameters() if p.requires_grad}, torch.device("cpu"))


def _pass(base: Any, numbers: list[int]) -> Pass:
    """These records, one a row, each a unit."""
    parts = segments(base, numbers, list(range(len(numbers))))
    return Pass(parts, len(numbers), max(RECORDS[number][1] for number in numbers), lambda: padded_loss(base, numbers))


def _sum(base: Any, ghosts: GhostGradients, *passes: Pass, clip_norm: float = CLIP) -> torch.Tensor:
    total = torch.zeros(ghosts.size)
    ghosts.add_clipped(total, clip_norm, len(RECORDS), passes)
    assert all(parameter.grad is None for parameter in base.parameters())
    return total


def _expected(base: Any, numbers: list[int], clip_norm: float = CLIP) -> torch.Tensor:
    each = [torch.cat([g.flatten() for g in gradient(base, base, number).values()]) for number in numbers]
    return torch.stack([g * min(1.0, clip_norm / float(g.norm())) for g in each]).sum(0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen3", "gemma3", "modernbert", "falcon", "mistral"])
def test_sums_are_those_of_one_record_at_a_time(tmp_path: Path, family: str, checkpointing: bool) -> None:
    base = _make(family, tmp_path)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.train()
        for module in base.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    expected = _expected(base, ALL)
    found = _sum(base, _ghosts(base), _pass(base, [0, 1, 2]), _pass(base, [3, 4]))
    off = (found - expected).abs().max() / CLIP
    print(family, checkpointing, float(off))
    assert off < 1e-5
