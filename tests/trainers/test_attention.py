"""Attention over rows that lie one behind the other, against transformers' own over each row alone."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from trainers import attention, cpu
from trainers.attention import block_attention, leave_blocks, takes_blocks, use_blocks

BLOCKS = ((2, 5), (1, 3), (3, 1))
TOKENS, DEPTH = 16, 8


@pytest.fixture(params=["plain kernel", "torch's kernel"])
def _kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """As on a CPU where trainers.cpu has taken the choice of kernels over, and as everywhere else."""
    before = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(request.param != "plain kernel")
    yield
    torch.backends.cuda.enable_flash_sdp(before)


def _make_inputs(keys: int, *, tokens: int = TOKENS, seed: int = 0) -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(1, heads, tokens, DEPTH, generator=drawn, requires_grad=True) for heads in (4, keys, keys)]


def _attend(inputs: list[torch.Tensor], blocks: Any = BLOCKS, **options: Any) -> torch.Tensor:
    mask = torch.tensor([[blocks]], dtype=torch.int32)
    module: Any = SimpleNamespace(is_causal=True, num_key_value_groups=inputs[0].shape[1] // inputs[1].shape[1])
    return block_attention(module, *inputs, mask, **options)[0]


def _row_by_row(inputs: list[torch.Tensor], *, scaling: float | None = None, window: int = 100) -> torch.Tensor:
    """(1, T, heads, D), each row alone, its mask written out."""
    found, start = [], 0
    for rows, width in BLOCKS:
        for _ in range(rows):
            q, k, v = (tensor[:, :, start : start + width] for tensor in inputs)
            k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
            back = torch.arange(width)[:, None] - torch.arange(width)
            found.append(F.scaled_dot_product_attention(q, k, v, (back >= 0) & (back < window), scale=scaling))
            start += width
    return torch.cat(found, dim=2).transpose(1, 2)


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize("options", [{}, {"scaling": 0.7}, {"sliding_window": 2}, {"sliding_window": 50}])
def test_outputs_and_gradients_are_those_of_each_row_alone(keys: int, options: dict[str, Any]) -> None:
    inputs, weights = _make_inputs(keys), torch.randn(1, TOKENS, 4, DEPTH, generator=torch.Generator().manual_seed(1))

    found = _attend(inputs, **options)
    expected = _row_by_row(inputs, scaling=options.get("scaling"), window=options.get("sliding_window", 100))

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad((each * weights).sum(), inputs) for each in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_kernel")
def test_dropout_drops_and_keeps_the_mean() -> None:
    q, k, v = _make_inputs(4, tokens=512)
    ones = [q, k, torch.ones_like(v)]

    found = _attend(ones, blocks=((8, 64),), dropout=0.25).detach()

    assert not torch.allclose(found, torch.ones_like(found))
    assert float(found.mean()) == pytest.approx(1, abs=0.05)


def test_a_mask_of_transformers_is_for_its_own_attention() -> None:
    inputs = _make_inputs(4)
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None]

    found, _ = block_attention(torch.nn.Module(), *inputs, mask)

    torch.testing.assert_close(found, F.scaled_dot_product_attention(*inputs, is_causal=True).transpose(1, 2))


def test_scores_that_a_family_changes_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="softcap"):
        _attend(_make_inputs(4), softcap=30.0)


def test_a_model_computes_rows_behind_each_other_as_rows_alone() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(0, 64, (1, TOKENS))
    alone, start, places = [], 0, []
    with torch.no_grad():
        for rows, width in BLOCKS:
            for _ in range(rows):
                alone.append(model(input_ids=ids[:, start : start + width]).logits)
                places += range(width)
                start += width
        assert use_blocks(model) and takes_blocks(model)
        found = model(input_ids=ids, position_ids=torch.tensor([places]), attention_mask=torch.tensor([[BLOCKS]], dtype=torch.int32)).logits
        torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(input_ids=ids[:, :5]).logits, alone[0], rtol=1e-4, atol=1e-5)  # and still takes no mask at all
        leave_blocks(model)
        assert not takes_blocks(model)


def test_a_family_that_has_its_own_attention_keeps_it() -> None:
    base: Any = SimpleNamespace(_supports_attention_backend=False)

    assert not use_blocks(base)


def test_short_rows_use_the_products_of_the_default_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN would compile a kernel for each shape, and a step has many that come once."""
    seen, real = [], torch.bmm
    monkeypatch.setattr(attention.torch, "bmm", lambda *args: seen.append(torch.get_float32_matmul_precision()) or real(*args))
    monkeypatch.setattr(cpu, "onednn_is_exact", lambda: True)
    inputs = _make_inputs(2)

    with cpu.fast_products(longest=5):
        _attend(inputs).sum().backward()
        assert torch.get_float32_matmul_precision() == "medium"

    assert seen == ["highest"] * 6 * len(BLOCKS)
    assert all(math.isfinite(float(tensor.grad.sum())) for tensor in inputs if tensor.grad is not None)


@pytest.mark.gpu
def test_torchs_kernel_for_ragged_rows_is_right_on_this_gpu() -> None:
    assert attention.kernel_is_right(torch.bfloat16, 64)
