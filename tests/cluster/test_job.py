from pathlib import Path

import pytest

from cluster.job import JobSpec, check_continues, has_begun, load_job, read_job, write_job
from trainers.errors import ConfigError


def _write_job(folder: Path, text: str) -> Path:
    path = folder / "intents.yaml"
    path.write_text(text)
    return path


MINIMAL = "task: classify\nmodel: some/model\ndata: train.csv\n"


def test_a_job_needs_only_task_model_and_data(tmp_path: Path) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL))
    assert (job.name, job.task, job.model.path, job.method.type) == ("intents", "classify", "some/model", "lora")


def test_paths_of_data_are_relative_to_the_job_file(tmp_path: Path) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL))
    assert job.data.train == [tmp_path / "train.csv"]


@pytest.mark.parametrize(
    ("given", "resolved"),
    [("mlruns", "{folder}/mlruns"), ("http://tracker:5000", "http://tracker:5000"), ("sqlite:///m.db", "sqlite:///m.db")],
)
def test_a_folder_for_mlflow_is_relative_to_the_job_file(tmp_path: Path, given: str, resolved: str) -> None:
    job = load_job(_write_job(tmp_path, f"{MINIMAL}tracking: {{mlflow: '{given}'}}\n"))
    assert job.tracking.mlflow == resolved.format(folder=tmp_path)


def test_a_model_directory_beside_the_job_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert load_job(_write_job(tmp_path, MINIMAL.replace("some/model", "tiny"))).model.path == str(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("train.learning_rate=1e-4", ("train", "learning_rate"), 1e-4),
        ("train.epochs=2", ("train", "epochs"), 2),
        ("method.rank=8", ("method", "rank"), 8),
        ("model.dtype=bfloat16", ("model", "dtype"), "bfloat16"),
        ("data.group_by=customer_id", ("data", "group_by"), "customer_id"),
        ("cluster.workers=4", ("cluster", "workers"), 4),
        ("zero=3", ("zero", "stage"), 3),
    ],
)
def test_overrides_reach_every_block_even_one_written_as_a_single_value(
    tmp_path: Path, override: str, where: tuple[str, str], value: object
) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL + "method: lora\n"), [override])
    assert getattr(getattr(job, where[0]), where[1]) == value


def test_an_override_keeps_what_a_nested_method_says(tmp_path: Path) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL + "method:\n  lora: {alpha: 7}\n"), ["method.rank=8"])
    assert (job.method.model_dump()["alpha"], job.method.model_dump()["rank"]) == (7, 8)


@pytest.mark.parametrize(
    "written", ["", "method: lora\n", "method: full\n", "method: {lora: {rank: 3}}\n", "method: {type: lora, rank: 3}\n"]
)
def test_a_method_s_field_may_be_named_as_a_job_file_has_it(tmp_path: Path, written: str) -> None:
    method = load_job(_write_job(tmp_path, MINIMAL + written), ["method.lora.rank=8", "method.lora.alpha=9"]).method
    assert (method.type, method.model_dump()["rank"], method.model_dump()["alpha"]) == ("lora", 8, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: sft\nmodel: m\ndata: d.csv\ntrain: {learning_rat: 1}\n", "did you mean train.learning_rate?"),
        ("task: sft\nmodel: m\ndata: d.csv\ncluster: {wokers: 1}\n", "did you mean cluster.workers?"),
        ("task: sft\nmodel: m\ndata: d.csv\ncluster: {workers: 0}\n", "cluster.workers"),
        ("task: [sft\n", "not YAML"),
        ("just text\n", "expected fields"),
        ("task: sft\nmodel: m\n", "data is required"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"intents\.yaml") as caught:
        load_job(_write_job(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"- sft", "got a list"),
        (b"task: sft\nmodel: m\ntask: classify\n", r"job\.yaml:3: not YAML \(task is written twice\)"),
        (b"train:\n  seed: 1\n  seed: 2\n", "seed is written twice"),
    ],
)
def test_a_file_that_is_no_job_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_job(tmp_path / "job.yaml")


def test_a_job_may_use_anchors_and_merges(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("task: sft\nmodel: m\ndata: x.jsonl\ntrain: {<<: {seed: 1}, seed: 2}\n")
    assert load_job(tmp_path / "job.yaml").train.seed == 2


def test_two_fields_of_a_method_that_the_file_leaves_out_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("task: sft\nmodel: m\ndata: x.jsonl\n")
    method = load_job(tmp_path / "job.yaml", ["method.rank=4", "method.alpha=8"]).method
    assert (method.rank, method.alpha) == (4, 8)  # type: ignore[union-attr]


def test_a_missing_job_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_job(tmp_path / "none.yaml")


def test_a_job_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"task: \xff")
    with pytest.raises(ConfigError, match=r"job.yaml: expected text in UTF-8, got byte 0xff at 6"):
        load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize("value", ["[a", "2026-13-45", "a: b: c"])
def test_an_override_that_is_not_yaml_is_one_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"--set data.train=.*is not YAML"):
        load_job(_write_job(tmp_path, MINIMAL), [f"data.train={value}"])


def test_a_run_whose_configuration_was_damaged_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"task": ')
    with pytest.raises(ConfigError, match=r"config.json: not JSON"):
        read_job(tmp_path)


def test_the_resolved_job_survives_the_run_directory(tmp_path: Path) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL), [f"output={tmp_path}/runs"])
    assert read_job(write_job(job)) == job


@pytest.mark.parametrize("output", ["runs", "s3://bucket/runs"])
def test_a_job_comes_to_a_worker_as_it_was_sent(tmp_path: Path, output: str) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL), [f"output={output}"])
    assert JobSpec.model_validate_json(job.model_dump_json()) == job


def test_a_run_continues_on_other_workers_but_not_with_another_learning_rate(tmp_path: Path) -> None:
    job = load_job(_write_job(tmp_path, MINIMAL), [f"output={tmp_path}/runs"])
    (write_job(job) / "events.jsonl").write_text('{"event": "start", "step": 0}\n')
    check_continues(load_job(tmp_path / "intents.yaml", [f"output={tmp_path}/runs", "cluster.workers=3"]))
    check_continues(load_job(tmp_path / "intents.yaml", [f"output={tmp_path}/runs", "data.train=moved.csv"]))
    with pytest.raises(ConfigError, match=r"data.validation_fraction \(was 0.2, is 0.3\)"):
        check_continues(load_job(tmp_path / "intents.yaml", [f"output={tmp_path}/runs", "data.validation_fraction=0.3"]))
    with pytest.raises(ConfigError, match=r"train.learning_rate \(was auto, is 0.1\)"):
        check_continues(load_job(tmp_path / "intents.yaml", [f"output={tmp_path}/runs", "train.learning_rate=0.1"]))


def test_a_job_that_was_refused_before_it_trained_may_be_mended(tmp_path: Path) -> None:
    for output in (f"{tmp_path}/runs", f"file://{tmp_path}/bucket"):
        job = load_job(_write_job(tmp_path, MINIMAL), [f"output={output}"])
        place = write_job(job) if job.store_url is None else tmp_path / "bucket" / job.name
        place.mkdir(parents=True, exist_ok=True)
        (place / "events.jsonl").write_text('{"event": "failure", "step": 0, "error": "DataError"}\n')
        assert not has_begun(job)
        if job.store_url is None:
            check_continues(load_job(tmp_path / "intents.yaml", [f"output={output}", "data.over_length=truncate"]))
        with (place / "events.jsonl").open("a") as events:
            events.write('{"event": "start", "step": 0}\n{"event": "st')
        assert has_begun(job)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_job_file_is_valid(path: Path) -> None:
    assert isinstance(load_job(path), JobSpec)


def test_the_starter_job_file_is_valid(tmp_path: Path) -> None:
    from consortium.init import write_starter

    write_starter(tmp_path / "new")
    job = load_job(tmp_path / "new" / "job.yaml")
    assert all(path.exists() for path in job.data.train)
