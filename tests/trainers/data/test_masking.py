from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from trainers.config import Task
from trainers.data.formats import BadRow, Chat, Completion, Content, Labelled, Text
from trainers.data.masking import Encoded, encode, learnt_spans, render

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set thought, content = '', m['content'] %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
           "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"]  # fmt: skip
# name of the template: its text, the stop token, what stands before the content because the tokenizer joins it to the first word
TEMPLATES: dict[str, tuple[str | None, str, str]] = {
    "plain": (None, "</s>", ""),
    "chatml": (CHATML, "<|im_end|>", ""),
    "llama3": (LLAMA3, "<|eot_id|>", ""),
    "gemma": (GEMMA, "<end_of_turn>", ""),
    "mistral": (MISTRAL, "</s>", " "),
    "qwen3": (QWEN3, "<|im_end|>", ""),
    "phi3": (PHI3, "<|end|>", ""),
}


def _with_template(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = TEMPLATES[name][0]
    return tokenizer


def _encode(tokenizer: Any, content: Content, task: Task = "sft", *, max_length: int = 10_000, truncate: bool = False) -> Any:
    """What becomes of one row: its only example or the problem."""
    (outcome,) = encode([content], tokenizer, max_length=max_length, truncate=truncate)
    return outcome if isinstance(outcome, BadRow) else outcome[0]


def _learnt_runs(tokenizer: Any, example: Encoded) -> list[str]:
    """The text of each unbroken run of learnt tokens."""
    runs: list[list[int]] = []
    for before, learnt, token in zip([False, *example.learnt], example.learnt, example.ids, strict=False):
        if learnt:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


TALK = Chat((
    ("user", "Is my card blocked?"),
    ("assistant", "Yes, since Monday."),
    ("user", "Why?\n\nI am abroad."),
    ("assistant", "Line one.\n  Line two: 5 € 😀."),
    ("user", "Thanks"),
    ("assistant", "You are welcome!"),
))  # fmt: skip


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"qwen3", "phi3"}))
def test_exactly_what_the_assistant_says_and_its_stop_token_is_learnt(tokenizer: Any, name: str) -> None:
    _, stop, glue = TEMPLATES[name]

    example = _encode(_with_template(tokenizer, name), TALK)

    assert _learnt_runs(tokenizer, example) == [glue + said + stop for role, said in TALK.turns if role == "assistant"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_of_a_conversation_are_those_of_its_rendered_text(tokenizer: Any, name: str) -> None:
    _with_template(tokenizer, name)

    example = _encode(tokenizer, TALK)

    assert example.ids == tokenizer(render(tokenizer, TALK.turns), add_special_tokens=False)["input_ids"]
    assert len(example.ids) == len(example.learnt)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"mistral"}))
def test_learning_starts_where_the_generation_prompt_ends_so_training_and_generation_see_the_same_tokens(tokenizer: Any, name: str) -> None:
    _with_template(tokenizer, name)
    prompt = render(tokenizer, TALK.turns[:-1], generation_prompt=True)

    example = _encode(tokenizer, TALK)

    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert example.ids[: len(prompt_ids)] == prompt_ids
    assert not example.learnt[len(prompt_ids) - 1] and example.learnt[len(prompt_ids)]


def test_a_template_that_drops_earlier_thoughts_learns_the_last_ones_thought_and_all_answers(tokenizer: Any) -> None:
    _with_template(tokenizer, "qwen3")
    thought, other = "<think>\nhm\n</think>\n\n", "<think>\nwell,\nwell\n</think>\n\n"
    turns = (("user", "One?"), ("assistant", thought + "First."), ("user", "Two?"), ("assistant", other + "Second."))

    example = _encode(tokenizer, Chat(turns))

    assert _learnt_runs(tokenizer, example) == ["First.<|im_end|>", other + "Second.<|im_end|>"]


def test_an_empty_thought_that_the_template_puts_in_is_learnt_since_the_model_has_to_write_it(tokenizer: Any) -> None:
    _with_template(tokenizer, "qwen3")

    example = _encode(tokenizer, TALK)

    said = [content for role, content in TALK.turns if role == "assistant"]
    assert _learnt_runs(tokenizer, example) == [
        f"{said[0]}<|im_end|>",
        f"{said[1]}<|im_end|>",
        f"<think>\n\n</think>\n\n{said[2]}<|im_end|>",
    ]


def test_a_template_that_ends_only_the_last_turn_with_eos_learns_the_common_stop_token_of_all(tokenizer: Any) -> None:
    example = _encode(_with_template(tokenizer, "phi3"), TALK)

    said = [content for role, content in TALK.turns if role == "assistant"]
    assert _learnt_runs(tokenizer, example) == [f"{said[0]}<|end|>", f"{said[1]}<|end|>", f"{said[2]}<|end|>\n</s>"]


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_content_that_the_template_strips_is_learnt_as_it_stands_in_the_text(tokenizer: Any, name: str) -> None:
    _with_template(tokenizer, name)

    example = _encode(tokenizer, Chat((("user", "  Why? "), ("assistant", "\n Because. \n"))))

    assert _learnt_runs(tokenizer, example) == ["Because." + TEMPLATES[name][1]]


def test_system_and_tool_messages_and_a_question_without_an_answer_are_not_learnt(tokenizer: Any) -> None:
    turns = (("system", "Be kind."), ("user", "Why?"), ("tool", "42"), ("assistant", "Because."), ("user", "Really?"))

    example = _encode(_with_template(tokenizer, "chatml"), Chat(turns))

    assert _learnt_runs(tokenizer, example) == ["Because.<|im_end|>"]


def test_an_empty_turn_of_the_assistant_is_not_learnt(tokenizer: Any) -> None:
    turns = (("user", "Why?"), ("assistant", ""), ("user", "Hello?"), ("assistant", "Because."))

    assert _learnt_runs(tokenizer, _encode(tokenizer, Chat(turns))) == ["Because.</s>"]


def test_a_greeting_before_the_first_question_is_learnt(tokenizer: Any) -> None:
    example = _encode(_with_template(tokenizer, "chatml"), Chat((("assistant", "How can I help?"), ("user", "Not at all"))))

    assert _learnt_runs(tokenizer, example) == ["How can I help?<|im_end|>"]


def test_answers_that_repeat_the_question_are_found_where_the_assistant_says_them(tokenizer: Any) -> None:
    _with_template(tokenizer, "chatml")
    turns = (("user", "yes"), ("assistant", "yes"), ("user", "yes"), ("assistant", "yes"))

    text, spans = learnt_spans(tokenizer, turns)

    assert [text[start:end] for start, end in spans] == ["yes<|im_end|>"] * 2
    assert all(text[:start].endswith("assistant\n") for start, _ in spans)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["chatml", "llama3", "gemma", "mistral", "phi3", "plain"]),
    said=st.lists(st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=20), min_size=1, max_size=3),
)
def test_whatever_is_said_the_spans_hold_it_and_the_stop_token(tokenizer: Any, name: str, said: list[str]) -> None:
    _with_template(tokenizer, name)
    turns = [turn for content in said for turn in (("user", content), ("assistant", content))]
    kept = [content for content in said if content.strip()]

    text, spans = learnt_spans(tokenizer, turns)

    assert [text[start:end].strip()[: len(content.strip())] for (start, end), content in zip(spans, kept, strict=True)] == [
        c.strip() for c in kept
    ]
    assert all(TEMPLATES[name][1] in text[start:end] for start, end in spans)


def test_a_template_that_does_not_render_the_content_is_a_bad_row(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': [removed]\n' }}{% endfor %}"

    problem = _encode(tokenizer, TALK)

    assert isinstance(problem, BadRow) and problem.kind == "chat template"
    assert "does not render assistant message 2 as its content" in str(problem)


def test_a_template_that_writes_more_after_the_content_depending_on_it_is_a_bad_row(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' (in short: ' + m['content'] + ')\n' }}{% endfor %}"

    problem = _encode(tokenizer, TALK)

    assert isinstance(problem, BadRow) and problem.kind == "chat template"


def test_a_conversation_the_template_refuses_is_a_bad_row_with_the_templates_reason(tokenizer: Any) -> None:
    _with_template(tokenizer, "gemma")

    problem = _encode(tokenizer, Chat((("system", "Be kind."), *TALK.turns)))

    assert str(problem) == "chat template: refuses the conversation (System role not supported)"


def test_bad_rows_do_not_disturb_the_rows_beside_them(tokenizer: Any) -> None:
    _with_template(tokenizer, "gemma")
    refused = Chat((("system", "Be kind."), *TALK.turns))
    unread = BadRow("empty field: 'text'")

    before, problem, same, after = encode([TALK, refused, unread, TALK], tokenizer, max_length=1000, truncate=False)

    assert isinstance(problem, BadRow) and same is unread
    assert before == after == [_encode(tokenizer, TALK)]


def test_of_a_completion_the_completion_and_the_stop_token_are_learnt(tokenizer: Any) -> None:
    example = _encode(tokenizer, Completion("Question: why?\nAnswer:", " because of fees."))

    assert example.ids[0] == tokenizer.bos_token_id
    assert _learnt_runs(tokenizer, example) == [" because of fees.</s>"]


def test_a_stop_token_that_the_tokenizer_adds_itself_is_learnt_and_not_added_twice(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])

    example = _encode(tokenizer, Completion("Why?", " Because."))

    assert example.ids.count(tokenizer.eos_token_id) == 1
    assert _learnt_runs(tokenizer, example) == [" Because.</s>"]


def test_spaces_are_learnt_with_tokenizers_that_trim_offsets(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)

    example = _encode(tokenizer, Completion("def f():\n", "    if x:\n        return  1"))

    assert _learnt_runs(tokenizer, example) == ["    if x:\n        return  1</s>"]


def test_every_token_of_a_document_is_in_one_block_and_learnt(tokenizer: Any) -> None:
    text = "Fees are due on the first day of each month. " * 20
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    (blocks,) = encode([Text(text)], tokenizer, max_length=32, truncate=False)

    assert isinstance(blocks, list)
    assert [token for block in blocks for token in block.ids] == whole
    assert all(len(block.ids) == 32 for block in blocks[:-1]) and 2 <= len(blocks[-1].ids) <= 32
    assert all(learnt for block in blocks for learnt in block.learnt[1:])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=60), max_length=st.integers(2, 40))
def test_blocks_lose_at_most_a_last_token_that_would_stand_alone(tokenizer: Any, text: str, max_length: int) -> None:
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    (blocks,) = encode([Text(text)], tokenizer, max_length=max_length, truncate=False)

    assert isinstance(blocks, list)
    assert [token for block in blocks for token in block.ids] == (whole if len(whole) % max_length != 1 else whole[:-1])
    assert all(any(block.learnt[1:]) for block in blocks)


def test_a_document_of_a_single_token_is_a_bad_row(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.eos_token = None

    assert _encode(tokenizer, Text("a"), "pretrain").kind == "nothing to learn"


@pytest.mark.parametrize("content", [TALK, Completion("Why? " * 20, "Because."), Labelled("Why? " * 20, "card")])
def test_a_row_over_the_length_is_an_error_that_names_both_lengths(tokenizer: Any, content: Content) -> None:
    whole = len(_encode(tokenizer, content).ids)

    problem = _encode(tokenizer, content, max_length=whole - 1)

    assert isinstance(problem, BadRow) and problem.tokens == whole
    assert str(problem) == f"over length: {whole} tokens, data.max_length is {whole - 1}"
    assert _encode(tokenizer, content, max_length=whole).cut == 0


def test_a_truncated_conversation_keeps_its_beginning_and_counts_what_it_lost(tokenizer: Any) -> None:
    whole = _encode(tokenizer, TALK)

    example = _encode(tokenizer, TALK, max_length=40, truncate=True)

    assert (example.ids, example.learnt) == (whole.ids[:40], whole.learnt[:40])
    assert example.cut == len(whole.ids) - 40


def test_a_row_cut_before_its_answer_is_a_bad_row(tokenizer: Any) -> None:
    problem = _encode(tokenizer, Completion("Why? " * 20, "Because."), max_length=16, truncate=True)

    assert str(problem) == "nothing to learn: the loss mask is empty after cutting to 16 tokens"


def _make_encoder_tokenizer(tokenizer: Any) -> Any:
    """As of BERT: [CLS] text [SEP]."""
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def test_a_text_to_classify_keeps_its_last_special_token_when_it_is_cut(tokenizer: Any) -> None:
    _make_encoder_tokenizer(tokenizer)

    whole = _encode(tokenizer, Labelled("Where is my card? " * 9, "card"), "classify")
    cut = _encode(tokenizer, Labelled("Where is my card? " * 9, "card"), "classify", max_length=12, truncate=True)

    assert (cut.ids[:11], cut.ids[-1], len(cut.ids)) == (whole.ids[:11], tokenizer.sep_token_id, 12)
    assert (cut.label, cut.cut) == ("card", len(whole.ids) - 12)


def test_a_text_to_classify_that_ends_in_no_special_token_is_just_cut(tokenizer: Any) -> None:
    whole = _encode(tokenizer, Labelled("Where is my card? " * 9, "card"), "classify")

    cut = _encode(tokenizer, Labelled("Where is my card? " * 9, "card"), "classify", max_length=12, truncate=True)

    assert cut.ids == whole.ids[:12]
    assert not any(cut.learnt)
