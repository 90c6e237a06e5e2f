"""Models and records to take gradients of, unit by unit, and each record's loss alone: what both ways to them are compared with."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from privacy.gradients import Segment
from tests import helpers
from trainers.config import ModelConfig
from trainers.model import load_base, load_tokenizer

RECORDS = [(0, 7), (1, 12), (2, 5), (0, 9), (3, 3)]
"""Unit and tokens of each record: unit 0 has two"""
CLIP = 0.05


def make_base(family: str, folder: Path, **options: Any) -> Any:
    still = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    helpers.make_model(family, folder, **still)
    model = ModelConfig(path=str(folder), **options)
    classify = family in ("bert", "modernbert")
    labels = ["a", "b", "c"] if classify else []
    task = "classify" if classify else "sft"
    return load_base(model, task, load_tokenizer(model), labels=labels, device=torch.device("cpu"), seed=0)


def records() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, helpers.VOCABULARY, (length,), generator=generator) for _, length in RECORDS]


def gradient(module: nn.Module, base: Any, number: int) -> dict[str, torch.Tensor]:
    """Of one record alone, by autograd."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    loss = _loss(base, records()[number], number % 3)
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(trained, found, strict=True))


def _loss(base: Any, ids: torch.Tensor, label: int) -> torch.Tensor:
    """Mean over its tokens, or of its class."""
    output = base(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits.float()
    if base.config.num_labels == 3:
        return F.cross_entropy(output, torch.tensor([label]))
    return F.cross_entropy(output[0, :-1], ids[1:])


def segments(base: Any, numbers: list[int], units: list[int]) -> list[Segment]:
    """These records, one a row, as those of these units; with a classifier a record's loss is one number."""
    lengths = [RECORDS[number][1] for number in numbers]
    weights = [1.0 if base.config.num_labels == 3 else 1 / (length - 1) for length in lengths]
    return [Segment(unit, row, 0, lengths[row], weights[row]) for row, unit in enumerate(units)]


def padded_loss(base: Any, numbers: list[int]) -> torch.Tensor:
    """Of these records, one a row, padded; summed."""
    rows = [records()[number] for number in numbers]
    width = max(len(ids) for ids in rows)
    ids, mask = torch.full((len(rows), width), 2), torch.zeros(len(rows), width, dtype=torch.long)
    for row, record in enumerate(rows):
        ids[row, : len(record)], mask[row, : len(record)] = record, 1
    logits = base(input_ids=ids, attention_mask=mask).logits.float()
    if base.config.num_labels == 3:
        return F.cross_entropy(logits, torch.tensor([number % 3 for number in numbers]), reduction="sum")
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum")
