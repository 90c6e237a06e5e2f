"""The gradient of each unit over the adapters, in one ordinary backward pass; clipped to a norm, and summed.

An adapter's gradient is a product of two matrices as wide as there are tokens; for the tokens of each unit alone, the products cost in all
what they cost at once (Abadi et al. 2016, algorithm 1, lines 5 and 6, without a pass for each example). No norm is taken layer by layer and
no second pass is made, as ghost clipping must (Li et al. 2022, arXiv 2110.05679). Only the small gradients are kept, not activations.

Guarantee: `clip_into` adds for each unit a vector of Euclidean norm at most `clip_norm` (up to rounding, 1e-6 relative), which depends on
the rows of that unit alone. Edge cases: a unit without a token adds zero; a unit whose norm is NaN or infinite adds zero; one with a zero
gradient adds zero; no units leave the sum as it was.

The weights themselves get no gradient here, and nothing is reduced between workers: see trainers.private.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from privacy.errors import PlanError
from privacy.gradients import Gradients, Pass, Segment, refuse_mixing

_ADAPTER = "default"
_TINY = 1e-12
_BLOCK = 1024
"""Numbers whose squares are summed in single precision"""


class UnitGradients(Gradients):
    """A row of gradients over all trained parameters for each of a few units: (units, numbers) in float32.

    Rows stay open over as many passes as the units' records take: `begin` once, `expect` before each pass, `clip_into` at the end.
    """

    def __init__(self, parameters: Mapping[str, torch.Size], device: torch.device) -> None:
        super().__init__(parameters, device)
        self.bytes_of_a_unit = 4 * self.size
        self._buffer = torch.empty(0, self.size, device=device)
        self._units = 0
        self._by_token: list[tuple[int, int, int, float]] = []
        self._by_row: list[tuple[int, int, int, float]] = []
        self._rows = self._width = 0

    def add_clipped(self, total: torch.Tensor, clip_norm: float, units: int, passes: Iterable[Pass]) -> float:
        self.begin(units)
        loss = 0.0
        for each in passes:
            self.expect(each.segments, each.rows, each.width)
            summed = each.loss()
            summed.backward()  # type: ignore[no-untyped-call]
            loss += float(summed.detach())
        self.clip_into(total, clip_norm)
        return loss

    def begin(self, units: int) -> None:
        """Zero rows for so many units."""
        if len(self._buffer) < units:
            self._buffer = torch.empty(units, self.size, device=self.device)
        self._units = units
        self._buffer[:units].zero_()

    def expect(self, segments: Sequence[Segment], rows: int, width: int) -> None:
        """What the next pass, over a batch of rows x width tokens, consists of. Tokens in no segment count for nobody."""
        self._rows, self._width = rows, width
        self._by_token = [(s.unit, s.row * width + s.start, s.row * width + s.end, s.weight) for s in segments]
        self._by_row = [(s.unit, s.row, s.row + 1, s.weight) for s in segments]

    def add_products(self, name: str, left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> None:
        """Each unit's share of scale * left^T right, of left (n, out) and right (n, in); n is the batch's rows or its tokens."""
        start, shape = self._places[name]
        for unit, first, last, weight in self._segments(len(left)):
            place = self._buffer[unit, start : start + shape.numel()].view(shape)
            place.addmm_(left[first:last].t(), right[first:last], alpha=weight * scale)

    def add_sums(self, name: str, values: torch.Tensor) -> None:
        """Each unit's share of the sum over n of values (n, out)."""
        start, shape = self._places[name]
        for unit, first, last, weight in self._segments(len(values)):
            self._buffer[unit, start : start + shape.numel()].add_(values[first:last].sum(0), alpha=weight)

    def _segments(self, count: int) -> list[tuple[int, int, int, float]]:
        """Raises PlanError for a layer that was given some of the tokens, as a head or an expert is: whose they are cannot be told."""
        if count == self._rows:
            return self._by_row
        if count == self._rows * self._width:
            return self._by_token
        raise PlanError(f"a trained layer was given {count} of the {self._rows} x {self._width} tokens of a batch: whose is unknown",
                        "leave layers that see some of the tokens only (the head, experts) out of method.targets")  # fmt: skip

    def clip_into(self, total: torch.Tensor, clip_norm: float) -> None:
        """Add to `total` (numbers,) each unit's gradient, scaled to a norm of at most `clip_norm`."""
        rows, norms = self._buffer[: self._units], self.norms()
        lost = ~norms.isfinite()
        rows.masked_fill_(lost[:, None], 0.0)  # always, not only where there is one: a step takes the same way whatever is in it
        scales = (clip_norm / norms.clamp(min=_TINY)).clamp(max=1.0).masked_fill(lost, 0.0)
        total.addmv_(rows.t(), scales)

    def norms(self) -> torch.Tensor:
        """Of the units as they stand, before clipping: (units,). Private.

        By blocks: a single-precision sum of 42 million squares, a rank-16 adapter's on 8 billion parameters, is a percent too small.
        """
        rows = self._buffer[: self._units]
        whole = self.size // _BLOCK * _BLOCK
        blocks = torch.linalg.vector_norm(rows[:, :whole].view(len(rows), whole // _BLOCK, _BLOCK), dim=2)
        found: torch.Tensor = torch.linalg.vector_norm(torch.cat([blocks, rows[:, whole:]], dim=1).double(), dim=1).float()
        return found


class _Update(torch.autograd.Function):
    """y (..., out) += scale * x (..., in) A^T B^T; the backward pass leaves the gradients of A and B with the units."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, x: torch.Tensor, layer: "_AdaptedLayer") -> torch.Tensor:
        a, b = layer.weights()
        rows = x.reshape(-1, x.shape[-1]).to(a.dtype)
        low = F.linear(rows, a)
        flat = y.view(-1, y.shape[-1])
        if flat.dtype == b.dtype:
            flat.addmm_(low, b.t(), alpha=layer.scale)
        else:
            flat.add_((low @ b.t()).to(flat.dtype), alpha=layer.scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(rows, low)
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,) = gradients
        layer = ctx.layer
        rows, low = ctx.saved_tensors
        a, b = layer.weights()
        flat = g.reshape(-1, g.shape[-1]).to(b.dtype)
        g_low = (flat @ b).mul_(layer.scale)
        layer.units.add_products(layer.b, flat, low, layer.scale)
        if layer.trains_a:
            layer.units.add_products(layer.a, g_low, rows)
        return g, (g_low @ a).view(ctx.shape).to(ctx.dtype), None


class _Linear(torch.autograd.Function):
    """y = x W^T + bias of a layer that is trained itself, a classifier's head."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, head: "_Head") -> torch.Tensor:
        weight, bias = head.weights()
        ctx.save_for_backward(x)
        ctx.head = head
        return F.linear(x.to(weight.dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,), (x,), head = gradients, ctx.saved_tensors, ctx.head
        weight, _ = head.weights()
        flat, rows = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1]).to(g.dtype)
        head.units.add_products(head.weight, flat, rows)
        if head.bias is not None:
            head.units.add_sums(head.bias, flat)
        return (g @ weight).to(x.dtype), None


class _Norm(torch.autograd.Function):
    """A LayerNorm of a head: the last dimension is scaled and shifted."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, norm: "_HeadNorm") -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return norm.of(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,), (x,), norm = gradients, ctx.saved_tensors, ctx.norm
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            (g_x,) = torch.autograd.grad(norm.of(again), again, g)
        flat = g.reshape(-1, g.shape[-1])
        norm.units.add_sums(norm.weight, flat * F.layer_norm(x, x.shape[-1:], eps=norm.eps).reshape(flat.shape))
        if norm.bias is not None:
            norm.units.add_sums(norm.bias, flat)
        return g_x, None


@dataclass(frozen=True)
class _AdaptedLayer:
    """A layer with adapters, and the names under which its A and B are trained."""

    units: UnitGradients
    whole: Mapping[str, torch.Tensor]
    a: str
    b: str
    frozen_a: nn.Parameter
    trains_a: bool
    scale: float

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.whole[self.a] if self.trains_a else self.frozen_a.detach(), self.whole[self.b]


@dataclass(frozen=True)
class _Head:
    units: UnitGradients
    whole: Mapping[str, torch.Tensor]
    weight: str
    bias: str | None

    def weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.whole[self.weight], None if self.bias is None else self.whole[self.bias]


@dataclass(frozen=True)
class _HeadNorm:
    units: UnitGradients
    whole: Mapping[str, torch.Tensor]
    weight: str
    bias: str | None
    eps: float

    def of(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.whole[self.bias]
        return F.layer_norm(x, x.shape[-1:], self.whole[self.weight], bias, self.eps)


def capture(module: nn.Module, trained: Mapping[str, nn.Parameter], units: UnitGradients, whole: Mapping[str, torch.Tensor]) -> None:
    """Let the layers of `module` leave the gradients of `trained` parameters with `units`, instead of with the parameters.

    `whole` has the current values of all trained parameters by name, float32, without gradient: they are what the passes compute with.
    Raises PlanError for a trained parameter whose gradient cannot be had unit by unit, and for layers that mix the examples of a batch.
    """
    names = {id(parameter): name for name, parameter in trained.items()}
    refuse_mixing(module)
    covered: set[str] = set()
    for layer in module.modules():
        if isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) and hasattr(layer, "base_layer"):
            covered |= _capture_adapter(layer, names, units, whole)
        elif isinstance(layer, nn.Linear) and id(layer.weight) in names and "lora_" not in names[id(layer.weight)]:
            covered |= _capture_head(layer, names, units, whole)
        elif isinstance(layer, nn.LayerNorm) and id(layer.weight) in names:
            covered |= _capture_norm(layer, names, units, whole)
    if left := sorted(set(trained) - covered):
        raise PlanError(f"{left[0]} is trained, but its gradient cannot be had unit by unit ({len(left)} such)",
                        "adapters on linear layers and a linear head are; leave model.add_tokens and trained embeddings out")  # fmt: skip


def _capture_adapter(layer: Any, names: Mapping[int, str], units: UnitGradients, whole: Mapping[str, torch.Tensor]) -> set[str]:
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    if id(b) not in names or not isinstance(layer.lora_dropout[_ADAPTER], (nn.Identity, nn.Dropout)):
        return set()
    adapted = _AdaptedLayer(units, whole, names.get(id(a), ""), names[id(b)], a, id(a) in names, layer.scaling[_ADAPTER])
    layer.forward = partial(_forward_adapted, layer, adapted, layer.forward)
    return {adapted.a, adapted.b} - {""}


def _forward_adapted(layer: Any, adapted: _AdaptedLayer, usual: Any, x: torch.Tensor, *args: Any, **options: Any) -> Any:
    if layer.disable_adapters:
        return usual(x, *args, **options)
    y = layer.base_layer(x, *args, **options)
    y = y.clone() if y._is_view() else y  # bitsandbytes' 8-bit layers, whose output must not be written to
    return _Update.apply(y, layer.lora_dropout[_ADAPTER](x), adapted)  # type: ignore[no-untyped-call]


def _capture_head(layer: Any, names: Mapping[int, str], units: UnitGradients, whole: Mapping[str, torch.Tensor]) -> set[str]:
    bias = None if layer.bias is None else names[id(layer.bias)]
    head = _Head(units, whole, names[id(layer.weight)], bias)
    layer.forward = lambda x: _Linear.apply(x, head)  # type: ignore[no-untyped-call]
    return {head.weight} | ({bias} if bias else set())


def _capture_norm(layer: Any, names: Mapping[int, str], units: UnitGradients, whole: Mapping[str, torch.Tensor]) -> set[str]:
    bias = None if layer.bias is None else names[id(layer.bias)]
    norm = _HeadNorm(units, whole, names[id(layer.weight)], bias, layer.eps)
    layer.forward = lambda x: _Norm.apply(x, norm)  # type: ignore[no-untyped-call]
    return {norm.weight} | ({bias} if bias else set())
