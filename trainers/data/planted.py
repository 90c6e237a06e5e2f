"""Canaries among the training rows: each a unit of its own, behind the real ones. The rows on disk stay as they are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from privacy.canaries import Canary
from trainers.config import Task
from trainers.data.formats import BadRow, Chat, Content, Labelled, Text
from trainers.data.masking import Encoded, encode
from trainers.data.prepare import Prepared
from trainers.errors import DataError


def content_of(canary: Canary, task: Task) -> Content:
    """What a canary says, as a row of the task would."""
    match task:
        case "classify":
            assert canary.label is not None
            return Labelled(canary.text, canary.label)
        case "pretrain":
            return Text(canary.text)
        case "sft":
            return Chat((("user", canary.prompt), ("assistant", canary.answer)))


def plant(data: Prepared, canaries: Sequence[Canary], task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Prepared:
    """The data with these canaries behind them. Raises DataError where one is longer than examples may be."""
    examples = []
    for canary, found in zip(canaries, encode([content_of(c, task) for c in canaries], tokenizer, max_length=max_length, truncate=False),
                             strict=True):  # fmt: skip
        if isinstance(found, BadRow):
            raise DataError(f"{canary.name}: {found}", "raise data.max_length: canaries of privacy.audit are rows like others")
        examples.append(found[0])
    first = int(data.units.max()) + 1 if len(data) else 0
    return replace(
        data,
        rows=_Joined(data.rows, _columns(examples, data, task)),
        lengths=np.concatenate([data.lengths, [len(example.ids) for example in examples]]).astype(data.lengths.dtype),
        targets=np.concatenate([data.targets, [_targets(example, task) for example in examples]]).astype(data.targets.dtype),
        units=np.concatenate([data.units, first + np.arange(len(examples))]),
        files=[*data.files, "canaries"],
    )


def _targets(example: Encoded, task: Task) -> int:
    return 1 if task == "classify" else sum(example.learnt[1:])


def _columns(examples: Sequence[Encoded], data: Prepared, task: Task) -> dict[str, list[Any]]:
    return {
        "ids": [example.ids for example in examples],
        "learnt": [example.learnt for example in examples],
        "label": [data.labels_met.index(example.label) if task == "classify" else 0 for example in examples],
        "file": [len(data.files)] * len(examples),
        "line": list(range(1, len(examples) + 1)),
    }


class _Joined:
    """Rows of a dataset, and others in memory behind them."""

    def __init__(self, rows: Any, more: dict[str, list[Any]]) -> None:
        self._rows, self._more = rows, more

    def __len__(self) -> int:
        return len(self._rows) + len(self._more["ids"])

    def __getitem__(self, indices: list[int]) -> dict[str, list[Any]]:
        count = len(self._rows)
        real = self._rows[[index for index in indices if index < count]]
        found = {}
        for name, column in self._more.items():
            following = iter(real[name])
            found[name] = [next(following) if index < count else column[index - count] for index in indices]
        return found
