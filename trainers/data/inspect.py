"""What a job's data looks like to the model, before anything is trained: lengths, what is learnt, labels, rows dropped or cut.

The rows go through the same code as in `prepare`, so that what is found here is what training will do.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from trainers.config import DataConfig, Task
from trainers.data.masking import Encoded
from trainers.data.prepare import VALIDATION, Outcome, outcomes

_BINS = 10
_LISTED = 20

Piece = tuple[str, bool]
"""A stretch of text, and whether its tokens are learnt."""


@dataclass(frozen=True)
class Bin:
    """Rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of whole rows: before any is cut, and with those that are dropped for it."""

    min: int
    median: int
    p95: int
    max: int
    histogram: list[Bin]


@dataclass(frozen=True)
class Shown:
    """One example as the model gets it; of a pretraining document, the first block."""

    origin: str
    pieces: list[Piece]
    label: str


@dataclass(frozen=True)
class Inspection:
    """`good` rows are trained or evaluated on (`held_out` is the validation side), the others are dropped."""

    max_length: int
    rows: int
    good: int
    held_out: int
    examples: int
    tokens: int
    """Of all examples, after cutting"""
    learnt_tokens: int
    lengths: Lengths | None
    """None when no row could be read"""
    labels: dict[str, int]
    """Good rows by class, most common first; empty unless the task is classify"""
    truncated: int
    dropped: dict[str, int]
    """Rows by kind of reason, most common first"""
    listed: list[str]
    """The first dropped or truncated rows, as `file:line: reason`"""
    shown: list[Shown]

    @property
    def learnt_share(self) -> float:
        return self.learnt_tokens / max(1, self.tokens)


def inspect(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, shown: int = 3) -> Inspection:
    """Read all rows of `data.train` and `data.validation`, keep counts only, and never stop at a bad one.

    Raises DataError for a file as a whole: missing, of an unknown kind, not UTF-8, or with columns that fit no layout.
    """
    tally = _Tally()
    for outcome in outcomes(data, task, tokenizer, max_length=max_length):
        tally.add(outcome)
        if outcome.examples and len(tally.shown) < shown:
            example = outcome.examples[0]
            tally.shown.append(Shown(_origin(outcome), _pieces(example, tokenizer), example.label))
    return tally.result(task, max_length)


@dataclass
class _Tally:
    rows: int = 0
    good: int = 0
    held_out: int = 0
    examples: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    truncated: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    listed: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.rows += 1
        if outcome.problem is not None:
            self.dropped[outcome.problem.kind] += 1
            self._list(outcome, str(outcome.problem))
            if outcome.problem.tokens is not None:
                self.lengths[outcome.problem.tokens] += 1
            return
        kept, cut = sum(len(example.ids) for example in outcome.examples), sum(example.cut for example in outcome.examples)
        self.good += 1
        self.held_out += outcome.side == VALIDATION
        self.examples += len(outcome.examples)
        self.tokens += kept
        self.learnt_tokens += sum(sum(example.learnt[1:]) for example in outcome.examples)
        self.lengths[kept + cut] += 1
        self.labels[outcome.examples[0].label] += 1
        if cut:
            self.truncated += 1
            self._list(outcome, f"over length: {kept + cut} tokens, cut to {kept}")

    def _list(self, outcome: Outcome, reason: str) -> None:
        if len(self.listed) < _LISTED:
            self.listed.append(f"{_origin(outcome)}: {reason}")

    def result(self, task: Task, max_length: int) -> Inspection:
        return Inspection(
            max_length=max_length,
            rows=self.rows,
            good=self.good,
            held_out=self.held_out,
            examples=self.examples,
            tokens=self.tokens,
            learnt_tokens=self.learnt_tokens,
            lengths=_summarise(self.lengths) if self.lengths else None,
            labels=dict(self.labels.most_common()) if task == "classify" else {},
            truncated=self.truncated,
            dropped=dict(self.dropped.most_common()),
            listed=self.listed,
            shown=self.shown,
        )


def _origin(outcome: Outcome) -> str:
    return f"{outcome.row.file}:{outcome.row.line}"


def _summarise(rows_by_length: Counter[int]) -> Lengths:
    lengths = sorted(rows_by_length)
    ranks = list(itertools.accumulate(rows_by_length[length] for length in lengths))

    def quantile(share: float) -> int:
        """The shortest length that this share of the rows does not exceed."""
        return next(length for length, rank in zip(lengths, ranks, strict=True) if rank >= share * ranks[-1])

    width = math.ceil((lengths[-1] - lengths[0] + 1) / _BINS)
    bins = []
    for low in range(lengths[0], lengths[-1] + 1, width):
        bins.append(Bin(low, low + width - 1, sum(rows_by_length[length] for length in lengths if low <= length < low + width)))
    return Lengths(lengths[0], quantile(0.5), quantile(0.95), lengths[-1], bins)


def _pieces(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The text of an example in runs of learnt and other tokens. The first token is given, never learnt."""
    pieces, text = [], ""
    flags = [False, *example.learnt[1:]]
    for learnt, run in itertools.groupby(range(len(flags)), key=flags.__getitem__):
        whole = tokenizer.decode(example.ids[: max(run) + 1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        pieces.append((whole[len(text) :], learnt))  # decoded from the start: a run alone may lose the space before it
        text = whole
    return pieces
