import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import REPOSITORY
from trainers.config import FullMethod, LoraMethod, TrainConfig, ZeroConfig, read_config, validate
from trainers.errors import ConfigError

MINIMAL: dict[str, Any] = {"model": "models/tiny", "data": "rows.jsonl", "task": "sft"}
FLOATS = ["learning_rate", "warmup", "weight_decay", "max_grad_norm", "epochs"]


def _make_config(**blocks: Any) -> TrainConfig:
    return validate(TrainConfig, MINIMAL | blocks, source="job.yaml")


def _mistake(**blocks: Any) -> str:
    """What the user reads, the file's name left out."""
    with pytest.raises(ConfigError) as caught:
        _make_config(**blocks)
    return str(caught.value).removeprefix("job.yaml: ")


def _write(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


def test_model_data_and_task_are_enough_for_a_job() -> None:
    config = _make_config()
    assert config.model.path == "models/tiny"
    assert config.data.train == [Path("rows.jsonl")]
    assert config.method == LoraMethod(rank=16, alpha=32)
    assert config.run_dir == Path("runs/run")


@pytest.mark.parametrize("name", ["model", "data", "task"])
def test_each_of_the_three_is_required(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^job.yaml: {name} is required$"):
        validate(TrainConfig, {key: value for key, value in MINIMAL.items() if key != name}, source="job.yaml")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"trian": {}}, "unknown field trian, did you mean train?"),
        ({"train": {"learning_rat": 1e-4}}, "unknown field train.learning_rat, did you mean train.learning_rate?"),
        ({"data": {"train": "a", "column": {}}}, "unknown field data.column, did you mean data.columns?"),
        ({"method": {"lora": {"ranks": 8}}}, "unknown field method.lora.ranks, did you mean method.lora.rank?"),
        ({"method": {"type": "lora", "ranks": 8}}, "unknown field method.ranks, did you mean method.rank?"),
        ({"model": {"pth": "m"}}, "unknown field model.pth, did you mean model.path?"),
        ({"learning_rate": 1e-4}, "unknown field learning_rate, did you mean train.learning_rate?"),
        ({"method": {"full": {"rank": 8}}}, "unknown field method.full.rank"),
        ({"data": {"train": "a", "lora": 1}}, "unknown field data.lora"),
        ({"data": {"train": "a", "zebra-crossing": 1}}, "unknown field data.zebra-crossing"),
    ],
)
def test_an_unknown_field_is_named_with_the_one_that_was_meant(blocks: dict[str, Any], message: str) -> None:
    assert _mistake(**blocks) == message


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"task": "stf"}, 'task: expected sft, pretrain or classify, got "stf"'),
        ({"name": "a b"}, 'name: expected letters, digits and . _ -, a letter or digit first, got "a b"'),
        ({"train": {"global_batch_size": 32.5}}, "train.global_batch_size: expected a whole number of at least 1, got 32.5"),
        ({"train": {"eval_every": 0}}, "train.eval_every: expected a whole number of at least 1 or auto, got 0"),
        ({"train": {"learning_rate": "fast"}}, 'train.learning_rate: expected a number above 0 or auto, got "fast"'),
        ({"train": {"activation_checkpointing": "maybe"}}, 'train.activation_checkpointing: expected true, false or auto, got "maybe"'),
        ({"train": {"betas": [0.9]}}, "train.betas: expected a list of 2 numbers of at least 0 and below 1, got [0.9]"),
        ({"train": {"betas": [0.9, 1]}}, "train.betas.1: expected a number of at least 0 and below 1, got 1"),
        ({"train": {"early_stopping": 0}}, "train.early_stopping: expected a whole number of at least 1 or null, got 0"),
        ({"train": 3}, "train: expected a block of fields (epochs, max_steps, global_batch_size, micro_batch_tokens, ...), got 3"),
        ({"zero": 4}, "zero.stage: expected auto, 1, 2 or 3, got 4"),
        ({"zero": True}, "zero: expected a block of fields (stage, offload_optimizer, offload_params), got true"),
        ({"data": []}, "data: expected a block of fields (train, validation, validation_fraction, group_by, ...), got []"),
        ({"data": {"train": []}}, "data.train: expected a non-empty list of paths, got []"),
        ({"data": {"train": "a", "max_length": -4}}, "data.max_length: expected a whole number of at least 2 or auto, got -4"),
        ({"data": {"train": "a", "columns": {"text": 3}}}, "data.columns.text: expected text, got 3"),
        ({"data": {"train": "a", "columns": {1: "text"}}}, "data.columns.1: expected text, got 1"),
        ({"method": "lorra"}, 'method: expected full, lora, or {lora: {rank: 8}}, got "lorra"'),
        ({"method": {"rank": 8}}, 'method: expected full, lora, or {lora: {rank: 8}}, got {"rank": 8}'),
        ({"method": {"full": {"type": "lora"}}}, 'method: expected full, lora, or {lora: {rank: 8}}, got {"full": {"type": "lora"}}'),
        ({"method": {"lora": {"rank": 0}}}, "method.lora.rank: expected a whole number of at least 1, got 0"),
        ({"method": {"lora": {"targets": "q"}}}, 'method.lora.targets: expected all-linear or a list of module names, got "q"'),
        ({"method": {"lora": {"targets": []}}}, "method.lora.targets: expected all-linear or a list of module names, got []"),
        ({"method": {"lora": {"targets": ["q", 3]}}}, 'method.lora.targets: expected all-linear or a list of module names, got ["q", 3]'),
        ({"checkpoint": None}, "checkpoint: expected a block of fields (every, keep, best_by), got null"),
    ],
)
def test_a_wrong_value_is_one_line_with_field_expectation_and_value(blocks: dict[str, Any], message: str) -> None:
    assert _mistake(**blocks) == message


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(name: str, value: float) -> None:
    assert _mistake(train={name: value}).startswith(f"train.{name}: expected a number")


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(_mistake(task="sft" * 1000)) < 150


def test_several_mistakes_come_in_one_message() -> None:
    message = _mistake(task="stf", train={"epochs": 0}, method={"lora": {"ranks": 8}})
    assert message.split("; ") == [
        'task: expected sft, pretrain or classify, got "stf"',
        "unknown field method.lora.ranks, did you mean method.lora.rank?",
        "train.epochs: expected a number above 0 or null, got 0",
    ]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_stands_in_a_block_is_taken_or_refused_in_words(value: Any) -> None:
    for block in ("model", "method", "data", "train", "zero", "name"):
        with contextlib.suppress(ConfigError):  # and nothing else
            assert isinstance(_make_config(**{block: value}), TrainConfig)


@pytest.mark.parametrize("job", [None, [1], "task: sft"])
def test_a_job_that_is_no_block_is_refused(job: Any) -> None:
    with pytest.raises(ConfigError, match="job: expected a block of fields"):
        validate(TrainConfig, job, source="job.yaml")


def test_the_columns_may_have_any_name() -> None:
    config = _make_config(data={"train": "rows.csv", "columns": {"text": "query", "anything": "at all"}})
    assert config.data.columns == {"text": "query", "anything": "at all"}


@pytest.mark.parametrize("method", [{"lora": {"rank": 8}}, {"type": "lora", "rank": 8}])
def test_the_spellings_of_a_method_say_the_same(method: Any) -> None:
    assert _make_config(method=method).method == LoraMethod(rank=8)


@pytest.mark.parametrize("method", ["lora", {"lora": {}}, {"lora": None}, {"type": "lora"}])
def test_a_method_without_fields_has_the_defaults(method: Any) -> None:
    assert _make_config(method=method).method == LoraMethod()


@pytest.mark.parametrize("method", ["full", {"full": {}}, {"type": "full"}])
def test_full_fine_tuning_is_a_word(method: Any) -> None:
    assert _make_config(method=method).method == FullMethod()


@pytest.mark.parametrize("stage", ["auto", 1, 2, 3])
def test_a_stage_alone_is_a_zero_block(stage: Any) -> None:
    assert _make_config(zero=stage).zero == ZeroConfig(stage=stage)


def test_yaml_1_1_takes_2e_4_for_text_and_it_is_a_number_all_the_same() -> None:
    assert _make_config(train={"learning_rate": "2e-4"}).train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"model": {"path": "m", "shape": "llama-3.1-8b"}}, "model: give a path (a directory or a hub id) or a shape, not both"),
        ({"method": "full", "model": {"path": "m", "quantization": "nf4"}}, "quantised weights cannot be trained in full"),
        ({"model": {"path": "m", "quantization": "int8", "from_scratch": True}}, "model.from_scratch makes new weights"),
        ({"model": {"path": "m", "from_scratch": True}}, "model.from_scratch makes new weights, of which an adapter is no record"),
        ({"zero": {"stage": 2, "offload_params": "cpu"}}, "zero.offload_params needs zero.stage: 3"),
        ({"train": {"epochs": 1, "max_steps": 5}}, "train.epochs and train.max_steps exclude each other"),
        ({"train": {"units_at_once": 4}}, "train.units_at_once is for private runs"),
        ({"checkpoint": {"best_by": "accuracy"}}, "checkpoint.best_by: accuracy needs task: classify; use eval_loss"),
        ({"task": "classify", "data": {"train": "a", "packing": True}}, "data.packing: true does not go with task: classify"),
        ({"data": {"train": "a", "labels": ["b", "c"]}}, "data.labels: only task: classify has classes, this is sft: leave them out"),
        ({"task": "classify", "data": {"train": "a", "labels": ["b", "b"]}}, "data.labels: a class stands there more than once"),
    ],
)
def test_what_cannot_go_together_is_refused(blocks: dict[str, Any], message: str) -> None:
    assert _mistake(**blocks).startswith(message)


PRIVACY = {"epsilon": 2, "delta": 1e-5, "clip_norm": 1, "unit": "record", "units": 100, "ledger": "ledger.db"}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"model": {"path": "m", "quantization": "int8"}}, "privacy: model.quantization: int8 rounds every row of a batch by the outliers"),
        ({"train": {"max_grad_norm": 1}}, "privacy: train.max_grad_norm clips a batch as a whole"),
        ({"train": {"early_stopping": 1}}, "privacy: train.early_stopping: evaluations on private rows"),
        ({"train": {"global_batch_size": 101}}, "privacy: train.global_batch_size: 101 is more than privacy.units"),
        ({"train": {"compile": True}}, "privacy: train.compile is not tried"),
        ({"checkpoint": {"best_by": "eval_loss"}}, "privacy: checkpoint.best_by: evaluations on private rows"),
    ],
)
def test_what_a_private_run_cannot_promise_is_refused(blocks: dict[str, Any], message: str) -> None:
    assert _mistake(privacy=PRIVACY, **blocks).startswith(message)


def test_two_combinations_refused_are_both_named() -> None:
    message = _mistake(train={"epochs": 1, "max_steps": 5}, checkpoint={"best_by": "macro_f1"})
    assert "exclude each other" in message and "macro_f1 needs task: classify" in message


@pytest.mark.parametrize("stage", ["auto", 3])
def test_parameters_may_be_offloaded_where_zero_shards_them(stage: Any) -> None:
    assert _make_config(zero={"stage": stage, "offload_params": "cpu"}).zero.offload_params == "cpu"


def test_a_validated_job_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        _make_config().train.seed = 3  # type: ignore[misc]


def test_config_json_gives_back_what_was_written(tmp_path: Path) -> None:
    config = _make_config(
        name="cards-2",
        method={"lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}},
        data={"train": ["a.jsonl", "b.csv"], "columns": {"text": "query"}, "max_length": 512},
        train={"max_steps": 7, "betas": [0.8, 0.99], "learning_rate": 3e-4},
        zero=3,
        output=tmp_path,
    )
    assert read_config(_write(tmp_path, config.model_dump_json())) == config


def test_the_launchers_block_is_not_the_workers_concern(tmp_path: Path) -> None:
    path = _write(tmp_path, json.dumps(MINIMAL | {"cluster": {"workers": 4, "anything": 1}}))
    assert read_config(path) == _make_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task":\n\n sft}', "config.json:3: not JSON"),
        ("[1]", "expected a block of fields"),
        ("{}", "task is required; model is required"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(_write(tmp_path, text))
    assert str(tmp_path / "config.json") in str(caught.value) and message in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match=r"config\.json: not UTF-8"):
        read_config(tmp_path / "config.json")


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        read_config(tmp_path / "config.json")
    assert caught.value.hint == "give the config.json of a run directory"
    assert caught.value.exit_code == 2


def test_the_configuration_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, trainers.config, trainers.defaults; print({'torch', 'transformers', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
