import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.batches import NO_TARGET, collate
from trainers.data.packing import Layout, MicroBatch, Placement, place
from trainers.data.prepare import Sample

LAYOUTS: tuple[Layout, ...] = ("padded", "packed", "blocks", "ragged")
LENGTHS = st.lists(st.integers(1, 300), max_size=60)
OPTIONS = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 9),
        "micro_batch_tokens": st.integers(1, 600),
        "layout": st.sampled_from(LAYOUTS),
        "hidden_size": st.sampled_from([0, 64, 4096]),
    }
)


def _make_long_tail(count: int, seed: int = 0) -> np.ndarray:
    """Lengths as of customers' messages: most are short, a few very long."""
    return np.clip(np.random.default_rng(seed).lognormal(4.5, 0.9, count), 8, 2048).astype(int)


def _examples(placement: Placement) -> list[int]:
    return sorted(index for mine in placement.micro_batches for micro in mine for row in micro.rows for index in row)


def _passes(placement: Placement) -> list[MicroBatch]:
    return [micro for mine in placement.micro_batches for micro in mine if micro.rows]


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, options=OPTIONS)
def test_every_example_is_computed_exactly_once(lengths: list[int], options: dict[str, Any]) -> None:
    assert _examples(place(lengths, **options)) == list(range(len(lengths)))


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, options=OPTIONS)
def test_every_worker_makes_as_many_forward_passes(lengths: list[int], options: dict[str, Any]) -> None:
    placement = place(lengths, **options)

    assert len(placement.micro_batches) == options["workers"]
    assert len({len(mine) for mine in placement.micro_batches}) == 1
    assert len(placement.micro_batches[0]) >= 1


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, options=OPTIONS)
def test_no_forward_pass_is_over_the_limit_unless_it_is_one_long_example(lengths: list[int], options: dict[str, Any]) -> None:
    placement = place(lengths, **options)

    for micro in _passes(placement):
        assert micro.tokens <= options["micro_batch_tokens"] or (len(micro.rows) == 1 and micro.tokens <= max(lengths))
    assert placement.padded_tokens == sum(sum(micro.widths) for micro in _passes(placement))


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, options=OPTIONS)
def test_every_row_is_wide_enough_and_laid_out_as_asked(lengths: list[int], options: dict[str, Any]) -> None:
    placement, layout = place(lengths, **options), options["layout"]

    for micro in _passes(placement):
        filled = [sum(lengths[i] for i in row) for row in micro.rows]
        assert len(micro.rows) == len(micro.widths) and all(width >= size for width, size in zip(micro.widths, filled, strict=True))
        assert all(len(row) <= 1 for row in micro.rows) or layout == "packed"
        if layout in ("padded", "packed"):
            assert micro.widths == [max(filled)] * len(filled)
        elif layout == "ragged":
            assert [width for width, size in zip(micro.widths, filled, strict=True) if size] == [size for size in filled if size]


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, options=OPTIONS)
def test_every_worker_reckons_the_same_placement(lengths: list[int], options: dict[str, Any]) -> None:
    assert place(lengths, **options) == place(np.array(lengths, dtype=np.int64), **options)


def test_without_packing_every_row_is_one_example() -> None:
    placement = place([5, 9, 2, 7, 7], workers=2, micro_batch_tokens=32, layout="padded")

    assert all(len(row) == 1 for micro in _passes(placement) for row in micro.rows)


def test_with_packing_examples_share_rows() -> None:
    placement = place([100, 50, 50, 25, 25, 25, 25], workers=1, micro_batch_tokens=100, layout="packed")

    assert sorted(len(row) for micro in placement.micro_batches[0] for row in micro.rows) == [1, 3, 3]
    assert placement.padded_tokens == 300


def test_an_example_longer_than_the_limit_has_a_forward_pass_of_its_own() -> None:
    placement = place([500, 10, 10], workers=1, micro_batch_tokens=64, layout="padded")

    assert placement.micro_batches == [[MicroBatch([[0]], [500]), MicroBatch([[1], [2]], [10, 10])]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_workers_without_examples_get_dummies(layout: Layout) -> None:
    placement = place([30, 20, 10], workers=5, micro_batch_tokens=64, layout=layout)

    assert _examples(placement) == [0, 1, 2]
    assert [len(mine) for mine in placement.micro_batches] == [1] * 5
    assert sum(not micro.rows for mine in placement.micro_batches for micro in mine) >= 2


def test_an_empty_batch_is_a_dummy_for_everyone() -> None:
    dummy = MicroBatch([], [])

    assert place([], workers=3, micro_batch_tokens=64, layout="packed") == Placement([[dummy], [dummy], [dummy]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_workers_share_a_batch_of_256_almost_evenly(layout: Layout) -> None:
    lengths = _make_long_tail(256)

    placement = place(lengths, workers=3, micro_batch_tokens=4096, layout=layout, hidden_size=2048)

    assert _examples(placement) == list(range(256))
    loads = [sum(int(lengths[i]) for micro in mine for row in micro.rows for i in row) for mine in placement.micro_batches]
    assert max(loads) < 1.15 * min(loads)
    assert sum(not micro.rows for mine in placement.micro_batches for micro in mine) <= 2


def _naive_padding(lengths: np.ndarray, micro_batch_tokens: int) -> float:
    """Padded tokens over tokens when examples come as they are: each pass takes as many as fit by the widest of all."""
    rows = micro_batch_tokens // int(lengths.max())
    groups = [lengths[start : start + rows] for start in range(0, len(lengths), rows)]
    return sum(len(group) * int(group.max()) for group in groups) / int(lengths.sum())


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_padding_is_a_fraction_of_what_padding_in_order_costs(workers: int, seed: int) -> None:
    lengths = _make_long_tail(256, seed)
    naive = _naive_padding(lengths, 8192) - 1

    sorted_only, packed, blocks, ragged = (
        place(lengths, workers=workers, micro_batch_tokens=8192, layout=layout, hidden_size=512).padded_tokens / lengths.sum() - 1
        for layout in LAYOUTS
    )

    assert naive > 0.5
    assert sorted_only < naive / 3
    assert ragged < 0.05 and packed < sorted_only and blocks < sorted_only


@pytest.mark.parametrize(("hidden_size", "widths"), [(1, [120, 100, 60]), (1000, [280])])
def test_rows_are_wide_where_attention_is_cheap_beside_the_rest(hidden_size: int, widths: list[int]) -> None:
    """A row of width w costs w * (6 * hidden_size + w). Three rows: 360 tokens (126 each at size 1); one row: 280 tokens (286 each)."""
    lengths = [100, 60, 60, 60]

    placement = place(lengths, workers=1, micro_batch_tokens=1000, layout="packed", hidden_size=hidden_size)

    assert [sum(lengths[i] for i in row) for micro in placement.micro_batches[0] for row in micro.rows] == widths


def test_a_batch_of_thousands_is_placed_in_a_moment() -> None:
    lengths, began = _make_long_tail(2048), time.perf_counter()

    place(lengths, workers=8, micro_batch_tokens=16384, layout="packed", hidden_size=4096)

    assert time.perf_counter() - began < 2


def test_rows_behind_each_other_are_in_blocks_of_like_width() -> None:
    placement = place([40, 10, 39, 9, 10], workers=1, micro_batch_tokens=1000, layout="blocks", hidden_size=4096)

    assert placement.micro_batches[0][0] == MicroBatch([[0], [2], [1], [4], [3], []], [40, 40, 10, 10, 10, 2])


def test_workers_get_like_loads_of_rows_behind_each_other() -> None:
    lengths = _make_long_tail(256)

    placement = place(lengths, workers=4, micro_batch_tokens=10**6, layout="ragged")

    loads = [sum(int(lengths[i]) for micro in mine for row in micro.rows for i in row) for mine in placement.micro_batches]
    assert max(loads) - min(loads) <= 8 + int(lengths.min())


def test_passes_of_many_batches_have_few_sizes() -> None:
    rng = np.random.default_rng(0)
    sizes = {
        placement.padded_tokens
        for placement in (place(rng.integers(15, 60, 64), workers=1, micro_batch_tokens=8192, layout="blocks", hidden_size=256)
                          for _ in range(50))
    }  # fmt: skip

    assert len(sizes) <= 10


def _make_sample(ids: list[int], learnt: list[int], label: int = 0) -> Sample:
    return Sample(np.array(ids), np.array(learnt, dtype=bool), label, "file:1")


def test_packed_examples_do_not_predict_each_other_and_start_their_positions_again() -> None:
    row = [_make_sample([5, 6, 7], [0, 1, 1]), _make_sample([8, 9], [1, 1])]

    batch = collate([row, [_make_sample([4, 3], [0, 1])]], layout="packed", classify=False, pad_id=0)

    _ = NO_TARGET
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, _, 9, _], [3, _, _, _, _]]
    assert batch.learnt is not None and batch.learnt.tolist() == [0, 1, 3, 5]
    assert batch.attention_mask is None


def test_padding_is_masked_and_not_a_target_even_where_the_stop_token_pads() -> None:
    batch = collate([[_make_sample([5, 2], [0, 1])], [_make_sample([5, 6, 2], [0, 0, 1])]], layout="padded", classify=False, pad_id=2)

    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.targets.tolist() == [[2, NO_TARGET, NO_TARGET], [NO_TARGET, 2, NO_TARGET]]


def test_the_places_that_are_learnt_are_filled_up_to_a_number_that_comes_again_with_one_that_teaches_nothing() -> None:
    batch = collate([[_make_sample([1] * 40, [1] * 34 + [0] * 6)]], layout="padded", classify=False, pad_id=2)

    assert batch.learnt is not None and batch.learnt.tolist() == [*range(33), 39]
    assert batch.targets[0, 39] == NO_TARGET


def test_rows_to_classify_have_their_class_as_target() -> None:
    batch = collate([[_make_sample([5, 2], [0, 0], label=3)], [_make_sample([5], [0], label=1)]], layout="padded", classify=True, pad_id=0)

    assert torch.equal(batch.targets, torch.tensor([3, 1])) and batch.learnt is None


def test_rows_behind_each_other_are_one_row_and_its_blocks() -> None:
    rows = [[_make_sample([5, 6, 7], [0, 1, 1])], [_make_sample([8, 9], [1, 1])], [_make_sample([4], [1])], []]

    batch = collate(rows, layout="blocks", classify=False, pad_id=0, widths=[3, 3, 1, 1])

    _ = NO_TARGET
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 0, 4, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, _, 9, _, _, _, _]]
    assert batch.blocks is not None and batch.blocks.tolist() == [[[[2, 3], [2, 1]]]]
    assert batch.attention_mask is None
