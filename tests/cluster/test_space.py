"""Ranges, the points drawn from them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.job import JobSpec, as_written, load_job
from cluster.space import Range, Space, at_point, read_space
from trainers.errors import ConfigError

ALL_KINDS = """\
seed: 3
train.learning_rate: {loguniform: [1e-5, 1e-3]}
train.weight_decay: {uniform: [0, 0.1]}
train.global_batch_size: {randint: [4, 6]}
method.rank: {choice: [8, 16]}
"""


def _make_job(folder: Path, **blocks: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "assistant", "task": "sft", "model": "/models/m", "data": "/data/rows.jsonl", "output": folder} | blocks
    )


def _read(folder: Path, text: str, **blocks: Any) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return read_space(path, _make_job(folder, **blocks))


def test_every_kind_of_range_is_drawn_within_its_ends(tmp_path: Path) -> None:
    points = _read(tmp_path, ALL_KINDS).points(200)
    assert len(points) == 200
    assert all(1e-5 <= point["train.learning_rate"] <= 1e-3 and 0 <= point["train.weight_decay"] <= 0.1 for point in points)
    assert {point["train.global_batch_size"] for point in points} == {4, 5, 6} and {point["method.rank"] for point in points} == {8, 16}
    assert 60 < sum(point["train.learning_rate"] < 1e-4 for point in points) < 140  # half of them, by orders of magnitude


def test_a_longer_search_begins_with_the_points_of_the_shorter(tmp_path: Path) -> None:
    space = _read(tmp_path, ALL_KINDS)
    assert space.points(16)[:4] == space.points(4) != Space(4, space.ranges).points(4)


def test_a_small_space_gives_each_point_once() -> None:
    points = Space(0, {"method.rank": Range("choice", (8, 16)), "train.seed": Range("randint", (0, 1))}).points(10)
    assert sorted((point["method.rank"], point["train.seed"]) for point in points) == [(8, 0), (8, 1), (16, 0), (16, 1)]


def test_a_point_is_set_in_the_job_and_written_out_as_a_job_file(tmp_path: Path) -> None:
    job = at_point(_make_job(tmp_path), {"method.rank": 8, "train.learning_rate": 1e-05}, source=tmp_path / "space.yaml")
    (tmp_path / "best.yaml").write_text(json.dumps(as_written(job)))
    again = load_job(tmp_path / "best.yaml")
    assert again == job and (again.method.rank, again.train.learning_rate) == (8, 1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.learning_rat: {uniform: [0.1, 0.2]}", "unknown field train.learning_rat, did you mean train.learning_rate?"),
        ("learning_rate: {uniform: [0.1, 0.2]}", "did you mean train.learning_rate?"),
        ("train.learning_rate: {uniform: [-1, 0.2]}", "train.learning_rate: expected a number above 0 or auto, got -1"),
        ("method.rank: {choice: [8, many]}", 'method.rank: expected a whole number of at least 1, got "many"'),
        ("train.learning_rate: {loguniform: [0, 1]}", "loguniform: expected numbers above 0"),
        ("train.learning_rate: {uniform: [0.2, 0.1]}", "uniform: expected the lower end first"),
        ("train.learning_rate: {uniform: [0.2]}", "uniform: expected two numbers"),
        ("method.rank: {randint: [1.5, 4]}", "randint: expected two whole numbers"),
        ("method.rank: {choise: [8]}", "unknown kind of range choise, did you mean choice?"),
        ("method.rank: [8, 16]", "method.rank: expected one of uniform, loguniform, choice, randint"),
        ("method.rank: {choice: []}", "choice: expected a list of values"),
        ("cluster.workers: {choice: [1, 2]}", "cluster.workers cannot be searched"),
        ("data.validation_fraction: {uniform: [0.1, 0.2]}", "data.validation_fraction cannot be searched"),
        ("method.rank: {randint: [1, 99999999999999999999]}", "randint: expected two whole numbers below"),
        ("method: {choice: [full, lora]}\nmethod.rank: {choice: [8]}", "method.rank and method are both searched"),
        ("seed: x\nmethod.rank: {choice: [8]}", "seed: expected a whole number"),
        ("seed: 1", "no field to search"),
        ("[]", "expected fields"),
        ("a: [", "not YAML"),
    ],
)
def test_a_bad_space_is_one_line_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, text)
    assert message in caught.value.message and "space.yaml" in caught.value.message and "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_a_field_that_the_method_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown field method\.rank"):
        _read(tmp_path, "method.rank: {choice: [8, 16]}", method="full")
