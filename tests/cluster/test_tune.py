"""A real search of small trials on a local Ray, started once for the file; what it has left; and going on with it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterTooSmall
from cluster.job import JobSpec, load_job
from cluster.launch import connected
from cluster.space import Range, Space
from cluster.tune import Search, Trial, best_of, best_trial, read_trial, room_for, run_search, write_best
from cluster.tune_report import write_search_report
from tests import helpers
from tests.trainers import jobs
from trainers.errors import ConfigError, TrainersError

STEPS = 10


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with connected(None, cpus=2):
        yield


def _make_search(folder: Path, model: Path, *, trials: int = 4, ranges: dict[str, Range] | None = None, **blocks: Any) -> Search:
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "name": "small",
        "task": "sft",
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": jobs.write_rows(folder), "validation_fraction": 0.3, "max_length": 128},
        "train": {"max_steps": STEPS, "global_batch_size": 4, "eval_every": 1, "schedule": "constant", "warmup": 0},
        "tracking": {"tensorboard": False},
        "output": folder,
    }
    ranges = ranges or {"train.learning_rate": Range("choice", (1e-2, 1e-6)), "method.rank": Range("randint", (2, 8))}
    job = JobSpec.model_validate(values | blocks)
    return Search(job, Space(1, ranges), folder / "space.yaml", "eval_loss", trials, True, None, folder / "small-tune")


@pytest.fixture(scope="module")
def search(local_ray: None, llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    return _make_search(tmp_path_factory.mktemp("search"), llama_dir)


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def trials(search: Search, told: list[str]) -> list[Trial]:
    return run_search(search, told.append)


def test_asha_stops_the_worse_trials_and_leaves_every_trial_as_a_run(trials: list[Trial], told: list[str]) -> None:
    assert {trial.status for trial in trials} == {"finished", "stopped"} and len(trials) == 4
    for trial in trials:
        report = json.loads((trial.run_dir / "report.json").read_text())
        assert report["status"] == {"finished": "finished", "stopped": "stopped_by_search"}[trial.status]
        assert (trial.run_dir / "config.json").exists() and (trial.run_dir / "report.html").exists()
        assert (trial.run_dir / "adapter").exists() is (trial.status == "finished")
        assert (len(trial.curve) == STEPS) is (trial.status == "finished")
    assert any(re.fullmatch(r"trial-0\d   10 %  eval_loss \d+\.\d{4}", line) for line in told)
    assert not (trials[0].run_dir.parent / "ray").exists()


def test_the_best_job_is_written_as_a_file_that_train_takes(search: Search, trials: list[Trial], tmp_path: Path) -> None:
    best = best_trial(trials, "eval_loss")
    assert best is not None
    write_best(search, best, tmp_path / "best.yaml")
    job = load_job(tmp_path / "best.yaml")
    assert (job.name, job.train.learning_rate, job.data.train) == ("small-best", best.point["train.learning_rate"], search.job.data.train)
    assert job.train.learning_rate > 1e-4  # type: ignore[operator]


def test_the_report_is_one_page_with_a_picture_and_a_png(search: Search, trials: list[Trial]) -> None:
    facts = write_search_report(search, trials)
    page = (search.folder / "report.html").read_text()
    assert facts["best"] == facts["trials"][0]["trial"] and len(facts["trials"][0]["curve"]) == STEPS
    assert "<svg" in page and "stopped early" in page and "method.rank" in page
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|<link|@import|url\((?!#)", page)
    assert (search.folder / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_search_that_is_continued_keeps_finished_trials_and_goes_on_with_the_others(search: Search, trials: list[Trial]) -> None:
    again, *_ = [trial for trial in trials if trial.status == "finished"]
    events = again.run_dir / "events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:-1]))  # as an interruption would have left it
    before = {trial.name: (trial.run_dir / "report.json").stat().st_mtime_ns for trial in trials}
    done = run_search(search, lambda line: None)
    after = {trial.name: (trial.run_dir / "report.json").stat().st_mtime_ns for trial in done}
    assert [name for name in after if after[name] != before[name]] == [again.name]
    assert [trial.status for trial in done] == [trial.status for trial in trials]
    assert [event["step"] for event in helpers.events(again.run_dir, "start")] == [0, STEPS]


def test_a_folder_of_another_search_is_refused(search: Search, trials: list[Trial]) -> None:
    other = Search(search.job, Space(2, search.space.ranges), search.source, "eval_loss", 4, True, None, search.folder)
    with pytest.raises(ConfigError, match="holds another search: space differ"):
        run_search(other, lambda line: None)


def test_when_every_trial_fails_their_mistake_is_the_searchs(local_ray: None, llama_dir: Path, tmp_path: Path) -> None:
    ranges = {"method.targets": Range("choice", (["query"],))}
    with pytest.raises(TrainersError, match=r"every trial failed; trial-00: .*no module named query") as caught:
        run_search(_make_search(tmp_path, llama_dir, trials=1, ranges=ranges), lambda line: None)
    assert caught.value.exit_code == 2


def test_without_validation_rows_there_is_nothing_to_compare_by(llama_dir: Path, tmp_path: Path) -> None:
    search = _make_search(tmp_path, llama_dir)
    blind = search.job.model_copy(update={"data": search.job.data.model_copy(update={"validation_fraction": 0.0})})
    with pytest.raises(ConfigError, match="needs validation rows"):
        run_search(Search(blind, search.space, search.source, "eval_loss", 4, True, None, search.folder), lambda line: None)


@pytest.mark.parametrize(
    ("cluster", "nodes", "room"),
    [
        ({"workers": 1, "gpus_per_worker": 0}, [{"CPU": 2.0}], 2),
        ({"workers": 2, "gpus_per_worker": 0}, [{"CPU": 2.0}], 1),
        ({"workers": 2, "gpus_per_worker": 1}, [{"CPU": 64.0, "GPU": 3.0}, {"CPU": 64.0, "GPU": 3.0}], 3),
        ({"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 8}, [{"CPU": 16.0, "GPU": 4.0}], 2),
        ({"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 4}, [{"CPU": 6.0}, {"CPU": 6.0}, {}], 2),
    ],
)
def test_as_many_trials_at_a_time_as_the_nodes_hold(
    tmp_path: Path, cluster: dict[str, int], nodes: list[dict[str, float]], room: int
) -> None:
    assert room_for(_make_search(tmp_path, tmp_path, cluster=cluster).job, nodes) == room


def test_a_trial_that_no_node_has_room_for_is_an_error_not_a_wait(tmp_path: Path) -> None:
    search = _make_search(tmp_path, tmp_path, cluster={"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 4})
    with pytest.raises(ClusterTooSmall, match="a trial needs 2 workers, the cluster has room for 1"):
        room_for(search.job, [{"CPU": 4.0}, {"CPU": 3.0}])


def test_the_best_is_a_finished_trial_by_its_best_evaluation() -> None:
    def make(number: int, status: str, best: float | None) -> Trial:
        return Trial(number, {}, Path(f"trial-{number}"), status, [], best, 0.0)  # type: ignore[arg-type]

    trials = [make(0, "stopped", 0.1), make(1, "finished", 0.3), make(2, "finished", 0.2), make(3, "failed", None)]
    best, highest = best_trial(trials, "eval_loss"), best_trial(trials, "accuracy")
    assert best is not None and best.number == 2 and highest is not None and highest.number == 1
    assert best_of([0.5, float("nan"), 0.4], "eval_loss") == 0.4 and best_of([], "accuracy") is None


def test_what_is_known_of_a_trial_is_read_from_its_events(tmp_path: Path) -> None:
    run_dir = tmp_path / "trial-00"
    run_dir.mkdir()
    rows = [
        {"time": 0, "event": "start", "step": 0, "steps": 4},
        {"time": 1, "event": "step", "step": 1, "seconds": 0.5},
        {"time": 2, "event": "eval", "step": 2, "metrics": {"eval_loss": 2.0}},
        {"time": 3, "event": "eval", "step": 4, "metrics": {"eval_loss": None}},
    ]
    helpers.write_jsonl(run_dir / "events.jsonl", rows)
    trial = read_trial(0, {}, run_dir, "eval_loss")
    assert (trial.status, trial.curve, trial.best, trial.seconds) == ("waiting", [(50.0, 2, 2.0)], 2.0, 0.5)


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "consortium", "tune", str(folder / "job.yaml"), "--space", str(folder / "space.yaml"), *arguments]
    return subprocess.Popen(
        command, cwd=helpers.REPOSITORY, env=os.environ | {"COLUMNS": "200"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _write_files(folder: Path, model: Path, cluster: str = "") -> None:
    rows = jobs.write_rows(folder)
    (folder / "job.yaml").write_text(
        f"task: sft\nmodel: {model}\ndata: {{train: {rows}, max_length: 128, validation_fraction: 0.3}}\noutput: {folder}\n{cluster}\n"
        "train: {max_steps: 200, global_batch_size: 4, eval_every: 20}\ncheckpoint: {every: 5}\ntracking: {tensorboard: false}\n"
    )
    (folder / "space.yaml").write_text("train.learning_rate: {loguniform: [1e-4, 1e-2]}\n")


@pytest.mark.slow
def test_an_interrupted_command_goes_on_where_it_was(llama_dir: Path, tmp_path: Path) -> None:
    _write_files(tmp_path, llama_dir)
    first = _start(tmp_path, "--trials", "2", "--scheduler", "random")
    waited, folder = time.monotonic() + 120, tmp_path / "job-tune"
    while not list(folder.glob("trial-*/checkpoints/*")) and time.monotonic() < waited:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 130 and "--resume" in errors, errors
    refused = _start(tmp_path, "--trials", "2")
    assert "already holds a search" in refused.communicate(timeout=120)[1] and refused.returncode == 2
    again = _start(tmp_path, "--trials", "2", "--scheduler", "random", "--resume")
    shown, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and shown.count("finished") == 2, errors
    assert any(event["step"] > 0 for number in range(2) for event in helpers.events(folder / f"trial-0{number}", "start"))
    assert load_job(folder / "best.yaml").name == "job-best" and (folder / "report.png").exists()


@pytest.mark.slow
def test_trials_of_two_workers_run_one_after_the_other_on_two_cores(local_ray: None, llama_dir: Path, tmp_path: Path) -> None:
    cluster = {"workers": 2, "gpus_per_worker": 0}
    done = run_search(_make_search(tmp_path, llama_dir, trials=3, cluster=cluster), lambda line: None)
    assert {trial.status for trial in done} <= {"finished", "stopped"} and done[0].status == "finished"
    assert json.loads((done[0].run_dir / "report.json").read_text())["workers"] == 2


def test_the_command_refuses_what_is_no_space_and_no_metric(llama_dir: Path, tmp_path: Path) -> None:
    _write_files(tmp_path, llama_dir)
    (tmp_path / "space.yaml").write_text("train.learning_rat: {uniform: [0.1, 0.2]}\n")
    for arguments, message in (((), "did you mean train.learning_rate?"), (("--metric", "accuracy"), "needs task: classify"),
                               (("--scheduler", "grid"), "expected asha or random")):  # fmt: skip
        refused = _start(tmp_path, *arguments)
        errors = refused.communicate(timeout=120)[1]
        assert refused.returncode == 2 and message in errors and "Traceback" not in errors
