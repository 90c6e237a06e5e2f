"""The same training written plainly: one process, one example at a time, full logits, torch.optim. What the trainer is compared with."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainers.data.sampler import Sampler


@dataclass(frozen=True)
class Example:
    ids: list[int]
    learnt: list[bool]
    label: int | None = None

    @property
    def targets(self) -> int:
        return sum(self.learnt[1:]) if self.label is None else 1


def read_examples(rows: Path, model: Path) -> list[Example]:
    """Completions (learnt to their stop token) or classes, in the order of the file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    values = [json.loads(line) for line in rows.read_text().splitlines()]
    labels = sorted({value["label"] for value in values if "label" in value})
    examples = []
    for value in values:
        if "label" in value:
            ids = tokenizer(value["text"])["input_ids"]
            examples.append(Example(ids, [False] * len(ids), labels.index(value["label"])))
        else:
            text = tokenizer(value["prompt"] + value["completion"], return_offsets_mapping=True)
            learnt = [end > len(value["prompt"]) for _, end in text["offset_mapping"]]
            examples.append(Example([*text["input_ids"], tokenizer.eos_token_id], [*learnt, True]))
    return examples


def summed_loss(model: nn.Module, example: Example) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([example.ids])).logits.float()
    if example.label is not None:
        return F.cross_entropy(logits, torch.tensor([example.label]), reduction="sum")
    learnt = torch.tensor(example.learnt)[1:]
    return F.cross_entropy(logits[0, :-1][learnt], torch.tensor(example.ids)[1:][learnt], reduction="sum")


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example]) -> float:
    return sum(float(summed_loss(model, example)) for example in examples) / sum(example.targets for example in examples)


def first_batch(examples: Sequence[Example], *, batch_size: int) -> list[Example]:
    return [examples[place] for place in Sampler(len(examples), batch_size, seed=0, max_steps=1).batch(0)]


def cosine(*, peak: float, steps: int, warmup_steps: int) -> Callable[[int], float]:
    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))

    return rate


def train(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int,
    learning_rate: Callable[[int], float],
    max_grad_norm: float,
    weight_decay: float,
) -> list[float]:
    """Losses by step. Float32 masters are stepped; the model computes with copies in its own precision."""
    model.train()  # bitsandbytes' int8 rounds otherwise in evaluation
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [parameter.detach().clone().float() for parameter in trainable]
    matrices, vectors = ([master for master in masters if (master.dim() >= 2) == wanted] for wanted in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    sampler = Sampler(len(examples), batch_size, seed=0, max_steps=steps)
    losses = []
    for step in range(steps):
        batch = [examples[place] for place in sampler.batch(step)]
        targets = sum(example.targets for example in batch)
        total = 0.0
        for example in batch:
            loss = summed_loss(model, example)
            (loss / targets).backward()
            total += float(loss.detach())
        for master, parameter in zip(masters, trainable, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, trainable, strict=True):
                parameter.copy_(master)
        losses.append(total / targets)
    return losses
