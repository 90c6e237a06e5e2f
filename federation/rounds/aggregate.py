"""What a round makes of the banks' updates: functions of arrays, float32 in and out, float64 in between.

An adapter is its tensors by the names PEFT has for them on disk. An adapted layer has A, `....lora_A.weight` (rank, in), and B,
`....lora_B.weight` (out, rank), and adds s B A to its weight; a tensor of another name, such as a classifier's head, is trained whole.
From a sum of updates, which is all that secure aggregation gives, three methods make the next adapter:

    method   banks train and send   next                                   mean(B_i A_i) is
    ffa      B, whole tensors       B + mean of dB; A never changes        exactly mean(B_i) A
    fedsvd   B, whole tensors       as ffa, then BA factored anew          exactly mean(B_i) A
    fedavg   A, B, whole tensors    A + mean of dA, B + mean of dB         missed by the banks' covariance of B and A

- ffa: FFA-LoRA, Sun et al. 2024, arXiv 2403.12313. Noise on B enters the product once; with A trained too it is squared.
- fedsvd: Lee et al. 2025, arXiv 2505.12805. A becomes the right singular vectors of BA, B the rest. That is a turn of the basis: as banks
  train B alone, the rows of A span what they spanned in the first round, and the product stays. What it gives is rows of norm 1, so that
  a gradient of B is no longer than that of the product, in the order of the update's principal directions, which matters to what treats
  coordinates each for itself, as Adam does.
- fedavg: McMahan et al. 2017, arXiv 1602.05629, algorithm 1. It misses mean(B_i A_i) by mean((B_i - B)(A_i - A)), with A and B the means.
  For N banks whose factors are common numbers plus h times numbers of their own, all of variance 1, that is in proportion to
  mean(B_i A_i) h^2 sqrt(N - 1) / sqrt((N + h^2)^2 + h^4 (N - 1)): with 8 banks 2.5 % at h = 0.275 and 31 % at h = 1.06.

How equal two parties' results are that start from the same sum: ffa and fedavg add, multiply and divide single coordinates only, and give
the same bits everywhere. fedsvd rests on LAPACK. Its product BA is the same to some 10^-7 of its norm; A and B are so where singular values
are apart, with signs fixed by the greatest entry of each row of A, and are any basis where they are equal, or 0. So one party's result is
given to all.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from federation.errors import AdapterError
from federation.policy import Method

Array = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
Adapter = Mapping[str, Array]

_A, _B = ".lora_A.", ".lora_B."
_PRODUCTS_DIFFER = 1e-5  # of their norm, at most: float32's rounding of both factors with room to spare


@dataclass(frozen=True)
class Layout:
    """Where each tensor of an adapter is in the vector that banks send. The same at all banks, which compare `hash`."""

    method: Method
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    """Of all tensors, in the order of their names"""

    @classmethod
    def of(cls, adapter: Adapter, method: Method) -> Self:
        """Raises AdapterError for what is not float32, an A without its B, or ranks that do not match."""
        if wrong := sorted(name for name, tensor in adapter.items() if tensor.dtype != np.float32):
            raise AdapterError(f"{wrong[0]} is {adapter[wrong[0]].dtype}, expected float32", "adapters of a federation are kept in float32")
        layout = cls(method, tuple((name, adapter[name].shape) for name in sorted(adapter)))
        for a, b in layout.pairs:
            _check_pair(a, adapter.get(a), b, adapter.get(b))
        return layout

    @cached_property
    def hash(self) -> bytes:
        """SHA-256; stands for the method, and the name and shape of every tensor."""
        return hashlib.sha256(json.dumps([self.method, self.shapes]).encode()).digest()

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The names of A and B of every adapted layer."""
        names = {name.replace(_B, _A) for name, _ in self.shapes if _A in name or _B in name}
        return tuple((name, name.replace(_A, _B)) for name in sorted(names))

    @cached_property
    def sent(self) -> dict[str, slice]:
        """Where the tensors are that are sent."""
        places, end = {}, 0
        for name, shape in self.shapes:
            if self.method == "fedavg" or _A not in name:
                start, end = end, end + int(np.prod(shape))
                places[name] = slice(start, end)
        return places

    @property
    def length(self) -> int:
        """Coordinates that are sent."""
        return max((place.stop for place in self.sent.values()), default=0)

    def flatten(self, adapter: Adapter) -> Vector:
        """What is sent of an adapter. Raises AdapterError if it is another's."""
        self.check(Layout.of(adapter, self.method))
        flat = np.empty(self.length, np.float32)
        for name, place in self.sent.items():
            flat[place] = adapter[name].reshape(-1)
        return flat

    def unflatten(self, vector: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """The tensors that are sent, as views of the vector."""
        if vector.shape != (self.length,):
            raise AdapterError(f"a vector of shape {vector.shape}, expected ({self.length},)", "was it made for another adapter?")
        shapes = dict(self.shapes)
        return {name: vector[place].reshape(shapes[name]) for name, place in self.sent.items()}

    def check(self, other: "Layout") -> None:
        """AdapterError, naming the first tensor that differs, unless the other is the same.

        Ranks and modules must be the same at all banks: what only one of them has is not hidden by a sum.
        """
        if self.method != other.method:
            raise AdapterError(f"a layout for {other.method}, expected {self.method}", "all banks follow the federation's method")
        mine, others = dict(self.shapes), dict(other.shapes)
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) != others.get(name):
                raise AdapterError(
                    f"{name} is {_shape(others.get(name))}, expected {_shape(mine.get(name))}",
                    "rank and modules are the same for all banks: a slice that only one has would not be hidden by the sum",
                )


@dataclass(frozen=True)
class State:
    """What a round starts from."""

    adapter: Adapter
    velocity: Vector
    """The server's momentum, of what is sent"""


@dataclass(frozen=True)
class Mean:
    """What a sum of contributions says."""

    delta: npt.NDArray[np.float64]
    """The banks' mean update, weighted"""
    weight: float
    """The sum of their weights"""
    metrics: tuple[float, ...]
    """The sum of each"""


def bounded(delta: Vector, clip: float) -> Vector:
    """An update scaled to an L2 norm of at most `clip`, to within the rounding of its float32 coordinates; 0 stays 0.

    Raises AdapterError for NaN and infinity.
    """
    exact = delta.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    if not math.isfinite(norm):
        raise AdapterError("an update with NaN or infinity in it", "a bank whose training diverged sits the round out")
    return delta if norm <= clip else (exact * (clip / norm)).astype(np.float32)


def contribution(delta: Vector, clip: float, weight: float = 1.0, metrics: Sequence[float] = ()) -> Vector:
    """The vector a bank encodes, masks and sends: its weighted update, its weight, its metrics.

    A weight is more than 0 and at most 1, a metric from -1 to 1. They are scaled by `clip`, which then bounds every coordinate. A weight
    is hidden as the update is; of all the coordinator learns the sum alone.
    """
    if not 0 < weight <= 1:
        raise AdapterError(f"a weight of {weight:g}, expected more than 0 and at most 1", "a share of the most that any bank may have")
    last = np.array([weight, *metrics], np.float64) * clip
    return np.concatenate([bounded(delta, clip) * np.float32(weight), last.astype(np.float32)])


def mean(layout: Layout, total: npt.NDArray[Any], clip: float) -> Mean:
    """What the sum of banks' contributions, in any order, amounts to. Raises AdapterError if it is none."""
    if len(total) <= layout.length or not total[layout.length] > 0:
        raise AdapterError("a sum without weights", "was it made for another adapter?")
    weight, *metrics = (total[layout.length :].astype(np.float64) / clip).tolist()
    return Mean(total[: layout.length].astype(np.float64) / weight, weight, tuple(metrics))


def begin(layout: Layout, adapter: Adapter) -> State:
    """The first round's state; for fedsvd with rows of A made orthonormal."""
    return _turned(layout, State(adapter, np.zeros(layout.length, np.float32)))


def advance(layout: Layout, state: State, delta: npt.NDArray[np.float64], momentum: float) -> State:
    """The next round's state: v = momentum v + delta is added to what is sent (FedAvgM, Hsu et al. 2019, arXiv 1909.06335).

    Without momentum that is the mean of the banks' tensors.
    """
    velocity = momentum * state.velocity.astype(np.float64) + delta
    moved = {name: (state.adapter[name] + change).astype(np.float32) for name, change in layout.unflatten(velocity).items()}
    return _turned(layout, State({**state.adapter, **moved}, velocity.astype(np.float32)))


def agree(layout: Layout, one: Adapter, other: Adapter) -> bool:
    """Whether two parties that started from the same sum have come to the same adapter, both of this layout; see above for how equal."""
    turned = {name for pair in layout.pairs for name in pair} if layout.method == "fedsvd" else set[str]()
    return all(np.array_equal(one[name], other[name]) for name, _ in layout.shapes if name not in turned) and all(
        _norm(np.hstack([one[b], other[b]]), np.vstack([one[a], -other[a]])) <= _PRODUCTS_DIFFER * _norm(one[b], one[a])
        for a, b in layout.pairs
        if turned
    )


def _norm(b: Array, a: Array) -> float:
    """Of the product BA, from thin factors."""
    (_, left), (_, right) = (np.linalg.qr(factor.astype(np.float64)) for factor in (b, a.T))
    return float(np.linalg.norm(left @ right.T))


def _turned(layout: Layout, state: State) -> State:
    """For fedsvd: A and B as singular vectors and the rest, the momentum of B in the same basis. The products are unchanged."""
    if layout.method != "fedsvd":
        return state
    adapter, velocity = dict(state.adapter), state.velocity.copy()
    moving = layout.unflatten(velocity)
    for a, b in layout.pairs:
        adapter[a], turn = _factor(adapter[a], adapter[b])
        adapter[b] = (adapter[b] @ turn).astype(np.float32)
        moving[b][...] = moving[b] @ turn
    return State(adapter, velocity)


def _factor(a: Array, b: Array) -> tuple[Array, npt.NDArray[np.float64]]:
    """The right singular vectors of BA, as rows, and the matrix T with B A = (B T) (those).

    From the thin factors: A^T = Q R, and with V^T the right singular vectors of (R of B) R^T, (rank, rank), those of BA are V^T Q^T, and
    T = R^T V. Where BA has a lower rank the rest is filled up from the rows of A, so that T loses nothing.
    """
    q, r = np.linalg.qr(a.T.astype(np.float64))
    _, _, rows = np.linalg.svd(np.linalg.qr(b.astype(np.float64), mode="r") @ r.T)
    vectors = rows @ q.T
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1, keepdims=True), axis=1))
    return (vectors * signs).astype(np.float32), r.T @ (rows * signs).T


def _check_pair(a_name: str, a: Array | None, b_name: str, b: Array | None) -> None:
    if a is None or b is None:
        missing = a_name if a is None else b_name
        raise AdapterError(f"{missing} is not there, but its other factor is", "an adapter has A and B for every layer")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] > min(a.shape[1], b.shape[0]):
        raise AdapterError(
            f"{a_name} is {a.shape} and its B {b.shape}: expected (rank, in) and (out, rank), of a rank no greater than in and out",
            "a greater rank adds nothing that can be learnt",
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"of shape {shape}"
