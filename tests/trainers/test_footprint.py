from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from tests import helpers
from tests.trainers.jobs import make_job, write_rows
from trainers import worker
from trainers.attention import use_blocks
from trainers.by_unit import gradients_by_unit, to_float32
from trainers.config import TrainConfig, validate
from trainers.errors import ModelError
from trainers.footprint import measure
from trainers.lora import fuse_updates
from trainers.memory import Footprint
from trainers.model import add_adapters, decoder_blocks, load_base, load_tokenizer

ROWS, ROW = 3, 40


def _make_config(model: Any, method: Any = "lora", row: int = ROW, **blocks: Any) -> TrainConfig:
    values = {"task": "sft", "model": model, "method": method, "data": {"train": "rows.jsonl", "max_length": row}, "zero": 1}
    return validate(TrainConfig, values | blocks, source="job.yaml")


def _measure(config: TrainConfig, device: Any = "cpu") -> Footprint:
    found = measure(config, device)
    assert found is not None
    return found


def _saved(config: TrainConfig, kernel: SDPBackend) -> int:
    """Bytes really kept on this CPU by a forward pass of the body with its weights, each storage once.

    They are what autograd saves, and with activation checkpointing the arguments of the blocks, which it does not see.
    """
    base = load_base(config.model, config.task, load_tokenizer(config.model), labels=["a", "b"], device=torch.device("cpu"), seed=0)
    module = add_adapters(base, config.method, config.task, quantized=False)
    if config.privacy is not None:
        to_float32(module)
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        whole = {name: parameter.detach() for name, parameter in trained.items()}
        gradients_by_unit(module, base, trained, whole, torch.device("cpu"))
    else:
        fuse_updates(module)
    if config.train.activation_checkpointing is True:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    if config.task == "sft" and use_blocks(base):
        ids, mask = torch.full((1, ROWS * ROW), 7), torch.tensor([[[(ROWS, ROW)]]], dtype=torch.int32)
    else:
        ids, mask = torch.full((ROWS, ROW), 7), torch.ones(ROWS, 1, ROW, ROW, dtype=torch.bool).tril()
    inputs = {"input_ids": ids, "attention_mask": mask} | ({"position_ids": ids.clone()} if config.task == "sft" else {})
    own |= {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def keep_arguments(block: torch.nn.Module, args: Any, kwargs: Any) -> None:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                keep(tensor)

    if config.train.activation_checkpointing is True:
        for block in decoder_blocks(base):
            block.register_forward_pre_hook(keep_arguments, with_kwargs=True)
    with sdpa_kernel(kernel), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        body = getattr(base, base.base_model_prefix)
        hidden = body(**inputs, use_cache=False).last_hidden_state
    return sum(tensor.untyped_storage().nbytes() for address, tensor in {hidden.data_ptr(): hidden, **saved}.items() if address not in own)


@pytest.mark.parametrize("method", ["full", "lora", {"lora": {"rank": 4, "dropout": 0.1}}])
@pytest.mark.parametrize("again", [False, True])
def test_what_is_counted_without_data_is_what_a_real_pass_saves(llama_dir: Path, method: Any, again: bool) -> None:
    config = _make_config({"path": str(llama_dir), "dtype": "float32"}, method, train={"activation_checkpointing": again})
    found = _measure(config)

    counted = found.input_first + found.input_block if again else found.kept_first + found.kept_block

    assert ROWS * counted == pytest.approx(_saved(config, SDPBackend.MATH), rel=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_private_pass_keeps_its_inputs_in_float32(llama_dir: Path, dtype: str) -> None:
    config = _make_config({"path": str(llama_dir), "dtype": dtype}, privacy=helpers.PRIVACY)
    found = _measure(config)

    assert found.trained_width == 4
    assert ROWS * (found.kept_first + found.kept_block) == pytest.approx(_saved(config, SDPBackend.MATH), rel=0.03)


def test_whole_layers_trained_privately_leave_no_gradient_of_a_record(llama_dir: Path) -> None:
    model = {"path": str(llama_dir), "dtype": "float32"}
    ordinary = _measure(_make_config(model, "full"))

    private = _measure(_make_config(model, "full", privacy=helpers.PRIVACY))

    assert private.of_unit == 0 and private.trained == ordinary.trained - 2 * ordinary.head
    assert private.backward >= ordinary.backward + 24 * ROW**2


def test_fused_attention_keeps_no_scores(llama_dir: Path) -> None:
    config = _make_config({"path": str(llama_dir), "dtype": "float32"}, "full")
    fused, plain = _measure(config, "cuda"), _measure(config, "cpu")

    counted = ROWS * (fused.kept_first + fused.kept_block + 2 * fused.mask_block)

    assert counted == pytest.approx(_saved(config, SDPBackend.FLASH_ATTENTION), rel=0.03)
    assert plain.kept_block == fused.kept_block + 4 * (4 * ROW**2 - 4 * ROW)  # scores of four heads, in place of their sums


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma3", "falcon", "gpt2", "bert", "modernbert"])
def test_every_family_can_be_counted(tmp_path: Path, family: str) -> None:
    helpers.make_model(family, tmp_path)
    task = "classify" if family in ("bert", "modernbert") else "sft"
    config = _make_config({"path": str(tmp_path), "dtype": "float32"}, "full", task=task)

    found = _measure(config)

    assert ROWS * (found.kept_first + found.kept_block) == pytest.approx(_saved(config, SDPBackend.MATH), rel=0.05)


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_adapters_of_a_classifier_are_counted_with_its_new_head(tmp_path: Path, family: str) -> None:
    helpers.make_model(family, tmp_path)
    config = _make_config({"path": str(tmp_path), "dtype": "float32"}, task="classify")
    base = load_base(config.model, "classify", load_tokenizer(config.model), labels=["a", "b"], device=torch.device("cpu"), seed=0)
    module = add_adapters(base, config.method, "classify", quantized=False)

    found = _measure(config)

    assert found.trained == found.adapters == sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def test_8b_keeps_per_token_what_is_counted_by_hand() -> None:
    hidden, kv, inner, heads = 4096, 1024, 14336, 32
    found = _measure(
        _make_config({"shape": "llama-3.1-8b", "dtype": "bfloat16", "attention": "flash_attention_2"}, "full", row=1024), "cuda"
    )
    norms = 2 * (4 + 2) * hidden  # in float32, and what the weight multiplies
    products = 2 * (hidden + hidden + inner)  # inputs of q, k and v; of gate and up; of down
    attention = 2 * (2 * hidden + 2 * kv) + 4 * heads  # q, k, v and the output, which is the input of o; sums
    gate = 2 * 3 * inner  # gate before and after its function, and up
    assert found.kept_block / found.row == pytest.approx(norms + products + attention + gate, rel=0.01)
    assert (found.parameters, found.trained, found.layers) == (8_030_261_248, 8_030_261_248, 32)


def test_8b_with_adapters_is_counted_without_its_weights() -> None:
    found = _measure(_make_config({"shape": "llama-3.1-8b", "dtype": "bfloat16"}, "lora", row=4096), "cuda")
    assert (found.adapters, found.trained, found.quantized) == (41_943_040, 41_943_040, 6_979_321_856)
    assert 0.9 * found.kept_first < found.kept_block < found.kept_first  # with embeddings and the last norm
    assert found.mask == 0
    dense = _measure(_make_config({"shape": "llama-3.1-8b", "dtype": "bfloat16", "attention": "sdpa"}, "lora", row=4096), "cuda")
    assert dense.mask == 4096**2
    assert dense.kept_block - found.kept_block == 4096 * 2 * 2 * (4096 - 1024)  # with a mask, keys and values are copied for every head


def test_a_model_that_cannot_run_without_data_is_not_counted(monkeypatch: pytest.MonkeyPatch, llama_dir: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: x[x > 0])
    assert measure(_make_config({"path": str(llama_dir), "dtype": "float32"}), "cpu") is None


@pytest.mark.parametrize("error", [TypeError, AttributeError, RuntimeError])
def test_a_fault_of_the_counting_is_not_taken_for_one_of_the_model(monkeypatch: pytest.MonkeyPatch, llama_dir: Path, error: Any) -> None:
    def fail(*_: Any) -> None:
        raise error("a fault of ours")

    monkeypatch.setattr("trainers.footprint.fuse_updates", fail)
    with pytest.raises(error, match="a fault of ours"):
        measure(_make_config({"path": str(llama_dir), "dtype": "float32"}), "cpu")


def test_adapters_of_one_block_are_counted_as_if_every_block_had_them(llama_dir: Path) -> None:
    model = {"path": str(llama_dir), "dtype": "float32"}
    everywhere = _measure(_make_config(model, {"lora": {"targets": ["down_proj"]}}))
    assert _measure(_make_config(model, {"lora": {"targets": ["layers.1.mlp.down_proj"]}})) == everywhere
    with pytest.raises(ModelError, match=r"no module named layers\.0\.mlp\.down"):
        measure(_make_config(model, {"lora": {"targets": ["layers.1.mlp.down"]}}), "cpu")


def test_one_block_alone_is_adapted(llama_dir: Path, tmp_path: Path) -> None:
    targets = {"lora": {"rank": 2, "targets": ["layers.1.mlp.down_proj", "layers.0.self_attn.q_proj"]}}
    run_dir = make_job(tmp_path / "run", llama_dir, write_rows(tmp_path), method=targets, train={"max_steps": 1})
    worker.train(run_dir, run_id="test")
    trained = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    assert len(trained) == 4 and all("layers.1.mlp.down_proj" in name or "layers.0.self_attn.q_proj" in name for name in trained)
