"""What is minimised: a batch to its loss, summed over what it teaches. The caller divides by the count over all workers.

The objective is the module DeepSpeed gets, so that everything a step computes lies inside its forward pass.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainers.attention import takes_blocks
from trainers.data.batches import NO_TARGET, Batch, collate
from trainers.data.packing import Layout
from trainers.data.prepare import Sample
from trainers.errors import ModelError

LOGITS_BYTES = 256 * 2**20
"""Most bytes of float32 logits at a time; beyond it they are made in chunks (under ZeRO-3 once more in the backward pass)."""


def logits_chunk(vocabulary: int) -> int:
    """Tokens whose logits are made at a time."""
    return max(1, LOGITS_BYTES // (4 * vocabulary))


class NextToken(nn.Module):
    """Cross-entropy of the next token, over the tokens that are learnt; logits are made for these only."""

    def __init__(self, model: nn.Module, causal_lm: Any, *, most_tokens: int | None = None) -> None:
        """`causal_lm` is the Hugging Face model inside `model` (which may wrap it with adapters).

        With the most tokens that a pass has, every pass calls the head as often, whatever is learnt in it: under ZeRO-3 all workers gather
        its weights together, call by call, and DeepSpeed counts on an order that stays.
        """
        super().__init__()
        self._most_tokens = most_tokens
        self.model = model
        # in lists to stay out of the module tree: they are parts of `model` already
        self._causal_lm = [causal_lm]
        self._body = [getattr(causal_lm, causal_lm.base_model_prefix)]
        self._head = [causal_lm.get_output_embeddings()]
        self._config = causal_lm.config.get_text_config()

    def forward(self, batch: Batch, *, probe: bool = False, right: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The summed loss; with `probe`, the logits of all positions as made here and as the model itself makes them.

        With `right`, the share of each row's targets that are the likeliest token: (R,) float32.
        """
        hidden = self._last_hidden(batch)
        if probe:
            return self.logits(hidden), self._causal_lm[0](**self._inputs(batch)).logits
        if right:
            return self._shares_right(hidden, batch), None
        return self.summed_loss(*_learnt(hidden, batch)) * batch.weight, None

    def _shares_right(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        states, targets = _learnt(hidden, batch)
        likeliest = torch.cat([self.logits(chunk).argmax(-1) for chunk in states.tensor_split(self._chunks(len(targets)))])
        return _by_row((likeliest == targets).float(), batch) / (batch.targets != NO_TARGET).sum(1).clamp(min=1)

    def _last_hidden(self, batch: Batch) -> torch.Tensor:
        """(R, W, H)."""
        hidden: torch.Tensor = self._body[0](**self._inputs(batch)).last_hidden_state
        return hidden

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        mask = batch.blocks if takes_blocks(self._causal_lm[0]) and batch.blocks is not None else batch.attention_mask
        return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask, "use_cache": False}

    def hidden(self, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Last hidden states (R, W, H) of tokens that continue what is in `cache`, and the cache grown by them. For evaluation."""
        output = self._body[0](input_ids=ids, past_key_values=cache, use_cache=True)
        return output.last_hidden_state, output.past_key_values

    def loss_by_row(self, batch: Batch) -> torch.Tensor:
        """The loss of each row, summed over its targets: (R,) float32. For evaluation."""
        hidden, targets = _learnt(self._last_hidden(batch), batch)
        return _by_row(F.cross_entropy(self.logits(hidden).float(), targets, reduction="none"), batch)

    def summed_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden (N, H), targets (N,) or NO_TARGET -> scalar, never holding more than LOGITS_BYTES of float32 logits."""
        count = self._chunks(len(targets))
        if count == 1:
            return self._chunk_loss(hidden, targets)
        if torch.is_grad_enabled() and self._most_tokens is None:
            trained = [parameter for parameter in self._head[0].parameters() if parameter.requires_grad]
            loss: torch.Tensor = _ChunkedLoss.apply(self._chunk_loss, count, hidden, targets, *trained)
            return loss
        chunks = zip(hidden.tensor_split(count), targets.tensor_split(count), strict=True)  # ZeRO-3 may take the head apart in between
        return torch.stack([checkpoint(self._chunk_loss, h, t, use_reentrant=False) for h, t in chunks]).sum()

    def _chunks(self, tokens: int) -> int:
        """Into how many the tokens that are learnt in a pass are cut."""
        return -(-(self._most_tokens or tokens) // logits_chunk(self._config.vocab_size))

    def _chunk_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.logits(hidden).float(), targets, reduction="sum")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head, with what some families do after it."""
        logits = self._head[0](hidden)
        if softcap := getattr(self._config, "final_logit_softcapping", None):  # Gemma
            logits = softcap * torch.tanh(logits / softcap)
        if scale := getattr(self._config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(self._config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        return logits


class _ChunkedLoss(torch.autograd.Function):
    """The sum of the losses of chunks, each differentiated as soon as it is there, so that logits are made once and not kept.

    The order of Liger's linear cross-entropy (Hsu et al. 2024, section 3.2), for any head and whatever follows it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        count: int,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *trained: torch.Tensor,
    ) -> torch.Tensor:
        of_hidden, *of_trained = (torch.zeros_like(each) for each in (hidden, *trained))

        def add(states: torch.Tensor, wanted: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                begin = states.detach().requires_grad_()
                loss = loss_of(begin, wanted)
            for total, found in zip((place, *of_trained), torch.autograd.grad(loss, (begin, *trained)), strict=True):
                total.add_(found)
            return loss.detach()

        losses = [add(*chunk) for chunk in zip(*(each.tensor_split(count) for each in (hidden, targets, of_hidden)), strict=True)]
        ctx.save_for_backward(of_hidden, *of_trained)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,), (of_hidden, *of_trained) = gradients, ctx.saved_tensors
        # in place, since a head is large: autograd refuses to come here again then, which it does for a frozen head only (privacy.dp_full)
        return None, None, of_hidden * scale, None, *(found.mul_(scale) for found in of_trained)


def _learnt(hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states and targets of what is learnt: (R, W, H) -> (N, H), (N,), some of them NO_TARGET."""
    assert batch.learnt is not None
    return hidden.flatten(0, 1).index_select(0, batch.learnt), batch.targets.flatten().index_select(0, batch.learnt)


def _by_row(each: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Summed over what is learnt of a row: (N,) -> (R,)."""
    assert batch.learnt is not None
    rows, width = batch.targets.shape
    return torch.zeros(rows, device=each.device).index_add(0, batch.learnt // width, each)


class Classification(nn.Module):
    """Cross-entropy of the class of each row."""

    def __init__(self, model: nn.Module, classifier: Any) -> None:
        super().__init__()
        self.model = model
        self._classifier = [classifier]

    def forward(self, batch: Batch, *, right: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The summed loss and the logits; with `right`, 1 for each row whose class is the likeliest, else 0: (R,) float32."""
        logits = self._classifier[0](input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
        if right:
            return (logits.argmax(-1) == batch.targets).float(), None
        return F.cross_entropy(logits, batch.targets, reduction="sum") * batch.weight, logits


Forward = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


_LONG, _SHORT = (Sample(np.array(ids), np.zeros(len(ids)), 0, "") for ids in (range(3, 10), range(1, 6)))
"""What is tried on a model: two examples that begin differently"""


@torch.no_grad()
def logits_alone(forward: Forward, device: torch.device) -> dict[int, torch.Tensor]:
    """The logits of the examples to try, by their lengths.

    Raises ModelError when the model changes its logits after the head in a way `NextToken.logits` does not know.
    """
    alone = {}
    for sample in (_LONG, _SHORT):
        ours, own = forward(collate([[sample]], layout="padded", classify=False, pad_id=0).to(device), probe=True)
        assert own is not None
        if not _close(ours, own):
            raise ModelError("this family of models changes its logits after the head in a way the trainer does not know",
                             "report it: NextToken.logits in trainers/objectives.py is the place")  # fmt: skip
        alone[len(sample.ids)] = ours[0]
    return alone


@torch.no_grad()
def keeps_apart(forward: Forward, layout: Layout, alone: Mapping[int, torch.Tensor], device: torch.device) -> bool:
    """Whether examples packed into one pass give the logits they give alone: tried, so that it holds for any attention."""
    rows, widths = _PROBES[layout]
    samples = [[_LONG if length == len(_LONG.ids) else _SHORT for length in row] for row in rows]
    try:
        packed, _ = forward(collate(samples, layout=layout, classify=False, pad_id=0, widths=widths).to(device), probe=True)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # a family that does something of its own with a mask
    found, begins = packed.flatten(0, 1), np.cumsum([0, *widths])
    return all(
        _close(found[begin : begin + sum(row)], torch.cat([alone[length] for length in row]))
        for row, begin in zip(rows, begins, strict=False)
    )


_PROBES: dict[Layout, tuple[list[list[int]], list[int]]] = {
    "packed": ([[7, 5], [5, 7]], [12, 12]),
    "blocks": ([[7], [5], [5]], [7, 7, 5]),
    "ragged": ([[7], [5], [5]], [7, 5, 5]),
}
"""Lengths of the examples in each row, and the rows' widths"""


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= 0.02 * b.abs().max())
