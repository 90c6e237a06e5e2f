"""Where the examples of a global batch go: into rows, rows into micro-batches, micro-batches to workers. Pure arithmetic, no tensors.

Every worker gets the same number of micro-batches (short ones are padded with dummies), because each one is a collective call under ZeRO.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MicroBatch = list[list[int]]
"""Rows of a forward pass; each row holds the places (in the batch) of the examples packed into it, one if packing is off."""

_ROW_COUNTS_TRIED = 12


@dataclass(frozen=True)
class Placement:
    """micro_batches[rank][i] is what a worker computes in its i-th forward pass of the step; an empty list is a dummy."""

    micro_batches: list[list[MicroBatch]]
    padded_tokens: int
    """Tokens computed over all workers, padding included, dummies not."""


def place(lengths: Sequence[int] | np.ndarray, *, workers: int, micro_batch_tokens: int, packing: bool, hidden_size: int = 0) -> Placement:
    """Distribute examples of these lengths (tokens) over workers, at most `micro_batch_tokens` to a forward pass, padding counted.

    With packing, examples share rows. The number of rows is the one that costs least by the count of FLOPs of a decoder with dense masked
    attention: a row of width w costs about w * (6 * hidden_size + w), so wide rows are worth it when the model is wide. Pass
    `hidden_size` 0 where attention skips what it masks: then padding alone counts.
    An example longer than `micro_batch_tokens` gets a forward pass of its own.
    """
    if not len(lengths):
        return Placement([[[]] for _ in range(workers)], 0)
    order = sorted(range(len(lengths)), key=lambda index: -int(lengths[index]))
    if packing:
        rows = _pack(order, lengths, workers=workers, micro_batch_tokens=micro_batch_tokens, hidden_size=hidden_size)
    else:
        rows = [[index] for index in order]
    per_worker = [rows[rank::workers] for rank in range(workers)]  # rows come widest first: every worker gets like widths
    bounds = _cut([_width([row], lengths) for row in per_worker[0]], micro_batch_tokens)
    micro_batches = [[mine[start:end] for start, end in bounds] for mine in per_worker]
    padded = sum(len(micro) * _width(micro, lengths) for mine in micro_batches for micro in mine if micro)
    return Placement(micro_batches, padded)


def _pack(
    order: list[int], lengths: Sequence[int] | np.ndarray, *, workers: int, micro_batch_tokens: int, hidden_size: int
) -> list[list[int]]:
    """The cheapest of a few packings; rows balanced by the longest-processing-time rule (Graham 1969)."""
    total, longest = int(sum(lengths[i] for i in order)), int(lengths[order[0]])
    capacity = max(longest, micro_batch_tokens)
    fewest = math.ceil(total / capacity)
    most = min(len(order), max(fewest, math.ceil(total / longest)))
    counts = sorted({_round_up(int(n), workers) for n in np.linspace(fewest, most, _ROW_COUNTS_TRIED)})
    packings = [_balance(order, lengths, min(count, len(order))) for count in counts]
    fitting = [rows for rows in packings if _width(rows, lengths) <= capacity] or [_balance(order, lengths, len(order))]
    return min(fitting, key=lambda rows: _cost(rows, lengths, hidden_size))


def _balance(order: list[int], lengths: Sequence[int] | np.ndarray, count: int) -> list[list[int]]:
    heap: list[tuple[int, int]] = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for index in order:
        filled, row = heapq.heappop(heap)
        rows[row].append(index)
        heapq.heappush(heap, (filled + int(lengths[index]), row))
    return sorted(rows, key=lambda row: -sum(int(lengths[i]) for i in row))


def _cut(widths: list[int], micro_batch_tokens: int) -> list[tuple[int, int]]:
    """Where to cut rows, widest first, into micro-batches so that padding and the number of passes together cost least.

    A pass is reckoned to cost, besides its tokens, as much as 1/64 of a full one. Solved exactly, from the narrowest row backwards.
    """
    count, pass_cost = len(widths), micro_batch_tokens // 64
    best = np.zeros(count + 1)
    end_of = np.zeros(count, dtype=np.int64)
    for start in range(count - 1, -1, -1):
        ends = np.arange(start + 1, min(count, start + max(1, micro_batch_tokens // widths[start])) + 1)
        costs = (ends - start) * widths[start] + pass_cost + best[ends]
        choice = int(np.argmin(costs))
        best[start], end_of[start] = costs[choice], ends[choice]
    bounds, start = [], 0
    while start < count:
        bounds.append((start, int(end_of[start])))
        start = int(end_of[start])
    return bounds


def _width(rows: list[list[int]], lengths: Sequence[int] | np.ndarray) -> int:
    return max(sum(int(lengths[i]) for i in row) for row in rows)


def _cost(rows: list[list[int]], lengths: Sequence[int] | np.ndarray, hidden_size: int) -> float:
    width = _width(rows, lengths)
    return len(rows) * width * (6 * hidden_size + width if hidden_size else 1)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
