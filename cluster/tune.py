"""A search over fields of a job: trials on Ray Tune, stopped early by ASHA (Li et al. 2020). The one file that imports ray.tune.

Each trial is an ordinary run in a directory of its own, `trial-00` and so on, trained by the worker code in the trial's own process, or
when it has more workers by Ray Train under a driver of its own. What is known of a trial is read from its directory and never from what
Ray pickles: so a search that was interrupted keeps its finished trials, and the others go on from their checkpoints.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from cluster.errors import ClusterTooSmall, WorkersFailed
from cluster.job import JobSpec, as_written, check_paths, identity, read_job, write_job
from cluster.launch import check_shared, connected, place_workers
from cluster.space import Point, Space, at_point
from privacy.errors import ConsortiumError
from trainers.defaults import Choice
from trainers.errors import ConfigError, RunBusyError, TrainersError
from trainers.events import Event, EventLog, Tail
from trainers.lease import Lease
from trainers.report import read_events, write_report

Metric = Literal["eval_loss", "accuracy", "macro_f1"]
Status = Literal["waiting", "finished", "stopped", "failed", "lost"]
"""`stopped` by the scheduler; `lost` to a fault of the machine, and tried again when the search is continued."""

_FIRST_RUNG, _REDUCTION, _LAST_RUNG = 10, 3, 50
"""Percent of a trial: compared at 10 and at 30, where the best third goes on; who is half through is let through."""
_FOLLOW_SECONDS = 0.2


@dataclass(frozen=True)
class Search:
    job: JobSpec
    space: Space
    source: Path
    """The space file; relative paths in it are from its folder"""
    metric: Metric
    trials: int
    asha: bool
    concurrent: int | None
    """Trials at a time; None is as many as the cluster has room for"""
    folder: Path


@dataclass(frozen=True)
class Trial:
    """A point and what has become of it."""

    number: int
    point: Point
    run_dir: Path
    status: Status
    curve: list[tuple[float, int, float]]
    """Percent of the run, step and metric of each evaluation"""
    best: float | None
    seconds: float
    problem: str = ""

    @property
    def name(self) -> str:
        return self.run_dir.name


def run_search(search: Search, tell: Callable[[str], None]) -> list[Trial]:
    """Run the trials that are not over yet; all trials. `tell` gets a line for each evaluation and each end.

    Raises ConfigError when the folder holds another search, RunBusyError when it is being run, ClusterTooSmall, ClusterUnreachable, and
    the trials' own error when every one of them failed.
    """
    points = search.space.points(search.trials)
    jobs = [_trial_job(search, number, point) for number, point in enumerate(points)]
    if search.job.cluster.address is None:
        for job in jobs:
            check_paths(job)
    _check_evaluates(search.job)
    _write_search(search)
    lease = Lease(search.folder, uuid.uuid4().hex)
    lease.acquire()
    try:
        _run_open(search, jobs, tell)
    finally:
        lease.release()
    trials = read_trials(search)
    if all(trial.status in ("failed", "lost") for trial in trials):
        raise _failure_of(trials[0])
    return trials


def _run_open(search: Search, jobs: Sequence[JobSpec], tell: Callable[[str], None]) -> None:
    """Those trials that have not ended for good."""
    known, cluster = read_trials(search), search.job.cluster
    _set_switches()
    with connected(cluster.address, cpus=cluster.fewest * cluster.cpus_per_worker):
        check_shared(search.folder)
        places = zip(jobs, known, strict=True)
        placed = [place_workers(job, ray.cluster_resources()) for job, trial in places if trial.status in ("waiting", "lost")]
        if placed:
            room = room_for(placed[0][0], [node["Resources"] for node in ray.nodes() if node["Alive"]])
            _fit(search, placed, known, min(room, search.concurrent or room), tell)


def read_trials(search: Search) -> list[Trial]:
    """Every trial of a search, from its run directory."""
    points = search.space.points(search.trials)
    return [read_trial(number, point, search.folder / trial_name(number), search.metric) for number, point in enumerate(points)]


def read_trial(number: int, point: Point, run_dir: Path, metric: Metric) -> Trial:
    events = _events(run_dir)
    steps = next((event["steps"] for event in events if event["event"] == "start"), 1)
    evaluations = {event["step"]: event["metrics"].get(metric) for event in events if event["event"] == "eval"}
    curve = [(100 * step / steps, step, value) for step, value in sorted(evaluations.items()) if value is not None]
    last = _last_word(events)
    return Trial(
        number=number,
        point=point,
        run_dir=run_dir,
        status=_status(last),
        curve=curve,
        best=best_of([value for _, _, value in curve], metric),
        seconds=sum(event["seconds"] for event in events if event["event"] == "step"),
        problem=last["message"] if last is not None and last["event"] == "failure" else "",
    )


def best_of(values: Sequence[float], metric: Metric) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return (min if metric == "eval_loss" else max)(finite, default=None)


def best_trial(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Of the finished ones; of all, where none has finished."""
    judged = [trial for trial in trials if trial.best is not None]
    finished = [trial for trial in judged if trial.status == "finished"] or judged
    return min(finished, key=lambda trial: _cost(trial.best, metric), default=None)


def room_for(job: JobSpec, nodes: Sequence[Mapping[str, float]]) -> int:
    """Trials of a placed job that fit on these nodes at once. A worker does not stretch over nodes; a trial may.

    Raises ClusterTooSmall.
    """
    cpus, gpus, workers = job.cluster.cpus_per_worker, int(job.cluster.gpus_per_worker), job.cluster.most
    slots = sum(min(int(node.get("CPU", 0)) // cpus, int(node.get("GPU", 0)) // gpus if gpus else 10**9) for node in nodes)
    if slots < workers:
        raise ClusterTooSmall(f"a trial needs {workers} workers, the cluster has room for {slots}", "lower cluster.workers")
    return slots // workers


def write_best(search: Search, trial: Trial, path: Path) -> None:
    """The job file of a trial: the searched job with its point, under a name of its own."""
    job = at_point(search.job, trial.point, source=search.source)
    job = job.model_copy(update={"name": f"{search.job.name}-best"})
    about = f"# {trial.name} of {search.folder}: {search.metric} {trial.best:.6g}\n"
    path.write_text(about + yaml.safe_dump(as_written(job), sort_keys=False, allow_unicode=True))


def trial_name(number: int) -> str:
    return f"trial-{number:02d}"


def _trial_job(search: Search, number: int, point: Point) -> JobSpec:
    """With as few workers as the job allows, one where it is left open: more trials at a time serve a search better than faster ones."""
    job = at_point(search.job, point, source=search.source)
    cluster = job.cluster.model_copy(update={"workers": job.cluster.fewest})
    return job.model_copy(update={"name": trial_name(number), "output": search.folder, "cluster": cluster})


def _check_evaluates(job: JobSpec) -> None:
    if not job.data.validation and not job.data.validation_fraction:
        raise ConfigError("a search needs validation rows to compare trials by", "set data.validation or data.validation_fraction")


def _write_search(search: Search) -> None:
    """Remember what is searched. Raises ConfigError when the folder holds another search."""
    now = {"job": identity(search.job), "metric": search.metric, "space": search.space.as_dict()}
    path = search.folder / "search.json"
    if path.exists() and (before := json.loads(path.read_text())) != now:
        changed = ", ".join(name for name in now if before.get(name) != now[name])
        raise ConfigError(f"{search.folder} holds another search: {changed} differ", "give this one another folder: --output DIR")
    search.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(json.dumps(now, indent=1))


def _set_switches() -> None:
    """Of Ray Tune: no logs and no tables of its own, Ctrl-C is ours, a trial may have nothing to tell, workers stay in their folder."""
    switches = ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER", "TUNE_DISABLE_STRICT_METRIC_CHECKING")
    os.environ.update(dict.fromkeys(switches, "1") | {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_AIR_NEW_OUTPUT": "0"})


def _fit(
    search: Search,
    placed: Sequence[tuple[JobSpec, list[Choice]]],
    known: Sequence[Trial],
    concurrent: int,
    tell: Callable[[str], None],
) -> None:
    first, metric = placed[0][0], search.metric
    choices = {str(write_job(job)): chosen for job, chosen in placed}

    def trainable(config: dict[str, Any]) -> None:
        _run_trial(Path(config["run_dir"]), metric, choices[config["run_dir"]])

    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(first)),
        param_space={"run_dir": tune.grid_search(list(choices))},
        tune_config=tune.TuneConfig(scheduler=_scheduler(search, known), max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(search.folder),
            failure_config=tune.FailureConfig(max_failures=first.cluster.max_failures),
            callbacks=[_Watcher(search.metric, tell)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(search.folder / "ray", ignore_errors=True)  # Ray's own record, which nothing reads


def _resources(job: JobSpec) -> dict[str, float]:
    """Of the trial's own process. Beside workers of its own it only waits; Ray wants it to ask for something."""
    if job.cluster.most > 1:
        return {"memory": float(2**20)}
    return {"CPU": float(job.cluster.cpus_per_worker), "GPU": float(job.cluster.gpus_per_worker)}


def _scheduler(search: Search, known: Sequence[Trial]) -> Any:
    """ASHA by percent of a trial, so that trials of unlike length compare; what earlier trials have shown is told to it first."""
    if not search.asha:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="percent",
        metric=search.metric,
        mode="min" if search.metric == "eval_loss" else "max",
        grace_period=_FIRST_RUNG,
        max_t=_LAST_RUNG,
        reduction_factor=_REDUCTION,
        stop_last_trials=False,
    )
    for trial in known:
        if trial.status in ("finished", "stopped"):
            past = _Past(trial.name)
            scheduler.on_trial_add(None, past)
            for percent, _, value in trial.curve:
                scheduler.on_trial_result(None, past, {"percent": percent, search.metric: value})
    return scheduler


@dataclass(frozen=True)
class _Past:
    """What ASHA asks of a trial."""

    trial_id: str


def _run_trial(run_dir: Path, metric: Metric, choices: Sequence[Choice]) -> None:
    """What Ray runs for a trial. A ConsortiumError is final: it is in the run's events, and returning keeps Ray from trying again."""
    job, reporter = read_job(run_dir), _Reporter(metric)
    try:
        if job.cluster.most > 1:
            _follow_driver(run_dir, reporter)
        else:
            from trainers.worker import train

            train(run_dir, run_id=uuid.uuid4().hex, choices=choices, listeners=[reporter])
    except (RunBusyError, WorkersFailed):  # held by a process that died elsewhere a moment ago; or a fault of the machine
        raise
    except ConsortiumError:
        return


def _follow_driver(run_dir: Path, reporter: "_Reporter") -> None:
    """Run a trial's workers under a driver in a process of its own (see cluster.trial), which ends with this one."""
    address = ray.get_runtime_context().gcs_address
    tail = Tail(run_dir / "events.jsonl")
    with (run_dir / "driver.log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "cluster.trial", str(run_dir), address],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        over = False
        while not over:
            over = driver.poll() is not None  # looked at first, so that nothing it wrote before its end is missed
            for event in tail.new():
                reporter.on_event(event)
            time.sleep(0 if over else _FOLLOW_SECONDS)
    finally:
        driver.kill()
        driver.wait()
    if driver.returncode:
        raise WorkersFailed(f"the trial's driver ended with {driver.returncode}", f"{run_dir}/driver.log says more")


class _Reporter:
    """Tells Ray Tune each evaluation of a run but the last, after which it still writes its model.

    A trial that is to end does not come back from telling.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric, self._steps = metric, 1

    def on_event(self, event: Event) -> None:
        if event["event"] == "start":
            self._steps = event["steps"]
        elif event["event"] == "eval" and event["step"] < self._steps and event["metrics"].get(self._metric) is not None:
            tune.report({"percent": 100 * event["step"] / self._steps, self._metric: event["metrics"][self._metric]})

    def close(self) -> None:
        pass


class _Watcher(tune.Callback):
    """Says what becomes of each trial, and sees to it that its run directory says so too."""

    def __init__(self, metric: Metric, tell: Callable[[str], None]) -> None:
        self._metric, self._tell = metric, tell

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray keeps a copy of its callbacks, which nothing reads and a terminal cannot go into

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if self._metric in result:
            name = Path(trial.config["run_dir"]).name
            self._tell(f"{name}  {result['percent']:3.0f} %  {self._metric} {result[self._metric]:.4f}")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        run_dir = Path(trial.config["run_dir"])
        _record_stop(run_dir)
        self._tell(f"{run_dir.name}  {_status(_last_word(_events(run_dir)))}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        run_dir = Path(trial.config["run_dir"])
        with _record(run_dir) as log:
            log.emit("failure", step=0, error=WorkersFailed.__name__, message="the trial's process died, and again when started anew",
                     hint="once the cause is gone, --resume goes on", exit_code=WorkersFailed.exit_code)  # fmt: skip
        self._tell(f"{run_dir.name}  lost")


def _record_stop(run_dir: Path) -> None:
    """A trial that Ray ended without a last word was stopped by the scheduler; its events and report are to say so."""
    events = _events(run_dir)
    if _status(_last_word(events)) != "waiting":
        return
    evaluations = [event for event in events if event["event"] == "eval"]
    with _record(run_dir) as log:
        log.emit(
            "end",
            step=evaluations[-1]["step"],
            status="stopped_by_search",
            metrics=evaluations[-1]["metrics"],
            best=None,
            output=str(run_dir),
        )


@contextlib.contextmanager
def _record(run_dir: Path) -> Iterator[EventLog]:
    """The event log of a run whose workers are gone, and a new report afterwards."""
    log = EventLog(run_dir / "events.jsonl")
    yield log
    log.close()
    write_report(run_dir)


def _events(run_dir: Path) -> list[Event]:
    path = run_dir / "events.jsonl"
    return read_events(path) if path.exists() else []


def _last_word(events: Sequence[Event]) -> Event | None:
    """How the last attempt of a run began, or ended."""
    return next((event for event in reversed(events) if event["event"] in ("start", "end", "failure")), None)


def _status(last: Event | None) -> Status:
    match last:
        case {"event": "end", "status": "stopped_by_search"}:
            return "stopped"
        case {"event": "end"}:
            return "finished"
        case {"event": "failure", "error": "WorkersFailed"}:
            return "lost"
        case {"event": "failure"}:
            return "failed"
        case _:
            return "waiting"


def _failure_of(trial: Trial) -> TrainersError:
    """The error of a trial, as its worker had it."""
    last = _last_word(_events(trial.run_dir))
    assert last is not None
    error = TrainersError(f"every trial failed; {trial.name}: {last['message']}", last["hint"])
    error.exit_code = last["exit_code"]
    return error


def _cost(value: float | None, metric: Metric) -> float:
    assert value is not None
    return value if metric == "eval_loss" else -value
