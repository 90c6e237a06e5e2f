"""Jobs on a Ray cluster that is not this machine, through the Ray Jobs API: submit, list, follow, stop. Imports no torch.

What travels is a folder of our own making: the job file, data given by path, and the packages themselves (a wheel Ray would install with
pip, and all it depends on, on every node). Weights never travel. Who a job is lies in its name and in the hash of what it computes, both
kept with it on the cluster, so that any client can find it again.
"""

import asyncio
import json
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ClusterUnreachable, JobMismatch, JobNotFound, PackageTooLarge
from cluster.job import INPUTS, JobSpec, identity
from trainers.errors import ConfigError, DataError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
SIZE_LIMIT = 64 * 2**20
"""Bytes that may travel; Ray's dashboard takes 100 MiB at most."""
PACKAGES = ("privacy", "trainers", "cluster", "federation", "consortium")
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_OVER = ("SUCCEEDED", "FAILED", "STOPPED")
_INPUT_REFUSED = 2
_STOPPED_CODE = 130
_RECONNECTS = 5
_AGENT_SECONDS = 60.0
"""A head that has just been started takes jobs only a little later."""


@dataclass(frozen=True)
class Job:
    """A submitted job as the cluster knows it."""

    id: str
    name: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED"""
    message: str
    exit_code: int | None
    started: float | None
    """Seconds since 1970"""
    ended: float | None
    config_hash: str
    run_dir: str

    @property
    def is_over(self) -> bool:
        return self.status in _OVER


def effective_address(asked: str | None, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The address that is meant, and a note where the environment says another: Ray would let that win without a word; here it does not."""
    variable = next((name for name in _ADDRESS_VARIABLES if environment.get(name)), None)
    if asked is None:
        return (environment[variable], f"from {variable}") if variable else (DEFAULT_ADDRESS, "")
    if variable and environment[variable] != asked:
        return asked, f"{variable}={environment[variable]} is set and not used"
    return asked, ""


def check_address(address: str) -> None:
    """Raise ConfigError for what is no URL of a dashboard."""
    try:
        url = urlsplit(address)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            return
    except ValueError:  # of a port above 65535, or an open bracket
        pass
    raise ConfigError(f"address {address}: expected a URL", f"the head's dashboard, as in {DEFAULT_ADDRESS}")


class Cluster:
    """A connection to the dashboard of a cluster. Raises ClusterUnreachable where there is none, or no access to it."""

    def __init__(self, address: str) -> None:
        check_address(address)
        self.address = address.rstrip("/")
        from ray.job_submission import JobSubmissionClient

        for logger in ("ray.dashboard", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        token = _token()
        self._has_token = token is not None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with self._errors(), _without_variables(_ADDRESS_VARIABLES):
            self._client: Any = JobSubmissionClient(self.address, headers=headers)
        self._check_version()

    def submit(self, folder: Path, job: JobSpec) -> str:
        """Send a folder and start the job file in it; the job's id. Raises JobMismatch when its name belongs to another job."""
        config_hash = identity(job)
        earlier = [known for known in self.jobs() if known.name == job.name and known.run_dir == _place(job)]
        _check_continues(job, config_hash, earlier)
        asked = {
            "entrypoint": "python -m consortium submitted",
            "submission_id": f"{job.name}-{config_hash[:8]}-{len(earlier) + 1}-{int(time.time()) % 100_000}",
            "runtime_env": {"working_dir": str(folder), "env_vars": dict(_QUIET)},
            "metadata": {"name": job.name, "config_hash": config_hash, "run_dir": _place(job)},
        }
        return self._start(**asked)

    def jobs(self) -> list[Job]:
        """All jobs submitted by this program, newest first."""
        with self._errors():
            found = [_job(details) for details in self._client.list_jobs() if (details.metadata or {}).get("config_hash")]
        return sorted(found, key=lambda job: -(job.started or 0))

    def job(self, id: str) -> Job:
        """Raises JobNotFound."""
        with self._errors(id):
            return _job(self._client.get_job_info(id))

    def logs(self, id: str) -> str:
        """What a job has printed so far. Raises JobNotFound."""
        self.job(id)
        with self._errors(id):
            return str(self._client.get_job_logs(id))

    def follow(self, id: str, write: Callable[[str], None]) -> Job:
        """Pass on what a job prints until it is over, over broken connections too; how it ended. Raises JobNotFound."""
        from aiohttp import ClientError  # what Ray's client lets through

        job, once, failures = self.job(id), _Once(write), 0
        while not job.is_over:
            before = once.shown
            try:
                asyncio.run(self._tail(id, once))
                job = self.job(id)
            except (RuntimeError, OSError, ClientError) as error:
                failures = failures + 1 if once.shown == before else 1
                if failures == _RECONNECTS:
                    raise ClusterUnreachable(f"lost the log of {id}", f"the job goes on: consortium jobs logs {id} -f") from error
                time.sleep(1)
        with self._errors(id):
            once.write(str(self._client.get_job_logs(id)), start=0)
        return job

    def stop(self, id: str) -> None:
        """Ask a job to end. Raises JobNotFound, JobMismatch when it is over."""
        job = self.job(id)
        if job.is_over:
            raise JobMismatch(f"{id} is over: {job.status}", f"consortium jobs logs {id}")
        with self._errors(id):
            self._client.stop_job(id)

    def run_script(self, code: str, *arguments: str, seconds: float) -> str:
        """Run a Python script on the head to its end; what it printed. Raises ClusterUnreachable when that takes longer."""
        deadline = time.monotonic() + seconds
        id = self._start(entrypoint=shlex.join(["python", "-c", code, *arguments]), runtime_env={"env_vars": dict(_QUIET)})
        while not self.job(id).is_over:
            if time.monotonic() > deadline:
                self.stop(id)
                raise ClusterUnreachable(f"{self.address} ran {id} for more than {seconds:.0f} s", "is the head overloaded?")
            time.sleep(0.5)
        return self.logs(id)

    def _start(self, **asked: Any) -> str:
        """The id of a new job; waits for a head that does not take any yet."""
        deadline = time.monotonic() + _AGENT_SECONDS
        with self._errors():
            while True:
                try:
                    return str(self._client.submit_job(**asked))
                except RuntimeError as error:
                    if "No available agent" not in str(error) or time.monotonic() > deadline:
                        raise
                time.sleep(1)

    async def _tail(self, id: str, once: "_Once") -> None:
        seen = 0
        async for text in self._client.tail_job_logs(id):
            once.write(text, start=seen)
            seen += len(text)

    def _check_version(self) -> None:
        import ray

        with self._errors():
            theirs, ours = str(self._client._server_ray_version), str(ray.__version__)
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise ClusterUnreachable(f"the cluster at {self.address} runs Ray {theirs}, this is {ours}", f"pip install 'ray=={theirs}'")

    @contextmanager
    def _errors(self, id: str = "") -> Iterator[None]:
        """Ray's exceptions in our words."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise ClusterUnreachable(
                f"the cluster at {self.address} {'does not take this token' if self._has_token else 'asks for a token'}",
                "put the cluster's token into RAY_AUTH_TOKEN, a file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token",
            ) from error
        except ConnectionError as error:
            raise ClusterUnreachable(
                f"no Ray dashboard at {self.address}", "is it the dashboard's port (8265), reachable from here? an SSH tunnel helps"
            ) from error
        except (RuntimeError, OSError, ValueError) as error:
            if id and ("404" in str(error) or "does not exist" in str(error)):
                raise JobNotFound(f"no job {id} at {self.address}", "consortium jobs list shows those there are") from error
            reason = str(error).strip().splitlines()[0][:200]
            raise ClusterUnreachable(
                f"the cluster at {self.address} refused: {reason}", "consortium doctor --address looks closer"
            ) from error


class _Once:
    """Passes on a text that is sent from its beginning again after each broken connection, every part of it once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.shown = 0
        """Characters passed on"""

    def write(self, text: str, start: int) -> None:
        """`text` stands at `start` of the whole."""
        if new := text[max(0, self.shown - start) :]:
            self._write(new)
            self.shown = start + len(text)


def _check_continues(job: JobSpec, config_hash: str, earlier: list[Job]) -> None:
    """One name and run directory is one job: it is continued, never mixed with another. What never began does not count."""
    for known in earlier:
        if not known.is_over:
            raise JobMismatch(f"{job.name} is {known.status.lower()} as {known.id}", f"consortium jobs logs {known.id} -f")
        if known.config_hash != config_hash and known.exit_code != _INPUT_REFUSED:
            raise JobMismatch(
                f"{_place(job)} belongs to {known.id}, which computes something else", "give this job another name: --set name=NAME"
            )


def _place(job: JobSpec) -> str:
    return job.store_url or str(job.run_dir)


_QUIET = {
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


@contextmanager
def packed(job: JobSpec, *, package: bool, limit: int = SIZE_LIMIT, shared: Sequence[Path] = ()) -> Iterator[tuple[Path, dict[str, int]]]:
    """A temporary folder with what a job needs from this machine, and the bytes of each part; `package` adds this program itself, and what
    is in a `shared` folder stays there.

    Raises PackageTooLarge, naming the largest parts, before anything is copied.
    """
    parts = {path: f"data/{number}-{path.name}" for number, path in enumerate(_local_data(job, shared))}
    sizes = {str(path): size_of(path) for path in parts}
    if (total := sum(sizes.values())) > limit:
        largest = ", ".join(f"{name} ({_mib(size)})" for name, size in sorted(sizes.items(), key=lambda entry: -entry[1])[:3])
        raise PackageTooLarge(
            f"{_mib(total)} of data would travel, the limit is {_mib(limit)}: {largest}",
            "put it where all nodes can read it, and give that path; --shared DIR names a folder that they see as this machine does",
        )
    with tempfile.TemporaryDirectory(prefix="consortium-") as name:
        folder = Path(name)
        for path, place in parts.items():
            _copy(path, folder / place)
        if job.model.add_tokens is not None and job.model.add_tokens.exists():
            _copy(job.model.add_tokens, folder / "data" / "terms.txt")
        (folder / "job.yaml").write_text(json.dumps(_as_submitted(job, parts), indent=1))  # JSON is YAML
        if package:
            sizes["consortium"] = _copy_packages(folder)
        yield folder, sizes


def _local_data(job: JobSpec, shared: Sequence[Path]) -> list[Path]:
    def is_shared(path: Path) -> bool:
        return any(path.is_relative_to(folder.absolute()) for folder in shared)

    return [path for path in dict.fromkeys([*job.data.train, *job.data.validation]) if path.exists() and not is_shared(path)]


def _as_submitted(job: JobSpec, parts: Mapping[Path, str]) -> dict[str, Any]:
    """The job with paths as they are on the cluster: what travels relative to the job file, the rest as it was given."""
    values = job.model_dump(mode="json")
    for side in ("train", "validation"):
        values["data"][side] = [parts.get(Path(path), path) for path in values["data"][side]]
    if values["model"]["add_tokens"] and Path(values["model"]["add_tokens"]).exists():
        values["model"]["add_tokens"] = "data/terms.txt"
    values["cluster"]["address"] = "auto"
    return values


def check_submittable(values: Mapping[str, Any], folder: Path) -> None:
    """Of a job file's valid fields, as written in `folder`.

    Raises ConfigError for a job whose result would be left behind on a machine that nobody looks at, DataError for data meant to be beside
    the job file which are not; an absolute path may be one of the cluster.
    """
    output = values.get("output")
    if output is None or not (Path(output).is_absolute() or "://" in output):
        given = "is not given" if output is None else f"{output} is relative to this machine"
        raise ConfigError(f"output {given}", "a submitted job needs a directory all nodes share, or a URL: output: /shared/runs")
    data = values["data"]
    for side in (data.get("train"), data.get("validation")) if isinstance(data, dict) else (data,):
        for path in [side] if isinstance(side, str) else side or []:
            if not (folder / path).exists() and not Path(path).is_absolute():
                raise DataError(f"{folder / path}: no such file", "paths in a job file are relative to the job file")


@contextmanager
def unpacked(job: JobSpec, folder: Path) -> Iterator[JobSpec]:
    """On the cluster: the job with what travelled in `folder` moved to its run directory, where all nodes see it, until it is over.

    With an output that is no common disk it stays in `folder`, of which Ray has put a copy on every node.
    """
    if job.store_url is not None:
        yield job
        return
    inputs = job.run_dir / INPUTS

    def moved(path: Path) -> Path:
        if not path.is_relative_to(folder):
            return path
        target = inputs / path.name
        _copy(path, target)
        target.chmod(0o700 if target.is_dir() else 0o600)
        return target

    job.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        data, terms = job.data, job.model.add_tokens
        paths = {side: [moved(path) for path in getattr(data, side)] for side in ("train", "validation")}
        model = job.model.model_copy(update={"add_tokens": moved(terms) if terms else None})
        yield job.model_copy(update={"data": data.model_copy(update=paths), "model": model})
    finally:
        shutil.rmtree(inputs, ignore_errors=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file()) if path.is_dir() else path.stat().st_size


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _copy_packages(folder: Path) -> int:
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return sum(size_of(folder / name) for name in PACKAGES if (folder / name).is_dir())


def _job(details: Any) -> Job:
    known = details.metadata or {}
    return Job(
        id=details.submission_id,
        name=known.get("name", ""),
        status=str(getattr(details.status, "value", details.status)),
        message=(details.message or "").strip(),
        exit_code=details.driver_exit_code,
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        config_hash=known.get("config_hash", ""),
        run_dir=known.get("run_dir", ""),
    )


def exit_code(job: Job) -> int:
    """What a command that waited for the job ends with: the job's own exit code where it had one."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return _STOPPED_CODE
    return job.exit_code if job.exit_code and job.exit_code > 0 else 1


def _token() -> str | None:
    """The cluster's token from where Ray looks, in its order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError as error:
        if os.environ.get("RAY_AUTH_TOKEN_PATH"):
            raise ClusterUnreachable(f"RAY_AUTH_TOKEN_PATH: {path}: {error.strerror}", "a file that holds the cluster's token") from error
        return None


@contextmanager
def _without_variables(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
