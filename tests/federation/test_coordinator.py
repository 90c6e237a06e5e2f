"""A run of rounds: right sums, whoever vanishes; the same round again, whoever is killed; nothing aggregated twice, nothing left open."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from federation.aggregate import Adapter, Layout, State, advance, contribution, mean
from federation.journal import Journal
from tests.federation.enrolment import BANKS, Federation
from tests.federation.loopback import START, UNITS, Loopback, World, make_world, step


@pytest.fixture
def world(made: Federation) -> Iterator[World]:
    world = make_world(made)
    yield world
    world.close()


def _events(world: World, kind: str) -> list[dict[str, Any]]:
    lines = (world.run_folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def _in_the_clear(world: World, banks: tuple[tuple[str, ...], ...]) -> Adapter:
    """What the run makes of the same updates, added up by anybody."""
    training = world.training
    layout, clip = Layout.of(START, training.aggregation.method), training.encoding.clip
    state = State(START, np.zeros(layout.length, np.float32))
    for round, members in enumerate(banks, 1):
        deltas = {bank: np.concatenate([step(bank, round, name) for name in layout.sent]) for bank in members}
        total = sum(contribution(deltas[bank], clip, UNITS[bank] / 2000).astype(np.float64) for bank in members)
        state = advance(layout, state, mean(layout, np.asarray(total), clip).delta, training.aggregation.momentum)
    return state.adapter


def _check(world: World, *banks: tuple[str, ...]) -> None:
    """The run's result is what these banks' updates make, and no ledger has anything open."""
    result = json.loads((world.run_folder / "result" / "result.json").read_text())
    assert [tuple(round["banks"]) for round in result["rounds"]] == [*banks]
    adapter, expected = load_file(world.run_folder / "result" / "adapter_model.safetensors"), _in_the_clear(world, banks)
    for name, tensor in expected.items():
        np.testing.assert_allclose(adapter[name], tensor, atol=1e-6)
    assert all(closed for bank in BANKS for _, _, closed in world.held(bank))


def test_a_run_of_four_banks_is_the_mean_of_their_updates(world: World) -> None:
    Loopback(world).run()
    _check(world, BANKS, BANKS)
