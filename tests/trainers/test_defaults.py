from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import PRIVACY
from trainers.config import FullMethod, TrainConfig, validate
from trainers.defaults import Choice, Hardware, Shape, check_room_for_units, intervals, resolve
from trainers.errors import ConfigError
from trainers.memory import Footprint, memory_of_job, room

GIB = 2**30
LLAMA_8B = Shape(
    8_030_000_000, 7_500_000_000, layers=32, hidden_size=4096, intermediate_size=14336, attention_width=4096, longest_input=131072
)
CPU = Hardware("cpu", 1)
H200 = Hardware("cuda", 1, 139 * GIB)


def _make_config(**blocks: Any) -> TrainConfig:
    return validate(TrainConfig, {"model": "m", "data": "rows.jsonl", "task": "sft"} | blocks, source="job.yaml")


def _make_gpus(gib: float, workers: int = 1) -> Hardware:
    return Hardware("cuda", workers, int(gib * GIB))


def _footprint(config: TrainConfig, layers: int = 32, hidden: int = 4096, inner: int = 14336, vocabulary: int = 128256) -> Footprint:
    """A Llama by hand, its keys a quarter as wide as its queries: it keeps ten times its width and four times its inner width."""
    full, width, row = config.method.type == "full", 2 if config.model.dtype == "bfloat16" else 4, config.data.max_length
    assert isinstance(row, int)
    block = 5 * hidden**2 // 2 + 3 * hidden * inner
    parameters = layers * block + 2 * vocabulary * hidden
    adapters = 0 if isinstance(config.method, FullMethod) else config.method.rank * layers * (19 * hidden // 2 + 3 * inner)
    kept, backward = row * width * (10 * hidden + 4 * inner), row * width * 4 * inner
    return Footprint(
        device="cuda",
        quantization=config.model.quantization,
        width=width,
        trained_width=4 if config.privacy is not None else width,
        parameters=parameters,
        adapters=adapters,
        trained=parameters if full else adapters,
        of_unit=0 if full else adapters,
        quantized=layers * block,
        largest=vocabulary * hidden,
        largest_trained=vocabulary * hidden if full else 16 * inner,
        largest_quantized=hidden * inner,
        small=2 * layers * hidden,
        block=block,
        head=vocabulary * hidden,
        vocabulary=vocabulary,
        layers=layers,
        row=row,
        mask=0,
        mask_block=0,
        kept_first=kept,
        kept_block=kept,
        input_first=row * width * hidden,
        input_block=row * width * hidden,
        backward=backward,
        backward_fixed=0,
        recomputed=kept + backward,
        recomputed_fixed=0,
        chunk=523,
        logits=523 * 2 * width * hidden,
        logits_fixed=2**30,
    )


def _choices(hardware: Hardware = CPU, shape: Shape | None = LLAMA_8B, **blocks: Any) -> dict[str, Choice]:
    _, choices = resolve(_make_config(**blocks), hardware, shape, _footprint)
    return {choice.field: choice for choice in choices}


def _chosen(field: str, hardware: Hardware = CPU, shape: Shape | None = LLAMA_8B, **blocks: Any) -> tuple[Any, str]:
    choice = _choices(hardware, shape, **blocks)[field]
    return choice.value, choice.reason


def test_precision_is_what_the_device_is_fast_at() -> None:
    assert _chosen("model.dtype", H200) == ("bfloat16", "GPU: bfloat16 compute, float32 masters")
    assert _chosen("model.dtype", CPU) == ("float32", "CPU: most have no fast bfloat16")


@pytest.mark.parametrize(("task", "epochs"), [("pretrain", 1.0), ("sft", 3.0), ("classify", 3.0)])
def test_text_is_read_once_and_examples_a_few_times(task: str, epochs: float) -> None:
    value, reason = _chosen("train.epochs", task=task)
    assert value == epochs and reason.startswith(task)


def test_a_number_of_steps_leaves_the_epochs_alone() -> None:
    config, choices = resolve(_make_config(train={"max_steps": 10}), CPU, LLAMA_8B)
    assert config.train.epochs is None and "train.epochs" not in [choice.field for choice in choices]


@pytest.mark.parametrize(
    ("blocks", "rate", "reason"),
    [
        ({}, 2e-4, "adapters"),
        ({"method": "full"}, 2e-5, "all weights, pretrained"),
        ({"task": "classify"}, 1e-3, "adapters with a new classification head"),
        ({"method": "full", "model": {"path": "m", "from_scratch": True}}, 1e-3, "random weights"),
    ],
)
def test_the_learning_rate_depends_on_what_is_trained(blocks: dict[str, Any], rate: float, reason: str) -> None:
    value, why = _chosen("train.learning_rate", **blocks)
    assert value == rate and why.startswith(reason)


@pytest.mark.parametrize(("longest", "length"), [(512, 512), (4096, 4096), (131072, 4096), (None, 4096)])
def test_the_length_is_the_models_at_most_4096(longest: int | None, length: int) -> None:
    shape = Shape(10**8, 9 * 10**7, layers=12, hidden_size=768, intermediate_size=3072, attention_width=768, longest_input=longest)
    value, reason = _chosen("data.max_length", shape=shape)
    assert value == length and (str(longest) in reason or longest in (None, length))


def test_a_length_beyond_the_model_is_refused_with_the_number_to_use() -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length: 200000 is beyond the model's 131072 positions") as caught:
        resolve(_make_config(data={"train": "rows.jsonl", "max_length": 200000}), CPU, LLAMA_8B)
    assert caught.value.hint == "set data.max_length: 131072 or less"


@pytest.mark.parametrize(
    ("hardware", "blocks", "stage", "reason"),
    [
        (H200, {}, 1, "one worker"),
        (_make_gpus(139, 8), {}, 2, "weights fit on each worker"),
        (_make_gpus(24, 4), {}, 2, "weights fit on each worker"),
        (_make_gpus(16, 2), {}, 3, "weights are sharded too: with them whole, 16.5 GiB of 16.0 GiB"),
        (_make_gpus(139, 2), {"method": "full"}, 2, "weights fit on each worker"),
        (_make_gpus(80, 8), {"method": "full"}, 2, "weights fit on each worker"),
        (_make_gpus(80, 2), {"method": "full"}, 3, "weights are sharded too"),
        (_make_gpus(32, 4), {"method": "full"}, 3, "weights are sharded too: with them whole, 47.8 GiB"),
        (_make_gpus(32, 4), {"method": "full", "zero": {"offload_optimizer": "cpu"}}, 2, "weights fit on each worker"),
        (_make_gpus(6, 2), {"model": {"path": "m", "quantization": "nf4"}}, 2, "quantised weights stay whole"),
        (_make_gpus(24, 1), {"zero": {"offload_params": "cpu"}}, 3, "offloading parameters needs it"),
        (Hardware("cpu", 4), {"method": "full"}, 2, "weights fit on each worker"),
    ],
)
def test_zero_shards_weights_only_where_they_do_not_fit(hardware: Hardware, blocks: dict[str, Any], stage: int, reason: str) -> None:
    value, why = _chosen("zero.stage", hardware, **blocks)
    assert value == stage and why.startswith(reason)


def test_8b_lora_on_an_h200_computes_nothing_twice() -> None:
    choices = _choices(H200)
    assert choices["train.activation_checkpointing"].value is False
    assert 8192 <= choices["train.micro_batch_tokens"].value <= 20480
    assert (
        "16.2 GiB that stay" in choices["train.micro_batch_tokens"].reason and "in 139.0 GiB" in choices["train.micro_batch_tokens"].reason
    )


def test_8b_lora_on_24_gib_computes_activations_again() -> None:
    choices = _choices(_make_gpus(24))
    assert choices["train.activation_checkpointing"].value is True
    assert 4096 <= choices["train.micro_batch_tokens"].value <= 16384


def test_a_quantised_model_leaves_room_for_more_tokens() -> None:
    whole = _chosen("train.micro_batch_tokens", _make_gpus(20))[0]
    quantised = _chosen("train.micro_batch_tokens", _make_gpus(20), model={"path": "m", "quantization": "nf4"})[0]
    assert quantised > 2 * whole


def test_a_model_too_large_for_the_gpu_gets_one_example_and_a_warning_in_words() -> None:
    tokens, reason = _chosen("train.micro_batch_tokens", _make_gpus(8))
    assert tokens == 4096
    assert reason.startswith("one example of full length, and it may not fit: about 16.2 GiB that stay")


def test_float32_activations_take_twice_the_room() -> None:
    half = _chosen("train.micro_batch_tokens", _make_gpus(139), model={"path": "m", "dtype": "bfloat16"})[0]
    whole = _chosen("train.micro_batch_tokens", _make_gpus(139), model={"path": "m", "dtype": "float32"})[0]
    assert 0.3 * half < whole < 0.5 * half


def test_offloaded_parameters_make_room_for_tokens() -> None:
    kept = _chosen("train.micro_batch_tokens", _make_gpus(16), train={"activation_checkpointing": True})[0]
    offloaded = _chosen(
        "train.micro_batch_tokens", _make_gpus(16), train={"activation_checkpointing": True}, zero={"offload_params": "cpu"}
    )[0]
    assert offloaded > 4 * kept


def test_checkpointing_is_judged_by_the_tokens_asked_for() -> None:
    assert _chosen("train.activation_checkpointing", H200, train={"micro_batch_tokens": 8192})[0] is False
    assert _chosen("train.activation_checkpointing", H200, train={"micro_batch_tokens": 32768})[0] is True


def test_without_checkpointing_the_tokens_are_what_fits_without_it() -> None:
    long = {"train": "rows.jsonl", "max_length": 4000}
    tokens, reason = _chosen("train.micro_batch_tokens", _make_gpus(24), data=long, train={"activation_checkpointing": False})
    assert tokens == 4000 and "may not fit" in reason and "24.5 GiB of activations" in reason


def _private(**train: Any) -> dict[str, Any]:
    return {"privacy": PRIVACY, "train": {"global_batch_size": 64, "epochs": 1} | train}


@pytest.mark.parametrize(
    ("hardware", "units", "reason"),
    [
        (H200, 150, "a worker's share of the largest step: their gradients take 23.4 GiB"),
        (_make_gpus(139, 8), 19, "a worker's share of the largest step: their gradients take 3.0 GiB"),
        (Hardware("cpu", 2, 512 * GIB), 75, "a worker's share of the largest step: their gradients take 11.7 GiB"),
        (_make_gpus(18), 1, "what fits in 18.0 GiB beside activations: their gradients take 0.2 GiB"),
    ],
)
def test_units_are_open_together_as_far_as_memory_and_the_step_allow(hardware: Hardware, units: int, reason: str) -> None:
    assert _chosen("train.units_at_once", hardware, **_private()) == (units, reason)


@pytest.mark.parametrize("gib", [24, 32, 48])
def test_units_and_activations_share_what_is_left(gib: float) -> None:
    config, _ = resolve(_make_config(**_private()), _make_gpus(gib), LLAMA_8B, _footprint)
    memory = memory_of_job(config, _footprint(config), workers=1)
    assert 2 < config.train.units_at_once <= 150 and memory.total <= room(gib * GIB)
    assert memory.passing > 0.8 * memory.units or config.train.micro_batch_tokens == 32768


def test_an_ordinary_run_decides_nothing_about_units() -> None:
    assert "train.units_at_once" not in _choices(H200)


def test_a_unit_after_the_other_where_memory_is_not_known() -> None:
    config, _ = resolve(_make_config(**_private()), _make_gpus(80), LLAMA_8B, lambda config: None)
    assert config.train.units_at_once == 1 and _chosen("train.units_at_once", CPU, **_private())[0] == 1


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, r"the gradient of one unit takes 0\.2 GiB, beside 16\.\d GiB for what else stays: more than 13\.5 GiB of 15\.0 GiB"),
        ({"units_at_once": 50}, r"train\.units_at_once: the gradients of 50 units take 7\.8 GiB, beside 16\.\d GiB"),
    ],
)
def test_units_that_do_not_fit_are_refused(train: dict[str, Any], message: str) -> None:
    config, _ = resolve(_make_config(**_private(**train)), _make_gpus(15), LLAMA_8B, _footprint)
    with pytest.raises(ConfigError, match=message) as caught:
        check_room_for_units(config, _make_gpus(15), _footprint)
    assert "method.lora.rank" in caught.value.hint
    check_room_for_units(config, _make_gpus(80), _footprint)


def test_a_cpu_gets_a_pass_of_2048_tokens_or_one_example() -> None:
    assert _chosen("train.micro_batch_tokens", data={"train": "rows.jsonl", "max_length": 256})[0] == 2048
    assert _chosen("train.micro_batch_tokens", data={"train": "rows.jsonl", "max_length": 3000})[0] == 3000
    assert _chosen("train.activation_checkpointing")[0] is False


def test_without_the_model_at_hand_what_depends_on_it_stays_open() -> None:
    config, choices = resolve(_make_config(), _make_gpus(24, 2))
    assert {choice.field for choice in choices} == {"model.dtype", "train.epochs", "train.learning_rate"}
    assert (config.data.max_length, config.zero.stage, config.train.micro_batch_tokens) == ("auto", "auto", "auto")


def test_a_model_that_cannot_be_counted_gets_the_careful_choice() -> None:
    _, choices = resolve(_make_config(), _make_gpus(80, 2), LLAMA_8B, lambda config: None)
    chosen = {choice.field: choice for choice in choices}
    assert chosen["zero.stage"].value == 2 and chosen["train.activation_checkpointing"].value is True
    assert chosen["train.micro_batch_tokens"].value == 4096 and "cannot be counted" in chosen["train.micro_batch_tokens"].reason


def test_memory_is_not_counted_where_it_decides_nothing() -> None:
    def refuse(config: TrainConfig) -> Footprint:
        raise AssertionError

    resolve(_make_config(), Hardware("cpu", 2), LLAMA_8B, refuse)
    resolve(_make_config(train={"micro_batch_tokens": 8, "activation_checkpointing": True}, zero=2), _make_gpus(80), LLAMA_8B, refuse)


def test_what_is_asked_for_is_left_alone() -> None:
    asked = _make_config(
        model={"path": "m", "dtype": "float32"},
        data={"train": "rows.jsonl", "max_length": 1000},
        train={"epochs": 2, "learning_rate": 1e-5, "micro_batch_tokens": 50, "activation_checkpointing": False},
        zero=3,
    )
    assert resolve(asked, _make_gpus(1, 2), LLAMA_8B) == (asked, [])


def test_a_choice_has_its_field_value_and_reason_as_plain_values() -> None:
    choice = _choices()["train.epochs"]
    assert choice.as_dict() == {"field": "train.epochs", "value": 3.0, "reason": "sft: a few passes over examples"}


@given(
    gib=st.floats(4, 300),
    workers=st.integers(1, 64),
    layers=st.integers(1, 120),
    hidden=st.sampled_from([64, 768, 4096, 16384]),
    longest=st.sampled_from([None, 128, 1000, 131072]),
    method=st.sampled_from(["full", "lora", {"lora": {"rank": 256}}]),
    zero=st.sampled_from(["auto", 1, 2, 3]),
    train=st.fixed_dictionaries({}, optional={"activation_checkpointing": st.booleans(), "micro_batch_tokens": st.integers(8, 10**6)}),
)
def test_every_choice_is_sane_and_made_once(
    gib: float, workers: int, layers: int, hidden: int, longest: int | None, method: Any, zero: Any, train: dict[str, Any]
) -> None:
    shape = Shape(12 * layers * hidden**2, 11 * layers * hidden**2, layers, hidden, 4 * hidden, hidden, longest)
    hardware = _make_gpus(gib, workers)
    measure = partial(_footprint, layers=layers, hidden=hidden, inner=4 * hidden)
    config, choices = resolve(_make_config(method=method, zero=zero, train=train), hardware, shape, measure)
    length, tokens = config.data.max_length, config.train.micro_batch_tokens
    assert isinstance(length, int) and isinstance(tokens, int)
    assert tokens == train.get("micro_batch_tokens") or length <= tokens <= max(length, 32768)
    assert config.train.activation_checkpointing in (True, False) and config.zero.stage in (1, 2, 3)
    assert len({choice.field for choice in choices}) == len(choices) and all(choice.reason for choice in choices)
    assert resolve(config, hardware, shape, measure) == (config, [])


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1), (10, 1), (11, 2), (1000, 100)])
def test_a_run_is_evaluated_and_saved_about_ten_times(steps: int, every: int) -> None:
    evaluate, save, choices = intervals(_make_config(), steps, evaluates=True)
    assert (evaluate, save) == (every, every)
    assert [choice.field for choice in choices] == ["train.eval_every", "checkpoint.every"]


def test_a_run_without_validation_rows_is_saved_all_the_same() -> None:
    _, save, choices = intervals(_make_config(), 100, evaluates=False)
    assert save == 10 and [(choice.field, choice.reason) for choice in choices] == [("checkpoint.every", "about 10 in 100 steps")]


def test_checkpoints_follow_the_evaluations_asked_for() -> None:
    assert intervals(_make_config(train={"eval_every": 7}), 100, evaluates=True)[:2] == (7, 7)
    both = _make_config(train={"eval_every": 7}, checkpoint={"every": 50})
    assert intervals(both, 100, evaluates=True) == (7, 50, [])
