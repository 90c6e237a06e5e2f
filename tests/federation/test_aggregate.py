"""Adapters as vectors, and what the sum of the banks' makes of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import AdapterError
from federation.policy import Method
from federation.rounds.aggregate import Adapter, Layout, State, advance, agree, begin, bounded, contribution, mean
from privacy.secagg.fixed_point import fit
from privacy.stream import Stream

LAYERS = ("base_model.model.layers.0.q_proj", "base_model.model.layers.1.v_proj")
HEAD = "base_model.model.score.modules_to_save.weight"
CLIP = 1e6

seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(4, 12), st.integers(4, 12), st.integers(1, 4))


def _make_adapter(seed: int, shape: tuple[int, int, int] = (10, 12, 4)) -> dict[str, npt.NDArray[np.float32]]:
    """Two layers and a head, all of ordinary size."""
    draw, (out, inward, rank) = np.random.default_rng(seed), shape
    tensors = {HEAD: draw.normal(size=(3, 5))}
    for layer in LAYERS:
        tensors |= {f"{layer}.lora_A.weight": draw.normal(size=(rank, inward)), f"{layer}.lora_B.weight": draw.normal(size=(out, rank))}
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def _trained(layout: Layout, adapter: Adapter, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """A bank's adapter after local training of what is sent."""
    draw = np.random.default_rng(seed)
    return {name: tensor + draw.normal(size=tensor.shape).astype(np.float32) * (name in layout.sent) for name, tensor in adapter.items()}


def _products(adapter: Adapter) -> list[npt.NDArray[np.float64]]:
    exact = {name: tensor.astype(np.float64) for name, tensor in adapter.items()}
    return [exact[f"{layer}.lora_B.weight"] @ exact[f"{layer}.lora_A.weight"] for layer in LAYERS]


def _round(layout: Layout, state: State, banks: Sequence[Adapter], weights: Sequence[float], momentum: float = 0.0) -> State:
    start = layout.flatten(state.adapter)
    sent = [contribution(layout.flatten(bank) - start, CLIP, weight) for bank, weight in zip(banks, weights, strict=True)]
    return advance(layout, state, mean(layout, np.sum(sent, axis=0, dtype=np.float64), CLIP).delta, momentum)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, shape=shapes, weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6), method=st.sampled_from(["ffa", "fedsvd"]))
def test_where_a_is_shared_the_mean_of_the_products_is_the_new_product(
    seed: int, shape: tuple[int, int, int], weights: list[float], method: Method
) -> None:
    adapter = _make_adapter(seed, shape)
    layout = Layout.of(adapter, method)
    state = begin(layout, adapter)
    banks = [_trained(layout, state.adapter, seed + 1 + number) for number in range(len(weights))]
    new = _round(layout, state, banks, weights)
    for place, product in enumerate(_products(new.adapter)):
        wanted = np.average([_products(bank)[place] for bank in banks], axis=0, weights=weights)
        np.testing.assert_allclose(product, wanted, atol=1e-5 * np.linalg.norm(wanted))
    np.testing.assert_allclose(new.adapter[HEAD], np.average([bank[HEAD] for bank in banks], axis=0, weights=weights), atol=1e-5)


def test_ffa_never_changes_a() -> None:
    adapter = _make_adapter(0)
    layout = Layout.of(adapter, "ffa")
    new = _round(layout, begin(layout, adapter), [_trained(layout, adapter, 1)], [1.0])
    assert all(np.array_equal(new.adapter[a], adapter[a]) and not np.array_equal(new.adapter[b], adapter[b]) for a, b in layout.pairs)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, shape=shapes, lost=st.integers(0, 4))
def test_fedsvd_leaves_the_product_and_makes_a_orthonormal_at_any_rank_of_b(seed: int, shape: tuple[int, int, int], lost: int) -> None:
    adapter = _make_adapter(seed, shape)
    for layer in LAYERS:
        adapter[f"{layer}.lora_B.weight"][:, :lost] = 0  # where lost is the rank or more, B is 0 as in a first round
    layout = Layout.of(adapter, "fedsvd")
    new = begin(layout, adapter).adapter
    for product, before in zip(_products(new), _products(adapter), strict=True):
        np.testing.assert_allclose(product, before, atol=1e-6 * max(1.0, float(np.linalg.norm(before))))
    for a, b in layout.pairs:
        np.testing.assert_allclose(new[a] @ new[a].T, np.eye(len(new[a])), atol=1e-5)
        columns = np.linalg.norm(new[b], axis=0)
        np.testing.assert_allclose(new[b].T @ new[b], np.diag(columns**2), atol=1e-4 * max(1.0, float(columns.max()) ** 2))
        assert all(row[np.abs(row).argmax()] > 0 for row in new[a])


def test_fedsvd_is_the_svd_of_the_dense_product() -> None:
    adapter = _make_adapter(5)
    layout = Layout.of(adapter, "fedsvd")
    new = begin(layout, adapter).adapter
    for product, (a, b) in zip(_products(adapter), layout.pairs, strict=True):
        _, singular, rows = np.linalg.svd(product)
        np.testing.assert_allclose(np.abs(np.sum(new[a] * rows[: len(new[a])], axis=1)), 1, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(new[b], axis=0), singular[: len(new[a])], rtol=1e-5)


@pytest.mark.parametrize(("apart", "error"), [(0.275, 0.025), (1.06, 0.31)])
def test_fedavg_misses_the_mean_of_the_products_by_as_much_as_is_said(apart: float, error: float) -> None:
    banks, size, rank = 8, 512, 16
    draw = np.random.default_rng(0)
    a, b = (draw.normal(size=shape) + apart * draw.normal(size=(banks, *shape)) for shape in ((rank, size), (size, rank)))
    names = (f"{LAYERS[0]}.lora_A.weight", f"{LAYERS[0]}.lora_B.weight")
    adapters = [dict(zip(names, (a[bank].astype(np.float32), b[bank].astype(np.float32)), strict=True)) for bank in range(banks)]
    layout = Layout.of(adapters[0], "fedavg")
    new = _round(layout, begin(layout, {name: np.zeros_like(tensor) for name, tensor in adapters[0].items()}), adapters, [1.0] * banks)
    wanted = (b @ a).mean(axis=0)
    missed = float(np.linalg.norm(new.adapter[names[1]] @ new.adapter[names[0]] - wanted) / np.linalg.norm(wanted))
    said = apart**2 * np.sqrt(banks - 1) / np.sqrt((banks + apart**2) ** 2 + apart**4 * (banks - 1))
    assert missed == pytest.approx(said, rel=0.03) and said == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("method", ["ffa", "fedsvd", "fedavg"])
def test_without_a_change_nothing_changes_and_momentum_goes_on(method: Method) -> None:
    adapter = _make_adapter(1)
    layout = Layout.of(adapter, method)
    state = begin(layout, adapter)
    moved = advance(layout, state, np.full(layout.length, 0.5), momentum=0.5)
    for place, before, after in zip(range(2), _products(state.adapter), _products(moved.adapter), strict=True):
        assert not np.allclose(before, after), place
    still = advance(layout, state, np.zeros(layout.length), momentum=0.5)
    for before, after in zip(_products(state.adapter), _products(still.adapter), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)
    rolled = advance(layout, moved, np.zeros(layout.length), momentum=0.5)
    np.testing.assert_allclose(rolled.adapter[HEAD], state.adapter[HEAD] + 0.75, rtol=1e-6)


def test_momentum_under_fedsvd_is_momentum_of_the_product() -> None:
    """The basis turns every round; B and its momentum turn with it, so the products are those of ffa with the same A."""
    adapter = _make_adapter(2)
    turning = Layout.of(adapter, "fedsvd")
    state = begin(turning, adapter)
    straight, frozen = Layout.of(adapter, "ffa"), begin(Layout.of(adapter, "ffa"), state.adapter)
    for number in range(4):
        change = np.random.default_rng(number).normal(size=turning.length)
        moves = {name: tensor.copy() for name, tensor in turning.unflatten(change).items()}
        for a, b in turning.pairs:
            moves[b] = moves[b] @ (frozen.adapter[a] @ state.adapter[a].T)  # the same change of the product, in the other basis
        turned = np.concatenate([moves[name].ravel() for name in turning.sent])
        frozen, state = advance(straight, frozen, change, 0.9), advance(turning, state, turned, 0.9)
        for product, wanted in zip(_products(state.adapter), _products(frozen.adapter), strict=True):
            np.testing.assert_allclose(product, wanted, atol=1e-4 * np.linalg.norm(wanted))


@settings(deadline=None, max_examples=20)
@given(seed=seeds, order=st.permutations(range(5)), method=st.sampled_from(["ffa", "fedsvd", "fedavg"]))
def test_the_order_of_the_banks_does_not_change_a_bit(seed: int, order: list[int], method: Method) -> None:
    """As they are added after encoding, when sums are exact."""
    adapter = _make_adapter(seed)
    layout = Layout.of(adapter, method)
    state, encoding = begin(layout, adapter), fit(5, 1.0, 32)
    start = layout.flatten(state.adapter)
    vectors = [contribution(layout.flatten(_trained(layout, state.adapter, seed + bank)) - start, 1.0) for bank in range(5)]
    encoded = [encoding.encode(vector, Stream()) for vector in vectors]

    def after(banks: Sequence[int]) -> State:
        total = encoding.decode(np.sum([encoded[bank] for bank in banks], axis=0, dtype=np.uint32))
        return advance(layout, state, mean(layout, total, 1.0).delta, 0.9)

    one, other = after(range(5)), after(order)
    assert all(np.array_equal(one.adapter[name], other.adapter[name]) for name in adapter) and np.array_equal(one.velocity, other.velocity)


def test_two_results_of_one_sum_agree_to_the_bit_and_under_fedsvd_in_any_basis() -> None:
    adapter = _make_adapter(1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    a, b = f"{LAYERS[0]}.lora_A.weight", f"{LAYERS[0]}.lora_B.weight"
    turned = adapter | {a: (turn.T @ adapter[a]).astype(np.float32), b: (adapter[b] @ turn).astype(np.float32)}
    for method, same in (("ffa", False), ("fedavg", False), ("fedsvd", True)):
        layout = Layout.of(adapter, method)
        assert agree(layout, adapter, dict(adapter)) and agree(layout, adapter, turned) is same
        for name in (HEAD, b):
            assert not agree(layout, adapter, adapter | {name: adapter[name] * np.float32(1.0001)})
        assert not agree(layout, adapter, adapter | {HEAD: np.nextafter(adapter[HEAD], np.float32(np.inf))})


def test_weights_and_metrics_come_back_from_the_sum_alone() -> None:
    layout = Layout.of(_make_adapter(0), "ffa")
    deltas = [np.full(layout.length, value, np.float32) for value in (0.001, 0.002)]
    sent = [contribution(delta, 2.0, weight, [metric]) for delta, weight, metric in zip(deltas, (1.0, 0.25), (0.5, -0.25), strict=True)]
    assert all(np.abs(vector).max() <= 2.0 for vector in sent)
    found = mean(layout, sent[0] + sent[1], 2.0)
    np.testing.assert_allclose(found.delta, (0.001 + 0.25 * 0.002) / 1.25, rtol=1e-5)
    assert found.weight == pytest.approx(1.25) and found.metrics == pytest.approx((0.25,))


@given(seed=seeds, clip=st.floats(1e-3, 1e3), size=st.integers(1, 50))
def test_an_update_is_bounded_and_keeps_its_direction(seed: int, clip: float, size: int) -> None:
    delta = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    inside = bounded(delta, clip)
    norm = np.linalg.norm(delta.astype(np.float64))
    assert np.linalg.norm(inside.astype(np.float64)) <= clip * (1 + 1e-6)
    np.testing.assert_allclose(inside, delta * min(1.0, clip / norm), rtol=1e-5)


def test_no_update_stays_none_and_a_diverged_one_is_refused() -> None:
    assert not bounded(np.zeros(3, np.float32), 1.0).any()
    for value in (np.nan, np.inf):
        with pytest.raises(AdapterError, match="NaN or infinity"):
            bounded(np.array([1, value], np.float32), 1.0)


@pytest.mark.parametrize(("method", "length"), [("ffa", 15 + 2 * 40), ("fedsvd", 15 + 2 * 40), ("fedavg", 15 + 2 * 88)])
def test_flattening_can_be_undone_and_sends_what_the_method_trains(method: Method, length: int) -> None:
    adapter = _make_adapter(3)
    layout = Layout.of(adapter, method)
    assert layout.length == length and len(layout.flatten(adapter)) == length
    back = layout.unflatten(layout.flatten(adapter))
    assert HEAD in back and all(np.array_equal(back[name], adapter[name]) for name in back)


def test_the_hash_stands_for_method_names_and_shapes_and_not_for_their_order() -> None:
    adapter = _make_adapter(0)
    layout = Layout.of(adapter, "ffa")
    assert Layout.of(dict(reversed(adapter.items())), "ffa").hash == layout.hash == Layout.of(_make_adapter(9), "ffa").hash
    others = [_make_adapter(0, (10, 12, 3)), {**adapter, "more": adapter[HEAD]}, {n: t for n, t in adapter.items() if n != HEAD}]
    hashes = {layout.hash, Layout.of(adapter, "fedsvd").hash, *(Layout.of(other, "ffa").hash for other in others)}
    assert len(hashes) == 5


def test_another_rank_module_or_method_is_refused_by_name() -> None:
    adapter = _make_adapter(0)
    layout = Layout.of(adapter, "ffa")
    with pytest.raises(AdapterError, match=r"q_proj.lora_A.weight is of shape \(3, 12\), expected of shape \(4, 12\)"):
        layout.flatten(_make_adapter(0, (10, 12, 3)))
    with pytest.raises(AdapterError, match=r"score.* is not there"):
        layout.flatten({name: tensor for name, tensor in adapter.items() if name != HEAD})
    with pytest.raises(AdapterError, match="for fedavg, expected ffa"):
        layout.check(Layout.of(adapter, "fedavg"))
    with pytest.raises(AdapterError, match=r"made for another adapter|expected"):
        layout.unflatten(np.zeros(layout.length + 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adapter: adapter.pop(f"{LAYERS[0]}.lora_B.weight"), "lora_B.weight is not there"),
        (lambda adapter: adapter.pop(f"{LAYERS[0]}.lora_A.weight"), "lora_A.weight is not there"),
        (lambda adapter: adapter.update({f"{LAYERS[0]}.lora_B.weight": np.zeros((10, 5), np.float32)}), "its B"),
        (lambda adapter: adapter.update({HEAD: np.zeros(3)}), "float64, expected float32"),
    ],
)
def test_what_is_no_adapter_is_refused(change: object, message: str) -> None:
    adapter = _make_adapter(0)
    assert callable(change)
    change(adapter)
    with pytest.raises(AdapterError, match=message):
        Layout.of(adapter, "ffa")


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan")])
def test_a_weight_outside_its_range_is_refused(weight: float) -> None:
    with pytest.raises(AdapterError, match="weight"):
        contribution(np.zeros(2, np.float32), 1.0, weight)


def test_a_sum_without_weights_is_refused() -> None:
    layout = Layout.of(_make_adapter(0), "ffa")
    for total in (np.zeros(layout.length), np.zeros(layout.length + 1)):
        with pytest.raises(AdapterError, match="without weights"):
            mean(layout, total, 1.0)
