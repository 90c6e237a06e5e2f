from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import ZeroConfig
from trainers.memory import CHANNEL_BYTES, CONTEXT_BYTES, REDUCE_BUCKET, Footprint, Memory, memory_of, room

N, ADAPTERS = 8_030_261_248, 41_943_040
LORA = Footprint(
    device="cuda",
    quantization="none",
    width=2,
    trained_width=2,
    parameters=N,
    adapters=ADAPTERS,
    trained=ADAPTERS,
    of_unit=ADAPTERS,
    quantized=6_979_321_856,
    largest=525_336_576,
    largest_trained=229_376,
    largest_quantized=58_720_256,
    small=4_000_000,
    block=219_000_000,
    head=525_336_576,
    vocabulary=128256,
    layers=32,
    row=4096,
    mask=4096**2,
    mask_block=2 * 4096**2,
    kept_first=600_000_000,
    kept_block=650_000_000,
    input_first=40_000_000,
    input_block=33_554_432,
    backward=400_000_000,
    backward_fixed=0,
    recomputed=1_000_000_000,
    recomputed_fixed=0,
    chunk=523,
    logits=10_000_000,
    logits_fixed=1_000_000_000,
)
FULL = replace(LORA, adapters=0, trained=N, of_unit=0, largest_trained=525_336_576)
"""Llama 3.1 8B with adapters of rank 16 and in full; what is kept in round numbers."""


def _memory(
    footprint: Footprint, stage: int, workers: int, *, tokens: float = 0, checkpointing: bool = False, units: int = 0, **zero: Any
) -> Memory:
    settled = ZeroConfig(stage=stage, **zero)  # type: ignore[arg-type]
    return memory_of(footprint, settled, workers=workers, tokens=tokens, checkpointing=checkpointing, units=units)


@pytest.mark.parametrize(
    ("stage", "workers", "weights", "adapters", "gradients", "optimizer", "communication"),
    [
        (1, 1, 2 * N, 2 * ADAPTERS, 2 * ADAPTERS, 12 * ADAPTERS, 2 * ADAPTERS),
        (1, 8, 2 * N, 2 * ADAPTERS, 2 * ADAPTERS, 1.5 * ADAPTERS, 2 * ADAPTERS),
        (2, 8, 2 * N, 2 * ADAPTERS, ADAPTERS / 2, 1.5 * ADAPTERS, 4 * ADAPTERS),
        (3, 8, N / 4 + 8_000_000, ADAPTERS / 4, ADAPTERS / 4, 1.5 * ADAPTERS, 4 * ADAPTERS + 2 * (525_336_576 + 50_000_000 + 219_000_000)),
    ],
)
def test_an_8b_adapter_by_stage(
    stage: int, workers: int, weights: float, adapters: float, gradients: float, optimizer: float, communication: float
) -> None:
    memory = _memory(LORA, stage, workers)
    assert (memory.weights, memory.adapters, memory.gradients) == (weights, adapters, gradients)
    assert (memory.optimizer, memory.communication) == (optimizer, communication)


@pytest.mark.parametrize(
    ("stage", "workers", "weights", "gradients", "optimizer"),
    [(1, 1, 2 * N, 2 * N, 12 * N), (1, 8, 2 * N, 2 * N, 1.5 * N), (2, 8, 2 * N, N / 2, 1.5 * N), (3, 8, N / 4 + 8_000_000, N / 4, 1.5 * N)],
)
def test_8b_in_full_by_stage(stage: int, workers: int, weights: float, gradients: float, optimizer: float) -> None:
    memory = _memory(FULL, stage, workers)
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, gradients, optimizer)
    assert memory.communication >= 2 * REDUCE_BUCKET


def test_8b_in_full_takes_16_bytes_a_parameter_and_more_at_the_update() -> None:
    memory = _memory(FULL, 1, 1)
    assert memory.total >= 22 * N  # weights 2, masters and moments 12, float32 gradients 4, AdamW's intermediate results 4
    assert memory.total == pytest.approx(22 * N + CONTEXT_BYTES)


def test_float32_weights_are_their_own_masters_with_zero_3_only() -> None:
    whole = replace(FULL, width=4, trained_width=4)
    assert _memory(whole, 3, 2).optimizer == 4 * N
    assert _memory(whole, 2, 2).optimizer == 6 * N


def test_zero_1_reduces_beside_nothing_but_its_bucket_and_its_share() -> None:
    memory = _memory(replace(FULL, width=4, trained_width=4), 1, 2)
    reduced = 4 * (N + N / 2 + REDUCE_BUCKET)  # gradients and their bucket, one of which is the copy that is sent; a half is kept
    assert memory.total - memory.weights - memory.optimizer - memory.context == pytest.approx(reduced)


def test_4_bit_weights_take_a_quarter_and_a_scale_and_stay_whole() -> None:
    for stage in (2, 3):
        memory = _memory(replace(LORA, quantization="nf4"), stage, 8)
        assert memory.quantized == pytest.approx(0.51587 * 6_979_321_856, rel=1e-4)
        assert memory.dequantized == 2 * 58_720_256


def test_an_offloaded_optimizer_leaves_one_weights_gradient_behind() -> None:
    memory = _memory(FULL, 2, 8, offload_optimizer="cpu")
    assert (memory.optimizer, memory.gradients, memory.step) == (0, 2 * 525_336_576, 0)


def test_offloaded_weights_are_gathered_all_the_same() -> None:
    kept, offloaded = _memory(LORA, 3, 8), _memory(LORA, 3, 8, offload_params="cpu")
    assert offloaded.weights == 2 * LORA.small and offloaded.communication == kept.communication


def test_a_worker_alone_gathers_nothing_but_what_was_offloaded() -> None:
    alone, offloaded = _memory(LORA, 3, 1).communication, _memory(LORA, 3, 1, offload_params="cpu").communication
    assert (alone, offloaded) == (_memory(LORA, 2, 8).communication, _memory(LORA, 3, 8).communication)


def test_what_is_kept_grows_with_tokens_and_layers() -> None:
    one, two = (_memory(LORA, 1, 1, tokens=rows * 4096) for rows in (1, 2))
    assert one.activations == 600_000_000 + 31 * 650_000_000
    assert two.activations == 2 * one.activations
    assert one.mask == 4096**2 * (1 + 2 * 32)


def test_recomputing_keeps_the_input_of_each_block_and_all_of_one() -> None:
    memory = _memory(LORA, 1, 1, tokens=4 * 4096, checkpointing=True)
    assert memory.activations + memory.logits == 4 * (40_000_000 + 31 * 33_554_432 + 1_000_000_000)
    assert memory.mask == 4 * 4096**2 * 3


def test_logits_take_a_chunk_however_many_tokens() -> None:
    few, some, many = (_memory(LORA, 1, 1, tokens=tokens).logits for tokens in (523 / 2, 523, 5230))
    assert (few, some, many) == (505_000_000, 1_010_000_000, 1_100_000_000)


@pytest.mark.parametrize(("stage", "workers", "copies"), [(1, 1, 1), (2, 8, 1), (3, 8, 2)])
def test_a_private_step_has_a_gradient_for_each_unit_and_their_sum(stage: int, workers: int, copies: int) -> None:
    private = replace(LORA, trained_width=4)
    memory, ordinary = _memory(private, stage, workers, units=12), _memory(private, stage, workers)
    assert (memory.units, memory.private) == (12 * 4 * ADAPTERS, copies * 4 * ADAPTERS)
    assert memory.total == ordinary.total + memory.units + memory.private


def test_adapters_of_a_private_run_are_float32_beside_any_base() -> None:
    memory = _memory(replace(LORA, trained_width=4), 2, 8)
    assert (memory.weights, memory.adapters, memory.gradients, memory.communication) == (2 * N, 4 * ADAPTERS, ADAPTERS, 8 * ADAPTERS)


def test_noise_is_made_in_main_memory() -> None:
    here = replace(LORA, device="cpu", trained_width=4)
    assert _memory(here, 2, 8, units=1).private == 4 * ADAPTERS + 4 * ADAPTERS / 8 + 40 * 2**20


def test_a_worker_alone_has_no_channels() -> None:
    assert _memory(LORA, 2, 1).context == CONTEXT_BYTES
    assert _memory(LORA, 2, 2).context == CONTEXT_BYTES + CHANNEL_BYTES
    assert _memory(replace(LORA, device="cpu"), 2, 2).context == 0


def test_a_tenth_of_a_card_stays_free() -> None:
    assert room(80e9) == pytest.approx(72e9)


@given(
    stage=st.sampled_from([1, 2, 3]),
    workers=st.integers(1, 64),
    tokens=st.integers(0, 40_000),
    again=st.booleans(),
    footprint=st.sampled_from([LORA, FULL, replace(LORA, quantization="nf4"), replace(FULL, width=4, trained_width=4)]),
)
def test_more_workers_never_take_more_and_more_tokens_never_less(
    stage: int, workers: int, tokens: int, again: bool, footprint: Footprint
) -> None:
    here = _memory(footprint, stage, 1 + workers, tokens=tokens, checkpointing=again)
    assert here.total >= _memory(footprint, stage, 2 + workers, tokens=tokens, checkpointing=again).total
    assert here.total <= _memory(footprint, stage, 1 + workers, tokens=tokens + 256, checkpointing=again).total + 1
    assert here.total == pytest.approx(here.lasting + here.passing)
