"""How much there is to learn in the data of a job, from a sample of its rows: nothing is trained and nothing written."""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trainers.config import DataConfig, Task
from trainers.data.formats import BadRow, Content
from trainers.data.masking import encode
from trainers.data.prepare import contents
from trainers.errors import DataError

SAMPLED = 1000
"""Rows that are encoded, of all files together."""
_UNCUT = 10**9


@dataclass(frozen=True)
class Estimate:
    """Of the training side of a job's data, for one epoch."""

    rows: int
    """That can be read and are trained on; those held out are not counted"""
    sampled: int
    lengths: NDArray[np.int64]
    """Tokens of each example of the sampled rows"""
    learnt: float
    """Loss tokens of an example, on average"""

    @property
    def mean_length(self) -> float:
        return float(self.lengths.mean())

    @property
    def tokens(self) -> float:
        return self.rows * float(self.lengths.sum()) / self.sampled

    @property
    def square_mean(self) -> float:
        """Mean of the squared length over the mean length: how far back a token sees twice over, which attention is paid for by."""
        return float((self.lengths**2).mean()) / self.mean_length


def estimate(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> Estimate:
    """Count all training rows and encode some of them, drawn evenly, as training would with `max_length`; without it none is too long.

    Raises DataError for a file as a whole, or when nothing that was drawn can be learnt from.
    """
    rows, drawn = _draw(data, task)
    truncate = data.over_length == "truncate"
    encoded = encode(drawn, tokenizer, max_length=max_length or _UNCUT, truncate=truncate) if drawn else []
    examples = [example for found in encoded if not isinstance(found, BadRow) for example in found]
    if not examples:
        limit = "" if max_length is None else f" in {max_length} tokens (data.max_length)"
        raise DataError(f"no row of data.train can be learnt from{limit}", "consortium data inspect FILE --job JOB.yaml says why")
    learnt = sum(int(np.sum(example.learnt)) for example in examples) / len(examples)
    kept = rows if data.validation else round(rows * (1 - data.validation_fraction))
    return Estimate(kept, len(drawn), np.array([len(example.ids) for example in examples]), learnt)


def _draw(data: DataConfig, task: Task) -> tuple[int, list[Content]]:
    """The number of rows that can be read, and up to SAMPLED of them: each is as likely to be drawn (algorithm R, Vitter 1985)."""
    drawn: list[Content] = []
    rows, rng = 0, random.Random(0)
    for path in data.train:
        for _, content in contents(data, task, path):
            if isinstance(content, BadRow):
                continue
            rows += 1
            place = len(drawn) if len(drawn) < SAMPLED else rng.randrange(rows)
            if place < SAMPLED:
                drawn[place : place + 1] = [content]
    return rows, drawn
