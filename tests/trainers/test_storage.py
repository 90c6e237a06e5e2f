"""Runs whose output is a URL: nothing on this machine's disk is needed to go on elsewhere."""

import json
import os
import shutil
from pathlib import Path

import pytest
from peft import PeftConfig

from tests import helpers
from tests.trainers import jobs
from trainers.checkpoint import find
from trainers.config import TrainConfig, validate
from trainers.errors import CheckpointError, ConfigError
from trainers.storage import Store
from trainers.worker import train

SAME = 1e-5


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.write_rows(tmp_path_factory.mktemp("rows"))


def _make_job(folder: Path, bucket: Path, llama_dir: Path, rows: Path) -> Path:
    return jobs.make_job(
        folder, llama_dir, rows, train={"max_steps": 6}, checkpoint={"every": 2, "keep": 2}, output=f"file://{bucket}", name="run", zero=2
    )


def test_a_run_is_found_whole_in_its_store(tmp_path: Path, llama_dir: Path, rows: Path) -> None:
    bucket = tmp_path / "bucket"
    run_dir = _make_job(tmp_path / "here", bucket, llama_dir, rows)

    jobs.train_all([run_dir])

    assert {path.name for path in (bucket / "run").iterdir()} == {
        "adapter", "checkpoints", "config.json", "events.jsonl", "report.html", "report.json",
    }  # fmt: skip
    assert sorted(path.name for path in (bucket / "run" / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert json.loads((bucket / "run" / "report.json").read_text())["status"] == "finished"
    assert PeftConfig.from_pretrained(str(bucket / "run" / "adapter")).r == 16
    assert not list((run_dir / "checkpoints").rglob("*.safetensors"))


def test_a_run_goes_on_on_a_machine_that_has_never_seen_it(tmp_path: Path, llama_dir: Path, rows: Path) -> None:
    bucket = tmp_path / "bucket"
    whole = jobs.train_here(_make_job(tmp_path / "here", bucket, llama_dir, rows))
    shutil.rmtree(bucket / "run" / "checkpoints" / "step-00000006")
    (bucket / "run" / "checkpoints" / "step-00000004" / "manifest.json").rename(tmp_path / "manifest.json")
    assert find(tmp_path / "nowhere", Store(f"file://{bucket}/run")) == []  # files without a manifest are no checkpoint
    (tmp_path / "manifest.json").rename(bucket / "run" / "checkpoints" / "step-00000004" / "manifest.json")

    losses = jobs.train_here(_make_job(tmp_path / "there", bucket, llama_dir, rows))

    starts = [event["step"] for event in helpers.events(tmp_path / "there", "start")]
    assert starts == [0, 4]
    assert jobs.difference(losses, whole) <= SAME


def _train_apart(folder: str, bucket: str, llama_dir: str, rows: str) -> None:
    """As a worker on a machine of its own: another folder, and the first worker there."""
    rank = os.environ["RANK"]
    os.environ["LOCAL_RANK"] = "0"
    train(_make_job(Path(folder) / rank, Path(bucket), Path(llama_dir), Path(rows)), run_id="test")


@pytest.mark.slow
def test_workers_on_machines_without_a_common_disk_share_a_store(tmp_path: Path, llama_dir: Path, rows: Path) -> None:
    whole = jobs.train_here(_make_job(tmp_path / "alone", tmp_path / "other", llama_dir, rows))
    arguments = (str(tmp_path), str(tmp_path / "bucket"), str(llama_dir), str(rows))

    helpers.run_distributed(_train_apart, 2, *arguments)
    shutil.rmtree(tmp_path / "bucket" / "run" / "checkpoints" / "step-00000006")
    shutil.rmtree(tmp_path / "0")
    shutil.rmtree(tmp_path / "1")
    helpers.run_distributed(_train_apart, 2, *arguments)

    assert [event["step"] for event in helpers.events(tmp_path / "0", "start")] == [0, 4]
    assert jobs.difference(helpers.losses(tmp_path / "0"), whole) <= SAME


def test_what_a_store_fails_at_is_tried_again_once_it_has_been_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("trainers.storage.time.sleep", waited.append)
    store = Store(f"file://{tmp_path}/run")
    real = store._fs.pipe_file

    def fails(times: int) -> None:
        left = iter([True] * times)
        monkeypatch.setattr(store._fs, "pipe_file", lambda *given: _fail() if next(left, False) else real(*given))

    def _fail() -> None:
        raise TimeoutError("the store is busy")

    fails(1)
    with pytest.raises(CheckpointError, match="TimeoutError: the store is busy"):  # an address that is wrong is not waited for
        store.write("a", b"1")
    store.write("a", b"2")
    fails(2)
    store.write("a", b"3")
    assert store.read("a") == b"3" and waited == [1.0, 4.0]
    fails(9)
    with pytest.raises(CheckpointError):
        store.write("a", b"4")
    assert store.read("a") == b"3"


def test_a_private_run_stays_on_a_disk() -> None:
    job = {"task": "sft", "model": "m", "data": "rows.jsonl", "privacy": helpers.PRIVACY, "output": "s3://bucket/runs"}
    with pytest.raises(ConfigError, match="stays in its directory"):
        validate(TrainConfig, job, source="job.yaml")


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"output: file://.*file/run"):
        Store(f"file://{tmp_path}/file/run").put(tmp_path / "file", "name")
    with pytest.raises(ConfigError, match=r"output: gopher://"):
        Store("gopher://somewhere/run")


def test_a_url_is_an_output_and_a_folder_is_one() -> None:
    job = {"task": "sft", "model": "m", "data": "rows.jsonl", "name": "a"}
    stored = validate(TrainConfig, job | {"output": "s3://bucket/runs/"}, source="job.yaml")
    local = validate(TrainConfig, job | {"output": "runs"}, source="job.yaml")
    assert (stored.store_url, local.store_url, local.run_dir) == ("s3://bucket/runs/a", None, Path("runs/a"))
    assert stored.run_dir.name == "a" and stored.run_dir.is_absolute()
