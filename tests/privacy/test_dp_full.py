"""Ghost clipping against one record at a time through the same layers and autograd."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from privacy.dp_full import GhostGradients
from privacy.errors import PlanError
from privacy.gradients import Pass, Segment
from tests.privacy.records import CLIP, RECORDS, gradient, make_base, padded_loss, records, segments
from trainers.model import freeze_tables

ALL = list(range(len(RECORDS)))


def _make(family: str, folder: Path) -> Any:
    base = make_base(family, folder, dtype="float32").eval()
    freeze_tables(base)
    return base


def _ghosts(base: nn.Module) -> GhostGradients:
    return GhostGradients(base, {name: p for name, p in base.named_parameters() if p.requires_grad}, torch.device("cpu"))


def _pass(base: Any, numbers: list[int]) -> Pass:
    """These records, one a row, each a unit."""
    parts = segments(base, numbers, list(range(len(numbers))))
    return Pass(parts, len(numbers), max(RECORDS[number][1] for number in numbers), lambda: padded_loss(base, numbers))


def _sum(base: nn.Module, ghosts: GhostGradients, *passes: Pass, clip_norm: float = CLIP) -> torch.Tensor:
    total = torch.zeros(ghosts.size)
    ghosts.add_clipped(total, clip_norm, len(RECORDS), passes)
    assert all(parameter.grad is None for parameter in base.parameters())
    return total


def _expected(base: Any, numbers: list[int], clip_norm: float = CLIP) -> torch.Tensor:
    each = [torch.cat([g.flatten() for g in gradient(base, base, number).values()]) for number in numbers]
    return torch.stack([g * min(1.0, clip_norm / float(g.norm())) for g in each]).sum(0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma3", "modernbert", "falcon"])
def test_sums_are_those_of_one_record_at_a_time(tmp_path: Path, family: str, checkpointing: bool) -> None:
    base = _make(family, tmp_path)
    expected = _expected(base, ALL)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None).train()

    found = _sum(base, _ghosts(base), _pass(base, [0, 1, 2]), _pass(base, [3, 4]))

    assert expected.norm() > CLIP and (found - expected).abs().max() <= 1e-5 * CLIP


def test_records_below_the_clip_norm_are_left_as_they_are(tmp_path: Path) -> None:
    base = _make("llama", tmp_path)
    norms = [_expected(base, [number], math.inf).norm() for number in ALL]
    middle = float(sorted(norms)[2])
    expected = _expected(base, ALL, middle)

    found = _sum(base, _ghosts(base), _pass(base, ALL), clip_norm=middle)

    assert (found - expected).abs().max() <= 1e-5 * middle


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_record_whose_norm_is_not_finite_adds_nothing(tmp_path: Path, bad: float) -> None:
    base = _make("llama", tmp_path)
    others = [0, 2, 3, 4]
    expected = _expected(base, others)
    own = set(records()[1].tolist()).difference(*(records()[number].tolist() for number in others))
    with torch.no_grad():
        base.get_input_embeddings().weight[own.pop()] = bad

    found = _sum(base, _ghosts(base), _pass(base, ALL))

    assert (found - expected).abs().max() <= 1e-5 * CLIP


def test_a_pass_without_records_and_no_pass_at_all_leave_the_sum_as_it_was(tmp_path: Path) -> None:
    base = _make("llama", tmp_path)
    ghosts = _ghosts(base)
    total = torch.ones(ghosts.size)

    ghosts.add_clipped(total, CLIP, 0, [])
    ghosts.add_clipped(total, CLIP, 0, [replace(_pass(base, [0]), segments=[])])

    assert torch.equal(total, torch.ones(ghosts.size))


def test_both_backward_passes_drop_the_same_numbers(tmp_path: Path) -> None:
    base = _make("bert", tmp_path).train()
    ghosts = _ghosts(base)

    once, again = (_sum(base, ghosts, _pass(base, [0])) for _ in range(2))

    assert not torch.allclose(once, again)
    assert float(once.norm()) == pytest.approx(CLIP, rel=1e-5)


def test_a_norm_survives_tokens_that_cancel() -> None:
    """All tokens are nearly alike and their gradients add up to nearly zero: in float32 pairs of them lose two thirds of the norm."""
    torch.manual_seed(0)
    tokens, weights = torch.randn(1, 1, 256) + 1e-4 * torch.randn(1, 512, 256), torch.randn(1, 512, 64)
    weights -= weights.mean(1, keepdim=True)
    layer = nn.Linear(256, 64, bias=False)
    ghosts = _ghosts(layer)

    found = _sum(layer, ghosts, Pass([Segment(0, 0, 0, 512, 1.0)], 1, 512, lambda: (layer(tokens) * weights).sum()))

    assert float(found.norm()) == pytest.approx(CLIP, rel=1e-4)


def _twice(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(layer(x))


def _all_rows_in_one(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x.flatten(0, 1))


@pytest.mark.parametrize(
    ("call", "said"),
    [(_twice, "the layer of bias is called twice in a pass"), (_all_rows_in_one, "is not called with a row for each record")],
)
def test_layers_whose_norms_would_be_wrong_are_refused(call: Callable[..., torch.Tensor], said: str) -> None:
    layer = nn.Linear(4, 4)

    with pytest.raises(PlanError, match=said):
        _sum(layer, _ghosts(layer), Pass([], 2, 3, lambda: call(layer, torch.ones(2, 3, 4)).sum()))


def test_what_cannot_be_had_record_by_record_is_refused(tmp_path: Path) -> None:
    base = _make("llama", tmp_path)
    base.get_input_embeddings().weight.requires_grad_()
    with pytest.raises(PlanError, match=r"embed_tokens.weight is trained, but its gradient cannot be had record by record"):
        _ghosts(base)

    shared = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    shared[1].weight = shared[0].weight
    with pytest.raises(PlanError, match=r"0.weight is shared by two layers"):
        _ghosts(shared)

    with pytest.raises(PlanError, match="mixes the examples of a batch"):
        _ghosts(nn.BatchNorm1d(4))
