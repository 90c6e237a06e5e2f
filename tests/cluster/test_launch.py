"""On a real local Ray, started once for the file."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.errors import ClusterTooSmall, ClusterUnreachable, WorkersFailed
from cluster.job import JobSpec
from cluster.launch import connected, launch, place_workers
from tests import helpers
from trainers.data.synthetic import DemoData, write_demo_data
from trainers.errors import RunBusyError, TrainersError
from trainers.lease import Lease
from trainers.storage import Store


class Recorder:
    """A listener that keeps the events it sees."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while not any(e["event"] == "step" and e["step"] >= step for e in self.events):
            assert time.monotonic() < deadline, "the run did not get that far"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with connected(None, cpus=2):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("data"), tickets=300, documents=10)


def _make_job(folder: Path, model: Path, data: DemoData, name: str = "run", steps: int = 12, **blocks: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": name,
            "task": "sft",
            "model": str(model),
            "data": {"train": data.tickets_train, "group_by": "customer_id", "over_length": "truncate", "max_length": 256},
            "train": {"max_steps": steps, "global_batch_size": 8, "learning_rate": 1e-3, "eval_every": steps},
            "checkpoint": {"every": 5},
            "cluster": {"workers": 2},
            "tracking": {"tensorboard": False},
            "output": folder,
            **blocks,
        }
    )


def _training_processes() -> list[psutil.Process]:
    """Ray's training workers among this process's descendants."""
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE and "RayTrainWorker" in "".join(p.cmdline())
    ]


@pytest.fixture(scope="module")
def uninterrupted(local_ray: None, llama_dir: Path, data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = _make_job(tmp_path_factory.mktemp("uninterrupted"), llama_dir, data)
    launch(job, Recorder())
    return job.run_dir


def test_two_workers_train_and_leave_adapter_report_and_card(uninterrupted: Path) -> None:
    report = json.loads((uninterrupted / "report.json").read_text())
    assert (report["status"], report["workers"], report["restarts"], report["zero_stage"]) == ("finished", 2, 0, 2)
    assert report["train_loss"][-1][1] < report["train_loss"][0][1]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {p.name for p in (uninterrupted / "adapter").iterdir()}
    assert not (uninterrupted / "data").exists()


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_checkpoint(
    local_ray: None, uninterrupted: Path, llama_dir: Path, data: DemoData, tmp_path: Path
) -> None:
    job, seen = _make_job(tmp_path, llama_dir, data), Recorder()

    def kill_one() -> None:
        seen.wait_for_step(7)
        os.kill(_training_processes()[-1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = launch(job, seen)
    killer.join()
    assert (report["status"], report["restarts"]) == ("finished", 1)
    assert report["steps_repeated"] <= 5
    assert helpers.losses(job.run_dir) == pytest.approx(helpers.losses(uninterrupted), abs=1e-5)


@pytest.mark.slow
def test_workers_that_keep_dying_end_the_run_with_a_report(local_ray: None, llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    job, seen = _make_job(tmp_path, llama_dir, data, cluster={"workers": 1, "max_failures": 0}), Recorder()

    def kill_one() -> None:
        seen.wait_for_step(2)
        os.kill(_training_processes()[-1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(WorkersFailed) as caught:
        launch(job, seen)
    killer.join()
    assert caught.value.exit_code == 1 and "consortium resume" in caught.value.hint
    assert json.loads((job.run_dir / "report.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_users_mistake_found_by_the_workers_is_not_tried_again(local_ray: None, llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    job = _make_job(tmp_path, llama_dir, data, method={"lora": {"targets": ["query"]}}, cluster={"workers": 1})
    with pytest.raises(TrainersError, match="no module named query") as caught:
        launch(job, Recorder())
    assert caught.value.exit_code == 2 and "q_proj" in caught.value.hint
    assert len(helpers.events(job.run_dir, "failure")) == 1


@pytest.mark.slow
def test_a_tracker_that_cannot_be_set_up_is_told(local_ray: None, llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    job = _make_job(tmp_path, llama_dir, data, tracking={"tensorboard": False, "mlflow": "gopher://nowhere"}, cluster={"workers": 1})
    with pytest.raises(TrainersError, match=r"tracking\.mlflow: gopher://nowhere") as caught:
        launch(job, Recorder())
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_a_run_whose_output_is_a_url_is_held_and_left_there(
    local_ray: None, llama_dir: Path, data: DemoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    job = _make_job(Path("unused"), llama_dir, data, steps=6, output=f"file://{tmp_path}/bucket", cluster={"workers": 1})
    assert job.store_url is not None
    lease = Lease(tmp_path, "another", Store(job.store_url))
    lease.acquire()
    with pytest.raises(RunBusyError, match="held by a live run"):
        launch(job, Recorder())
    lease.release()

    report = launch(job, Recorder())

    assert (report["status"], report["steps"]) == ("finished", 6)
    left = {path.name for path in (tmp_path / "bucket" / "run").iterdir()}
    assert {"adapter", "checkpoints", "events.jsonl", "report.html"} <= left and "lease.json" not in left


def test_a_directory_held_by_a_live_run_is_refused(llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    job = _make_job(tmp_path, llama_dir, data)
    job.run_dir.mkdir()
    lease = Lease(job.run_dir, "another")
    lease.acquire()
    with pytest.raises(RunBusyError, match="held by a live run"):
        launch(job, Recorder())
    lease.release()


def test_workers_default_to_one_for_each_gpu(llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    placed, choices = place_workers(_make_job(tmp_path, llama_dir, data, cluster={}), {"CPU": 64, "GPU": 8})
    assert (placed.cluster.workers, placed.cluster.gpus_per_worker, placed.model.dtype) == (8, 1, "bfloat16")
    assert [c.field for c in choices[:2]] == ["cluster.gpus_per_worker", "cluster.workers"]


@pytest.mark.parametrize(
    ("cluster", "resources", "message"),
    [
        (
            {"workers": 4, "gpus_per_worker": 1},
            {"CPU": 8.0, "GPU": 2.0},
            "4 workers need 4 CPUs and 4 GPUs, the cluster has 8 CPUs and 2 GPUs",
        ),
        ({"workers": 1, "gpus_per_worker": 1}, {"CPU": 8.0}, "the cluster has 8 CPUs and 0 GPUs"),
        ({"gpus_per_worker": 1}, {"CPU": 8.0}, "1 workers need 1 CPUs and 1 GPUs, the cluster has 8 CPUs and 0 GPUs"),
        ({"workers": 4, "cpus_per_worker": 4}, {"CPU": 8.0}, "4 workers need 16 CPUs"),
    ],
)
def test_a_cluster_that_can_never_provide_the_workers_is_an_error_not_a_hang(
    llama_dir: Path, data: DemoData, tmp_path: Path, cluster: dict[str, int], resources: dict[str, float], message: str
) -> None:
    with pytest.raises(ClusterTooSmall, match=message):
        place_workers(_make_job(tmp_path, llama_dir, data, cluster=cluster), resources)


def test_no_cluster_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(ClusterUnreachable, match=r"cannot connect to Ray at 127\.0\.0\.1:1"), connected("127.0.0.1:1", cpus=1):
        pass


def test_a_finished_run_is_not_run_again(local_ray: None, uninterrupted: Path, llama_dir: Path, data: DemoData) -> None:
    before = (uninterrupted / "events.jsonl").read_bytes()

    report = launch(_make_job(uninterrupted.parent, llama_dir, data), Recorder())

    assert (report["status"], report["restarts"]) == ("finished", 0)
    assert (uninterrupted / "events.jsonl").read_bytes() == before
