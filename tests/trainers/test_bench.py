"""What a benchmark measures with, without Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import helpers
from trainers import config as config_module
from trainers.bench import covered, generate_rows, measure, reason
from trainers.config import LoraMethod, ModelConfig, TrainConfig
from trainers.errors import DataError
from trainers.model import add_adapters, load_base

CPU = torch.device("cpu")


def _make_config(model: Path, **blocks: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"task": "sft", "model": {"path": str(model), "dtype": "float32"}, "data": {"train": "generated", "max_length": 16}, **blocks}
    )


@pytest.mark.parametrize(("spans", "length"), [([], 0), ([(0, 2), (1, 3)], 3), ([(5, 6), (0, 1)], 2), ([(0, 10), (2, 3), (9, 12)], 12)])
def test_what_overlaps_is_counted_once(spans: list[tuple[float, float]], length: float) -> None:
    assert covered(spans) == length


def test_generated_rows_are_of_one_length_all_learnt_and_the_same_each_time(llama_dir: Path) -> None:
    rows = generate_rows(_make_config(llama_dir), 3)
    first, again = rows.samples([0, 2]), rows.samples([0, 2])
    assert [len(sample.ids) for sample in first] == [16, 16] and all(sample.learnt.all() for sample in first)
    assert np.array_equal(first[1].ids, again[1].ids) and not np.array_equal(first[0].ids, first[1].ids)
    assert max(sample.ids.max() for sample in first) < helpers.VOCABULARY and rows.targets.tolist() == [15] * 3


def test_rows_to_classify_have_the_classes_of_the_head(bert_dir: Path) -> None:
    rows = generate_rows(_make_config(bert_dir, task="classify"), 4)
    assert {sample.label for sample in rows.samples(range(4))} == {0, 1} and rows.targets.tolist() == [1] * 4


def test_a_reason_is_one_line_with_what_the_person_needs() -> None:
    oom = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB.\nmore")
    assert reason(oom) == "out of memory: Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
    assert reason(DataError("no rows", "hint")) == "no rows"
    assert reason(RuntimeError("first\nsecond")) == "RuntimeError: first"


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_known_shape_gets_random_weights_of_its_own_quantised_as_read_ones_are(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: Any
) -> None:
    (tmp_path / "llama-3.1-8b.json").write_text((llama_dir / "config.json").read_text())
    monkeypatch.setattr(config_module, "SHAPES", tmp_path)
    shape = ModelConfig(shape="llama-3.1-8b", dtype="float32", quantization=quantization)
    base = load_base(shape, "sft", None, labels=[], device=CPU, seed=0)
    read = load_base(
        ModelConfig(path=str(llama_dir), dtype="float32", quantization=quantization), "sft", None, labels=[], device=CPU, seed=0
    )
    kinds = [(name, type(p), p.shape, p.dtype) for name, p in base.named_parameters()]
    assert kinds == [(name, type(p), p.shape, p.dtype) for name, p in read.named_parameters()]
    places = [parameter.data_ptr() for parameter in base.parameters()]
    assert len(set(places)) == len(places)
    module = add_adapters(base, LoraMethod(rank=2), "sft", quantized=quantization != "none")
    assert module(input_ids=torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.slow
def test_a_lone_process_measures_itself_and_leaves_its_numbers(llama_dir: Path, tmp_path: Path) -> None:
    config = _make_config(llama_dir, train={"micro_batch_tokens": 64}, zero=1)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    helpers.run_distributed(_measure, 1, tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    assert len(found["step_seconds"]) == 3 and min(found["step_seconds"]) > 0
    assert (found["tokens_per_step"], found["zero_stage"], found["length"]) == (64, 1, 16)


def _measure(folder: Path) -> None:
    measure(folder, steps=3)
