"""A trained model on rows it has not seen: loss, classes, likelihood of labels, written answers. One process, no ZeRO.

Every row is scored once (`Scored`); metrics of the whole and of each group are summaries of the same scores.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from trainers.config import DataConfig, Task
from trainers.data.batches import Batch, collate
from trainers.data.formats import BadRow, Chat, Completion, Content, Labelled
from trainers.data.masking import Encoded, encode, learnt_spans, opening, render
from trainers.data.prepare import Sample, contents
from trainers.errors import DataError
from trainers.metrics import by_group, classification_metrics, generation_metrics, perplexity
from trainers.model import Loaded
from trainers.objectives import NextToken

Progress = Callable[[int, int], None]
ANSWER_TOKENS = 128
"""Written at most, unless a caller wants another number"""
_LONGER_THAN_REFERENCE = 32
"""Tokens by which a written answer may be longer than the longest reference"""
_TOKENS_A_PASS = 4096


@dataclass(frozen=True)
class Item:
    """A row to evaluate: what it says, and its columns as the file has them."""

    content: Content
    values: dict[str, Any]
    origin: str


@dataclass
class Scored:
    """One entry for each row, in the order of the rows; None for what was not asked for."""

    loss: np.ndarray
    """Summed over the row's targets, nats"""
    targets: np.ndarray
    classifies: bool = False
    """The loss is that of a class, not of tokens"""
    labels: list[str] = field(default_factory=list)
    truth: list[str] | None = None
    probabilities: np.ndarray | None = None
    """(rows, labels)"""
    references: list[str] | None = None
    hypotheses: list[str] | None = None
    cut: list[bool] | None = None
    """Whether a hypothesis was ended by its length"""
    terms: list[list[str]] | None = None


def read_items(data: DataConfig, task: Task, path: Path, *, limit: int | None = None) -> list[Item]:
    """The rows of a file. Raises DataError at a bad row, by file and line, unless `data.on_bad_row` is skip."""
    items: list[Item] = []
    for row, content in contents(data, task, path):
        if isinstance(content, BadRow):
            if data.on_bad_row == "error":
                raise DataError(f"{row.file}:{row.line}: {content}", "mend the row, or set data.on_bad_row: skip in the job")
            continue
        items.append(Item(content, dict(row.values or {}), f"{row.file}:{row.line}"))
        if len(items) == limit:
            break
    if not items:
        raise DataError(f"{path}: no row to evaluate")
    return items


def score(
    loaded: Loaded,
    task: Task,
    items: Sequence[Item],
    *,
    max_length: int,
    label_column: str | None = None,
    terms_column: str | None = None,
    generate: bool = False,
    progress: Progress = lambda done, total: None,
) -> Scored:
    """Score every row: its loss always, its class for classify, label likelihoods and written answers as asked. Raises DataError."""
    if task == "classify":
        return _score_classes(loaded, items, max_length=max_length, progress=progress)
    pairs = list(_encode(loaded, items, max_length))
    loss, targets = _losses(loaded, [example for example, _ in pairs], progress)
    rows = [row for _, row in pairs]
    scored = Scored(np.bincount(rows, loss, len(items)), np.bincount(rows, targets, len(items)).astype(int))
    if label_column is not None:
        _score_labels(loaded, items, scored, label_column, progress)
    if terms_column is not None:
        scored.terms = [_terms(item, terms_column) for item in items]
    if generate or terms_column is not None:
        _score_answers(loaded, items, scored, progress)
    return scored


def summarise(scored: Scored, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """Metrics over all rows, or over some."""
    chosen = list(range(len(scored.loss))) if rows is None else list(rows)
    loss, targets = float(scored.loss[chosen].sum()), int(scored.targets[chosen].sum())
    metrics: dict[str, Any] = {"rows": len(chosen), "eval_loss": loss / max(1, targets)}
    if not scored.classifies:
        metrics["perplexity"] = perplexity(loss, targets)
    if scored.probabilities is not None and scored.truth is not None:
        metrics |= classification_metrics([scored.truth[row] for row in chosen], scored.probabilities[chosen], scored.labels)
    if scored.hypotheses is not None and scored.references is not None:
        terms = None if scored.terms is None else [scored.terms[row] for row in chosen]
        metrics |= generation_metrics([scored.references[row] for row in chosen], [scored.hypotheses[row] for row in chosen], terms)
        metrics["answers_cut"] = sum((scored.cut or [])[row] for row in chosen)
    return metrics


def summarise_by(scored: Scored, items: Sequence[Item], column: str) -> dict[str, Any]:
    """Every metric for each value of a column, and the gaps between the groups. Raises DataError when the rows lack it."""
    if column not in items[0].values:
        raise DataError(f"--by {column}: no such column (columns: {', '.join(items[0].values)})")
    return by_group([str(item.values.get(column, "")) for item in items], lambda rows: summarise(scored, rows))


def class_probabilities(
    loaded: Loaded, texts: Sequence[str], *, max_length: int, progress: Progress = lambda done, total: None
) -> np.ndarray:
    """(texts, classes), in the order of the head."""
    items = [Item(Labelled(text, ""), {}, "") for text in texts]
    encoded = [example for example, _ in _encode(loaded, items, max_length)]
    found: list[np.ndarray] = [np.empty(0)] * len(encoded)
    for places, batch in _batches(loaded, encoded, progress):
        logits = loaded.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
        for place, row in zip(places, logits.softmax(-1).cpu().numpy(), strict=True):
            found[place] = row
    return np.stack(found)


class Answer(NamedTuple):
    """What a model has written."""

    text: str
    confidence: float
    """The geometric mean of its tokens' probabilities"""
    cut: bool
    """It had not ended when as much was written as was allowed"""


def answers(
    loaded: Loaded, prompts: Sequence[str], *, max_new_tokens: int = ANSWER_TOKENS, progress: Progress = lambda done, total: None
) -> list[Answer]:
    """Greedy continuations of rendered prompts, as far as the model can count with them."""
    tokenizer, stops, places_known = loaded.tokenizer, torch.tensor(_stop_ids(loaded)), _places(loaded)
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    found = [Answer("", 0.0, False)] * len(prompts)
    for start in range(0, len(order), 16):
        places = order[start : start + 16]
        rows = [torch.tensor(prompt_ids(tokenizer, prompts[place]), device=loaded.base.device) for place in places]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        room = max(1, min(max_new_tokens, places_known - ids.shape[1]))
        with torch.inference_mode():
            output = loaded.base.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=room, do_sample=False,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=stops.tolist(), output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        written = output.sequences[:, ids.shape[1] :]
        chances = torch.stack([log_softmax(step.float(), -1) for step in output.logits], 1).gather(2, written[..., None])[..., 0]
        real = written != tokenizer.pad_token_id
        real[:, 0] = True
        means = (chances * real).sum(1) / real.sum(1)
        ended = torch.isin(written.cpu(), stops).any(1)
        for place, ids, mean, end in zip(places, written, means, ended, strict=True):
            found[place] = Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), float(mean.exp()), not end)
        progress(min(start + 16, len(order)), len(order))
    return found


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """A rendered prompt as it is in training, where most tokenizers join a space at its end to the first word of the answer.

    Some do not join it to a number: a model that was taught numbers behind such a space writes the space first.
    """
    joined = f"{prompt}a" if prompt.endswith(" ") and prompt.strip() else prompt
    encoded = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True)
    return [token for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if end <= len(prompt)]


def _places(loaded: Loaded) -> int:
    """Tokens whose place the model knows, a prompt and its answer together."""
    config = loaded.base.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or sys.maxsize)


def prompt_of(content: Content, loaded: Loaded) -> str:
    """What the model is given before its last answer. Raises DataError where the chat template refuses it."""
    match content:
        case Chat(turns):
            return chat_prompt(loaded, turns[: _last_answer(content)])
        case Completion(prompt, _):
            return opening(loaded.tokenizer) + prompt
        case Labelled(text, _):
            return text
        case _:
            return opening(loaded.tokenizer) + content.text


def chat_prompt(loaded: Loaded, turns: Sequence[tuple[str, str]]) -> str:
    """A conversation up to where the assistant speaks. Raises DataError where the chat template refuses it."""
    try:
        return render(loaded.tokenizer, turns, generation_prompt=True)
    except BadRow as problem:
        raise DataError(str(problem), "some templates know no system role, or want user and assistant in turn") from problem


def _last_answer(content: Chat) -> int:
    return max(index for index, (role, _) in enumerate(content.turns) if role == "assistant")


def reference_of(content: Content) -> str:
    """The last answer the row has."""
    if isinstance(content, Chat):
        return next(said for role, said in reversed(content.turns) if role == "assistant")
    return content.completion if isinstance(content, Completion) else ""


def _score_classes(loaded: Loaded, items: Sequence[Item], *, max_length: int, progress: Progress) -> Scored:
    labels = [loaded.base.config.id2label[index] for index in range(loaded.base.config.num_labels)]
    truth = [item.content.label for item in items if isinstance(item.content, Labelled)]
    for item, label in zip(items, truth, strict=True):
        if label not in labels:
            raise DataError(
                f"{item.origin}: the model has no class {label!r}", f"its classes: {', '.join(labels[:8])}{' ...' * (len(labels) > 8)}"
            )
    texts = [item.content.text for item in items if isinstance(item.content, Labelled)]
    probabilities = class_probabilities(loaded, texts, max_length=max_length, progress=progress)
    chances = probabilities[np.arange(len(truth)), [labels.index(label) for label in truth]]
    return Scored(-np.log(np.maximum(chances, 1e-12)), np.ones(len(truth), dtype=int), True, labels, truth, probabilities)


def _score_labels(loaded: Loaded, items: Sequence[Item], scored: Scored, column: str, progress: Progress) -> None:
    """Label accuracy by likelihood: which label of the set the model finds most likely to begin its answer with."""
    truth = [str(item.values.get(column, "")) for item in items]
    labels = sorted(set(truth))
    if "" in labels or len(labels) < 2:
        raise DataError(f"--label {column}: expected a column with at least two labels, got {labels[:3]}")
    scores = np.empty((len(items), len(labels)))
    for row, (item, true) in enumerate(zip(items, truth, strict=True)):
        scores[row] = _log_likelihoods(loaded, _label_candidates(loaded, item, true, labels))
        progress(row + 1, len(items))
    chances = np.exp(scores - scores.max(1, keepdims=True))
    scored.labels, scored.truth, scored.probabilities = labels, truth, chances / chances.sum(1, keepdims=True)


@torch.inference_mode()
def _log_likelihoods(loaded: Loaded, candidates: Sequence[Encoded]) -> np.ndarray:
    """Log-probability of what is learnt in each candidate; the prompt they share is computed once, its keys and values used again."""
    objective = NextToken(loaded.module, loaded.base)
    first = min(candidate.learnt.index(True) for candidate in candidates)
    differing = next((place for place, ids in enumerate(zip(*(c.ids for c in candidates), strict=False)) if len(set(ids)) > 1), first)
    shared = max(1, min(first, differing))
    device = loaded.base.device
    hidden, cache = objective.hidden(torch.tensor([candidates[0].ids[:shared]], device=device))
    cache.batch_repeat_interleave(len(candidates))
    rests = [candidate.ids[shared:] for candidate in candidates]
    width = max(map(len, rests))
    ids = torch.tensor([rest + [0] * (width - len(rest)) for rest in rests], device=device)
    counted = torch.tensor([c.learnt[shared:] + [False] * (shared + width - len(c.learnt)) for c in candidates], device=device)
    rest_hidden, _ = objective.hidden(ids[:, :-1], cache) if width > 1 else (hidden[:, :0].expand(len(candidates), -1, -1), None)
    before = torch.cat([hidden[:, -1:].expand(len(candidates), -1, -1), rest_hidden], dim=1)
    chances = log_softmax(objective.logits(before).float(), -1).gather(2, ids[..., None])[..., 0]
    return np.asarray((chances * counted).sum(1).cpu(), dtype=float)


def _label_candidates(loaded: Loaded, item: Item, true: str, labels: Sequence[str]) -> list[Encoded]:
    """The prompt followed by each label as an answer would begin with it: with what stands after the label in the reference answer."""
    reference = reference_of(item.content)
    if not reference.startswith(true):
        raise DataError(
            f"{item.origin}: the answer does not begin with its label {true!r}", "--label scores labels as the beginning of the answer"
        )
    rest = reference[len(true) :]
    after = re.match(r"\W*", rest)
    ending = after.group().rstrip() if after else ""
    texts, starts = zip(*(_begun_answer(loaded, item, label + ending, whole=not rest) for label in labels), strict=True)
    batch = loaded.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    return [
        Encoded(ids, [end > start for _, end in offsets])
        for ids, offsets, start in zip(batch["input_ids"], batch["offset_mapping"], starts, strict=True)
    ]


def _begun_answer(loaded: Loaded, item: Item, beginning: str, *, whole: bool) -> tuple[str, int]:
    """The rendered prompt with the beginning of an answer (with its stop token if it is `whole`), and where the answer starts."""
    if isinstance(item.content, Completion):
        prompt = prompt_of(item.content, loaded)
        return prompt + beginning + (loaded.tokenizer.eos_token or "") * whole, len(prompt)
    assert isinstance(item.content, Chat)
    turns = [*item.content.turns[: _last_answer(item.content)], ("assistant", beginning)]
    text, spans = learnt_spans(loaded.tokenizer, turns)
    start, end = spans[-1]
    return text[: end if whole else text.index(beginning, start) + len(beginning)], start


def _score_answers(loaded: Loaded, items: Sequence[Item], scored: Scored, progress: Progress) -> None:
    prompts = [prompt_of(item.content, loaded) for item in items]
    scored.references = [reference_of(item.content) for item in items]
    longest = max(map(len, loaded.tokenizer(scored.references, add_special_tokens=False)["input_ids"]))
    written = answers(loaded, prompts, max_new_tokens=max(ANSWER_TOKENS, longest + _LONGER_THAN_REFERENCE), progress=progress)
    scored.hypotheses, scored.cut = [answer.text for answer in written], [answer.cut for answer in written]


def _terms(item: Item, column: str) -> list[str]:
    value = item.values.get(column)
    if isinstance(value, str):
        return [term.strip() for term in value.split(";") if term.strip()]
    if not isinstance(value, list):
        raise DataError(f"{item.origin}: --terms {column}: expected a list of terms, or text separated by semicolons, got {value!r:.60}")
    return [str(term) for term in value]


def _encode(loaded: Loaded, items: Sequence[Item], max_length: int) -> Iterator[tuple[Encoded, int]]:
    """Examples with the row each comes from."""
    for start in range(0, len(items), 256):
        chunk = items[start : start + 256]
        results = encode([item.content for item in chunk], loaded.tokenizer, max_length=max_length, truncate=True)
        for place, (item, result) in enumerate(zip(chunk, results, strict=True), start):
            if isinstance(result, BadRow):
                raise DataError(f"{item.origin}: {result}")
            yield from ((example, place) for example in result)


def _losses(loaded: Loaded, encoded: Sequence[Encoded], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Loss summed over targets, and their number, for each example."""
    objective = NextToken(loaded.module, loaded.base)
    loss = np.zeros(len(encoded))
    targets = np.array([sum(example.learnt[1:]) for example in encoded])
    for places, batch in _batches(loaded, encoded, progress):
        loss[places] = objective.loss_by_row(batch).cpu().numpy()
    return loss, targets


def _batches(loaded: Loaded, encoded: Sequence[Encoded], progress: Progress) -> Iterator[tuple[list[int], Batch]]:
    """Examples of like length together, padded on the right; with their places."""
    order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place].ids))
    pad_id = loaded.tokenizer.pad_token_id or 0
    start = 0
    while start < len(order):
        width = len(encoded[order[start]].ids)
        places = order[start : start + max(1, _TOKENS_A_PASS // max(1, width))]
        samples = [Sample(np.asarray(encoded[p].ids), np.asarray(encoded[p].learnt), 0, "") for p in places]
        with torch.inference_mode():
            yield places, collate([[sample] for sample in samples], layout="padded", classify=False, pad_id=pad_id).to(loaded.base.device)
        start += len(places)
        progress(start, len(order))


def _stop_ids(loaded: Loaded) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's own generation settings."""
    configured = getattr(loaded.base.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, loaded.tokenizer.eos_token_id] if token is not None})
