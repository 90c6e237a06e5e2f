"""How much there is to learn in the data of a job, from a sample of its rows: nothing is trained and nothing written."""

import random
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainers.config import DataConfig, Task
from trainers.data.formats import BadRow, Content
from trainers.data.masking import encode
from trainers.data.prepare import contents
from trainers.errors import DataError

SAMPLED = 1000


@dataclass(frozen=True)
class DataSample:
    rows: int
    """That are trained on; those held out are not counted"""
    median: int
    """Tokens of a row, uncut"""
    p99: int
    longest: int
    """Of the sampled rows"""
    learnt: float
    """Loss tokens of a row, on average"""


def sample(data: DataConfig, task: Task, tokenizer: PreTrainedTokenizerBase) -> DataSample:
    """Count all training rows and encode some of them, drawn evenly. Raises DataError for a file as a whole, or when no row can be read."""
    drawn: list[Content] = []
    rows, rng = 0, random.Random(0)
    for path in data.train:
        for _, content in contents(data, task, path):
            if isinstance(content, BadRow):
                continue
            rows += 1
            place = len(drawn) if len(drawn) < SAMPLED else rng.randrange(rows)  # algorithm R: each row is as likely to stay
            if place < SAMPLED:
                drawn[place : place + 1] = [content]
    encoded = encode(drawn, tokenizer, max_length=10**9, truncate=True) if drawn else []
    found = [examples for examples in encoded if not isinstance(examples, BadRow)]
    if not found:
        raise DataError("no row of data.train can be read", "consortium data inspect FILE --job JOB.yaml says why")
    lengths = np.array([sum(len(example.ids) for example in examples) for examples in found])
    learnt = sum(int(np.sum(example.learnt)) for examples in found for example in examples) / len(found)
    kept = rows if data.validation else round(rows * (1 - data.validation_fraction))
    return DataSample(kept, int(np.median(lengths)), int(np.quantile(lengths, 0.99)), int(lengths.max()), learnt)
