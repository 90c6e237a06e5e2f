"""A job on Ray Train: workers, retries, resources. The one file that imports ray.train.

Ray is told how often to start a failed group again; where to go on from is the business of our own checkpoints, which every start of a
worker looks for. What the user can mend ends a run at once and is not retried.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import ClusterTooSmall, ClusterUnreachable, WorkersFailed
from cluster.job import INPUTS, JobSpec, WorkerRange, check_continues, check_paths, write_job
from privacy.errors import ConsortiumError
from trainers.defaults import Choice, Hardware, resolve
from trainers.errors import ConfigError, TrainersError
from trainers.events import Event, EventLog, Listener, Tail
from trainers.lease import check_free
from trainers.report import write_report
from trainers.storage import Store, publish

EVENTS = "events.jsonl"
_FOLLOW_SECONDS, _FETCH_SECONDS = 0.2, 5.0
_CONNECT_SECONDS = 10.0
_NODE_ANSWERS_SECONDS = 60.0
_JOB_TRIES, _JOB_WAIT_SECONDS = 5, 3.0


def launch(job: JobSpec, listener: Listener, *, rounds: Path | None = None) -> dict[str, Any]:
    """Run a job to its end on Ray; its report. `listener` sees the run's events as they are written.

    With `rounds`, a spool that the workers see too, they take rounds from it until one says to stop (trainers/rounds.py).
    Raises TrainersError as the workers did, ClusterTooSmall, ClusterUnreachable, or WorkersFailed when `cluster.max_failures` is used up.
    """
    check_free(job.run_dir, Store(job.store_url) if job.store_url else None)
    if job.cluster.address is None:
        check_paths(job)
    with connected(job.cluster.address, cpus=job.cluster.most * job.cluster.cpus_per_worker):
        job, choices = place_workers(job, ray.cluster_resources())
        view = open_view(job)
        if rounds is None:
            check_continues(job, view.folder)
            if (report := _finished(view)) is not None:
                return report
        if isinstance(job.output, Path):
            check_shared(job.output)
        write_job(job, view.folder)
        settings = {"job": job.model_dump_json(), "run_id": uuid.uuid4().hex, "choices": choices, "rounds": rounds}
        with _following(view, listener) as seen:
            error = run_workers(job, job.store_url or str(job.run_dir), _worker, settings)
    _raise_failure(view, seen, error)
    return dict(json.loads((view.folder / "report.json").read_text()))


@dataclass(frozen=True)
class View:
    """Where the launcher sees a run: in its directory, or in a copy of what the workers have put into a store."""

    folder: Path
    store: Store | None

    def refresh(self) -> None:
        if self.store is not None:
            for name in ("config.json", EVENTS, "report.json"):
                self.store.get(name, self.folder / name)


def open_view(job: JobSpec) -> View:
    if job.store_url is None:
        return View(job.run_dir, None)
    view = View(job.run_dir / "launcher", Store(job.store_url))
    view.refresh()
    return view


@contextlib.contextmanager
def connected(address: str | None, *, cpus: int) -> Iterator[None]:
    """A connection to a cluster, or a Ray of our own on this machine with so many CPUs at least, stopped afterwards.

    Raises ClusterUnreachable.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address is None:
            ray.init("local", num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
        else:
            _knock(address)
            _join(address, quiet)
    except (OSError, ray.exceptions.AuthenticationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterUnreachable(f"cannot connect to Ray at {address or 'this machine'}: {reason}",
                                 "is the head running there, and RAY_AUTH_TOKEN or ~/.ray/auth_token its token?") from error  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, options: dict[str, Any]) -> None:
    """Connect. The cluster that runs this program as a job is there for certain, though its nodes may still be registering."""
    tries = _JOB_TRIES if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else 1
    for remaining in reversed(range(tries)):
        try:
            ray.init(address, **options)
            return
        except (ConnectionError, RuntimeError):
            if not remaining:
                raise
            time.sleep(_JOB_WAIT_SECONDS)


def _knock(address: str) -> None:
    """Raise OSError at once where nothing listens; Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def place_workers(job: JobSpec, resources: Mapping[str, float]) -> tuple[JobSpec, list[Choice]]:
    """The job with workers, GPUs and every other `auto` decided that a cluster with these resources decides, and why.

    Raises ClusterTooSmall when the cluster can never provide the workers: says what it has.
    """
    cluster, choices = job.cluster, []
    gpus = int(resources.get("GPU", 0))
    per_worker = cluster.gpus_per_worker
    if per_worker == "auto":
        per_worker = 1 if gpus else 0
        choices.append(Choice("cluster.gpus_per_worker", per_worker, f"the cluster has {gpus} GPUs" if gpus else "the cluster has no GPU"))
    if cluster.workers == "auto":
        workers = max(1, gpus) if per_worker else 1
        cluster = cluster.model_copy(update={"workers": workers})
        choices.append(Choice("cluster.workers", workers, "one for each GPU" if per_worker else "no GPU: one process uses the cores"))
    cpus, fewest = int(resources.get("CPU", 0)), cluster.fewest
    if fewest * per_worker > gpus or fewest * cluster.cpus_per_worker > cpus:
        needs = f"{fewest} workers need {fewest * cluster.cpus_per_worker} CPUs and {fewest * per_worker} GPUs"
        raise ClusterTooSmall(
            f"{needs}, the cluster has {cpus} CPUs and {gpus} GPUs", "lower cluster.workers, or set cluster.gpus_per_worker: 0 for CPU"
        )
    placed = job.model_copy(update={"cluster": cluster.model_copy(update={"gpus_per_worker": per_worker})})
    device: Literal["cuda", "cpu"] = "cuda" if per_worker else "cpu"
    resolved, more = resolve(placed, Hardware(device, cluster.most))
    return JobSpec.model_validate(resolved.model_dump()), choices + more


def check_shared(output: Path) -> None:
    """Raise ConfigError when the nodes of the cluster do not all see the folder that runs are written to."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) < 2:
        return
    output.mkdir(parents=True, exist_ok=True)
    probe = output / f".probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        seen = ray.remote(num_cpus=0)(_sees)
        placed = {node: seen.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes}
        answers = {node: task.remote(str(probe)) for node, task in placed.items()}
        blind = [address for node, address in nodes.items() if not _answer(answers[node])]
    finally:
        probe.unlink()
    if blind:
        raise ConfigError(
            f"output: {output} is not on storage that all nodes share: {', '.join(blind)} cannot see it",
            "give a path that all nodes mount",
        )


def _sees(path: str) -> bool:
    return Path(path).exists()


def _answer(reference: Any) -> bool:
    """Of a node's task; a node that is lost meanwhile says nothing against the folder."""
    try:
        return bool(ray.get(reference, timeout=_NODE_ANSWERS_SECONDS))
    except (ray.exceptions.RayError, TimeoutError):
        return True


def run_workers(job: JobSpec, place: str, work: Callable[[dict[str, Any]], None], settings: dict[str, Any]) -> BaseException | None:
    """`work(settings)` on every worker of a job whose place is decided (`place_workers`); Ray Train's own error if they failed for good.

    Ray keeps its notes in `place`/ray, a folder or a URL. Ctrl-C stops the workers and raises KeyboardInterrupt.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from trainers.world import COLLECTIVE_SECONDS

    gpus = int(job.cluster.gpus_per_worker)
    resources = {"CPU": float(job.cluster.cpus_per_worker)} | ({"GPU": float(gpus)} if gpus else {})
    trainer = TorchTrainer(
        work,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(num_workers=_number(job), use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{job.name}-{uuid.uuid4().hex[:8]}",
            storage_path=f"{place}/ray",
            failure_config=FailureConfig(max_failures=job.cluster.max_failures),
            worker_runtime_env={"env_vars": {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}},
        ),
    )
    try:
        with _interruptible():
            trainer.fit()
    except Exception as error:  # Ray wraps whatever the workers raised in types of its own
        return error
    return None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train answers Ctrl-C by ending this process with code 0, and would go on to do so after its run: here it is an interrupt."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _number(job: JobSpec) -> int | tuple[int, int]:
    return (job.cluster.fewest, job.cluster.most) if isinstance(job.cluster.workers, WorkerRange) else job.cluster.most


def _worker(settings: dict[str, Any]) -> None:
    """What Ray runs in each worker. A ConsortiumError is final: it is in the run's events, and returning keeps Ray from trying again."""
    from ray.train import get_preemption_info

    from trainers.rounds import train_rounds
    from trainers.worker import train

    def leaving() -> bool:
        return get_preemption_info() is not None

    job = JobSpec.model_validate_json(settings["job"])
    if job.store_url is not None:
        write_job(job)  # this machine has a directory of its own
    run = {"run_id": settings["run_id"], "choices": settings["choices"]}
    with contextlib.suppress(ConsortiumError):
        if settings["rounds"] is None:
            train(job.run_dir, **run, leaving=leaving)
        else:
            train_rounds(job.run_dir, **run, spool=settings["rounds"])


def _finished(view: View) -> dict[str, Any] | None:
    """The report of a run that has come to its end: to continue it is to do nothing."""
    path = view.folder / "report.json"
    report = dict(json.loads(path.read_text())) if path.exists() else {}
    return report if report.get("status") in ("finished", "stopped_early") else None


def _raise_failure(view: View, seen: list[Event], error: BaseException | None) -> None:
    """Turn how the run ended into the exception the workers had; workers that could not say so are spoken for here."""
    last = next((event for event in reversed(seen) if event["event"] in ("end", "failure")), None)
    if error is None and last is not None and last["event"] == "end":
        return
    if last is not None and last["event"] == "failure":
        failure = TrainersError(last["message"], last["hint"])
        failure.exit_code = last["exit_code"]
        raise failure
    lines = str(error).strip().splitlines() if error is not None else []
    failed = WorkersFailed(
        f"the workers failed and were not started again: {lines[-1] if lines else 'they ended without a result'}",
        f"once the cause is gone: consortium {_again(view)}",
    )
    log = EventLog(view.folder / EVENTS)
    step = max((event["step"] for event in seen if event["event"] == "step"), default=0)
    log.emit("failure", step=step, error="WorkersFailed", message=failed.message, hint=failed.hint, exit_code=failed.exit_code)
    log.close()
    write_report(view.folder)
    publish(view.folder, view.store)
    raise failed from error


def _again(view: View) -> str:
    """The command that goes on with a run."""
    if (view.folder / INPUTS).exists():  # they are removed now, and sent again with the job
        return "submit JOB.yaml"
    return "train JOB.yaml --resume" if view.store else f"resume {view.folder}"


@contextlib.contextmanager
def _following(view: View, listener: Listener) -> Iterator[list[Event]]:
    """Show a run's events to `listener` while it writes them; the list fills with those of this launch."""
    path = view.folder / EVENTS
    seen: list[Event] = []
    stop, tail = threading.Event(), Tail(path)

    def drain() -> None:
        view.refresh()
        for event in tail.new():
            seen.append(event)
            listener.on_event(event)

    def follow() -> None:
        while not stop.wait(_FOLLOW_SECONDS if view.store is None else _FETCH_SECONDS):
            drain()

    thread = threading.Thread(target=follow, daemon=True, name="events")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
        drain()
        listener.close()
