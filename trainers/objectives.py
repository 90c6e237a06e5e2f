"""What is minimised: a batch to its loss, summed over what it teaches. The caller divides by the count over all workers.

The objective is the module DeepSpeed gets, so that everything a step computes lies inside its forward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainers.data.batches import NO_TARGET, Batch
from trainers.errors import ModelError

LOGITS_BYTES = 256 * 2**20
"""Most bytes of float32 logits at a time; beyond it they are computed in chunks, and again in the backward pass."""


def logits_chunk(vocabulary: int) -> int:
    """Tokens whose logits are made at a time."""
    return max(1, LOGITS_BYTES // (4 * vocabulary))


class NextToken(nn.Module):
    """Cross-entropy of the next token, over the tokens that are learnt; logits are made for these only."""

    def __init__(self, model: nn.Module, causal_lm: Any) -> None:
        """`causal_lm` is the Hugging Face model inside `model` (which may wrap it with adapters)."""
        super().__init__()
        self.model = model
        # in lists to stay out of the module tree: they are parts of `model` already
        self._causal_lm = [causal_lm]
        self._body = [getattr(causal_lm, causal_lm.base_model_prefix)]
        self._head = [causal_lm.get_output_embeddings()]
        self._config = causal_lm.config.get_text_config()
        self._one_row = str(getattr(causal_lm.config, "_attn_implementation", "")).startswith("flash")
        """Whether the attention looks for packed examples in a batch of one row only"""

    def forward(self, batch: Batch, *, probe: bool = False, right: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The summed loss; with `probe`, the logits of all positions as made here and as the model itself makes them.

        With `right`, the share of each row's targets that are the likeliest token: (R,) float32.
        """
        hidden = self._last_hidden(batch)
        if probe:
            return self.logits(hidden), self._causal_lm[0](**_inputs(batch)).logits
        wanted = batch.targets != NO_TARGET
        if right:
            return self._shares_right(hidden, batch.targets, wanted), None
        if batch.weight == 0:
            wanted = torch.zeros_like(wanted)
            wanted[0, 0] = True
        loss = self.summed_loss(hidden[wanted], batch.targets[wanted].clamp(min=0))
        return loss * batch.weight, None

    def _shares_right(self, hidden: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        chunks = hidden[wanted].split(logits_chunk(self._config.vocab_size))
        likeliest = torch.cat([self.logits(chunk).argmax(-1) for chunk in chunks])
        met = torch.zeros_like(wanted, dtype=torch.float32).masked_scatter(wanted, (likeliest == targets[wanted]).float())
        return met.sum(1) / wanted.sum(1).clamp(min=1)

    def _last_hidden(self, batch: Batch) -> torch.Tensor:
        """(R, W, H). Packed rows may be put one behind the other: their examples begin at position 0 wherever they lie."""
        inputs, (rows, width) = _inputs(batch), batch.input_ids.shape
        if batch.attention_mask is None and self._one_row:
            inputs |= {name: inputs[name].reshape(1, -1) for name in ("input_ids", "position_ids")}
        hidden: torch.Tensor = self._body[0](**inputs).last_hidden_state
        return hidden.view(rows, width, -1)

    def hidden(self, ids: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Last hidden states (R, W, H) of tokens that continue what is in `cache`, and the cache grown by them. For evaluation."""
        output = self._body[0](input_ids=ids, past_key_values=cache, use_cache=True)
        return output.last_hidden_state, output.past_key_values

    def loss_by_row(self, batch: Batch) -> torch.Tensor:
        """The loss of each row, summed over its targets: (R,) float32. For evaluation."""
        hidden = self._last_hidden(batch)
        wanted = batch.targets != NO_TARGET
        each = F.cross_entropy(self.logits(hidden[wanted]).float(), batch.targets[wanted], reduction="none")
        return torch.zeros(len(wanted), device=each.device).index_add(0, wanted.nonzero()[:, 0], each)

    def summed_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden (N, H), targets (N,) -> scalar, never holding more than LOGITS_BYTES of float32 logits."""
        tokens = logits_chunk(self._config.vocab_size)
        if len(targets) <= tokens:
            return self._chunk_loss(hidden, targets)
        chunks = zip(hidden.split(tokens), targets.split(tokens), strict=True)
        return torch.stack([checkpoint(self._chunk_loss, h, t, use_reentrant=False) for h, t in chunks]).sum()

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


def _inputs(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": batch.attention_mask, "use_cache": False}


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


@torch.no_grad()
def packing_is_safe(forward: Forward, device: torch.device) -> bool:
    """Whether two examples packed in a row, beside another row, give the logits they give alone: tried, so that it holds for any attention.

    Raises ModelError when the model changes its logits after the head in a way `NextToken.logits` does not know.
    """
    first, second = list(range(1, 6)), list(range(3, 10))
    alone = []
    for ids in (first, second):
        ours, own = forward(_probe_batch([ids], device=device), probe=True)
        assert own is not None
        if not _close(ours, own):
            raise ModelError("this family of models changes its logits after the head in a way the trainer does not know",
                             "report it: NextToken.logits in trainers/objectives.py is the place")  # fmt: skip
        alone.append(ours)
    packed, _ = forward(_probe_batch([first, second], [second, first], device=device), probe=True)
    return _close(packed, torch.cat([torch.cat(alone, dim=1), torch.cat(alone[::-1], dim=1)]))


def _probe_batch(*rows: list[list[int]], device: torch.device) -> Batch:
    ids = torch.tensor([[token for example in row for token in example] for row in rows], device=device)
    positions = torch.tensor([[place for example in row for place in range(len(example))] for row in rows], device=device)
    return Batch(ids, positions, None, torch.full_like(ids, NO_TARGET))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= 0.02 * b.abs().max())
