import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import helpers
from trainers.config import LoraMethod, ModelConfig
from trainers.lora import fuse_updates
from trainers.model import add_adapters, load_base, load_tokenizer


def _make(folder: Path, quantization: str = "none", **method: Any) -> Any:
    """A small model with adapters whose B is not zero."""
    model = ModelConfig.model_validate({"path": str(folder), "dtype": "float32", "quantization": quantization})
    base = load_base(model, "sft", load_tokenizer(model), labels=[], device=torch.device("cpu"), seed=0)
    module = add_adapters(base, LoraMethod(rank=4, **method), "sft", quantized=quantization != "none")
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module


def _run(module: Any, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    logits = module(input_ids=torch.arange(3, 43).view(2, 20)).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _assert_same(fused: Any, plain: Any) -> None:
    (ours, our_gradients), (theirs, their_gradients) = _run(fused), _run(plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys() and our_gradients
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("quantization", "method"),
    [("none", {}), ("none", {"rslora": True}), ("none", {"train_a": False}), ("none", {"dropout": 0.3}), ("nf4", {}), ("int8", {})],
)
def test_output_and_gradients_are_those_of_peft(llama_dir: Path, quantization: str, method: dict[str, Any]) -> None:
    plain = _make(llama_dir, quantization, **method)
    fused = copy.deepcopy(plain) if quantization == "none" else _make(llama_dir, quantization, **method)

    assert fuse_updates(fused) == 14

    fused.train()
    plain.train()
    _assert_same(fused, plain)


def test_layers_that_are_not_linear_are_left_to_peft(tmp_path: Path) -> None:
    helpers.make_model("gpt2", tmp_path)
    module = _make(tmp_path)
    before = _run(module)[0]

    assert fuse_updates(module) == 0  # GPT-2's are convolutions of width one

    torch.testing.assert_close(_run(module)[0], before, rtol=0, atol=0)


def test_adapters_can_still_be_switched_off(llama_dir: Path) -> None:
    module = _make(llama_dir)
    ids = torch.arange(3, 23).view(1, 20)
    with module.disable_adapter():
        before = module(input_ids=ids).logits

    fuse_updates(module)

    with module.disable_adapter():
        torch.testing.assert_close(module(input_ids=ids).logits, before, rtol=0, atol=0)
    assert not torch.allclose(module(input_ids=ids).logits, before)


def test_activations_computed_again_give_the_same_gradients(llama_dir: Path) -> None:
    plain = _make(llama_dir)
    fused = copy.deepcopy(plain)
    fuse_updates(fused)
    fused.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fused.train()
    plain.train()

    _assert_same(fused, plain)
