"""Domain terms as tokens of their own: where their embeddings begin, that they are trained, and that they are there again afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import helpers
from tests.trainers import jobs, plain
from trainers.config import LoraMethod, ModelConfig
from trainers.model import Loaded, add_adapters, load_base, load_finetuned, load_tokenizer, merge, save_trained

TERMS = ("mortgage refund", "overdraft facility", "charge")
CPU = torch.device("cpu")
SAME = 2e-6


@pytest.fixture(scope="module", params=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    helpers.make_model("llama", folder, **jobs.WIDE, tie_word_embeddings=request.param == "tied")
    return folder


@pytest.fixture(scope="module")
def terms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("terms") / "terms.txt"
    file.write_text("\n".join([*TERMS, "", TERMS[0], "a"]) + "\n")
    return file


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """To train on, and held out: every answer has a term."""
    folder = tmp_path_factory.mktemp("rows")
    made = [{"prompt": f"Customer {i} asks:", "completion": f" {TERMS[i % 3]} number {i}"} for i in range(40)]
    return helpers.write_jsonl(folder / "rows.jsonl", made[:30]), helpers.write_jsonl(folder / "held_out.jsonl", made[30:])


def _load(model: Path, terms: Path, task: Any = "sft") -> Loaded:
    config = ModelConfig(path=str(model), dtype="float32", add_tokens=terms)
    tokenizer = load_tokenizer(config)
    base = load_base(config, task, tokenizer, labels=["a", "b"] * (task == "classify"), device=CPU, seed=0)
    return Loaded(base, base, tokenizer)


def _rows_of(base: Any, tokenizer: Any) -> list[torch.Tensor]:
    places = [tokenizer.convert_tokens_to_ids(term) for term in TERMS]
    return [layer.weight[places].detach() for layer in (base.get_input_embeddings(), base.get_output_embeddings())]


def test_terms_become_tokens_whose_rows_are_the_mean_of_their_pieces(model: Path, terms: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain_model, plain_tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    pieces = [plain_tokenizer(term, add_special_tokens=False)["input_ids"] for term in TERMS]

    loaded = _load(model, terms)

    assert len(loaded.tokenizer) == len(plain_tokenizer) + 3  # once each; "a" is a token already
    assert loaded.tokenizer.tokenize("the mortgage refund of 2024")[1:3] != plain_tokenizer.tokenize("the mortgage refund of 2024")[1:3]
    for rows, layer in zip(
        _rows_of(loaded.base, loaded.tokenizer), (plain_model.get_input_embeddings(), plain_model.get_output_embeddings()), strict=True
    ):
        torch.testing.assert_close(rows, torch.stack([layer.weight[piece].mean(0) for piece in pieces]).detach())


def test_classifiers_get_terms_too(model: Path, terms: Path) -> None:
    loaded = _load(model, terms, "classify")
    adapted = add_adapters(loaded.base, LoraMethod(), "classify", quantized=False)

    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and "lora_" not in name]

    assert [name.split(".")[-3] for name in names if "trainable_tokens" in name] == ["token_adapter"]


def _make_job(
    folder: Path, model_dir: Path, terms: Path, rows: tuple[Path, Path], method: str, stage: int, quantization: str = "none"
) -> Path:
    data, checkpoint = {"validation": str(rows[1])}, {"every": 2, "keep": 100, "best_by": None}
    model = {"add_tokens": str(terms), "quantization": quantization}
    return jobs.make_job(folder, model_dir, rows[0], method=method, zero=stage, data=data, model=model, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("method", "stage", "quantization"),
    [("full", 2, "none"), ("lora", 2, "none"), ("lora", 3, "none"), ("lora", 1, "nf4"), ("lora", 2, "int8")],
)
def test_terms_are_saved_and_loaded_again(
    tmp_path: Path, model: Path, terms: Path, rows: tuple[Path, Path], method: str, stage: int, quantization: Any
) -> None:
    run_dir = _make_job(tmp_path / "run", model, terms, rows, method, stage, quantization)

    jobs.train_all([run_dir])

    folder = run_dir / ("adapter" if method == "lora" else "model")
    again = load_finetuned(folder, ModelConfig(path=str(model), dtype="float32", quantization=quantization), "sft", device=CPU)
    expected = helpers.events(run_dir, "end")[0]["metrics"]["eval_loss"]
    assert plain.mean_loss(again.module, plain.read_examples(rows[1], folder)) == pytest.approx(expected, abs=SAME)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_rows_of_terms_are_trained(tmp_path: Path, model: Path, terms: Path, rows: tuple[Path, Path], method: str) -> None:
    run_dir = _make_job(tmp_path / "run", model, terms, rows, method, 1)

    jobs.train_all([run_dir])

    folder = run_dir / ("adapter" if method == "lora" else "model")
    again = load_finetuned(folder, ModelConfig(path=str(model), dtype="float32"), "sft", device=CPU)
    whole: Any = again.module
    after = _rows_of(whole.merge_and_unload() if again.is_adapter else whole, again.tokenizer)
    for before, now in zip(_rows_of(_load(model, terms).base, again.tokenizer), after, strict=True):
        assert float((before - now).abs().max()) > 1e-3


def test_an_adapter_with_terms_gives_the_same_logits_again_and_when_merged(tmp_path: Path, model: Path, terms: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = _load(model, terms)
    loaded.module = add_adapters(loaded.base, LoraMethod(), "sft", quantized=False)
    with torch.no_grad():
        for parameter in loaded.trainable.values():
            parameter.add_(torch.randn_like(parameter) / 10)
    ids = torch.arange(480, 515)[None]
    expected = loaded.module.eval()(input_ids=ids).logits

    save_trained(loaded, {name: parameter.detach() for name, parameter in loaded.trainable.items()}, tmp_path / "adapter", labels=[])
    again = load_finetuned(tmp_path / "adapter", ModelConfig(path=str(model), dtype="float32"), "sft", device=CPU)

    assert torch.equal(again.module(input_ids=ids).logits, expected)
    merge(again, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_run_with_terms_goes_on_under_another_stage(tmp_path: Path, model: Path, terms: Path, rows: tuple[Path, Path]) -> None:
    whole = _make_job(tmp_path / "whole", model, terms, rows, "lora", 3)
    expected = jobs.train_here(whole)
    continued = jobs.as_left_after(4, whole, tmp_path / "continued", zero=1)

    assert jobs.difference(jobs.train_here(continued), expected) <= 1e-5
