from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from cluster.job import JobSpec
from cluster.plan import Offer, Plan, Row, make_plan
from cluster.speed import GPUS, Gpu, Work, computing_of, exposed, find_gpu, step_communication
from tests.helpers import PRIVACY
from trainers.config import validate
from trainers.defaults import Hardware, Measure, Shape, resolve
from trainers.errors import ConfigError, ModelError
from trainers.footprint import measure
from trainers.memory import Footprint
from trainers.model import shape_of

WORK = Work(tokens=1e8, mean_length=500, seen_back=800, source="said so")


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(_make_job().model, "sft")


@pytest.fixture(scope="module")
def counted() -> Measure:
    """Of the 8B shape, counted once for each method and way to build its blocks."""
    known: dict[Any, Footprint | None] = {}

    def remembered(config: Any) -> Footprint | None:
        key = config.method, config.model.quantization, config.zero.stage == 3, config.data.max_length, config.privacy is None
        if key not in known:
            known[key] = measure(config, "cuda")
        return known[key]

    return remembered


def _make_job(**blocks: Any) -> JobSpec:
    values = {"task": "sft", "model": {"shape": "llama-3.1-8b"}, "data": "rows.jsonl", "train": {"global_batch_size": 256}}
    return validate(JobSpec, values | blocks, source="job.yaml")


def _plan(shape: Shape, counted: Measure, gpu: str = "h100", counts: tuple[int, ...] = (1, 2, 4, 8), **options: Any) -> Plan:
    job = _make_job(**options.pop("job", {}))
    projected = options.pop("projected", ())
    offer = Offer(GPUS[gpu], counts, projected, price=2.0)
    return make_plan(job, offer, shape=shape, measure=counted, work=lambda config: options.pop("work", WORK))


def _row(plan: Plan, gpus: int, stage: int) -> Row:
    return next(row for row in plan.rows if (row.gpus, row.stage) == (gpus, stage))


def test_8b_adapters_fit_an_h100_and_one_is_as_cheap_as_eight(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted)
    assert [(row.gpus, row.stage) for row in plan.rows] == [(1, 1), *((n, stage) for n in (2, 4, 8) for stage in (1, 2, 3))]
    one, eight = _row(plan, 1, 1), _row(plan, 8, 2)
    assert one.fits and eight.fits and eight.tokens_per_second is not None and one.tokens_per_second is not None
    assert 7 < eight.tokens_per_second / one.tokens_per_second <= 8.01
    assert one.cost == pytest.approx(2 * (one.hours or 0)) and plan.cheapest is not None and plan.cheapest.stage != 3


def test_speed_is_below_what_the_card_can_and_near_what_others_reach(shape: Shape, counted: Measure) -> None:
    whole = Work(tokens=None, mean_length=4096, seen_back=4096, source="")
    row = _row(_plan(shape, counted, work=whole, job={"model": {"shape": "llama-3.1-8b", "attention": "flash_attention_2"}}), 1, 1)
    assert row.tokens_per_second is not None and 10_000 < row.tokens_per_second < 20_000 and row.hours is None
    assert row.seconds is not None and row.seconds.bound == "compute"


def test_of_stages_that_cost_the_same_the_cheapest_is_the_one_auto_takes(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted)
    assert plan.cheapest is not None and plan.cheapest.chosen
    one, two = _row(plan, plan.cheapest.gpus, 1), _row(plan, plan.cheapest.gpus, 2)
    assert one.cost == pytest.approx(two.cost, rel=0.01) and plan.cheapest == two


@pytest.mark.parametrize("hidden", [0.0, 0.8])
@pytest.mark.parametrize("communication", [0.0, 0.1, 1.0, 5.0])
def test_computing_is_found_again_from_a_step_and_its_communication(hidden: float, communication: float) -> None:
    total = 1.0 + exposed(communication, 1.0, hidden)
    assert computing_of(total, communication, hidden) == pytest.approx(1.0)


def test_8b_in_full_needs_more_than_one_card(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted, job={"method": "full"})
    assert not _row(plan, 1, 1).fits and _row(plan, 8, 3).fits
    assert plan.cheapest is not None and plan.cheapest.gpus > 1 and "do not fit" in plan.why


def test_nothing_fits_where_weights_alone_are_larger_than_the_card(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted, "rtx4090", (1, 2), job={"method": "full"})
    assert plan.cheapest is None and "nothing fits" in plan.why and "nf4" in plan.why


def test_a_plan_takes_what_the_job_would(shape: Shape, counted: Measure) -> None:
    plan, h100 = _plan(shape, counted), GPUS["h100"]
    for count in (1, 2, 8):
        config, choices = resolve(_make_job(), Hardware("cuda", count, int(h100.memory)), shape, counted)
        row = next(row for row in plan.rows if row.gpus == count and row.chosen)
        assert row.stage == config.zero.stage
        assert (row.micro_batch_tokens, row.checkpointing) == (config.train.micro_batch_tokens, config.train.activation_checkpointing)
        reason = next(choice.reason for choice in choices if choice.field == "train.micro_batch_tokens")
        assert f"about {row.memory.lasting / 2**30:.1f} GiB that stay and {row.memory.passing / 2**30:.1f} GiB" in reason


def test_what_the_job_says_is_not_planned_otherwise(shape: Shape, counted: Measure) -> None:
    asked = {"zero": 3, "train": {"micro_batch_tokens": 4096, "activation_checkpointing": True}}
    rows = _plan(shape, counted, job=asked).rows
    assert {(row.stage, row.micro_batch_tokens, row.checkpointing) for row in rows} == {(3, 4096, True)}


def test_quantised_weights_are_not_planned_for_zero_3(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted, "rtx4090", (1, 2), job={"model": {"shape": "llama-3.1-8b", "quantization": "nf4"}})
    assert {row.stage for row in plan.rows} == {1, 2} and all(row.fits for row in plan.rows)


def test_a_private_job_is_planned_with_the_gradients_of_its_units(shape: Shape, counted: Measure) -> None:
    private, ordinary = (_plan(shape, counted, "l40s", (1, 8), job=blocks) for blocks in ({"privacy": PRIVACY}, {}))
    one, eight = _row(private, 1, 1), _row(private, 8, 2)
    assert one.fits and one.units_at_once is not None and eight.units_at_once is not None
    assert one.memory.units == 4 * 41_943_040 * one.units_at_once and eight.units_at_once < one.units_at_once
    assert not _row(ordinary, 1, 1).memory.units and _row(ordinary, 1, 1).units_at_once is None
    assert private.cheapest is not None and not any(row.refused for row in (*ordinary.rows, *private.rows))


def test_a_unit_that_does_not_fit_is_said_to_be_the_reason(shape: Shape, counted: Measure) -> None:
    job = {"privacy": PRIVACY, "method": {"lora": {"rank": 1024}}}
    plan = _plan(shape, counted, "rtx4090", (1, 2), job=job)
    assert plan.cheapest is None and all(row.refused and row.units_at_once == 1 for row in plan.rows)
    assert plan.why.startswith("the gradient of one unit takes 10.0 GiB, beside ") and "method.lora.rank" in plan.why


def test_projected_rows_say_so_and_are_not_chosen(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted, projected=(64, 512))
    assert [row.gpus for row in plan.rows if row.projected] == [64] * 3 + [512] * 3
    assert plan.cheapest is not None and not plan.cheapest.projected


def test_zero_3_between_nodes_waits_for_the_network(shape: Shape, counted: Measure) -> None:
    plan = _plan(shape, counted, projected=(64,))
    far, near = _row(plan, 64, 3).seconds, _row(plan, 8, 3).seconds
    assert far is not None and near is not None
    assert far.communication > 5 * near.communication and far.communication > 10 * _row(plan, 64, 1).seconds.communication  # type: ignore[union-attr]


def test_collectives_take_what_is_counted_by_hand(counted: Measure) -> None:
    card = Gpu("test", 0, 1e15, 1e12, link=100e9, network=10e9)
    found = counted(_make_job(model={"shape": "llama-3.1-8b", "dtype": "bfloat16"}, data={"train": "x", "max_length": 4096}, zero=1))
    assert found is not None
    few = replace(found, trained=1_000_000, parameters=100_000_000, adapters=0, small=0)
    ring = 2e6 * 7 / 8 / 75e9 + 7 * 3.4e-6 + 3.4e-6
    assert step_communication(few, card, 1, 1, passes=4) == 0
    assert step_communication(few, card, 8, 1, passes=4) == pytest.approx(3 * ring, rel=0.1)
    assert step_communication(few, card, 8, 2, passes=4) == pytest.approx(9 * ring, rel=0.1)
    gather = 2e8 * 15 / 16 / 7.5e9 + 32 * (14 * 3.4e-6 + 2 * 14e-6)  # two nodes: the network is the slowest link
    assert step_communication(few, card, 16, 3, passes=1) == pytest.approx(2 * gather, rel=0.02)


@pytest.mark.parametrize(("name", "near"), [("h20", "h200"), ("a100", "a100-80"), ("RTX-4090", "rtx4090"), ("tpu", "")])
def test_an_unknown_gpu_is_an_error_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"--gpu {name}") as caught:
        find_gpu(name)
    assert near in caught.value.message and "l40s" in caught.value.hint


def test_a_gpu_is_found_whatever_the_case() -> None:
    assert find_gpu("H200") is GPUS["h200"]


def test_a_model_that_cannot_be_counted_is_an_error(shape: Shape) -> None:
    with pytest.raises(ModelError, match="cannot be counted without running it"):
        _plan(shape, lambda config: None)


def test_a_cpu_is_planned_for_memory_only() -> None:
    job = _make_job(model={"shape": "llama-3.2-1b"}, data={"train": "x", "max_length": 256})
    here = shape_of(job.model, "sft")
    plan = make_plan(job, Offer(GPUS["cpu"], (1, 2)), shape=here, measure=partial(measure, device="cpu"), work=lambda config: WORK)
    assert all(row.tokens_per_second is None and row.memory.weights > 4e9 / (row.gpus if row.stage == 3 else 1) for row in plan.rows)
