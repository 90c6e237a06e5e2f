"""What is learnt: examples to token ids and a flag for each token that the loss counts.

For conversations the flags come from the rendered chat template itself: each assistant turn is rendered once more with its content replaced by
a marker, and the place of the marker is where the content stands. So stock templates work as they are, whatever they put around the turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainers.config import Task
from trainers.data.formats import BadRow, Chat, Completion, Content, Labelled, Text

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
_MARKER = "\ue000\ue001\ue002"  # private-use characters: in no one's text, and no template touches them

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids; `learnt[i]` says that token i is a target (of the position before it). `label` is the class, for classify."""

    ids: list[int]
    learnt: list[bool]
    label: str = ""
    truncated: bool = False


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], *, generation_prompt: bool = False) -> str:
    """A conversation as the tokenizer's chat template writes it, or the plain one where it has none."""
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    messages = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt))


def learnt_spans(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> tuple[str, list[Span]]:
    """The rendered conversation and the character spans of what the assistant says, each with the stop token that ends it.

    Raises BadRow when the template does not show an assistant's content.
    """
    text = render(tokenizer, turns)
    spans = []
    for position, (role, content) in enumerate(turns):
        if role != "assistant" or not content.strip():
            continue
        start, end = _content_span(tokenizer, turns, position, text)
        spans.append((start, end + len(_stop_text(tokenizer, turns[: position + 1], text[end:]))))
    return text, spans


def _content_span(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], position: int, text: str) -> Span:
    marked = render(tokenizer, [*turns[:position], ("assistant", _MARKER), *turns[position + 1 :]])
    start = marked.find(_MARKER)
    after = len(marked) - start - len(_MARKER)
    if start < 0 or text[:start] != marked[:start] or text[len(text) - after :] != marked[len(marked) - after :]:
        raise BadRow(f"the chat template does not render assistant message {position + 1} as its content: cannot tell what is learnt")
    return start, len(text) - after


def _stop_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], following: str) -> str:
    """What the template writes after an assistant's content to end the turn: the tail it has as a last message, without trailing space."""
    last = render(tokenizer, [*turns[:-1], ("assistant", _MARKER)])
    tail = last[last.find(_MARKER) + len(_MARKER) :].rstrip()
    return tail if following.startswith(tail) else ""


def encode(
    contents: Sequence[Content], tokenizer: PreTrainedTokenizerBase, task: Task, *, max_length: int, truncate: bool
) -> list[list[Encoded] | BadRow]:
    """Encode rows together (tokenizers work in parallel): for each row its examples, or why it cannot be learnt from.

    A document of `pretrain` may become several examples of at most `max_length` tokens; any other row is one.
    """
    texts, spans = [], []
    problems: dict[int, BadRow] = {}
    for index, content in enumerate(contents):
        try:
            text, learnt_here = _text_and_spans(content, tokenizer)
        except BadRow as problem:
            problems[index], text, learnt_here = problem, "", []
        texts.append(text)
        spans.append(learnt_here)
    special = not isinstance(contents[0], Chat)  # a chat template writes its own special tokens
    batch = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    results: list[list[Encoded] | BadRow] = []
    for index, content in enumerate(contents):
        if index in problems:
            results.append(problems[index])
            continue
        ids, learnt = batch["input_ids"][index], _flags(batch["offset_mapping"][index], spans[index])
        if not isinstance(content, (Chat, Labelled)):
            ids, learnt = _with_stop_token(ids, learnt, tokenizer)
        closed = bool(ids) and ids[-1] in tokenizer.all_special_ids  # encoders expect their [SEP] after truncation too
        results.append(_fit(ids, learnt, content, max_length=max_length, truncate=truncate, closed=closed))
    return results


def _text_and_spans(content: Content, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]]:
    match content:
        case Chat(turns):
            return learnt_spans(tokenizer, turns)
        case Completion(prompt, completion):
            return prompt + completion, [(len(prompt), len(prompt) + len(completion))]
        case Labelled(text, _):
            return text, []
        case Text(text):
            return text, [(0, len(text))]


def _flags(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens overlap a span; spans are in order and apart."""
    flags, current = [], 0
    for start, end in offsets:
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        flags.append(end > start and current < len(spans) and end > spans[current][0])
    return flags


def _with_stop_token(ids: list[int], learnt: list[bool], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    eos = tokenizer.eos_token_id
    if eos is None or (ids and ids[-1] == eos):
        return ids, [*learnt[:-1], True] if ids and eos is not None else learnt
    return [*ids, eos], [*learnt, True]


def _fit(ids: list[int], learnt: list[bool], content: Content, *, max_length: int, truncate: bool, closed: bool) -> list[Encoded] | BadRow:
    if isinstance(content, Text):
        starts = range(0, max(1, len(ids) - 1), max_length)  # a last block of one token would teach nothing
        return [Encoded(ids[s : s + max_length], learnt[s : s + max_length]) for s in starts]
    over = len(ids) > max_length
    if over and not truncate:
        return BadRow(f"over length: {len(ids)} tokens, data.max_length is {max_length}")
    if isinstance(content, Labelled):
        kept = [*ids[: max_length - 1], ids[-1] if closed else ids[max_length - 1]] if over else ids
        return [Encoded(kept, [False] * len(kept), content.label, over)]
    ids, learnt = ids[:max_length], learnt[:max_length]
    if not any(learnt[1:]):
        return BadRow("nothing to learn: the loss mask is empty" + (f" after cutting to {max_length} tokens" if over else ""))
    return [Encoded(ids, learnt, truncated=over)]
