"""How many tokens an epoch has, from the first rows of each file times the number of its rows: for `consortium plan`."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trainers.config import DataConfig, Task
from trainers.data.formats import read_rows
from trainers.data.masking import encode
from trainers.data.prepare import contents
from trainers.errors import DataError

SAMPLED = 500
"""Rows of a file that are encoded."""


@dataclass(frozen=True)
class Estimate:
    """Of the training side of a job's data, for one epoch."""

    rows: int
    sampled: int
    examples: float
    tokens: float
    square_mean: float
    """Mean of the squared length over the mean length: how far back a token sees twice over, which attention is paid for by"""

    @property
    def mean_length(self) -> float:
        return self.tokens / self.examples


def estimate(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Estimate:
    """Encode up to SAMPLED rows of each training file as training would; bad rows are left out, long ones cut. Raises DataError."""
    examples = tokens = squares = 0.0
    rows = sampled = 0
    for path in data.train:
        lengths, seen = _lengths(data, task, tokenizer, path, max_length)
        count = sum(1 for _ in read_rows(path))
        each = count / max(1, seen)
        examples += each * len(lengths)
        tokens += each * sum(lengths)
        squares += each * sum(length**2 for length in lengths)
        rows, sampled = rows + count, sampled + seen
    if not tokens:
        raise DataError("no row of the training files can be learnt from", "`consortium data inspect` shows why")
    share = 1 - data.validation_fraction if not data.validation else 1.0
    return Estimate(rows, sampled, share * examples, share * tokens, squares / tokens)


def _lengths(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, path: Path, max_length: int) -> tuple[list[int], int]:
    """Tokens of the examples in the first rows of a file, and how many rows these were."""
    first = [content for _, content in itertools.islice(contents(data, task, path), SAMPLED)]
    encoded = encode(first, tokenizer, max_length=max_length, truncate=True)
    return [len(example.ids) for found in encoded if isinstance(found, list) for example in found], len(first)
