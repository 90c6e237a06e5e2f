"""The commands for jobs, against a real cluster of two raylets that asks for a token."""

import contextlib
import json
import select
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import JobMismatch, PackageTooLarge
from cluster.job import JobSpec, identity, load_job
from cluster.submit import Job, _check_continues, check_address, check_submittable, effective_address, exit_code, packed
from consortium.jobs import _show
from tests import helpers
from tests.cluster.raylets import Raylets
from trainers.data.synthetic import DemoData, write_demo_data
from trainers.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_demo_data(tmp_path_factory.mktemp("data"), tickets=200, documents=10)


def _write_job(folder: Path, model: Path, data: DemoData, name: str = "tickets") -> Path:
    """A job of three steps on two workers, its data beside it."""
    (folder / "rows.jsonl").write_bytes(data.tickets_train.read_bytes())
    path = folder / f"{name}.yaml"
    path.write_text(
        f"task: sft\nmodel: {model}\ndata: {{train: rows.jsonl, over_length: truncate}}\n"
        f"train: {{max_steps: 3, global_batch_size: 4}}\ncluster: {{workers: 2}}\ntracking: {{tensorboard: false}}\noutput: {folder}/runs\n"
    )
    return path


@pytest.fixture(scope="module")
def submitted(cluster: Raylets, llama_dir: Path, data: DemoData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A job file, and what `submit --wait` said of it."""
    path = _write_job(tmp_path_factory.mktemp("job"), llama_dir, data)
    return path, cluster.consortium("submit", path, "--address", cluster.dashboard, "--wait")


def _list(cluster: Raylets) -> list[dict[str, Any]]:
    return list(json.loads(cluster.consortium("jobs", "list", "--json", "--address", cluster.dashboard).stdout))


def test_a_submitted_job_is_followed_to_its_end_and_leaves_its_run(cluster: Raylets, submitted: tuple[Path, Any]) -> None:
    path, done = submitted
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished after 3 steps" in done.stdout and "SUCCEEDED, exit code 0" in done.stderr
    report = json.loads((path.parent / "runs" / "tickets" / "report.json").read_text())
    assert (report["status"], report["workers"]) == ("finished", 2)


def test_status_and_logs_of_a_job_are_had_from_anywhere(cluster: Raylets, submitted: tuple[Path, Any]) -> None:
    (job,) = [job for job in _list(cluster) if job["name"] == "tickets"]

    status = cluster.consortium("jobs", "status", job["id"], "--address", cluster.dashboard)
    logs = cluster.consortium("jobs", "logs", job["id"], "--address", cluster.dashboard)

    assert "SUCCEEDED" in status.stdout and str(submitted[0].parent / "runs" / "tickets") in status.stdout
    assert "finished after 3 steps" in logs.stdout
    assert cluster.environment["RAY_AUTH_TOKEN"] not in status.stdout + status.stderr + logs.stdout + logs.stderr


def test_a_finished_job_cannot_be_stopped(cluster: Raylets, submitted: tuple[Path, Any]) -> None:
    done = cluster.consortium("jobs", "stop", _list(cluster)[0]["id"], "--address", cluster.dashboard)
    assert done.returncode == 2 and "is over: SUCCEEDED" in done.stderr and "Traceback" not in done.stderr


def test_a_name_is_one_job_until_it_is_given_another(cluster: Raylets, submitted: tuple[Path, Any]) -> None:
    done = cluster.consortium("submit", submitted[0], "--address", cluster.dashboard, "--set", "train.learning_rate=0.1")
    assert done.returncode == 2 and "computes something else" in done.stderr and "--set name=NAME" in done.stderr


@pytest.mark.slow
def test_a_failing_job_ends_the_command_with_its_own_exit_code(cluster: Raylets, llama_dir: Path, data: DemoData, tmp_path: Path) -> None:
    path = _write_job(tmp_path, llama_dir, data, name="broken")
    done = cluster.consortium(
        "submit", path, "--address", cluster.dashboard, "--wait", "--set", "data.group_by=custmer_id", "--set", "cluster.workers=1"
    )
    assert done.returncode == 2 and "FAILED, exit code 2" in done.stderr
    assert "did you mean 'customer_id'" in done.stdout


@pytest.mark.parametrize(
    ("token", "message"), [("0" * 64, "does not take this token"), (None, "asks for a token")], ids=["wrong", "missing"]
)
def test_a_token_that_is_wrong_or_missing_is_one_line(cluster: Raylets, tmp_path: Path, token: str | None, message: str) -> None:
    environment = {name: value for name, value in cluster.environment.items() if name != "RAY_AUTH_TOKEN"} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "consortium", "jobs", "list", "--address", cluster.dashboard]
    given = environment | ({"RAY_AUTH_TOKEN": token} if token else {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=helpers.REPOSITORY, env=given)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and message in errors[0]
    assert "Traceback" not in done.stderr and "RAY_AUTH_TOKEN" in done.stderr.splitlines()[-1]


def test_an_id_that_is_not_there_is_one_line(cluster: Raylets) -> None:
    for command in ("status", "logs", "stop"):
        done = cluster.consortium("jobs", command, "nothing-1", "--address", cluster.dashboard)
        assert done.returncode == 2 and "no job nothing-1" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_other_nodes_cannot_see_is_refused_before_the_run(
    cluster: Raylets, llama_dir: Path, data: DemoData, tmp_path: Path
) -> None:
    job = _write_job(tmp_path, llama_dir, data)
    private = "/proc/self/cwd/runs"  # another folder for every process
    command = [
        sys.executable,
        "-m",
        "consortium",
        "train",
        str(job),
        "--set",
        f"output={private}",
        "--set",
        f"cluster.address={cluster.address}",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env=cluster.environment | {"PYTHONPATH": str(helpers.REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 2 and "not on storage that all nodes share" in done.stderr, done.stderr


_COUNTS = "import time\nfor number in range(30): print('line', number, flush=True); time.sleep(0.1)"
_START = "import sys; from cluster.submit import Cluster; print(Cluster(sys.argv[1])._start(entrypoint=sys.argv[2]))"


def test_a_log_is_followed_over_a_broken_connection_and_no_line_is_shown_twice(cluster: Raylets) -> None:
    command = [sys.executable, "-c", _START, cluster.dashboard, shlex.join(["python", "-c", _COUNTS])]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=helpers.REPOSITORY, env=cluster.environment)
    with _breaking_at(b"line 7", int(cluster.dashboard.rpartition(":")[2])) as (port, broken):
        done = cluster.consortium("jobs", "logs", started.stdout.strip(), "-f", "--address", f"http://127.0.0.1:{port}")
    assert done.returncode == 0 and broken.is_set(), started.stderr + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("line")] == [f"line {number}" for number in range(30)]


@contextmanager
def _breaking_at(text: bytes, target: int) -> Iterator[tuple[int, threading.Event]]:
    """A port that leads to `target` on this machine, and cuts the first connection that brings `text` back."""
    broken = threading.Event()

    def lead(came: socket.socket) -> None:
        with came, socket.create_connection(("127.0.0.1", target)) as gone, contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([came, gone], [], [])
                for side in ready:
                    if not (part := side.recv(65536)):
                        return
                    (gone if side is came else came).sendall(part)
                    if side is gone and text in part and not broken.is_set():
                        broken.set()
                        return

    def accept() -> None:
        with contextlib.suppress(OSError):  # the port is closed
            while True:
                threading.Thread(target=lead, args=(port.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as port:
        threading.Thread(target=accept, daemon=True).start()
        yield port.getsockname()[1], broken


def test_no_dashboard_at_the_address_is_one_line(cluster: Raylets) -> None:
    done = cluster.consortium("jobs", "list", "--address", "http://127.0.0.1:1")
    assert done.returncode == 2 and "no Ray dashboard at http://127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr


def test_the_address_given_wins_over_the_environment_and_that_is_said() -> None:
    assert effective_address("http://a:8265", {}) == ("http://a:8265", "")
    assert effective_address(None, {"RAY_ADDRESS": "http://b:8265"}) == ("http://b:8265", "from RAY_ADDRESS")
    assert effective_address("http://a:8265", {"RAY_ADDRESS": "http://b:8265"}) == (
        "http://a:8265",
        "RAY_ADDRESS=http://b:8265 is set and not used",
    )
    assert effective_address(None, {})[0] == "http://127.0.0.1:8265"


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "http://", "ftp://head", "ray://head:10001", "http://head:99999", "http://[head"])
def test_what_is_no_url_of_a_dashboard_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL"):
        check_address(address)


def test_brackets_in_paths_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    _show(_known(run_dir="/shared/[old]/runs/a", message="[/old] failed"))
    assert "/shared/[old]/runs/a" in capsys.readouterr().err


def _make_job(folder: Path, text: str = "") -> JobSpec:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 1000)
    path = folder / "job.yaml"
    path.write_text(f"task: sft\nmodel: org/model\ndata: {{train: [rows.jsonl, /shared/more.jsonl]}}\noutput: /shared/runs\n{text}")
    return load_job(path)


def test_what_travels_is_the_job_its_data_and_the_program_but_no_bytecode(tmp_path: Path) -> None:
    with packed(_make_job(tmp_path), package=True) as (folder, sizes):
        sent = load_job(folder / "job.yaml")
        assert sent.data.train[0].read_bytes() == (tmp_path / "rows.jsonl").read_bytes()
        assert sent.data.train[1] == Path("/shared/more.jsonl")
        assert sent.cluster.address == "auto" and sent.output == Path("/shared/runs")
        assert (folder / "trainers" / "loop.py").exists() and not list(folder.rglob("*.pyc"))
        assert set(sizes) == {str(tmp_path / "rows.jsonl"), "consortium"}
        assert identity(sent) == identity(_make_job(tmp_path))
    assert not folder.exists()


def test_what_all_nodes_have_does_not_travel(tmp_path: Path) -> None:
    with packed(_make_job(tmp_path), package=False, limit=100, shared=[tmp_path]) as (folder, sizes):
        assert load_job(folder / "job.yaml").data.train[0] == tmp_path / "rows.jsonl" and not sizes


def test_too_much_data_is_refused_by_name_before_it_is_copied(tmp_path: Path) -> None:
    with (
        pytest.raises(PackageTooLarge, match=r"would travel.*rows\.jsonl \(0\.0 MiB\)"),
        packed(_make_job(tmp_path), package=True, limit=100),
    ):
        pass


@pytest.mark.parametrize("output", [None, "runs", "./runs"])
def test_an_output_that_only_this_machine_has_is_refused(tmp_path: Path, output: str | None) -> None:
    with pytest.raises(ConfigError, match="output"):
        check_submittable({"output": output, "data": "/shared/rows.jsonl"}, tmp_path)


@pytest.mark.parametrize("data", ["rows.json", ["/shared/a.jsonl", "rows.json"], {"train": "/shared/a.jsonl", "validation": ["rows.json"]}])
def test_data_that_are_not_beside_the_job_file_are_told_before_anything_is_sent(tmp_path: Path, data: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.json: no such file"):
        check_submittable({"output": "/shared/runs", "data": data}, tmp_path)
    (tmp_path / "rows.json").touch()
    check_submittable({"output": "/shared/runs", "data": data}, tmp_path)


def _known(**changes: Any) -> Job:
    facts = {"id": "a-1", "name": "a", "status": "FAILED", "message": "", "exit_code": 1, "started": 1.0, "ended": 2.0}
    return Job(**{**facts, "config_hash": "same", "run_dir": "/shared/runs/a", **changes})


@pytest.mark.parametrize(
    ("earlier", "refused"),
    [
        ({}, None),
        ({"status": "RUNNING", "exit_code": None}, "running as a-1"),
        ({"config_hash": "other"}, "computes something else"),
        ({"config_hash": "other", "exit_code": 2}, None),  # it never began
    ],
)
def test_a_job_goes_on_where_one_of_the_same_name_and_content_was(tmp_path: Path, earlier: dict[str, Any], refused: str | None) -> None:
    job = _make_job(tmp_path)
    if refused is None:
        _check_continues(job, "same", [_known(**earlier)])
    else:
        with pytest.raises(JobMismatch, match=refused):
            _check_continues(job, "same", [_known(**earlier)])


def test_the_exit_code_is_that_of_the_job() -> None:
    codes = [
        exit_code(_known(**facts)) for facts in ({"status": "SUCCEEDED"}, {"exit_code": 3}, {"exit_code": None}, {"status": "STOPPED"})
    ]
    assert codes == [0, 3, 1, 130]
