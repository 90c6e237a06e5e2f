"""Benchmarks: the arithmetic as functions of values, the rest on a real local Ray."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.bench import (
    ENDED_BY_SYSTEM,
    Point,
    Record,
    compare,
    job_at,
    load_bench_job,
    make_grid,
    make_record,
    percentile,
    read_results,
    run_points,
    summarise,
    write_results,
)
from cluster.bench_page import PAGE, PICTURE, table, write_page
from cluster.errors import ClusterTooSmall
from cluster.job import JobSpec
from cluster.launch import connected
from cluster.scaling import complete
from cluster.speed import GPUS, HIDDEN
from trainers.defaults import Shape
from trainers.errors import ConfigError
from trainers.memory import Footprint

SECONDS = [0.5, 0.4, 0.6, 0.5]


def _make_job(**blocks: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "job", "task": "sft", "model": {"shape": "llama-3.1-8b"}, "data": {"train": "generated", "max_length": 512}, **blocks}
    )


def _make_point(workers: int = 1, **changes: Any) -> Point:
    return Point(**{"method": "lora", "stage": 2, "length": 512, "workers": workers} | changes)


def _make_record(
    workers: int, *, seconds: list[float] = SECONDS, communication: float = 0.1, memory: int = 2**30, device: str = "cpu", **point: Any
) -> Record:
    numbers: dict[str, Any] = dict.fromkeys((field.name for field in fields(Footprint)), 1)
    counted = numbers | {
        "device": "cuda",
        "quantization": "none",
        "width": 2,
        "trained_width": 2,
        "parameters": 10**9,
        "trained": 10**9,
        "row": 512,
    }
    shape = dict.fromkeys((field.name for field in fields(Shape)), 1) | {"parameters": 10**9, "linear": 10**9}
    found = {
        "step_seconds": seconds, "data_share": 0.01, "communication_share": communication, "tokens_per_step": 1000 * workers,
        "length": 512, "peak_memory_bytes": memory, "peak_reserved_bytes": None, "zero_stage": point.get("stage", 2),
        "flops_per_token": 6e9,
        "flops_formula": "4 N", "peak_flops": None, "parameters": 10**9, "device": device, "versions": {"torch": "2"},
        "shape": shape, "footprint": counted, "settings": {"micro_batch_tokens": 1000, "activation_checkpointing": False},
    }  # fmt: skip
    return make_record(_make_point(workers, **point), found)


def _summarise(records: list[Record]) -> dict[str, Any]:
    return json.loads(json.dumps(summarise(_make_job(), complete(records, _make_job()), steps=4, price=None, finished=True)))


def test_the_grid_is_the_product_of_the_lists_with_the_fewest_workers_first() -> None:
    points = make_grid(_make_job(), [4, 1, 4], ["lora", "nf4"], [1, 3], [512])
    assert len(points) == 8
    assert [point.workers for point in points[:2]] == [1, 4]
    assert {(point.method, point.stage) for point in points} == {("lora", 1), ("lora", 3), ("nf4", 1), ("nf4", 3)}


@pytest.mark.parametrize(
    ("blocks", "method"),
    [
        ({"method": "full"}, "full"),
        ({"method": "lora"}, "lora"),
        ({"model": {"shape": "llama-3.1-8b", "quantization": "nf4"}}, "nf4"),
    ],
)
def test_a_list_that_is_not_given_takes_the_value_of_the_job(blocks: dict[str, Any], method: str) -> None:
    assert make_grid(_make_job(zero=3, **blocks), [2]) == [Point(method, 3, 512, 2)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "kind", "quantization"), [("full", "full", "none"), ("lora", "lora", "none"), ("nf4", "lora", "nf4")])
def test_a_point_changes_the_job_where_it_differs_and_keeps_the_adapter(tmp_path: Path, method: Any, kind: str, quantization: str) -> None:
    job = job_at(_make_job(method={"lora": {"rank": 4}}), _make_point(8, method=method, stage=3, length=128), tmp_path)
    assert (job.method.type, job.model.quantization, job.zero.stage, job.data.max_length) == (kind, quantization, 3, 128)
    assert (job.cluster.workers, job.cluster.max_failures, job.run_dir.parent) == (8, 0, tmp_path)
    assert job.method.type == "full" or job.method.rank == 4


def test_a_point_that_the_job_excludes_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"offload_params needs zero\.stage: 3"):
        job_at(_make_job(zero={"stage": 3, "offload_params": "cpu"}), _make_point(stage=1), tmp_path)


def test_speeds_are_tokens_over_the_sum_of_the_steps() -> None:
    record = _make_record(4)
    assert record.tokens_per_second == pytest.approx(4 * 4000 / 2.0)
    assert record.tokens_per_second_per_worker == pytest.approx(2000)
    assert record.step_seconds == pytest.approx({"p5": 0.415, "median": 0.5, "p95": 0.585})


def test_mfu_is_known_where_the_peak_is() -> None:
    record = _make_record(2)
    assert record.mfu is None and record.found is not None
    assert make_record(record.point, {**record.found, "peak_flops": 1e14}).mfu == pytest.approx(2000 * 6e9 / 1e14)


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 2.5), (1, 4), (0.25, 1.75)])
def test_a_percentile_lies_between_its_two_neighbours(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_efficiency_is_against_the_fewest_workers_of_the_same_series() -> None:
    slow = [2 * second for second in SECONDS]
    records = complete(
        [_make_record(2), _make_record(8, seconds=slow), _make_record(4, length=128), _make_record(8, method="full")], _make_job()
    )
    assert [record.efficiency for record in records] == pytest.approx([1, 0.5, 1, 1])


def test_a_failed_point_has_no_efficiency_and_the_next_takes_its_place() -> None:
    records = complete([Record(_make_point(1), "failed", "out of memory"), _make_record(2), _make_record(4)], _make_job())
    assert [record.efficiency for record in records] == [None, pytest.approx(1), pytest.approx(1)]


def test_cost_is_what_a_million_tokens_take_of_worker_hours() -> None:
    (record,) = complete([_make_record(4)], _make_job(), price=3.6)
    assert record.cost_per_million_tokens == pytest.approx(1e6 / 8000 * 4 * 3.6 / 3600)


def test_a_projection_keeps_computing_and_grows_communication_as_a_ring() -> None:
    *_, record = complete([_make_record(1), _make_record(2, communication=0.2)], _make_job(), projected=[64])
    seconds = 0.5 * (0.8 + 0.2 * (63 / 64) / (1 / 2))
    assert (record.status, record.point.workers) == ("projected", 64)
    assert record.tokens_per_second == pytest.approx(64_000 / seconds, rel=0.01)  # and some hops
    assert record.communication_share == pytest.approx(1 - 0.4 / seconds, rel=0.01)
    assert record.efficiency is not None and 0 < record.efficiency < 1


def test_a_projection_has_the_memory_that_is_sharded_further() -> None:
    *_, record = complete([_make_record(2, memory=20 * 10**9)], _make_job(), projected=[1000])
    states = 10**9 * (12 + 2 * 2)  # masters and moments, gradients of two passes
    assert record.peak_memory_bytes == pytest.approx(20e9 - states * (1 / 2 - 1 / 1000), rel=0.01)


def test_a_projection_to_more_machines_than_one_waits_for_the_network() -> None:
    *_, near, far = complete([_make_record(2, device="NVIDIA H100 80GB HBM3")], _make_job(), projected=[8, 16])
    h100 = GPUS["h100"]
    assert near.communication_share and far.communication_share and near.tokens_per_second and far.tokens_per_second
    waits = [record.communication_share / record.tokens_per_second * record.tokens_per_step for record in (near, far)]  # type: ignore[operator]
    assert waits[1] / waits[0] == pytest.approx(h100.link / h100.network * (15 / 16) / (7 / 8), rel=0.02)


def test_what_zero_3_hides_is_not_projected_to_cost_anything() -> None:
    *_, record = complete([_make_record(2, stage=3, communication=0.2)], _make_job(), projected=[64])
    computing = 0.5 - (1 - HIDDEN) * 0.1
    assert record.tokens_per_second == pytest.approx(64_000 / (computing + (1 - HIDDEN) * 0.1 * 63 / 32), rel=0.02)


def test_a_model_that_cannot_be_counted_is_not_projected() -> None:
    record = _make_record(2)
    assert record.found is not None
    *_, projected = complete([replace(record, found=record.found | {"footprint": None})], _make_job(), projected=[64])
    assert projected.tokens_per_second is None and "cannot be counted" in str(projected.reason)


def test_one_worker_says_nothing_of_communication() -> None:
    *_, record = complete([_make_record(1)], _make_job(), projected=[64])
    assert (record.status, record.tokens_per_second) == ("projected", None) and "two workers" in str(record.reason)


def test_what_cannot_be_projected_is_no_point_that_failed(tmp_path: Path) -> None:
    results = summarise(_make_job(), complete([_make_record(1)], _make_job(), projected=[1, 64]), steps=4, price=None, finished=True)
    write_page(results, tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "<dd>1 of 1</dd>" in page and "as many as 1 are measured" in page and "two workers or more" in page
    assert [row.speed_ratio for row in compare(results, results)] == [1]


def test_comparing_gives_ratios_second_over_first_and_names_points_only_in_one() -> None:
    first = _summarise([_make_record(1), _make_record(2), Record(_make_point(4), "failed", "out of memory")])
    second = _summarise([_make_record(1, seconds=[0.25] * 4, memory=2**29), _make_record(4), _make_record(8)])
    rows = compare(first, second)
    assert [(row.point.workers, row.only_in) for row in rows] == [(1, None), (2, "first"), (4, None), (8, "second")]
    assert (rows[0].speed_ratio, rows[0].memory_ratio) == (pytest.approx(2), pytest.approx(0.5))
    assert rows[2].speed_ratio is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "got list"),
        ('{"schema": 9}', "got 9"),
        ('{"schema": 1}', "model: Field required"),
        ('{"schema": 1, "model": "a", "device": null, "versions": null, "points": [{}]}', r"points\.0\.method: Field required"),
    ],
)
def test_what_is_no_benchmark_is_not_compared(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_results(tmp_path / "bench.json")


def test_the_page_holds_all_it_needs_and_labels_what_is_projected(tmp_path: Path) -> None:
    records = complete(
        [_make_record(1), _make_record(2), Record(_make_point(4), "failed", "<out of memory>")], _make_job(), projected=[64], price=2.0
    )
    results = summarise(_make_job(), records, steps=4, price=2.0, finished=False)
    write_results(results, tmp_path)
    write_page(read_results(tmp_path), tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "projected" in page and "interrupted" in page and "&lt;out of memory&gt;" in page
    assert _external_references(page) == []


def test_a_point_stands_beside_what_the_plan_says_and_what_its_gpus_allow(tmp_path: Path) -> None:
    record = _make_record(2, device="NVIDIA H100 80GB HBM3")
    found = record.found | {"peak_flops": 989e12} if record.found else {}
    [done] = complete([make_record(record.point, found)], _make_job())
    assert done.limit_tokens_per_second == pytest.approx(2 * 989e12 / 6e9)
    assert done.predicted_memory_bytes and done.predicted_tokens_per_second
    assert done.predicted_tokens_per_second < done.limit_tokens_per_second
    write_page(_summarise([make_record(record.point, found)]), tmp_path)
    row = "<td>lora, ZeRO 2, length 512, workers 2</td>"
    assert row in (tmp_path / PAGE).read_text() and "lora, limit" in (tmp_path / PAGE).read_text()


def test_of_a_processor_of_unknown_speed_the_plan_says_memory_alone() -> None:
    [done] = complete([_make_record(1)], _make_job())
    assert done.predicted_memory_bytes and done.predicted_tokens_per_second is None and done.limit_tokens_per_second is None


def test_the_headline_names_the_best_of_those_with_the_most_workers(tmp_path: Path) -> None:
    slow = [2 * second for second in SECONDS]
    points = [_make_record(1), _make_record(2, seconds=slow), _make_record(1, stage=1), _make_record(2, stage=1)]
    write_page(_summarise(points), tmp_path)
    assert "<dt>best efficiency, 2 workers</dt><dd>100 %</dd>" in (tmp_path / PAGE).read_text()


def test_a_table_has_costs_only_with_a_price() -> None:
    headings, rows = table(_summarise([_make_record(1)]))
    assert "cost/M" not in headings and len(rows[0]) == len(headings)


def test_a_job_of_a_known_shape_needs_no_data_and_no_task(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: {shape: llama-3.2-1b}\n")
    job = load_bench_job(tmp_path / "job.yaml", ["method=full"])
    assert (job.task, job.method.type, job.model.name) == ("sft", "full", "llama-3.2-1b")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with connected(None, cpus=2):
        yield


def _make_tiny_job(folder: Path, model: Path) -> JobSpec:
    path = folder / "job.yaml"
    path.write_text(f"task: sft\nmodel: {model}\nmethod: {{lora: {{rank: 4}}}}\ntrain: {{micro_batch_tokens: 128}}\nzero: 2\n")
    return load_bench_job(path)


def _check(record: Record, *, workers: int) -> None:
    assert record.status == "measured" and record.tokens_per_second and record.tokens_per_second > 0
    assert record.tokens_per_step == 128 * workers and record.found is not None and len(record.found["step_seconds"]) == 4
    assert record.communication_share is not None and 0 <= record.communication_share <= 1
    assert record.data_share is not None and 0 <= record.data_share <= 1
    assert record.peak_memory_bytes and record.peak_memory_bytes > 50 * 2**20 and record.mfu is None


def test_nothing_is_started_where_no_point_fits_the_cluster(local_ray: None, llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ClusterTooSmall, match="999 workers need") as caught:
        list(run_points(_make_tiny_job(tmp_path, llama_dir), tmp_path / "points", workers=[999, 1000], steps=4))
    assert caught.value.exit_code == 2 and caught.value.hint and not (tmp_path / "points").exists()


@pytest.mark.slow
def test_a_worker_ended_by_the_system_is_a_reason_and_the_next_point_is_measured(local_ray: None, llama_dir: Path, tmp_path: Path) -> None:
    job = _make_tiny_job(tmp_path, llama_dir)
    killer = threading.Thread(target=_kill_a_worker)
    killer.start()
    (killed,) = run_points(job, tmp_path / "killed", workers=[1], lengths=[32], steps=10**6)
    killer.join()
    assert killed.status == "failed" and killed.reason == ENDED_BY_SYSTEM
    (measured,) = run_points(job, tmp_path / "points", workers=[2], lengths=[32], steps=4)
    _check(measured, workers=2)


def _kill_a_worker() -> None:
    """As a machine without memory would: the first training worker to be large, which is one at work."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in "".join(process.cmdline()) and process.memory_info().rss > 500 * 2**20:
                    process.kill()
                    return
        time.sleep(0.1)


@pytest.mark.slow
def test_every_method_and_stage_is_measured_and_what_workers_refuse_is_a_reason(local_ray: None, llama_dir: Path, tmp_path: Path) -> None:
    job = _make_tiny_job(tmp_path, llama_dir)
    records = list(
        run_points(job, tmp_path / "points", workers=[1, 2], methods=["full", "lora", "nf4"], stages=[1, 3], lengths=[32], steps=4)
    )
    for record in records:
        _check(record, workers=record.point.workers)
    (refused,) = run_points(job, tmp_path / "refused", workers=[1], lengths=[512], steps=4)
    assert refused.status == "failed" and "beyond the model's 256 positions" in str(refused.reason)


def _external_references(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)[^)]*\)|@import|<script', page)
