"""LoRA's update added in place: y += s (x A^T) B^T, without the copies of y that the separate operations make on the way.

PEFT's layers make three arrays of the output's size in the forward pass (B's output, its multiple, the sum) and one in the backward pass.
A matrix product can add to what is there, so none of them has to be: the numbers are the same up to the order of rounding.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn

_ADAPTER = "default"
_LINEAR = (nn.Linear, Linear4bit, Linear8bitLt)


class LowRankUpdate(torch.autograd.Function):
    """y (..., out) += scale * x (..., in) A^T B^T, with A (rank, in) and B (out, rank); returns y itself (Hu et al. 2021, section 4.1)."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = F.linear(rows, a)
        y.view(-1, y.shape[-1]).addmm_(low, b.t(), alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,) = gradients
        rows, low, a, b = ctx.saved_tensors
        _, needs_x, needs_a, needs_b, _ = ctx.needs_input_grad
        flat = g.reshape(-1, g.shape[-1])
        g_low = (flat @ b).mul_(ctx.scale)
        return (
            g,
            (g_low @ a).view(ctx.shape) if needs_x else None,
            g_low.t() @ rows if needs_a else None,
            (flat.t() @ low).mul_(ctx.scale) if needs_b else None,
            None,
        )


def fuse_updates(model: nn.Module) -> int:
    """Let the LoRA layers on linear layers of `model`, quantised or not, add their update in place; how many there are.

    Not for ZeRO-3, whose hooks gather A and B only when they are called as modules.
    """
    adapted = [layer for layer in model.modules() if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict)]
    layers: list[Any] = [layer for layer in adapted if type(getattr(layer, "base_layer", None)) in _LINEAR]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)
    return len(layers)


def _forward(layer: Any, usual: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    if args or options or layer.disable_adapters or layer.merged or x.dtype != a.dtype:
        return usual(x, *args, **options)
    y = layer.base_layer(x)
    return LowRankUpdate.apply(y, layer.lora_dropout[_ADAPTER](x), a, b, layer.scaling[_ADAPTER])
