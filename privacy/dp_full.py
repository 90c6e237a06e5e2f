"""The gradient of each record over whole layers, clipped to a norm and summed, without ever being there: ghost clipping.

Of a linear layer the squared norm of a record's gradient follows from its tokens alone, as the sum over pairs of tokens of the product of
two inner products: of what came in, and of the gradients of what went out (Goodfellow 2015, arXiv 1510.01799; Li et al. 2022, arXiv
2110.05679, section 4). A first backward pass makes the norms and no gradient of a weight. A second one through the same graph, dropout
included, makes the sums, each record's share scaled where it enters. The norms of linear layers are Opacus', taken in float64: where pairs
of tokens cancel, float32 would leave nothing of a norm. Normalisations have few numbers: Opacus makes their gradients record by record.

Guarantee: `add_clipped` adds for each record a vector of Euclidean norm at most `clip_norm` (up to rounding, 1e-6 relative), which depends
on that record alone. A unit is a record, and a record is a row. Edge cases: a record whose norm is NaN or infinite adds zero, whatever is
in its row; one with a zero gradient, and a row without a record, add zero; no records leave the sum as it was.

The weights themselves get no gradient here, and nothing is reduced between workers: see trainers.private.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from opacus.grad_sample.linear import compute_linear_norm_sample
from torch import nn

from privacy.errors import PlanError
from privacy.gradients import Gradients, Pass, refuse_mixing

_TINY = 1e-12
_LORA = "set method: lora"


@dataclass(frozen=True)
class _Linear:
    """y = x W^T + bias; `transposed` where W is kept as (in, out), as GPT-2 has it."""

    layer: Any
    weight: str
    bias: str | None
    transposed: bool

    @property
    def names(self) -> set[str]:
        return {self.weight} | ({self.bias} if self.bias else set())

    def squares(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """The squared norm of each row's gradient (rows,), of x (rows, ..., in) that came in and g (rows, ..., out) of what went out."""
        tokens = [t.reshape(len(t), -1, t.shape[-1]).double() for t in (x, g)]
        norms = compute_linear_norm_sample(self.layer, tokens[:1], tokens[1])
        return torch.stack([norm.square() for norm in norms.values()]).sum(0)

    def add_sums(self, sums: Mapping[str, torch.Tensor], x: torch.Tensor, g: torch.Tensor) -> None:
        """Add the gradient of all rows together."""
        x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        left, right = (x, g) if self.transposed else (g, x)
        sums[self.weight].addmm_(left.t(), right)
        if self.bias:
            sums[self.bias].add_(g.sum(0))


@dataclass(frozen=True)
class _Vectors:
    """A layer that has vectors only, as a normalisation; with the same two methods."""

    layer: nn.Module
    by_parameter: Mapping[nn.Parameter, str]

    @property
    def names(self) -> set[str]:
        return set(self.by_parameter.values())

    def squares(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.stack([each.double().square().sum(1) for each in self._each(x, g).values()]).sum(0)

    def add_sums(self, sums: Mapping[str, torch.Tensor], x: torch.Tensor, g: torch.Tensor) -> None:
        for parameter, each in self._each(x, g).items():
            sums[self.by_parameter[parameter]].add_(each.sum(0))

    def _each(self, x: torch.Tensor, g: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
        """By row: (rows, numbers)."""
        found: dict[nn.Parameter, torch.Tensor] = ft_compute_per_sample_gradient(self.layer, [x], g)
        return found


_Layer = _Linear | _Vectors


class _Tap(torch.autograd.Function):
    """A layer's output as it is; the backward pass shows what came in and the gradient of what went out."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, x: torch.Tensor, root: torch.Tensor, ghosts: "GhostGradients", layer: _Layer) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.ghosts, ctx.layer = ghosts, layer
        return y.clone()  # some models add to a layer's output in place, which a view would not survive

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,), (x,) = gradients, ctx.saved_tensors
        ctx.ghosts.saw(ctx.layer, x, g)
        return g, None, g.new_zeros(()), None, None


class GhostGradients(Gradients):
    """The layers of `module` show here what the gradients of `trained` parameters are made of.

    Raises PlanError for a trained parameter whose gradient cannot be had record by record, and for layers that mix the examples of a batch.
    """

    bytes_of_a_unit = 8  # its norm

    def __init__(self, module: nn.Module, trained: Mapping[str, nn.Parameter], device: torch.device) -> None:
        super().__init__({name: parameter.shape for name, parameter in trained.items()}, device)
        refuse_mixing(module)
        self._root = torch.zeros((), device=device, requires_grad=True)
        """All taps lead to it: a backward pass that is to end here goes through every layer and makes no gradient of a weight"""
        self._rows = 0
        self._seen: set[str] = set()
        self._squares = torch.empty(0)
        self._scales: torch.Tensor | None = None
        """By row; None during the first backward pass"""
        self._sums: dict[str, torch.Tensor] = {}
        covered: set[str] = set()
        for layer in _layers(module, trained):
            if again := layer.names & covered:
                raise PlanError(f"{min(again)} is shared by two layers", _LORA)
            covered |= layer.names
            self._tap(layer)
        if left := sorted(set(trained) - covered):
            raise PlanError(f"{left[0]} is trained, but its gradient cannot be had record by record ({len(left)} such)",
                            f"linear layers and normalisations are trained in full; for other models {_LORA}")  # fmt: skip

    def _tap(self, layer: _Layer) -> None:
        def show(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return output
            if len(inputs) != 1 or len(inputs[0]) != self._rows:
                raise PlanError(f"the layer of {min(layer.names)} is not called with a row for each record", _LORA)
            tapped: torch.Tensor = _Tap.apply(output, inputs[0], self._root, self, layer)  # type: ignore[no-untyped-call]
            return tapped

        layer.layer.register_forward_hook(show)

    def add_clipped(self, total: torch.Tensor, clip_norm: float, units: int, passes: Iterable[Pass]) -> float:
        self._sums, loss = dict(self.split(total)), 0.0
        for each in passes:
            assert len({s.row for s in each.segments}) == len({s.unit for s in each.segments}) == len(each.segments), "a row is a unit"
            self._rows = each.rows
            summed = each.loss()
            norms = self._norms(summed)
            weights = torch.zeros(each.rows, dtype=norms.dtype)
            for segment in each.segments:
                weights[segment.row] = segment.weight
            weights = weights.to(self.device)
            scales = weights * (clip_norm / (weights * norms).clamp(min=_TINY)).clamp(max=1.0)
            self._scales = scales.masked_fill(~norms.isfinite(), 0.0).to(total.dtype)
            torch.autograd.grad(summed, self._root)
            loss += float(summed.detach())
        return loss

    def _norms(self, summed: torch.Tensor) -> torch.Tensor:
        """Of each row's gradient: (rows,) in float64. Private."""
        self._seen, self._scales = set(), None
        self._squares = torch.zeros(self._rows, dtype=torch.float64, device=self.device)
        torch.autograd.grad(summed, self._root, retain_graph=True)
        return self._squares.sqrt()

    def saw(self, layer: _Layer, x: torch.Tensor, g: torch.Tensor) -> None:
        """What a layer shows in a backward pass. Raises PlanError for one that was called twice, whose norm is not that of its parts."""
        if self._scales is not None:
            left_out = self._scales == 0  # masked, not multiplied: zero times infinity is not zero
            x, g = (t.masked_fill(_beside(left_out, t), 0.0) for t in (x, g))
            layer.add_sums(self._sums, x, g * _beside(self._scales, g))
            return
        if again := layer.names & self._seen:
            raise PlanError(f"the layer of {min(again)} is called twice in a pass", _LORA)
        self._seen |= layer.names
        self._squares += layer.squares(x, g)


def _beside(rows: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """(rows,) as (rows, 1, ...), to go with t (rows, ...)."""
    return rows.view(-1, *[1] * (t.dim() - 1))


def _layers(module: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[_Layer]:
    """The layers all of whose parameters are trained, and whose gradients can be had record by record."""
    names = {parameter: name for name, parameter in trained.items()}
    for layer in module.modules():
        own = dict(layer.named_parameters())
        if not own or not all(parameter in names for parameter in own.values()):
            continue
        transposed = type(layer).__name__ == "Conv1D"  # of transformers
        if isinstance(layer, nn.Linear) or transposed:
            yield _Linear(layer, names[own["weight"]], names[own["bias"]] if "bias" in own else None, transposed)
        elif all(parameter.dim() == 1 for parameter in own.values()) and not [*layer.children(), *layer.buffers()]:
            prepare_layer(layer)
            yield _Vectors(layer, {parameter: names[parameter] for parameter in own.values()})
