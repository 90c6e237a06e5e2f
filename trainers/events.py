"""What a run says while it runs: one JSON object a line in `events.jsonl`, and the same to TensorBoard, MLflow or Weights & Biases."""

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from trainers.config import TrackingConfig, TrainConfig
from trainers.errors import ConfigError

Event = dict[str, Any]
_PROJECT = "consortium"
_FLUSH_SECONDS = 10
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Its own defaults hold a step up for many minutes when the server is away."""


class Listener(Protocol):
    def on_event(self, event: Event) -> None: ...

    def close(self) -> None: ...


PUBLIC: dict[str, tuple[str, ...] | None] = {
    "start": ("step", "steps", "workers", "zero_stage", "method", "device", "versions", "parameters", "choices", "flops_formula"),
    "step": ("step", "epoch", "learning_rate"),
    "round": ("step", "round", "attempt", "steps"),
    "checkpoint": ("step", "bytes"),
    "warning": None,
    "failure": None,
    "statement": None,
    "end": ("step", "status", "output"),
}
"""What of a private run's events others than the bank's own engineer may see, all of an event where there is None: no loss, no norm, no
size of a batch nor the seconds and the memory it took, no evaluation, and of the files neither size nor hash, by which a guess at all rows
can be checked. The noise covers none of these."""


class EventLog:
    """The run's event file, appended to line by line, and those who listen. Rank 0 has one; the others a silent one (`path` None).

    With `private`, whole events go to that file alone, and the others get what is PUBLIC of them.
    """

    def __init__(self, path: Path | None, listeners: list[Listener] | None = None, *, private: Path | None = None) -> None:
        self._listeners = list(listeners or [])
        self._file = None if path is None else _append_to(path)
        self._private = None if private is None else _append_to(private)

    def listen(self, listeners: list[Listener]) -> None:
        """More of those who are told of every event from now on."""
        self._listeners += listeners

    def emit(self, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "event": event, **_json_safe(fields)}
        if self._private is not None:
            self._private.write(json.dumps(record) + "\n")
            if event not in PUBLIC:
                return
            shown = PUBLIC[event]
            record = record if shown is None else {name: record[name] for name in ("time", "event", *shown) if name in record}
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        for listener in list(self._listeners):
            try:
                listener.on_event(record)
            except Exception as error:
                self._drop(listener, error, step=fields.get("step", 0))

    def close(self) -> None:
        for listener in list(self._listeners):
            try:
                listener.close()
            except Exception as error:
                self._drop(listener, error, step=0)
        for file in (self._file, self._private):
            if file is not None:
                file.close()

    def _drop(self, listener: Listener, error: Exception, *, step: int) -> None:
        """A tracking server that is away, or a terminal that was closed, is no reason to end a run."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            name = type(listener).__name__.strip("_")
            self.emit("warning", step=step, message=f"{name} gets no more of this run: {type(error).__name__}: {_first_line(error)}")


class Tail:
    """The events another process appends to a file, from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[Event]:
        """Those not seen yet; a line that is still being written is left for the next time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._position)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._position += len(line)
                yield json.loads(line)


def _append_to(path: Path) -> TextIO:
    _drop_torn_line(path)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", buffering=1)


def _json_safe(value: Any) -> Any:
    """NaN and infinity are no JSON: they become null."""
    if isinstance(value, Mapping):
        return {name: _json_safe(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_torn_line(path: Path) -> None:
    """A crash in mid-write leaves half a line; the next run must not write behind it."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)


def trackers(tracking: TrackingConfig, config: TrainConfig, run_dir: Path) -> list[Listener]:
    """The experiment trackers the job asks for; none sends anything anywhere unless its URI says so.

    Raises ConfigError for a tracker that is not installed or cannot be set up.
    """
    found: list[Listener] = []
    if tracking.tensorboard:
        found.append(_TensorBoard(run_dir / "tensorboard"))
    if tracking.mlflow:
        with _installed("mlflow", "mlflow-skinny"):
            found.append(_MLflow(tracking.mlflow, config, run_dir / "mlflow-run"))
    if tracking.wandb:
        with _installed("wandb", "wandb"):
            found.append(_Wandb(config, run_dir))
    return found


@contextlib.contextmanager
def _installed(extra: str, package: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"tracking.{extra} needs the package {package} ({error})", f"pip install 'consortium[{extra}]'") from error


def scalars(event: Event) -> dict[str, float]:
    """The numbers of a step or an evaluation, under the names trackers show."""
    if event["event"] == "step":
        names = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share", "mfu")
        return {f"train/{name}": event[name] for name in names if event.get(name) is not None}
    if event["event"] == "eval":
        return {f"eval/{name}": value for name, value in event["metrics"].items() if isinstance(value, (int, float))}
    return {}


class _TensorBoard:
    """A resumed run writes behind what is there; TensorBoard then hides the points of steps that were lost."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = lambda step: SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=_FLUSH_SECONDS)
        self._writer: SummaryWriter | None = None

    def on_event(self, event: Event) -> None:
        if event["event"] == "start":
            self.close()
            self._writer = self._open(event["step"])
        for name, value in scalars(event).items():
            self._writer = self._writer or self._open(0)
            self._writer.add_scalar(name, value, event["step"], walltime=event["time"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _MLflow:
    """One MLflow run for a run directory, however often it is resumed; `marker` remembers which."""

    def __init__(self, uri: str, config: TrainConfig, marker: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it asks config.mlflow-telemetry.io at first use, whatever the URI
        if "://" not in uri or uri.startswith("file:"):
            os.environ.setdefault(
                "MLFLOW_ALLOW_FILE_STORE", "true"
            )  # "in maintenance mode", and all that mlflow-skinny has without a server
        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric, self._status = Metric, "FAILED"
        try:
            self._client = MlflowClient(tracking_uri=uri)
            known = marker.read_text().split("\n") if marker.exists() else []
            if known[:1] == [uri]:
                self._run_id = known[1]
                self._client.update_run(self._run_id, status="RUNNING")
                return
            experiment = self._client.get_experiment_by_name(_PROJECT)
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(_PROJECT)
            self._run_id = self._client.create_run(experiment_id, run_name=config.name).info.run_id
            self._client.log_batch(self._run_id, params=[Param(name, value) for name, value in _flat(config.model_dump(mode="json"))])
        except MlflowException as error:
            raise ConfigError(f"tracking.mlflow: {uri}: {_first_line(error)}") from error
        marker.write_text(f"{uri}\n{self._run_id}\n")

    def on_event(self, event: Event) -> None:
        now = int(event["time"] * 1000)
        if metrics := [self._metric(name.replace("/", "."), value, now, event["step"]) for name, value in scalars(event).items()]:
            self._client.log_batch(self._run_id, metrics=metrics)
        if event["event"] == "end":
            self._status = "FINISHED"

    def close(self) -> None:
        self._client.set_terminated(self._run_id, self._status)


class _Wandb:
    """Offline: files in the run directory, for `wandb sync` if anyone wants to. A resumed run is a new one of the same name."""

    def __init__(self, config: TrainConfig, run_dir: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
            x_disable_meta=True,  # it would ask the cloud's metadata address what machine this is
            x_disable_machine_info=True,
        )
        self._run = wandb.init(
            project=_PROJECT,
            name=config.name,
            dir=str(run_dir),
            mode="offline",
            config=dict(_flat(config.model_dump(mode="json"))),
            settings=settings,
        )
        self._exit_code = 1

    def on_event(self, event: Event) -> None:
        if values := scalars(event):
            self._run.log(values, step=event["step"])
        if event["event"] == "end":
            self._exit_code = 0

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, str(value)[:500])]
    return pairs


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
