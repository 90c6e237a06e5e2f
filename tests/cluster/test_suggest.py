"""Rules of thumb, on numbers."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.job import JobSpec, load_job, set_field
from cluster.suggest import Facts, adapter_weights, changes, suggest
from tests import warm
from tests.trainers import jobs
from trainers.defaults import Shape

LLAMA_8B = Shape(8_030_261_248, 7_504_658_432, 32, 4096, 14336, 4096, 131072)
LLAMA_70B = replace(LLAMA_8B, parameters=70_553_706_496, layers=80, hidden_size=8192, intermediate_size=28672)
FACTS = Facts(rows=5000, p99=700, longest=3000, learnt=100.0, shape=LLAMA_8B, gpu_bytes=80e9, workers=1)


def _suggested(facts: Facts = FACTS, **blocks: Any) -> dict[str, Any]:
    job = JobSpec.model_validate({"task": "sft", "model": "/m", "data": "rows.jsonl"} | blocks)
    return {choice.field: choice.value for choice in suggest(job, facts)}


def test_an_8b_model_on_one_large_gpu_gets_adapters_at_ten_times_the_full_rate() -> None:
    found = _suggested()
    assert found["model.quantization"] == "none" and found["train.learning_rate"] == pytest.approx(2e-4)
    assert (found["method.rank"], found["method.alpha"], found["data.max_length"]) == (8, 16.0, 704)
    assert (found["train.epochs"], found["train.global_batch_size"]) == (3.0, 64)


def test_a_model_whose_weights_do_not_fit_is_quantised() -> None:
    assert _suggested(replace(FACTS, shape=LLAMA_70B))["model.quantization"] == "nf4"
    assert "model.quantization" not in _suggested(replace(FACTS, gpu_bytes=None))


def test_full_fine_tuning_that_does_not_fit_becomes_adapters_unless_sharded_over_enough() -> None:
    assert _suggested(method="full")["method.type"] == "lora"
    sharded = _suggested(replace(FACTS, workers=8), method="full")
    assert "method.type" not in sharded and sharded["train.learning_rate"] == pytest.approx(2e-5) and "method.rank" not in sharded


def test_more_data_means_fewer_epochs_larger_batches_and_a_larger_rank() -> None:
    sizes = [replace(FACTS, rows=rows, learnt=300.0) for rows in (100, 10_000, 100_000, 10_000_000)]
    found = [_suggested(facts) for facts in sizes]
    assert [each["train.epochs"] for each in found] == [4.0, 3.0, 2.0, 1.0]
    assert [each["train.global_batch_size"] for each in found] == [8, 64, 64, 64]
    ranks = [each["method.rank"] for each in found]
    assert ranks == sorted(ranks) and ranks[0] == 8 and ranks[-1] == 128


def test_the_rank_is_the_least_that_holds_what_is_learnt() -> None:
    learnt = 2 * adapter_weights(LLAMA_8B, 16) / 100
    assert _suggested(replace(FACTS, rows=100, learnt=learnt))["method.rank"] == 16
    assert _suggested(replace(FACTS, rows=100, learnt=1.01 * learnt))["method.rank"] == 32


def test_the_length_is_that_of_nearly_all_rows_and_never_beyond_the_model() -> None:
    assert _suggested(replace(FACTS, p99=700, longest=800))["data.max_length"] == 832
    assert _suggested(replace(FACTS, p99=9000, shape=replace(LLAMA_8B, longest_input=2048)))["data.max_length"] == 2048


def test_small_and_large_models_get_other_rates() -> None:
    rates = [_suggested(replace(FACTS, shape=shape))["train.learning_rate"] for shape in (replace(LLAMA_8B, parameters=10**8), LLAMA_70B)]
    assert rates == [pytest.approx(5e-4), pytest.approx(1e-4)]


def test_each_choice_comes_with_its_reason_and_what_is_there_now() -> None:
    job = JobSpec.model_validate({"task": "sft", "model": "/m", "data": "rows.jsonl"})
    assert all(choice.reason for choice in suggest(job, FACTS))
    now = {choice.field: value for choice, value in changes(job, suggest(job, FACTS))}
    assert now["method.rank"] == 16 and now["train.learning_rate"] == "auto" and now["train.epochs"] is None


def test_a_job_with_a_number_of_steps_gets_epochs_in_their_place() -> None:
    job = JobSpec.model_validate({"task": "sft", "model": "/m", "data": "rows.jsonl", "train": {"max_steps": 10}})
    values = job.model_dump()
    for choice in suggest(job, FACTS):
        set_field(values, choice.field, choice.value)
    taken = JobSpec.model_validate(values).train
    assert taken.max_steps is None and taken.epochs


def test_the_command_prints_settings_that_train_takes(llama_dir: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"task: sft\nmodel: {llama_dir}\ndata: {{train: {jobs.write_rows(tmp_path)}}}\ntrain: {{max_steps: 9}}\noutput: {tmp_path}\n"
    )
    command, environment = ["suggest", job, "--gpu", "h100"], {"COLUMNS": "200"}
    done = warm.run("consortium", *command, environment=environment)
    line = done.stdout.splitlines()[-1]
    assert done.returncode == 0, done.stderr
    assert line.startswith(f"consortium train {job} --set ") and "--set train.learning_rate=0.0005" in line
    assert load_job(job, [setting for setting in shlex.split(line) if "=" in setting]).train.max_steps is None
    found = warm.run("consortium", *command, "--json", environment=environment)
    assert {choice["field"] for choice in json.loads(found.stdout)} >= {"method.rank", "data.max_length", "train.epochs"}
