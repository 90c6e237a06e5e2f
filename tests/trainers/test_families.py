"""Families of models: head, mask, padding and the saved files are right for each of them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import helpers
from tests.trainers import jobs, plain
from trainers.config import LoraMethod, ModelConfig
from trainers.errors import ModelError
from trainers.model import Loaded, add_adapters, load_base, load_tokenizer, save_trained

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "sft", {}),
    "llama, embeddings tied": ("llama", "sft", {"tie_word_embeddings": True}),
    "llama, classes": ("llama", "classify", {}),
    "qwen3": ("qwen3", "sft", {}),
    "mistral": ("mistral", "sft", {}),
    "gemma3": ("gemma3", "sft", {}),
    "falcon": ("falcon", "sft", {}),
    "gpt2, no padding token": ("gpt2", "sft", {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}),
    "bert": ("bert", "classify", {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}),
    "modernbert": ("modernbert", "classify", {}),
}
PACKED = {"llama", "llama, embeddings tied", "qwen3", "mistral", "gemma3", "gpt2, no padding token"}
SAME = 2e-6
CPU = torch.device("cpu")


@dataclass
class Family:
    """A model of a family, and a job of three steps on it with each method."""

    name: str
    folder: Path

    @property
    def task(self) -> str:
        return FAMILIES[self.name][1]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @cached_property
    def rows(self) -> tuple[Path, Path]:
        """To train on, and held out."""
        write = jobs.write_labelled_rows if self.task == "classify" else jobs.write_rows
        return write(self.folder), write(self.folder, count=10, seed=1, name="held_out.jsonl")

    @cached_property
    def lora(self) -> Path:
        return self._train("lora")

    @cached_property
    def full(self) -> Path:
        return self._train("full")

    def _train(self, method: str) -> Path:
        data = {"validation": str(self.rows[1])}
        run_dir = jobs.make_job(
            self.folder / method, self.model, self.rows[0], task=self.task, method=method, data=data, train={"max_steps": 3}
        )
        jobs.train_all([run_dir])
        return run_dir

    def load(self, folder: Path) -> Any:
        """As anyone loads it; a head that is not in the folder has random weights."""
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        if self.task == "sft":
            return AutoModelForCausalLM.from_pretrained(folder).eval()
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, pad_token_id=2).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    made = Family(request.param, tmp_path_factory.mktemp("family"))
    family, _, changes = FAMILIES[made.name]
    helpers.make_model(family, made.model, **changes)
    if "no padding token" in made.name:
        _drop_padding_token(made.model)
    return made


def _drop_padding_token(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_first_loss_is_that_of_plain_pytorch(family: Family, method: str) -> None:
    examples = plain.read_examples(family.rows[0], family.model)
    torch.manual_seed(0)
    model = family.load(family.model)

    first = helpers.losses(getattr(family, method))[0]

    assert first == pytest.approx(plain.mean_loss(model, plain.first_batch(examples, batch_size=6)), abs=SAME)


def test_examples_are_packed_where_attention_keeps_them_apart(family: Family) -> None:
    choices = {choice["field"]: choice for choice in helpers.events(family.lora, "start")[0]["choices"]}

    assert choices["data.packing"]["value"] is (family.name in PACKED)


def test_an_adapter_loads_with_peft_and_has_the_loss_it_was_saved_with(family: Family) -> None:
    from peft import PeftModel

    torch.manual_seed(5)
    adapted = PeftModel.from_pretrained(family.load(family.model), str(family.lora / "adapter")).eval()

    expected = helpers.events(family.lora, "end")[0]["metrics"]["eval_loss"]
    assert plain.mean_loss(adapted, plain.read_examples(family.rows[1], family.model)) == pytest.approx(expected, abs=SAME)


def test_a_whole_model_loads_with_transformers_and_has_the_loss_it_was_saved_with(family: Family) -> None:
    model = family.load(family.full / "model")

    expected = helpers.events(family.full, "end")[0]["metrics"]["eval_loss"]
    assert plain.mean_loss(model, plain.read_examples(family.rows[1], family.model)) == pytest.approx(expected, abs=SAME)


def test_training_moved_the_loss(family: Family) -> None:
    for run_dir in (family.lora, family.full):
        losses = helpers.losses(run_dir)
        assert abs(losses[2] - losses[0]) > 1e-3


def test_an_adapter_gives_the_logits_of_the_model_it_was_saved_from(family: Family, tmp_path: Path) -> None:
    from peft import PeftModel

    config, labels = ModelConfig(path=str(family.model), dtype="float32"), ["a", "b", "c"] * (family.task == "classify")
    tokenizer = load_tokenizer(config)
    base = load_base(config, family.task, tokenizer, labels=labels, device=CPU, seed=0)
    loaded = Loaded(add_adapters(base, LoraMethod(), family.task, quantized=False), base, tokenizer)
    with torch.no_grad():
        for parameter in loaded.trainable.values():
            parameter.add_(torch.randn_like(parameter) / 10)
    ids = torch.arange(3, 40)[None]

    save_trained(loaded, {name: parameter.detach() for name, parameter in loaded.trainable.items()}, tmp_path / "adapter", labels=labels)

    again = PeftModel.from_pretrained(family.load(family.model), str(tmp_path / "adapter")).eval()
    assert torch.equal(again(input_ids=ids).logits, loaded.module.eval()(input_ids=ids).logits)


def test_a_model_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    helpers.make_model("llama", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}, file, metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.down_proj\.weight and 2 others"):
        _load(tmp_path / "model", "sft")
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.down_proj\.weight"):
        _load(tmp_path / "model", "classify")


def _load(folder: Path, task: Any) -> Any:
    config = ModelConfig(path=str(folder), dtype="float32")
    return load_base(config, task, load_tokenizer(config), labels=["a", "b"], device=CPU, seed=0)
