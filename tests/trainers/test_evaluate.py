"""Scores against the plainest way to compute each."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import helpers
from trainers.config import DataConfig, ModelConfig
from trainers.data.masking import encode
from trainers.errors import DataError
from trainers.evaluate import (
    Item,
    answers,
    chat_prompt,
    class_probabilities,
    prompt_ids,
    prompt_of,
    read_items,
    score,
    summarise,
    summarise_by,
)
from trainers.model import Loaded, load_base, load_tokenizer

LABELS = ["lost card", "card fee", "loan"]


@pytest.fixture(scope="module")
def loaded(llama_dir: Path) -> Loaded:
    model = ModelConfig(path=str(llama_dir), dtype="float32")
    tokenizer = load_tokenizer(model)
    base = load_base(model, "sft", tokenizer, labels=[], device=torch.device("cpu"), seed=0)
    return Loaded(base.eval(), base, tokenizer)


@pytest.fixture(scope="module")
def classifier(bert_dir: Path) -> Loaded:
    model = ModelConfig(path=str(bert_dir), dtype="float32")
    tokenizer = load_tokenizer(model)
    base = load_base(model, "classify", tokenizer, labels=LABELS, device=torch.device("cpu"), seed=0)
    return Loaded(base.eval(), base, tokenizer)


def _read(folder: Path, rows: list[dict[str, Any]], task: Any = "sft") -> list[Item]:
    path = helpers.write_jsonl(folder / "rows.jsonl", rows)
    return read_items(DataConfig(train=[path]), task, path)


def _chat(question: str, answer: str, **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **columns}


def _make_chats(folder: Path) -> list[Item]:
    said = [("My card is gone.", "lost card"), ("Why was I charged twice for it?", "card fee"), ("I want to borrow money", "loan")]
    return _read(folder, [_chat(q, f"{label}. We will help.", intent=label, branch="AB"[i % 2]) for i, (q, label) in enumerate(said)])


def _log_probability(loaded: Loaded, text: str, start: int) -> tuple[float, int]:
    """Of the tokens of `text` that end after character `start`; and their number."""
    encoded = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        chances = loaded.base(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    counted = torch.tensor([end > start for _, end in encoded["offset_mapping"]][1:])
    return float(chances[counted].sum()), int(counted.sum())


def test_loss_and_perplexity_are_those_of_the_answers_tokens(loaded: Loaded, tmp_path: Path) -> None:
    items = _make_chats(tmp_path)

    metrics = summarise(score(loaded, "sft", items, max_length=256))

    summed = [
        _log_probability(loaded, prompt + item.values["messages"][1]["content"] + "</s>", len(prompt))
        for item in items
        for prompt in [prompt_of(item.content, loaded)]
    ]
    loss = -sum(chance for chance, _ in summed) / sum(count for _, count in summed)
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_likeliest_label_is_that_of_whole_sequences_scored_one_by_one(loaded: Loaded, tmp_path: Path) -> None:
    items = _make_chats(tmp_path)

    scored = score(loaded, "sft", items, max_length=256, label_column="intent")

    labels = sorted(LABELS)
    assert scored.labels == labels and scored.probabilities is not None
    for item, chances in zip(items, scored.probabilities, strict=True):
        prompt = prompt_of(item.content, loaded)
        expected = np.array([_log_probability(loaded, f"{prompt}{label}.", len(prompt))[0] for label in labels])
        np.testing.assert_allclose(np.log(chances), expected - np.logaddexp.reduce(expected), atol=1e-3)


def test_an_answer_that_does_not_begin_with_its_label_is_named(loaded: Loaded, tmp_path: Path) -> None:
    items = _read(tmp_path, [_chat("a", "loan, then", intent="loan"), _chat("b", "Sorry!", intent="card fee")])

    with pytest.raises(DataError, match=r"rows.jsonl:2: the answer does not begin with its label 'card fee'"):
        score(loaded, "sft", items, max_length=256, label_column="intent")


def test_written_answers_are_the_greedy_ones_alone_or_together(loaded: Loaded) -> None:
    prompts = ["User:\nHello\nAssistant:\n", "User:\nWhat does a transfer to another bank cost me, please?\nAssistant:\n"]

    together = answers(loaded, prompts, max_new_tokens=6)

    for prompt, (text, confidence, cut) in zip(prompts, together, strict=True):
        ids = loaded.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        chances, start = [], ids.shape[1]
        for _ in range(6):
            with torch.no_grad():
                chance, token = loaded.base(input_ids=ids).logits[0, -1].log_softmax(-1).max(0)
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
            chances.append(float(chance))
            if int(token) == loaded.tokenizer.eos_token_id:
                break
        assert cut == (int(ids[0, -1]) != loaded.tokenizer.eos_token_id)
        assert text == loaded.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
        assert confidence == pytest.approx(math.exp(sum(chances) / len(chances)), rel=1e-3)


def test_a_prompt_begins_as_the_examples_did_that_were_trained_on(loaded: Loaded, tmp_path: Path) -> None:
    space = loaded.tokenizer(" ", add_special_tokens=False)["input_ids"]
    for row in ({"prompt": "Dear", "completion": " bank"}, {"prompt": "Dear ", "completion": "bank"}, _chat("My card?", "Yes.")):
        (item,) = _read(tmp_path, [row])
        ((example,),) = encode([item.content], loaded.tokenizer, max_length=256, truncate=False)
        prompt = prompt_ids(loaded.tokenizer, prompt_of(item.content, loaded))
        assert prompt[-1:] != space
        assert prompt == example.ids[: example.learnt.index(True)] and prompt.count(loaded.tokenizer.bos_token_id) == 1


def test_no_answer_goes_on_where_the_model_has_no_places_left(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    generate = loaded.base.generate
    monkeypatch.setattr(loaded.base, "generate", lambda **options: asked.append(options["max_new_tokens"]) or generate(**options))
    answers(loaded, ["fee" * 100], max_new_tokens=1000)
    assert asked == [256 - len(loaded.tokenizer("fee" * 100, add_special_tokens=False)["input_ids"])]


def test_answers_are_written_as_long_as_their_references_and_those_that_were_cut_are_counted(loaded: Loaded, tmp_path: Path) -> None:
    reference = "fee " * 200
    scored = score(loaded, "sft", _read(tmp_path, [_chat("a", reference)]), max_length=256, generate=True)
    assert scored.hypotheses is not None and scored.cut is not None
    written = loaded.tokenizer(scored.hypotheses[0], add_special_tokens=False)["input_ids"]
    assert scored.cut == [len(written) > 128] and summarise(scored)["answers_cut"] == sum(scored.cut)


def test_required_terms_are_counted_in_what_was_written(loaded: Loaded, tmp_path: Path) -> None:
    items = _read(tmp_path, [_chat("a", "b", terms="fee; rate"), _chat("c", "d", terms=["loan"])])

    metrics = summarise(score(loaded, "sft", items, max_length=256, terms_column="terms"))

    assert metrics["term_coverage"] == 0.0  # random weights speak no finance
    assert {"bleu", "rougeL", "exact_match"} <= metrics.keys()


def test_groups_are_summaries_of_their_own_rows(loaded: Loaded, tmp_path: Path) -> None:
    items = _make_chats(tmp_path)
    scored = score(loaded, "sft", items, max_length=256)

    by = summarise_by(scored, items, "branch")

    assert by["groups"]["A"]["eval_loss"] == pytest.approx(summarise(scored, [0, 2])["eval_loss"])
    assert by["groups"]["B"]["rows"] == 1
    with pytest.raises(DataError, match="--by region: no such column"):
        summarise_by(scored, items, "region")


def test_classes_are_those_of_the_head_whatever_the_batch(classifier: Loaded, tmp_path: Path) -> None:
    texts = ["My card is gone.", "Why was I charged twice for it, and who can tell me more?", "loan"]
    items = _read(tmp_path, [{"text": text, "label": label} for text, label in zip(texts, LABELS, strict=True)], "classify")

    scored = score(classifier, "classify", items, max_length=256)

    alone = np.concatenate([class_probabilities(classifier, [text], max_length=256) for text in texts])
    assert scored.probabilities is not None
    np.testing.assert_allclose(scored.probabilities, alone, atol=1e-5)
    np.testing.assert_allclose(scored.loss, -np.log(alone[[0, 1, 2], [0, 1, 2]]), atol=1e-4)
    assert scored.labels == LABELS and scored.truth == LABELS


def test_a_class_the_model_does_not_know_is_named_with_its_row(classifier: Loaded, tmp_path: Path) -> None:
    items = _read(tmp_path, [{"text": "a", "label": "loan"}, {"text": "b", "label": "mortgage"}], "classify")

    with pytest.raises(DataError, match=r"rows.jsonl:2: the model has no class 'mortgage'") as caught:
        score(classifier, "classify", items, max_length=256)
    assert "lost card" in caught.value.hint


def test_a_template_that_refuses_a_conversation_is_bad_input(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{{ raise_exception('no system role') }}")

    with pytest.raises(DataError, match="no system role"):
        chat_prompt(loaded, [("system", "Be kind."), ("user", "Hello")])
