"""What is learnt: examples to token ids and a flag for each token that the loss counts.

For conversations the flags come from the rendered chat template itself, so stock templates work as they are. What is learnt of a turn of
the assistant's is what the model has to write itself: all from the end of the generation prompt (where the template has none: from the
start of the content) to the stop token. The content is found by rendering the turn once more with a marker in its place.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trainers.data.formats import BadRow, Chat, Completion, Content, Labelled, Text

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"  # a newline, since tokenizers join a space to the word after it
)
_MARKER = "\ue000\ue001\ue002"  # private-use characters: in no one's text, and no template touches them

Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids; `learnt[i]` says that token i is a target (of the position before it). `label` is the class, for classify."""

    ids: list[int]
    learnt: list[bool]
    label: str = ""
    cut: int = 0
    """Tokens lost to data.max_length."""


def opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer begins a text with, as text: the BOS token of many families of models, or nothing."""
    first = tokenizer("a")["input_ids"][:1]
    return str(tokenizer.bos_token) if tokenizer.bos_token is not None and first == [tokenizer.bos_token_id] else ""


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template of a tokenizer that has none; conversations begin as other texts do."""
    return "{{ bos_token }}" * bool(opening(tokenizer)) + PLAIN_TEMPLATE


def render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], *, generation_prompt: bool = False) -> str:
    """A conversation as the tokenizer's chat template writes it, or the plain one where it has none. Raises BadRow where it refuses."""
    template = tokenizer.chat_template or plain_template(tokenizer)
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt))
    except TemplateError as error:
        raise BadRow(f"chat template: refuses the conversation ({error})") from error


def learnt_spans(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> tuple[str, list[Span]]:
    """The rendered conversation and the character spans of what the assistant says, each with the stop token that ends it.

    Raises BadRow when the template refuses the conversation or does not show an assistant's content.
    """
    text = render(tokenizer, turns)
    spans = []
    for position, (role, content) in enumerate(turns):
        if role != "assistant" or not content.strip():
            continue
        start, end = _turn_span(tokenizer, turns, position, text)
        spans.append((start, end + len(_stop_text(tokenizer, turns[:position], text[end:]))))
    return text, spans


def _turn_span(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], position: int, text: str) -> Span:
    before, marked, after = render(tokenizer, [*turns[:position], ("assistant", _MARKER), *turns[position + 1 :]]).partition(_MARKER)
    opening = _generation_prompt(tokenizer, turns[:position], before)
    opening = opening if text.startswith(opening) else before
    start, end = len(opening), len(text) - len(after)
    if not marked or start > end or not text.startswith(opening) or not text.endswith(after):
        raise BadRow(f"chat template: does not render assistant message {position + 1} as its content, so what is learnt cannot be told")
    return start, end


def _generation_prompt(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], before: str) -> str:
    """What the model is given before a turn. Where the template opens no turn, that is all `before` its content but spaces."""
    prompt = _try_to_render(tokenizer, turns, generation_prompt=True)
    opens = prompt != _try_to_render(tokenizer, turns)
    return prompt if opens or not before.removeprefix(prompt).strip() else before


def _stop_text(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], following: str) -> str:
    """What ends a turn: the tokens that follow its content here and would follow it as the last message too, without trailing space."""
    _, _, tail = _try_to_render(tokenizer, [*turns, ("assistant", _MARKER)]).partition(_MARKER)
    if following.startswith(tail.rstrip()):
        return tail.rstrip()
    here, last = (tokenizer.tokenize(part, add_special_tokens=False) for part in (following[: len(tail)], tail))
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, last, strict=False))
    return str(tokenizer.convert_tokens_to_string([token for token, _ in shared])).rstrip()


def _try_to_render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], *, generation_prompt: bool = False) -> str:
    """The beginning of a conversation, or nothing where the template takes only whole ones."""
    try:
        return render(tokenizer, turns, generation_prompt=generation_prompt) if turns else ""
    except BadRow:
        return ""


def encode(
    contents: Sequence[Content | BadRow], tokenizer: PreTrainedTokenizerBase, *, max_length: int, truncate: bool
) -> list[list[Encoded] | BadRow]:
    """Encode rows together (tokenizers work in parallel): for each row its examples, or why it cannot be learnt from.

    A document of `pretrain` may become several examples of at most `max_length` tokens; any other row is one. A BadRow stays what it is.
    """
    rendered = [_text_and_spans(content, tokenizer) for content in contents]
    texts = ["" if isinstance(outcome, BadRow) else outcome[0] for outcome in rendered]
    special = not any(isinstance(content, Chat) for content in contents)  # a chat template writes its own special tokens
    batch = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    closing = set(tokenizer.all_special_ids)
    results: list[list[Encoded] | BadRow] = []
    for content, outcome, ids, offsets in zip(contents, rendered, batch["input_ids"], batch["offset_mapping"], strict=True):
        if isinstance(outcome, BadRow):
            results.append(outcome)
            continue
        learnt = _flags(offsets, outcome[1])
        if not isinstance(content, (Chat, Labelled)):
            ids, learnt = _with_stop_token(ids, learnt, tokenizer)
        closed = bool(ids) and ids[-1] in closing  # encoders expect their [SEP] after truncation too
        results.append(_fit(ids, learnt, content, max_length=max_length, truncate=truncate, closed=closed))
    return results


def _text_and_spans(content: Content | BadRow, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Span]] | BadRow:
    match content:
        case BadRow():
            return content
        case Chat(turns):
            try:
                return learnt_spans(tokenizer, turns)
            except BadRow as problem:
                return problem
        case Completion(prompt, completion):
            return prompt + completion, [(len(prompt), len(prompt) + len(completion))]
        case Labelled(text, _):
            return text, []
        case Text(text):
            return text, [(0, len(text))]


def _flags(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens overlap a span; spans are in order and apart. (Where offsets are trimmed, a token of spaces is 0 wide, at its end.)"""
    flags, current = [], 0
    for start, end in offsets:
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        flags.append(current < len(spans) and end > spans[current][0])
    return flags


def _with_stop_token(ids: list[int], learnt: list[bool], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    eos = tokenizer.eos_token_id
    if eos is None or (ids and ids[-1] == eos):
        return ids, [*learnt[:-1], True] if ids and eos is not None else learnt
    return [*ids, eos], [*learnt, True]


def _fit(
    ids: list[int], learnt: list[bool], content: Content | BadRow, *, max_length: int, truncate: bool, closed: bool
) -> list[Encoded] | BadRow:
    if isinstance(content, Text):
        starts = range(0, len(ids) - 1, max_length)  # a last block of one token would teach nothing
        blocks = [Encoded(ids[s : s + max_length], learnt[s : s + max_length]) for s in starts]
        return blocks or BadRow("nothing to learn: the document is a single token", tokens=len(ids))
    tokens, cut = len(ids), max(0, len(ids) - max_length)
    if cut and not truncate:
        return BadRow(f"over length: {tokens} tokens, data.max_length is {max_length}", tokens=tokens)
    if isinstance(content, Labelled):
        kept = [*ids[: max_length - 1], ids[-1] if closed else ids[max_length - 1]] if cut else ids
        return [Encoded(kept, [False] * len(kept), content.label, cut)]
    ids, learnt = ids[:max_length], learnt[:max_length]
    if not any(learnt[1:]):
        return BadRow("nothing to learn: the loss mask is empty" + (f" after cutting to {max_length} tokens" if cut else ""), tokens=tokens)
    return [Encoded(ids, learnt, cut=cut)]
