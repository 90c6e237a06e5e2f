import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.packing import place
from trainers.data.sampler import Sampler


def _make_order(sampler: Sampler) -> list[int]:
    """All examples in the order they are trained on."""
    return [int(index) for step in range(sampler.steps) for index in sampler.batch(step)]


SIZES = {"examples": st.integers(1, 60), "batch_size": st.integers(1, 40), "seed": st.integers(0, 1000)}


@settings(deadline=None)
@given(**SIZES, epochs=st.integers(1, 4))
def test_every_example_comes_once_an_epoch_though_batches_run_across_its_border(
    examples: int, batch_size: int, seed: int, epochs: int
) -> None:
    sampler = Sampler(examples, batch_size, seed=seed, epochs=epochs)

    order = _make_order(sampler)

    assert [sorted(order[start : start + examples]) for start in range(0, len(order), examples)] == [list(range(examples))] * epochs


@settings(deadline=None)
@given(**SIZES, epochs=st.floats(0.05, 4))
def test_only_the_last_batch_may_be_short_and_none_is_empty(examples: int, batch_size: int, seed: int, epochs: float) -> None:
    sampler = Sampler(examples, batch_size, seed=seed, epochs=epochs)

    sizes = [len(sampler.batch(step)) for step in range(sampler.steps)]

    assert all(size == batch_size for size in sizes[:-1])
    assert 0 < sizes[-1] <= batch_size
    assert sum(sizes) == pytest.approx(epochs * examples, abs=1)
    assert len(sampler.batch(sampler.steps)) == 0


def test_a_share_of_an_epoch_is_no_example_more_for_the_rounding_of_floats() -> None:
    assert 0.55 * 100 > 55

    assert Sampler(100, 4, seed=0, epochs=0.55).total == 55


def test_with_max_steps_every_batch_is_full() -> None:
    sampler = Sampler(10, 4, seed=0, max_steps=7)

    assert sampler.steps == 7
    assert [len(sampler.batch(step)) for step in range(7)] == [4] * 7


def test_a_resumed_run_gets_the_batch_the_uninterrupted_one_would() -> None:
    uninterrupted, resumed = (Sampler(37, 8, seed=3, epochs=5) for _ in range(2))
    batches = [uninterrupted.batch(step) for step in range(uninterrupted.steps)]

    for step in (20, 4, 21, 0, 22):
        assert np.array_equal(resumed.batch(step), batches[step])


def test_epochs_and_seeds_shuffle_differently() -> None:
    order = _make_order(Sampler(50, 10, seed=0, epochs=2))

    assert order[:50] != order[50:] != sorted(order[50:])
    assert order != _make_order(Sampler(50, 10, seed=1, epochs=2))
    assert order == _make_order(Sampler(50, 10, seed=0, epochs=2))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_the_workers_together_compute_the_batch_whatever_their_number(workers: int) -> None:
    sampler, lengths = Sampler(100, 16, seed=0, epochs=1), np.random.default_rng(0).integers(5, 60, 100)
    indices = sampler.batch(2)

    placement = place(lengths[indices], workers=workers, micro_batch_tokens=128, layout="packed")

    computed = [int(indices[place]) for mine in placement.micro_batches for micro in mine for row in micro.rows for place in row]
    assert sorted(computed) == sorted(indices)


def test_the_epoch_shown_counts_examples_and_ends_with_the_last_short_batch() -> None:
    sampler = Sampler(10, 4, seed=0, epochs=1.5)

    assert [sampler.epoch(step) for step in range(5)] == [0, 0.4, 0.8, 1.2, 1.5]
    assert sampler.steps == 4


def test_consecutive_epochs_do_not_repeat_each_others_beginning() -> None:
    """A batch across a border may hold an example twice, but the orders are independent: about one of 1000 stands in its old place."""
    sampler = Sampler(1000, 1000, seed=0, epochs=2)

    assert np.count_nonzero(sampler.batch(0) == sampler.batch(1)) < 10
