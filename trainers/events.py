"""What a run says while it runs: one JSON object a line in `events.jsonl`, and the same to TensorBoard, MLflow or Weights & Biases."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trainers.config import TrackingConfig, TrainConfig

Event = dict[str, Any]


class Listener(Protocol):
    def on_event(self, event: Event) -> None: ...

    def close(self) -> None: ...


class EventLog:
    """The run's event file, appended to line by line, and those who listen. Rank 0 has one; the others a silent one (`path` None)."""

    def __init__(self, path: Path | None, listeners: list[Listener] | None = None) -> None:
        self._file = None
        self._listeners = listeners or []
        if path is not None:
            _drop_torn_line(path)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", buffering=1)

    def emit(self, event: str, **fields: Any) -> None:
        record = {"time": round(time.time(), 3), "event": event, **_json_safe(fields)}
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        for listener in self._listeners:
            listener.on_event(record)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        if self._file is not None:
            self._file.close()


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
    """The experiment trackers the job asks for; none sends anything anywhere unless its URI says so."""
    found: list[Listener] = []
    if tracking.tensorboard:
        found.append(_TensorBoard(run_dir / "tensorboard"))
    if tracking.mlflow:
        found.append(_MLflow(tracking.mlflow, config))
    if tracking.wandb:
        found.append(_Wandb(config, run_dir))
    return found


def scalars(event: Event) -> dict[str, float]:
    """The numbers of a step or an evaluation, under the names trackers show."""
    if event["event"] == "step":
        names = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share", "mfu")
        return {f"train/{name}": event[name] for name in names if event.get(name) is not None}
    if event["event"] == "eval":
        return {f"eval/{name}": value for name, value in event["metrics"].items() if isinstance(value, (int, float))}
    return {}


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def on_event(self, event: Event) -> None:
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, event["step"], walltime=event["time"])

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, uri: str, config: TrainConfig) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("consortium")
        self._mlflow = mlflow
        self._run = mlflow.start_run(run_name=config.name)
        mlflow.log_params(dict(_flat(config.model_dump(mode="json"))))

    def on_event(self, event: Event) -> None:
        if values := scalars(event):
            self._mlflow.log_metrics({name.replace("/", "."): value for name, value in values.items()}, step=event["step"])

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    def __init__(self, config: TrainConfig, run_dir: Path) -> None:
        import wandb

        self._run = wandb.init(
            project="consortium", name=config.name, dir=str(run_dir), mode="offline", config=dict(_flat(config.model_dump(mode="json")))
        )

    def on_event(self, event: Event) -> None:
        if values := scalars(event):
            self._run.log(values, step=event["step"])

    def close(self) -> None:
        self._run.finish(quiet=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, str(value)[:500])]
    return pairs
