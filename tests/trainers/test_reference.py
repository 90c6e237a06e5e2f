"""Every method under every ZeRO stage against plain PyTorch: the same losses, step by step."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import helpers
from tests.trainers import jobs, plain

STEPS, BATCH, RATE, WARMUP, CLIP, DECAY, RANK, ALPHA = 10, 6, 1e-3, 2, 0.5, 0.1, 4, 8
METHODS = ("full", "lora", "lora-nf4", "lora-int8")
SAME = 1e-5
"""Of two float32 curves: sums in another order"""
ROUNDED = 0.02
"""Of a bfloat16 curve from a float32 one"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    helpers.make_model("llama", folder, **jobs.WIDE)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_rows(tmp_path_factory.mktemp("rows"), count=40)


def _make_job(folder: Path, llama: Path, rows: Path, method: str, stage: int, workers: int, dtype: str = "float32") -> Path:
    kind, _, quantization = method.partition("-")
    return jobs.make_job(
        folder / f"{method}-zero{stage}-{workers}-{dtype}",
        llama,
        rows,
        model={"dtype": dtype, "quantization": quantization or "none"},
        method={"lora": {"rank": RANK, "alpha": ALPHA}} if kind == "lora" else "full",
        train={"max_steps": STEPS, "global_batch_size": BATCH, "learning_rate": RATE, "warmup": WARMUP, "max_grad_norm": CLIP,
               "weight_decay": DECAY, "micro_batch_tokens": 160},
        zero=stage,
    )  # fmt: skip


@cache
def _reference(llama: Path, rows: Path, method: str, dtype: str = "float32") -> list[float]:
    return plain.train(
        _make_model(llama, method, getattr(torch, dtype)),
        plain.read_examples(rows, llama),
        steps=STEPS,
        batch_size=BATCH,
        learning_rate=plain.cosine(peak=RATE, steps=STEPS, warmup_steps=WARMUP),
        max_grad_norm=CLIP,
        weight_decay=DECAY,
    )


def _make_model(llama: Path, method: str, dtype: torch.dtype) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization: dict[str, Any] = {
        "lora-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "lora-int8": {"load_in_8bit": True},
    }.get(method, {})
    options = {"quantization_config": BitsAndBytesConfig(**quantization), "device_map": {"": "cpu"}} if quantization else {}
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype, **options)
    if method == "full":
        return model
    if method == "lora-nf4":
        _dequantize(model)
    torch.manual_seed(0)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora, autocast_adapter_dtype=False)


def _dequantize(model: nn.Module) -> None:
    """Ordinary linear layers with the values that 4-bit ones stand for."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
                ordinary = nn.Linear(*weight.T.shape, bias=False)
                ordinary.weight = nn.Parameter(weight, requires_grad=False)
                setattr(parent, name, ordinary)


@pytest.mark.parametrize(("method", "stage"), [("full", 1), ("full", 3), ("lora", 2), ("lora", 3), ("lora-nf4", 1), ("lora-int8", 2)])
def test_one_worker_gives_the_losses_of_the_reference(tmp_path: Path, llama: Path, rows: Path, method: str, stage: int) -> None:
    losses = jobs.train_here(_make_job(tmp_path, llama, rows, method, stage, workers=1))

    assert jobs.difference(losses, _reference(llama, rows, method)) <= SAME


def test_two_workers_give_the_losses_of_the_reference(tmp_path: Path, llama: Path, rows: Path) -> None:
    made = {method: _make_job(tmp_path, llama, rows, method, stage, workers=2) for method, stage in [("full", 3), ("lora", 2)]}

    helpers.run_distributed(jobs.train_all, 2, list(made.values()))

    for method, run_dir in made.items():
        assert jobs.difference(helpers.losses(run_dir), _reference(llama, rows, method)) <= SAME


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_stays_close_to_float32(tmp_path: Path, llama: Path, rows: Path, method: str) -> None:
    losses = jobs.train_here(_make_job(tmp_path, llama, rows, method, 2, workers=1, dtype="bfloat16"))

    assert jobs.difference(losses, _reference(llama, rows, method, "bfloat16")) <= ROUNDED
    assert jobs.difference(losses, _reference(llama, rows, method)) <= ROUNDED


@pytest.mark.slow
def test_every_method_stage_and_number_of_workers_gives_the_losses_of_the_reference(
    tmp_path: Path, llama: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [(method, stage, workers, "float32") for workers in (1, 2) for method in METHODS for stage in (1, 2, 3)]
    cases += [(method, stage, workers, "bfloat16") for workers in (1, 2) for method in ("full", "lora") for stage in (1, 2, 3)]
    made = {case: _make_job(tmp_path, llama, rows, *case) for case in cases}
    for workers in (1, 2):
        helpers.run_distributed(jobs.train_all, workers, [run_dir for case, run_dir in made.items() if case[2] == workers])

    curves = {case: helpers.losses(run_dir) for case, run_dir in made.items()}
    off = {case: jobs.difference(curve, _reference(llama, rows, case[0], case[3])) for case, curve in curves.items()}
    rounding = {case: jobs.difference(curve, _reference(llama, rows, case[0])) for case, curve in curves.items()}

    with capsys.disabled():
        print(f"\n\nlargest difference of the loss over {STEPS} steps, from plain PyTorch and (bfloat16) from plain PyTorch in float32")
        for case in cases:
            print("{:10} ZeRO-{}  {} worker(s)  {:9}".format(*case), f"{off[case]:.1e}  {rounding[case]:.1e}")
    assert max(value for case, value in off.items() if case[3] == "float32") <= SAME
    assert max(rounding.values()) <= ROUNDED
