"""What DeepSpeed, PEFT and bitsandbytes get wrong unless told: each trap pinned by a test."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests import helpers
from tests.trainers import jobs, plain
from trainers import objectives
from trainers.config import TrainConfig, validate
from trainers.engine import ds_config
from trainers.errors import ConfigError

STAGES = (1, 2, 3)
SAME = 1e-5


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_labelled_rows(tmp_path_factory.mktemp("labelled"))


def _states(run_dir: Path, step: int, kind: str) -> dict[str, torch.Tensor]:
    """Masters or moments of a checkpoint by parameter, put together from all its files; flat."""
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for file in sorted((run_dir / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")):
        for key, tensor in load_file(file).items():
            found, start, name = key.split("|", 2)
            if found == kind:
                parts.setdefault(name, {})[int(start)] = tensor
    return {name: torch.cat([stretches[start] for start in sorted(stretches)]) for name, stretches in parts.items()}


def _make_config(**blocks: Any) -> TrainConfig:
    resolved = {"task": "sft", "model": {"path": "m", "dtype": "float32"}, "data": "rows.jsonl"}
    return validate(TrainConfig, resolved | blocks, source="job.yaml")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clip", [0.0, 1.0, 5.0])
def test_clipping_is_written_out_and_nothing_is_accumulated_behind_our_back(stage: int, clip: float) -> None:
    written = ds_config(_make_config(zero=stage, train={"max_grad_norm": clip}), world_size=4)

    assert written["gradient_clipping"] == clip
    assert written["zero_optimization"]["stage"] == stage
    assert written["managed_gradient_accumulation"] is False and written["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(("trained", "bucket"), [(41_943_040, 41_943_040), (8_030_261_248, 500_000_000)])
def test_the_bucket_is_no_larger_than_all_gradients(trained: int, bucket: int) -> None:
    written = ds_config(_make_config(zero=2), world_size=4, trained=trained)
    assert written["zero_optimization"]["reduce_bucket_size"] == bucket


def test_there_is_no_stage_0() -> None:
    with pytest.raises(ConfigError, match=r"zero\.stage: expected auto, 1, 2 or 3, got 0"):
        _make_config(zero=0)


@pytest.mark.parametrize(("stage", "clip"), [(1, 0.5), (2, 0), (2, 0.5), (2, 5), (3, 0.5)])
def test_the_gradient_is_clipped_to_what_was_asked_for(tmp_path: Path, llama_dir: Path, rows: Path, stage: int, clip: float) -> None:
    run_dir = jobs.make_job(tmp_path / "run", llama_dir, rows, method="full", zero=stage, train={"max_steps": 1, "max_grad_norm": clip})

    jobs.train_all([run_dir])

    [step] = helpers.events(run_dir, "step")
    assert 0.5 < step["grad_norm"] < 5
    moments = torch.cat(list(_states(run_dir, 1, "exp_avg").values()))  # 0.1 times the clipped gradient, after one step
    assert float(moments.norm()) / 0.1 == pytest.approx(0.5 if clip == 0.5 else step["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_step_in_bfloat16_is_as_long_as_the_learning_rate(tmp_path: Path, llama_dir: Path, rows: Path, stage: int) -> None:
    train = {"max_steps": 1, "warmup": 0, "learning_rate": 1e-3}
    run_dir = jobs.make_job(tmp_path / "run", llama_dir, rows, method="lora", zero=stage, model={"dtype": "bfloat16"}, train=train)

    jobs.train_all([run_dir])

    moved = torch.cat([master for name, master in _states(run_dir, 1, "master").items() if "lora_B" in name])  # from zero
    assert float(moved.abs().median()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("quantization", "stage"), [("none", 1), ("none", 3), ("nf4", 3)])
def test_adapters_are_of_the_models_precision(tmp_path: Path, llama_dir: Path, rows: Path, quantization: str, stage: int) -> None:
    model = {"dtype": "bfloat16", "quantization": quantization}
    run_dir = jobs.make_job(tmp_path / "run", llama_dir, rows, method="lora", zero=stage, model=model, train={"max_steps": 1})

    jobs.train_all([run_dir])

    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.bfloat16}
    assert {master.dtype for master in _states(run_dir, 1, "master").values()} == {torch.float32}


@pytest.mark.parametrize(("method", "stage"), [("full", 1), ("lora", 3)])
def test_the_loss_does_not_depend_on_the_number_of_passes(tmp_path: Path, llama_dir: Path, rows: Path, method: str, stage: int) -> None:
    few, many = (
        jobs.make_job(tmp_path / str(tokens), llama_dir, rows, method=method, zero=stage, train={"micro_batch_tokens": tokens})
        for tokens in (4096, 64)
    )

    assert jobs.difference(jobs.train_here(few), jobs.train_here(many)) <= SAME


@pytest.mark.parametrize(("method", "stage"), [("full", 1), ("lora", 3)])
def test_activations_computed_again_are_the_same(tmp_path: Path, llama_dir: Path, rows: Path, method: Any, stage: int) -> None:
    method = {"lora": {"dropout": 0.1}} if method == "lora" else method
    kept, again = (
        jobs.make_job(tmp_path / str(choice), llama_dir, rows, method=method, zero=stage, train={"activation_checkpointing": choice})
        for choice in (False, True)
    )

    assert jobs.difference(jobs.train_here(kept), jobs.train_here(again)) <= SAME


@pytest.mark.parametrize(("method", "stage"), [("full", 1), ("lora", 2), ({"lora": {"targets": ["q_proj", "lm_head"]}}, 2)])
def test_logits_made_in_chunks_are_the_same(tmp_path: Path, llama_dir: Path, rows: Path, method: Any, stage: int) -> None:
    whole, chunked = (jobs.make_job(tmp_path / name, llama_dir, rows, method=method, zero=stage) for name in ("whole", "chunked"))

    _train_in_chunks([chunked])

    assert jobs.difference(helpers.losses(chunked), jobs.train_here(whole)) <= SAME


def _train_in_chunks(run_dirs: Sequence[Path]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "LOGITS_BYTES", 4 * helpers.VOCABULARY * 16)  # sixteen tokens at a time
        jobs.train_all(run_dirs)


@pytest.mark.parametrize(("quantization", "stage"), [("none", 1), ("none", 3), ("nf4", 2), ("int8", 2)])
def test_an_evaluation_leaves_no_trace(tmp_path: Path, llama_dir: Path, rows: Path, quantization: str, stage: int) -> None:
    often, once = (
        jobs.make_job(
            tmp_path / str(every),
            llama_dir,
            rows,
            method={"lora": {"dropout": 0.1}},
            model={"quantization": quantization},
            zero=stage,
            data={"validation": str(rows)},
            train={"max_steps": 4, "eval_every": every},
        )
        for every in (1, 4)
    )

    assert jobs.train_here(often) == jobs.train_here(once)


def test_a_resumed_run_drops_the_same(tmp_path: Path, llama_dir: Path, rows: Path) -> None:
    whole = jobs.make_job(tmp_path / "whole", llama_dir, rows, method={"lora": {"dropout": 0.1}}, checkpoint={"every": 2, "keep": 100})
    expected = jobs.train_here(whole)
    resumed = jobs.as_left_after(4, whole, tmp_path / "resumed")

    assert jobs.difference(jobs.train_here(resumed), expected) <= SAME
    assert jobs.difference(jobs.train_here(jobs.make_job(tmp_path / "without", llama_dir, rows)), expected) > 1e-3


def test_dropout_is_on_from_the_first_step_of_a_classifier(tmp_path: Path, labelled: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    helpers.make_model("bert", tmp_path / "bert", hidden_dropout_prob=0.3)
    run_dir = jobs.make_job(tmp_path / "run", tmp_path / "bert", labelled, task="classify", train={"max_steps": 1})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=3).eval()
    without = plain.mean_loss(model, plain.first_batch(plain.read_examples(labelled, tmp_path / "bert"), batch_size=6))

    [loss] = jobs.train_here(run_dir)

    assert abs(loss - without) > 1e-3


Runs = dict[str, Path]
MANY_PASSES = {"micro_batch_tokens": 160, "global_batch_size": 7}
"""In train: two workers have unlike numbers of rows, of tokens that are learnt, and at times of passes"""


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path, rows: Path, labelled: Path) -> Runs:
    """Runs of two workers in one group of processes, the first under ZeRO-3; "extensions" is where DeepSpeed would build operators."""
    folder = tmp_path_factory.mktemp("two")
    helpers.make_model("llama", folder / "wide", **jobs.WIDE)
    unlike = jobs.write_unlike_rows(folder)
    spoilt = {"data": {"validation": str(unlike)}, "train": {"max_steps": 5, "learning_rate": 1e-2, "eval_every": 1, "warmup": 0}}
    one = {"global_batch_size": 1, "max_steps": 5}
    runs = {
        "best": jobs.make_job(folder / "best", folder / "wide", rows, method="full", zero=3, **spoilt),
        "dummies": jobs.make_job(folder / "dummies", llama_dir, rows, zero=2, train=one),
        "nf4": jobs.make_job(folder / "nf4", llama_dir, rows, zero=3, model={"quantization": "nf4"}, train={"max_steps": 5}),
        "bf16": jobs.make_job(folder / "bf16", llama_dir, rows, zero=2, model={"dtype": "bfloat16"}, train={"max_steps": 1, "warmup": 0}),
        **{
            f"classes {stage}": jobs.make_job(folder / f"classes-{stage}", llama_dir, labelled, task="classify", zero=stage)
            for stage in (1, 3)
        },
    }
    in_chunks = {
        f"{method} in chunks": jobs.make_job(folder / f"{method}-chunks", folder / "wide", rows, method=method, zero=3, train=MANY_PASSES)
        for method in ("lora", "full")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "extensions"))
        helpers.run_distributed(_train_both_ways, 2, list(runs.values()), list(in_chunks.values()))
    return runs | in_chunks | {"extensions": folder / "extensions"}


def _train_both_ways(run_dirs: Sequence[Path], in_chunks: Sequence[Path]) -> None:
    jobs.train_all(run_dirs)
    _train_in_chunks(in_chunks)


def test_no_operator_is_compiled(two_workers: Runs) -> None:
    assert not two_workers["extensions"].exists() or not os.listdir(two_workers["extensions"])


def test_a_worker_without_examples_changes_nothing(tmp_path: Path, llama_dir: Path, rows: Path, two_workers: Runs) -> None:
    alone = jobs.make_job(tmp_path / "alone", llama_dir, rows, train={"global_batch_size": 1, "max_steps": 5})

    assert jobs.difference(jobs.train_here(alone), helpers.losses(two_workers["dummies"])) <= SAME


def test_4_bit_weights_are_not_sharded(tmp_path: Path, llama_dir: Path, rows: Path, two_workers: Runs) -> None:
    alone = jobs.make_job(tmp_path / "alone", llama_dir, rows, model={"quantization": "nf4"}, train={"max_steps": 5})

    assert jobs.difference(jobs.train_here(alone), helpers.losses(two_workers["nf4"])) <= SAME


@pytest.mark.parametrize("method", ["lora", "full"])
def test_workers_that_learn_unlike_numbers_of_tokens_gather_a_split_head_together(
    tmp_path: Path, rows: Path, two_workers: Runs, method: str
) -> None:
    model = two_workers["best"].parent / "wide"
    alone = jobs.make_job(tmp_path / "alone", model, rows, method=method, train=MANY_PASSES)

    assert jobs.difference(jobs.train_here(alone), helpers.losses(two_workers[f"{method} in chunks"])) <= SAME


def test_classes_are_learnt_alike_under_every_stage(tmp_path: Path, llama_dir: Path, labelled: Path, two_workers: Runs) -> None:
    alone = jobs.train_here(jobs.make_job(tmp_path / "alone", llama_dir, labelled, task="classify"))

    for stage in (1, 3):
        assert jobs.difference(alone, helpers.losses(two_workers[f"classes {stage}"])) <= SAME


def test_two_workers_step_as_far_as_one(two_workers: Runs) -> None:
    moved = torch.cat([master for name, master in _states(two_workers["bf16"], 1, "master").items() if "lora_B" in name])

    assert float(moved.abs().median()) == pytest.approx(2e-3, rel=1e-3)


def test_the_best_weights_are_exported_from_zero_3(two_workers: Runs) -> None:
    [end] = helpers.events(two_workers["best"], "end")
    best = end["best"]["step"]
    evaluations = {event["step"]: event["metrics"]["eval_loss"] for event in helpers.events(two_workers["best"], "eval")}
    assert best < 5 and end["metrics"]["eval_loss"] == pytest.approx(evaluations[best], abs=1e-5)

    masters = _states(two_workers["best"], best, "master")
    with safe_open(two_workers["best"] / "model" / "model.safetensors", framework="pt") as model:
        for name, master in masters.items():
            assert torch.equal(model.get_tensor(name.removeprefix("model.")).flatten(), master), name
