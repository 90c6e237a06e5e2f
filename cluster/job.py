"""The job: a YAML file by a person's hand, `config.json` by the machine's. Imports no torch and no ray."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from trainers.config import Auto, Part, TrainConfig, validate
from trainers.errors import ConfigError, DataError, ModelError
from trainers.storage import Store

# A block written as one value: `model: DIR` says `model: {path: DIR}`.
_SHORTHAND = {"model": "path", "method": "type", "data": "train", "zero": "stage"}


class WorkerRange(Part):
    """As many workers as there is room for. A run goes on with fewer when a node is lost, and with more when it is back."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"cluster.workers: min {self.min} is above max {self.max}")
        return self


class ClusterConfig(Part):
    address: str | None = None
    """Of an existing Ray cluster (`auto`, `HOST:PORT`); null starts Ray on this machine for the run."""
    workers: Annotated[int, Field(ge=1)] | Auto | WorkerRange = Field("auto", description="a number, auto, or {min: 1, max: 4}")
    """Training processes; auto is one for each GPU, or one where there are none. The global batch is the same for any number."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Auto = "auto"
    cpus_per_worker: int = Field(1, ge=1)
    max_failures: int = Field(3, ge=0)
    """How often a failed group of workers is started again from the last checkpoint."""

    @property
    def fewest(self) -> int:
        """Workers that must be had; 1 while `auto` is not decided."""
        return self.workers.min if isinstance(self.workers, WorkerRange) else 1 if self.workers == "auto" else self.workers

    @property
    def most(self) -> int:
        return self.workers.max if isinstance(self.workers, WorkerRange) else self.fewest


class JobSpec(TrainConfig):
    """A training run and the workers it runs on."""

    cluster: ClusterConfig = ClusterConfig()


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job file, apply `key.sub=value` overrides, make its paths absolute (they are relative to the file). Raises ConfigError."""
    return absolute(validate(JobSpec, read_values(path, overrides), source=str(path)), path.resolve().parent)


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a job file as they are written, with `key.sub=value` overrides applied. Raises ConfigError."""
    values = read_yaml(path, "`consortium init DIR` writes a job file to start from")
    for override in overrides:
        _override(values, override)
    return {"name": path.stem} | values


class _OneOfEach(yaml.SafeLoader):
    """A field written twice is a mistake: YAML would quietly take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is written twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, hint: str) -> dict[str, Any]:
    """A file of fields. Raises ConfigError, with the hint where there is no such file or it holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8, got byte 0x{error.object[error.start]:02x} at {error.start}", hint) from error
    try:
        values = yaml.load(text, _OneOfEach)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(values, dict):
        came = "an empty file" if values is None else "a list" if isinstance(values, list) else "text"
        raise ConfigError(f"{path}: expected fields like `task: sft`, got {came}", hint)
    return values


def read_job(run_dir: Path) -> JobSpec:
    """The resolved job of a run directory. Raises ConfigError."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run directory: it has no config.json", "a run directory is OUTPUT/NAME of a job")
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not JSON as a run writes it ({error})", "put the file back, or start the job anew by another name"
        ) from error
    return validate(JobSpec, values, source=str(path))


def write_job(job: JobSpec, folder: Path | None = None) -> Path:
    """Make the run directory, or `folder` in its place, for its owner only, and write config.json into it; the directory."""
    folder = folder or job.run_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "config.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(job.model_dump_json(indent=1))
    temporary.rename(path)
    return folder


def _override(values: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text}: expected FIELD=VALUE", "as in --set train.learning_rate=1e-4")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"--set {text}: {value} is not YAML", "lists and blocks are closed, as in --set 'data.train=[a.jsonl, b.jsonl]'"
        ) from error
    set_field(values, name, parsed)


def set_field(values: dict[str, Any], name: str, value: Any) -> None:
    """Set the field of a dotted name in the values of a job, making the blocks above it."""
    *blocks, field = name.split(".")
    place = values
    if blocks[:2] in (["method", "lora"], ["method", "full"]):  # as a job file has it
        kind, written = blocks.pop(1), values.get("method")
        if not (written == kind or (isinstance(written, dict) and (kind in written or written.get("type") == kind))):
            values["method"] = kind
    for block in blocks:
        inner = place.get(block)
        if inner is None:
            place[block] = {"type": "lora"} if block == "method" else {}  # the default of a job that names none
        elif not isinstance(inner, dict):
            place[block] = {_SHORTHAND.get(block, "value"): inner}
        elif block == "method" and inner.keys() in ({"lora"}, {"full"}):  # {lora: {...}}
            kind, body = next(iter(inner.items()))
            place[block] = {"type": kind, **(body or {})}
        place = place[block]
    place[field] = as_number(value)


def as_written(job: JobSpec) -> dict[str, Any]:
    """The job as a person would write it: what differs from the defaults."""
    values = job.model_dump(mode="json", exclude_defaults=True)
    method = {name: value for name, value in values.get("method", {}).items() if name != "type"}
    return values | {"method": {job.method.type: method} if method else job.method.type}


def as_number(value: Any) -> Any:
    """YAML 1.1 takes 1e-4 for text; a person does not."""
    try:
        return float(value) if isinstance(value, str) and value[:1].isdigit() else value
    except ValueError:
        return value


def absolute(job: JobSpec, folder: Path) -> JobSpec:
    """The job with its relative paths taken from `folder`; `output` from where the command runs."""
    values = job.model_dump()
    data, model = values["data"], values["model"]
    for side in ("train", "validation"):
        data[side] = [folder / path for path in data[side]]
    if model["add_tokens"]:
        model["add_tokens"] = folder / model["add_tokens"]
    if model["path"]:
        model["path"] = _model_path(model["path"], folder)
    if isinstance(job.output, Path):
        values["output"] = Path(os.path.abspath(job.output))
    if values["privacy"]:
        values["privacy"]["ledger"] = folder / Path(values["privacy"]["ledger"]).expanduser()
    tracking = values["tracking"]
    if tracking["mlflow"] and ":" not in tracking["mlflow"] and tracking["mlflow"] != "databricks":
        tracking["mlflow"] = str(folder / Path(tracking["mlflow"]).expanduser())
    return JobSpec.model_validate(values)


def _model_path(path: str, folder: Path) -> str:
    """A directory beside the job file, or as it is: an absolute path or a hub id."""
    local = (folder / Path(path).expanduser()).resolve()
    return str(local) if local.exists() or path.startswith((".", "~")) else path


def check_paths(job: JobSpec) -> None:
    """Raise ModelError or DataError for a path of the job that is not on this machine, before anything is started."""
    model = Path(job.model.path)
    if job.model.path and model.is_absolute() and not model.is_dir():
        raise ModelError(f"model.path: no directory {model}", "a directory with config.json, weights and tokenizer, or a hub id")
    for path in [*job.data.train, *job.data.validation]:
        if not path.exists():
            raise DataError(f"{path}: no such file", "paths in a job file are relative to the job file")


# What may change between the start of a run and its continuation: it decides where and how it runs, not what it computes. That the data
# are the same, wherever they lie, is seen by the workers.
_FREE = ("cluster", "data.train", "data.validation", "zero", "output", "tracking", "name", "checkpoint", "train.micro_batch_tokens",
         "train.activation_checkpointing", "train.compile", "train.eval_every", "train.early_stopping", "train.hang_after")  # fmt: skip


INPUTS = "inputs"
"""In the run directory of a submitted job: what was sent with it, until it is over"""


def has_begun(job: JobSpec) -> bool:
    """Whether the job's run directory, or its copy in a store, holds a run that came to training: what was refused before binds nobody."""
    if job.store_url is not None:
        return _has_start((Store(job.store_url).read("events.jsonl") or b"").splitlines())
    return _has_started(job.run_dir)


def _has_started(folder: Path) -> bool:
    path = folder / "events.jsonl"
    if not path.exists():
        return False
    with path.open("rb") as lines:
        return _has_start(lines)


def _has_start(lines: Iterable[bytes]) -> bool:
    """In a line that is whole."""
    for line in lines:
        with contextlib.suppress(ValueError):
            if json.loads(line)["event"] == "start":
                return True
    return False


def check_continues(job: JobSpec, folder: Path | None = None) -> None:
    """Raise ConfigError when the run directory (or `folder`) holds a run that `job` cannot continue, naming the fields that differ."""
    folder = folder or job.run_dir
    if not _has_started(folder):
        return
    before, now = (dict(_flat(spec.model_dump(mode="json"))) for spec in (read_job(folder), job))
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and not _is_free(name))
    if changed:
        listed = ", ".join(f"{name} (was {before.get(name)}, is {now.get(name)})" for name in changed[:5])
        raise ConfigError(
            f"{job.store_url or job.run_dir} holds another job's run: {listed}", "give this one another name: --set name=NAME"
        )


def identity(job: JobSpec) -> str:
    """SHA-256 of what a job computes: two jobs of the same identity continue each other (given the same data)."""
    fields = {name: value for name, value in _flat(job.model_dump(mode="json")) if not _is_free(name)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
