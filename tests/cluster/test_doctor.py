"""Each judgement on values; then the command on this machine, and against a real head."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster import doctor
from cluster.doctor import Check
from tests import helpers
from tests.cluster.raylets import Raylets

GIB = 2**30


def _examine(*arguments: str, **environment: str) -> tuple[int, dict[str, Check]]:
    command = [sys.executable, "-m", "consortium", "doctor", "--json", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, cwd=helpers.REPOSITORY, env=os.environ | environment
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, {entry["name"]: Check(**entry) for entry in json.loads(done.stdout)}


def test_a_machine_fit_for_training_has_no_problem(tmp_path: Path) -> None:
    code, found = _examine("--output", str(tmp_path / "runs"))
    assert code == 0, found
    assert found["packages"].status == "ok" and "gloo" in found["communication"].found
    assert found["import names"].status == "ok" and "trainers" in found["import names"].found
    assert "64 MiB" in found["all-reduce"].found and "GB/s" in found["all-reduce"].found
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_line_a_check_and_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "consortium", "doctor", "--output", str(tmp_path)]
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"), "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=helpers.REPOSITORY, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line = next(number for number, line in enumerate(done.stdout.splitlines()) if line.startswith("problem"))
    assert "Ray token" in done.stdout.splitlines()[line] and "put the cluster's token there" in done.stdout.splitlines()[line + 1]


def test_an_address_that_is_no_url_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "consortium", "doctor", "--address", "head:8265"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=helpers.REPOSITORY)
    assert done.returncode == 2 and "expected a URL" in done.stderr


def test_packages_outside_their_range_or_missing_are_named() -> None:
    wanted = [Requirement("torch>=2.11,<2.14"), Requirement("ray[train]>=2.60,<2.61")]
    found = doctor.check_packages({"torch": "2.13.0+cpu", "ray": None}, wanted)
    assert found.status == "problem" and "ray missing (wanted <2.61,>=2.60)" in found.found and "torch" not in found.found
    assert doctor.check_packages({"torch": "2.13.0+cpu", "ray": "2.60.0"}, wanted).status == "ok"
    assert doctor.check_python("3.10.2", SpecifierSet(">=3.11")).status == "problem"


def test_a_second_owner_of_our_names_or_another_folder_of_that_name_is_a_problem(tmp_path: Path) -> None:
    ours = {"trainers": tmp_path / "trainers", "cluster": tmp_path / "cluster", "privacy": None}
    assert doctor.check_owners({"trainers": ["consortium"]}, ours, tmp_path).status == "ok"
    taken = doctor.check_owners({"cluster": ["consortium", "cluster-tools"]}, ours, tmp_path)
    assert taken.status == "problem" and "cluster is also of cluster-tools" in taken.found
    assert "imported from /elsewhere" in doctor.check_owners({}, ours | {"cluster": Path("/elsewhere")}, tmp_path).found


@pytest.mark.parametrize(
    ("arguments", "status", "found"),
    [
        ((["H200", "H200"], "570.1", 2, "12.8"), "ok", "2 x H200, driver 570.1, CUDA 12.8"),
        ((["H200", "H200"], "570.1", 1, "12.8"), "ok", "1 of 2 x H200"),
        ((["H200"], "450.1", 0, "12.8"), "problem", "none usable by torch built for CUDA 12.8"),
        ((["H200"], "570.1", 0, None), "problem", "built without CUDA"),
        (([], "", 0, None), "ok", "none: training runs on CPUs"),
    ],
)
def test_gpus_that_torch_cannot_use_are_a_problem(arguments: tuple[list[str], str, int, str | None], status: str, found: str) -> None:
    check = doctor.check_gpus(*arguments)
    assert check.status == status and found in check.found and bool(check.todo) is (status == "problem")


def test_gpus_need_nccl_and_all_need_gloo() -> None:
    assert doctor.check_backends(gloo=True, nccl=False, gpus=0).status == "ok"
    assert doctor.check_backends(gloo=True, nccl=False, gpus=1).status == "problem"
    assert doctor.check_backends(gloo=False, nccl=True, gpus=1).status == "problem"


@pytest.mark.parametrize(("skew", "status"), [(0.01, "ok"), (-4.0, "ok"), (-8.0, "warning"), (45.0, "problem"), (None, "warning")])
def test_clocks_further_apart_than_a_heartbeat_lasts_are_a_problem(skew: float | None, status: str) -> None:
    assert doctor.check_clock("clock", skew).status == status


@pytest.mark.parametrize(("free", "status"), [(GIB // 2, "problem"), (5 * GIB, "warning"), (500 * GIB, "ok")])
def test_a_disk_nearly_full_is_noted(free: int, status: str) -> None:
    assert doctor.check_disk(Path("/runs"), free).status == status


def test_an_output_is_a_folder_or_a_store_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [check.status for check in doctor._output(str(tmp_path / "file"))] == ["problem"]
    assert [check.status for check in doctor._output(f"file://{tmp_path}/file/runs")] == ["problem"]
    assert list(doctor._output(f"file://{tmp_path}/runs")) == [Check("output", "ok", f"file://{tmp_path}/runs can be written")]
    assert not list((tmp_path / "runs").iterdir())


def test_the_token_is_looked_for_where_ray_looks_and_its_mode_is_told(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    assert doctor.check_token({}, tmp_path).status == "ok" and "none yet" in doctor.check_token({}, tmp_path).found
    path.parent.mkdir()
    path.write_text("secret")
    path.chmod(0o644)
    open_to_all = doctor.check_token({}, tmp_path)
    assert (open_to_all.status, open_to_all.todo) == ("warning", f"chmod 600 {path}") and "secret" not in open_to_all.found
    path.chmod(0o600)
    assert doctor.check_token({}, tmp_path).status == "ok"
    assert doctor.check_token({"RAY_AUTH_TOKEN": "secret"}, tmp_path).found == "in RAY_AUTH_TOKEN"
    assert doctor.check_token({"RAY_AUTH_MODE": "disabled"}, tmp_path).status == "warning"
    path.write_text("")
    assert doctor.check_token({}, tmp_path).status == "problem"


def test_telemetry_is_off_only_where_it_is_switched_off() -> None:
    assert doctor.check_telemetry({"HF_HUB_OFFLINE": "1"}).status == "ok"
    assert "Hugging Face" in doctor.check_telemetry({}).found
    assert "Ray" in doctor.check_telemetry({"RAY_USAGE_STATS_ENABLED": "1", "DO_NOT_TRACK": "true"}).found


def test_ports_that_do_not_answer_are_named() -> None:
    assert doctor.check_head_ports("head", {8265: True, 6379: True}).status == "ok"
    assert doctor.check_head_ports("head", {8265: True, 6379: False}).status == "warning"
    assert doctor.check_head_ports("head", {8265: False, 6379: True}).status == "problem"


def test_nodes_that_do_not_see_the_output_are_named() -> None:
    nodes = [{"node": "10.0.0.1", "sees": True, "skew": 0.0}, {"node": "10.0.0.2", "sees": False, "skew": 0.0}]
    found = doctor.check_shared("/runs", nodes, writable=True)
    assert found.status == "problem" and "10.0.0.2" in found.found and "10.0.0.1" not in found.found
    assert "cannot be written by the head" in doctor.check_shared("/runs", nodes, writable=False).found


def test_a_head_that_does_not_answer_is_a_problem_and_no_more(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    checks = list(doctor._cluster(f"http://127.0.0.1:{port}", str(tmp_path)))
    assert [check.name for check in checks] == ["ports"] and checks[0].status == "problem"


@pytest.mark.slow
def test_a_real_cluster_is_asked_for_clocks_and_storage(cluster: Raylets, tmp_path: Path) -> None:
    done = cluster.consortium("doctor", "--json", "--address", cluster.dashboard, "--output", tmp_path)
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert {found[name]["status"] for name in ("cluster", "clock of the head", "clocks of the nodes")} == {"ok"}, found
    assert found["shared storage"]["found"] == f"{tmp_path} is seen by 2 nodes" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_wrong_token_is_a_problem_with_what_to_do(cluster: Raylets, tmp_path: Path) -> None:
    done = cluster.consortium("doctor", "--address", cluster.dashboard, "--output", tmp_path, RAY_AUTH_TOKEN="wrong" * 10)
    assert done.returncode == 1 and "does not take this token" in done.stdout and "put the cluster's token into" in done.stdout
    assert cluster.environment["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
