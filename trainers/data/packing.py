"""Where the examples of a global batch go: into rows, rows into micro-batches, micro-batches to workers. Pure arithmetic, no tensors.

Every worker gets the same number of micro-batches (short ones are padded with dummies), because each one is a collective call under ZeRO.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Layout = Literal["padded", "packed", "blocks", "ragged"]
"""How the rows of a pass lie, and what is in them.

`padded`: an example in each; `packed`: as many as fit, kept apart by a dense mask. Both are all as wide as the widest. In the other two the
rows lie one behind the other in one, an example in each (see trainers.attention): `ragged` without padding, for kernels that take rows of
any width; `blocks` in blocks of one width, for those that do not.
"""

_ROW_COUNTS_TRIED = 12
_BLOCK_TOKENS = 4
"""What a block of its own costs, in tokens: the calls of attention that it takes in every layer."""


@dataclass(frozen=True)
class MicroBatch:
    """A forward pass: which examples (places in the batch) each row holds, and its width in tokens, padding included; no rows: a dummy."""

    rows: list[list[int]]
    widths: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.widths)


_DUMMY = MicroBatch([], [])


@dataclass(frozen=True)
class Placement:
    """micro_batches[rank][i] is what a worker computes in its i-th forward pass of the step."""

    micro_batches: list[list[MicroBatch]]

    @property
    def padded_tokens(self) -> int:
        """Tokens computed over all workers, padding included, dummies not."""
        return sum(micro.tokens for mine in self.micro_batches for micro in mine)


def place(lengths: Sequence[int] | np.ndarray, *, workers: int, micro_batch_tokens: int, layout: Layout, hidden_size: int = 0) -> Placement:
    """Distribute examples of these lengths (tokens) over workers, at most `micro_batch_tokens` to a forward pass, padding counted.

    Where examples share rows, or rows blocks, what costs least is chosen by the count of FLOPs of a decoder: a row of width w costs about
    w * (6 * hidden_size + w), so wide rows are worth it when the model is wide.
    An example longer than `micro_batch_tokens` gets a forward pass of its own.
    """
    if not len(lengths):
        return Placement([[_DUMMY] for _ in range(workers)])
    order = sorted(range(len(lengths)), key=lambda index: -int(lengths[index]))
    if layout in ("blocks", "ragged"):
        return _place_in_one_row(order, lengths, workers, micro_batch_tokens, hidden_size if layout == "blocks" else None)
    if layout == "packed":
        rows = _pack(order, lengths, workers=workers, micro_batch_tokens=micro_batch_tokens, hidden_size=hidden_size)
    else:
        rows = [[index] for index in order]
    per_worker = [rows[rank::workers] for rank in range(workers)]  # rows come widest first: every worker gets like widths
    widths = [_width([row], lengths) for row in per_worker[0]]
    bounds = _cut(widths, fixed=micro_batch_tokens // 64, most=micro_batch_tokens)
    return Placement([[_even(mine[start:end], lengths) for start, end in bounds] for mine in per_worker])


def _even(rows: list[list[int]], lengths: Sequence[int] | np.ndarray) -> MicroBatch:
    return MicroBatch(rows, [_width(rows, lengths)] * len(rows)) if rows else _DUMMY


def _place_in_one_row(
    order: list[int], lengths: Sequence[int] | np.ndarray, workers: int, micro_batch_tokens: int, hidden_size: int | None
) -> Placement:
    """Each worker gets like loads; `hidden_size` None where rows need not be padded."""
    found = []
    for share in _balance(order, lengths, workers):
        widths = [int(lengths[index]) for index in share]
        found.append(_fill(share, widths if hidden_size is None else _in_blocks(widths, hidden_size), micro_batch_tokens))
    passes = max(len(mine) for mine in found)
    return Placement([mine + [_DUMMY] * (passes - len(mine)) for mine in found])


def _in_blocks(lengths: list[int], hidden_size: int) -> list[int]:
    """The widths of rows of these lengths, longest first, in blocks that together cost least."""
    token = 6 * hidden_size
    blocks = _cut(lengths, fixed=_BLOCK_TOKENS * token, each=lambda width: width * (token + width))
    return [lengths[start] for start, end in blocks for _ in range(start, end)]


def _fill(share: list[int], widths: list[int], micro_batch_tokens: int) -> list[MicroBatch]:
    """Rows in their order, as many to a pass as it takes, and an empty row where that makes its tokens a number that comes again."""
    passes: list[MicroBatch] = []
    for index, width in zip(share, widths, strict=True):
        if not passes or passes[-1].tokens + width > micro_batch_tokens:
            passes.append(MicroBatch([], []))
        passes[-1].rows.append([index])
        passes[-1].widths.append(width)
    for micro in passes:
        if (total := common(micro.tokens)) <= micro_batch_tokens and total > micro.tokens:
            micro.rows.append([])
            micro.widths.append(total - micro.tokens)
    return passes or [_DUMMY]


def common(tokens: int) -> int:
    """The next of the 16 numbers between two powers of two: of a few sizes memory is used again, and kernels need not be made anew."""
    return _round_up(tokens, 1 << max(0, tokens.bit_length() - 5))


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


def _cut(widths: list[int], *, fixed: float, most: int | None = None, each: Callable[[int], float] = float) -> list[tuple[int, int]]:
    """Where to cut rows, widest first, into parts as wide as their widest row, so that all together costs least.

    A part costs `fixed` and, for each row, what `each` says of its width; it has at most `most` tokens, or one row. Solved exactly, from
    the narrowest row backwards.
    """
    count = len(widths)
    best = np.zeros(count + 1)
    end_of = np.zeros(count, dtype=np.int64)
    for start in range(count - 1, -1, -1):
        room = count - start if most is None else max(1, most // widths[start])
        ends = np.arange(start + 1, min(count, start + room) + 1)
        costs = (ends - start) * each(widths[start]) + fixed + best[ends]
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
    return len(rows) * width * (6 * hidden_size + width)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
