import json
import math
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import REPOSITORY, events
from trainers.config import TrainConfig, validate
from trainers.errors import ConfigError
from trainers.events import Event, EventLog, scalars, trackers
from trainers.report import read_events

STEP: dict[str, Any] = {"loss": 0.5, "learning_rate": 1e-4, "grad_norm": 2.0, "tokens_per_second": 100.0, "padding_share": 0.1}
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = False

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


class Broken(Heard):
    def on_event(self, event: Event) -> None:
        raise ConnectionError("the server is away\nand more")

    def close(self) -> None:
        raise OSError("no terminal")


def _make_config(**tracking: Any) -> TrainConfig:
    return validate(TrainConfig, {"model": "m", "data": "a", "task": "sft", "tracking": {"tensorboard": False} | tracking}, source="job")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_a_line_of_json_with_its_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("step", step=1, loss=0.5, note="zwei\nZeilen")
    first = _lines(tmp_path / "events.jsonl")  # written at once, not when the file is closed
    log.emit("end", step=1)
    log.close()
    assert [(e["event"], e["step"]) for e in _lines(tmp_path / "events.jsonl")] == [("step", 1), ("end", 1)]
    assert first[0]["note"] == "zwei\nZeilen" and first[0]["time"] > 1.7e9


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_no_number_becomes_null_at_every_depth(tmp_path: Path, value: float) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("eval", loss=value, metrics={"f1": value, "by": [1.0, value, (value,)]})
    log.close()
    event = _lines(tmp_path / "events.jsonl")[0]
    assert event["loss"] is None and event["metrics"] == {"f1": None, "by": [1.0, None, [None]]}


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_strict_json_that_reads_back(tmp_path: Path, values: dict[str, Any]) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("any", values=values)
    log.close()
    event = read_events(tmp_path / "events.jsonl")[-1]
    assert set(event["values"]) == set(values)
    assert all(event["values"][name] == value for name, value in values.items() if isinstance(value, str) or value is None)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    EventLog(tmp_path / "events.jsonl").close()
    assert stat.S_IMODE((tmp_path / "events.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("torn", [b'{"time": 1, "ev', b"\xff\x00", b'{"time": 1, "event": "whole but without its line end"}'])
def test_a_line_torn_by_a_crash_is_dropped_before_more_is_written(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"time": 1, "event": "start"}\n' + torn)
    log = EventLog(path)
    log.emit("step", step=1)
    log.close()
    assert [event["event"] for event in read_events(path)] == ["start", "step"]


def test_a_file_that_is_one_torn_line_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"ti')
    EventLog(path).close()
    assert path.read_bytes() == b""


def test_a_whole_file_is_appended_to(tmp_path: Path) -> None:
    for step in (1, 2):
        log = EventLog(tmp_path / "events.jsonl")
        log.emit("step", step=step)
        log.close()
    assert [event["step"] for event in events(tmp_path, "step")] == [1, 2]


def test_listeners_hear_what_is_written_and_a_log_without_a_file_writes_nothing(tmp_path: Path) -> None:
    heard = Heard()
    log = EventLog(None, [heard])
    log.emit("step", step=1, loss=math.nan)
    log.close()
    assert [(e["event"], e["loss"]) for e in heard.events] == [("step", None)] and heard.closed
    assert not list(tmp_path.iterdir())


def test_a_listener_that_fails_is_left_out_with_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    heard = Heard()
    log = EventLog(tmp_path / "events.jsonl", [Broken(), heard])
    log.emit("step", step=7)
    log.emit("step", step=8)
    log.close()
    (warning,) = events(tmp_path, "warning")
    assert warning["step"] == 7 and warning["message"] == "Broken gets no more of this run: ConnectionError: the server is away"
    assert [event["event"] for event in heard.events] == ["warning", "step", "step"] and heard.closed


def test_a_listener_that_fails_to_close_keeps_no_other_from_closing(tmp_path: Path) -> None:
    broken, heard = Broken(), Heard()
    EventLog(tmp_path / "events.jsonl", [broken, heard]).close()
    assert heard.closed and "no terminal" in events(tmp_path, "warning")[0]["message"]


def test_trackers_are_shown_the_numbers_of_steps_and_evaluations_only() -> None:
    assert scalars({"event": "step", "step": 1, "loss": 0.5, "grad_norm": None, "seconds": 3.0}) == {"train/loss": 0.5}
    assert scalars({"event": "eval", "step": 1, "metrics": {"eval_loss": 1.5, "perplexity": None}}) == {"eval/eval_loss": 1.5}
    assert scalars({"event": "checkpoint", "step": 1, "bytes": 9}) == {}


def _run(folder: Path, config: TrainConfig, *, start: int = 0, steps: range = range(1, 4), ends: bool = True) -> None:
    """A run, or what is left of it after a crash, as a worker tells its trackers."""
    log = EventLog(folder / "events.jsonl", trackers(config.tracking, config, folder))
    log.emit("start", step=start, steps=3)
    for step in steps:
        log.emit("step", step=step, **{**STEP, "loss": 1 / step, "grad_norm": math.nan})
    log.emit("eval", step=steps[-1], metrics={"eval_loss": 0.25, "perplexity": math.inf})
    if ends:
        log.emit("end", step=steps[-1], status="finished", output="adapter")
    log.close()


def _tensorboard(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(point.step, pytest.approx(point.value)) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    _run(tmp_path, _make_config(tensorboard=True))
    points = _tensorboard(tmp_path)
    assert points["train/loss"] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert points["eval/eval_loss"] == [(3, 0.25)]
    assert "train/grad_norm" not in points and "eval/perplexity" not in points


def test_tensorboard_forgets_the_steps_a_resumed_run_does_again(tmp_path: Path) -> None:
    config = _make_config(tensorboard=True)
    _run(tmp_path, config, steps=range(1, 6), ends=False)
    _run(tmp_path, config, start=2, steps=range(3, 5))
    assert [step for step, _ in _tensorboard(tmp_path)["train/loss"]] == [1, 2, 3, 4]


def test_a_run_that_never_starts_leaves_no_tensorboard_file(tmp_path: Path) -> None:
    for tracker in trackers(_make_config(tensorboard=True).tracking, _make_config(), tmp_path):
        tracker.close()
    assert not (tmp_path / "tensorboard").exists()


TRACKED = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
from tests.trainers.test_events import _make_config, _run
from trainers.errors import ConfigError
from trainers.events import trackers

folder = Path(sys.argv[1])
uris = {"file": str(folder / "mlruns")}
if find_spec("sqlalchemy") and find_spec("alembic"):
    uris["sqlite"] = f"sqlite:///{folder}/mlflow.db"
for name, uri in uris.items():
    (folder / name).mkdir()
    config = _make_config(mlflow=uri, wandb=name == "file")
    _run(folder / name, config, ends=False)
    _run(folder / name, config, start=3, steps=range(4, 6))

from mlflow import MlflowClient
for name, uri in uris.items():
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("consortium").experiment_id])
    history = [[point.step, point.value] for point in client.get_metric_history(runs[0].info.run_id, "train.loss")]
    found = [len(runs), runs[0].info.status, history, runs[0].data.metrics, runs[0].data.params]
    (folder / name / "found.json").write_text(json.dumps(found))

wrong = _make_config(mlflow="gopher://nowhere")
try:
    trackers(wrong.tracking, wrong, folder)
except ConfigError as error:
    (folder / "file" / "error").write_text(str(error))
"""


@pytest.fixture(scope="module")
def caught() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a proxy that notes who asks for it and lets nobody through."""
    requests: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                requests.append(connection.recv(200))

    threading.Thread(target=listen, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
    server.close()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, caught: tuple[str, list[bytes]]) -> Path:
    """Runs tracked by MLflow, in files and in a database, and by wandb, in a process that does not know it is a test."""
    folder, proxy = tmp_path_factory.mktemp("tracked"), caught[0]
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI", "GITHUB", "MLFLOW", "WANDB"))}
    environment = ours | dict.fromkeys(names, proxy) | {"NO_PROXY": "", "no_proxy": "", "HOME": str(folder), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", TRACKED, str(folder)], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "output").write_text(done.stdout + done.stderr)
    return folder


def test_the_trackers_send_nothing_anywhere(tracked: Path, caught: tuple[str, list[bytes]]) -> None:
    assert tracked.is_dir() and caught[1] == []


def test_the_proxy_of_the_test_does_notice_a_request(caught: tuple[str, list[bytes]]) -> None:
    code = "import os, requests; requests.get('http://example.org', proxies={'http': os.environ['THERE']}, timeout=5)"
    before = len(caught[1])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"THERE": caught[0]}, capture_output=True)
    assert b"example.org" in caught[1][before]
    del caught[1][before:]


@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow_has_one_finished_run_with_metrics_and_parameters_however_often_resumed(tracked: Path, store: str) -> None:
    if store == "sqlite":  # mlflow-skinny comes without what it needs for databases
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("alembic")
    count, status, history, metrics, parameters = json.loads((tracked / store / "found.json").read_text())
    assert (count, status) == (1, "FINISHED")
    assert history == [[step, pytest.approx(1 / step)] for step in range(1, 6)]
    assert metrics["eval.eval_loss"] == 0.25 and "eval.perplexity" not in metrics and "train.grad_norm" not in metrics
    assert parameters["train.global_batch_size"] == "32" and parameters["method.type"] == "lora"


def _wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run below 32 KiB: a header of 7 bytes, then checksum, length, type and a message each."""
    from wandb.proto import wandb_internal_pb2

    content, place = path.read_bytes(), 7
    while place < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1
        yield wandb_internal_pb2.Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length


def test_wandb_has_an_offline_run_with_the_metrics_for_every_attempt(tracked: Path) -> None:
    attempts = sorted((tracked / "file" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    records = [list(_wandb_records(path)) for path in attempts]
    rows = [
        {(item.nested_key or [item.key])[0]: item.value_json for item in record.history.item}
        for attempt in records
        for record in attempt
        if record.WhichOneof("record_type") == "history"
    ]
    assert [float(row["train/loss"]) for row in rows if "train/loss" in row] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert [row["eval/eval_loss"] for row in rows if "eval/eval_loss" in row] == ["0.25", "0.25"]
    assert [r.exit.exit_code for attempt in records for r in attempt if r.WhichOneof("record_type") == "exit"] == [1, 0]


def test_wandb_keeps_no_picture_of_machine_packages_or_code(tracked: Path) -> None:
    names = {path.name for path in (tracked / "file" / "wandb").rglob("*") if path.is_file()}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"}


def test_the_trackers_print_nothing_and_leave_nothing_beside_the_run(tracked: Path) -> None:
    assert "wandb" not in (tracked / "output").read_text() and "INFO" not in (tracked / "output").read_text()
    assert {path.name for path in tracked.iterdir()} <= {"file", "sqlite", "mlruns", "mlflow.db", "output", ".cache", ".config"}


def test_an_mlflow_address_that_is_none_is_a_mistake_in_the_job(tracked: Path) -> None:
    assert (tracked / "file" / "error").read_text().startswith("tracking.mlflow: gopher://nowhere: ")


@pytest.mark.parametrize(("tracking", "package"), [({"mlflow": "mlruns"}, "mlflow"), ({"wandb": True}, "wandb")])
def test_a_tracker_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking: dict[str, Any], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = _make_config(**tracking)
    with pytest.raises(ConfigError, match=f"^tracking.{package} needs the package {package}") as caught:
        trackers(config.tracking, config, tmp_path)
    assert caught.value.hint == f"pip install 'consortium[{package}]'"
