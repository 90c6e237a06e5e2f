"""Gradients unit by unit, against each unit's rows alone through ordinary PEFT layers and autograd."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from privacy.dp_lora import UnitGradients, capture
from privacy.errors import PlanError
from privacy.gradients import Segment
from tests.privacy.records import CLIP, RECORDS, gradient, make_base, padded_loss, records, segments
from trainers.config import LoraMethod
from trainers.model import add_adapters


def _make(family: str, folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    base = make_base(family, folder, **{"dtype": "float32"} | {k: v for k, v in options.items() if k != "train_a"})
    task = "classify" if base.config.num_labels == 3 else "sft"
    method = LoraMethod(rank=4, alpha=8, train_a=options.get("train_a", True))
    module = add_adapters(base, method, task, quantized="quantization" in options)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)  # B is zero at first, and A's gradient with it
    return module, base


def _reference(module: nn.Module, base: Any) -> dict[int, dict[str, torch.Tensor]]:
    """The gradient of each unit by autograd, its records one at a time."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for number, (unit, _) in enumerate(RECORDS):
        for name, part in gradient(module, base, number).items():
            before = found.setdefault(unit, {})
            before[name] = before.get(name, 0) + part
    return found


def _captured(module: nn.Module, base: Any, *, checkpointing: bool = False) -> tuple[UnitGradients, dict[str, nn.Parameter]]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    units = UnitGradients({name: p.shape for name, p in trained.items()}, torch.device("cpu"))
    capture(module, trained, units, {name: p.detach() for name, p in trained.items()})
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module.train()
    base.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    units.begin(4)
    return units, trained


def _run_padded(units: UnitGradients, base: Any, numbers: list[int]) -> None:
    """These records, one a row, padded."""
    units.expect(segments(base, numbers, [RECORDS[number][0] for number in numbers]), len(numbers), max(RECORDS[n][1] for n in numbers))
    padded_loss(base, numbers).backward()


def _run_packed(units: UnitGradients, base: Any, _: list[int]) -> None:
    """All records in one row, kept apart by their positions, which start again."""
    ids = torch.cat(records())[None]
    positions = torch.cat([torch.arange(length) for _, length in RECORDS])[None]
    targets, parts, start = [], [], 0
    for (unit, length), record in zip(RECORDS, records(), strict=True):
        targets += [*record[1:].tolist(), -100]
        parts.append(Segment(unit, 0, start, start + length, 1 / (length - 1)))
        start += length
    units.expect(parts, 1, ids.shape[1])
    logits = base(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
    F.cross_entropy(logits[0], torch.tensor(targets), reduction="sum").backward()


def _assert_same(units: UnitGradients, trained: dict[str, nn.Parameter], reference: dict[int, dict[str, torch.Tensor]], off: float) -> None:
    norms = torch.stack([torch.cat([g.flatten() for g in reference[unit].values()]).norm() for unit in range(4)])
    assert torch.allclose(units.norms(), norms, rtol=off, atol=0)
    total = torch.zeros(units.size)
    units.clip_into(total, CLIP)
    assert norms.min() > CLIP  # all are clipped, so the directions are compared as well
    for name, part in units.split(total):
        expected = sum(reference[unit][name] * (CLIP / norms[unit]) for unit in range(4))
        assert (part - expected).abs().max() <= off * CLIP, name
    assert all(parameter.grad is None for parameter in trained.values())


CASES: dict[str, tuple[str, dict[str, Any], Callable[..., None], bool, float]] = {
    "padded": ("llama", {}, _run_padded, False, 1e-5),
    "packed": ("llama", {}, _run_packed, False, 1e-5),
    "packed, activations computed again": ("llama", {}, _run_packed, True, 1e-5),
    "A frozen": ("llama", {"train_a": False}, _run_packed, False, 1e-5),
    "bfloat16 base": ("llama", {"dtype": "bfloat16"}, _run_padded, False, 0.05),
    "4-bit base": ("llama", {"quantization": "nf4"}, _run_packed, True, 1e-3),
    "8-bit base": ("llama", {"quantization": "int8"}, _run_padded, False, 0.05),
    "transposed weights": ("gpt2", {}, _run_padded, True, 1e-5),
    "a classifier's head": ("bert", {}, _run_padded, False, 1e-5),
    "a head with a LayerNorm": ("modernbert", {}, _run_padded, True, 1e-5),
}


@pytest.mark.parametrize("case", CASES)
def test_norms_and_sums_are_those_of_one_record_at_a_time(tmp_path: Path, case: str) -> None:
    family, options, run, checkpointing, off = CASES[case]
    module, base = _make(family, tmp_path, **options)
    module.eval()
    reference = _reference(module, base)

    units, trained = _captured(module, base, checkpointing=checkpointing)
    run(units, base, list(range(len(RECORDS))))

    _assert_same(units, trained, reference, off)


def test_a_unit_may_be_spread_over_several_passes(tmp_path: Path) -> None:
    module, base = _make("llama", tmp_path)
    reference = _reference(module.eval(), base)

    units, trained = _captured(module, base)
    _run_padded(units, base, [0, 1])
    _run_padded(units, base, [2, 3, 4])

    _assert_same(units, trained, reference, 1e-5)


def test_units_below_the_clip_norm_are_left_as_they_are() -> None:
    units = _plain_units([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]])
    total = torch.zeros(2)

    units.clip_into(total, 1.0)

    assert torch.allclose(total, torch.tensor([0.3 + 0.6, 0.4 + 0.8]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_a_unit_whose_norm_is_not_finite_adds_nothing(bad: float) -> None:
    units = _plain_units([[0.3, 0.4], [bad, bad]])
    total = torch.zeros(2)

    units.clip_into(total, 1.0)

    assert torch.allclose(total, torch.tensor([0.3, 0.4]))


def test_a_gradient_of_millions_of_equal_numbers_is_clipped_to_the_norm() -> None:
    size = 4_000_003
    units = UnitGradients({"p": torch.Size([size])}, torch.device("cpu"))
    units.begin(1)
    units.expect([Segment(0, 0, 0, 1, 1.0)], 1, 1)
    units.add_sums("p", torch.full((1, size), 0.01))
    total = torch.zeros(size)

    units.clip_into(total, 1.0)

    assert float(total.double().norm()) == pytest.approx(1.0, rel=1e-6)


def test_no_units_leave_the_sum_as_it_was() -> None:
    units, total = _plain_units([]), torch.ones(2)

    units.clip_into(total, 1.0)

    assert torch.equal(total, torch.ones(2))


def test_a_layer_that_sees_a_part_of_the_tokens_is_refused() -> None:
    units = _plain_units([[0.3, 0.4], [3.0, 4.0]])
    units.expect([Segment(0, 0, 0, 3, 1.0), Segment(1, 1, 0, 3, 1.0)], 2, 3)

    with pytest.raises(PlanError, match="given 4 of the 2 x 3 tokens"):
        units.add_products("p", torch.ones(4, 2), torch.ones(4, 1))


def _plain_units(rows: list[list[float]]) -> UnitGradients:
    """Units with these gradients of a parameter of two numbers."""
    units = UnitGradients({"p": torch.Size([2])}, torch.device("cpu"))
    units.begin(len(rows))
    units.expect([Segment(unit, unit, 0, 1, 1.0) for unit in range(len(rows))], len(rows), 1)
    if rows:
        units.add_sums("p", torch.tensor(rows))
    return units


def test_trained_embeddings_are_refused(tmp_path: Path) -> None:
    module, base = _make("llama", tmp_path)
    base.get_input_embeddings().weight.requires_grad_()

    with pytest.raises(PlanError, match=r"embed_tokens.weight is trained, but its gradient cannot be had unit by unit"):
        _captured(module, base)


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    module, base = _make("llama", tmp_path)
    base.extra = nn.BatchNorm1d(4)

    with pytest.raises(PlanError, match="mixes the examples of a batch"), warnings.catch_warnings():
        _captured(module, base)
