"""A bank's training job for a federated run: what a round asks of it, how it is started, and that it is alive.

The job is another process (trainers/rounds.py), or several on the bank's Ray cluster, which keeps the base model loaded over rounds. The
two speak through a spool in the run's directory, and either may be killed: a job that has died is started again, once for a round, and
finds the round's order; a job that has outlived the bank's process is gone on with, and what it did meanwhile is had by asking again. One
that nobody goes on with ends after a while. One that is later than its round waits is ended: a bank that is busy with a round that is over
could not answer the next one.
"""

import contextlib
import hashlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cluster.job import JobSpec, write_job
from federation.config import BankConfig, TrainingConfig
from federation.errors import TrainingFailed
from federation.rounds.aggregate import Adapter
from federation.rounds.budget import Kind, RoundBudget
from trainers.config import LoraMethod, UnitColumn, validate
from trainers.errors import ConfigError, RunBusyError
from trainers.lease import check_free
from trainers.orders import READY, STOP, Evaluation, Failed, Order, PrivateSteps, unpack_answer
from trainers.spool import Spool

HELD_OUT = 0.1
"""Share of the units that a noised evaluation is on, where the bank's data block says nothing"""
LOG = "job.log"
_STOP_SECONDS = 60.0
_LINES_SHOWN = 5
_FINAL = (2, 3)
"""Exit codes of mistakes and refusals, which another start would meet again"""


@dataclass(frozen=True)
class Task:
    """What a bank is to do in a round."""

    run: str
    round: int
    attempt: int
    kind: Kind
    training: TrainingConfig
    adapter: Adapter
    """As the coordinator sent it"""
    budget: RoundBudget | None
    """Reserved; None where nothing private is done under a budget"""


@dataclass(frozen=True)
class Work:
    """What came of it."""

    adapter: Adapter
    """After local training; as it was given for an evaluation"""
    metrics: tuple[float, ...]
    """In the order of the training's metric_names: each from 0 to 1, noised where that is asked for"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the bank's record: steps taken and charged, verdicts of the self-tests. Seconds are none: they tell who was drawn."""


Train = Callable[[Task], Work]


class LocalTrainer:
    """A Train: the job of the run that was last worked for is kept alive until `close`."""

    def __init__(self, read_config: Callable[[], BankConfig], runs: Path) -> None:
        """`read_config` is asked at every task, so that data and unit count as they are written then. Run directories are made in `runs`,
        by the names of runs."""
        self._read_config, self._runs = read_config, runs
        self._base_model = read_config().base_model
        self._job: _Job | None = None

    def start(self, run: str, training: TrainingConfig, until: float = math.inf) -> None:
        """Have the job of a run loaded, by `until` of time.monotonic; it may take minutes. That of another run is ended.

        Raises ConfigError, TrainingFailed.
        """
        spec = job_of(run, training, self._config(), self._runs)
        if self._job is not None and self._job.spec != spec:
            self.close()
        if self._job is None:
            self._job = _Job(spec)
            self._job.take(READY, until)

    def __call__(self, task: Task) -> Work:
        """Raises ConfigError, TrainingFailed."""
        until = time.monotonic() + task.training.timeouts.update
        self.start(task.run, task.training, until)
        assert self._job is not None
        content = order_of(task, self._config()).pack()
        name = f"{task.round:06d}-{task.attempt:04d}-{task.kind}-{hashlib.sha256(content).hexdigest()[:16]}"
        answer = self._job.ask(name, content, until)
        self._job.keep_only(name)
        return work_of(task, answer)

    def _config(self) -> BankConfig:
        """ConfigError where the base model is not the one whose hash is known."""
        config = self._read_config()
        if config.base_model != self._base_model:
            raise ConfigError(
                "bank.yaml names another base model than when this bank's process began", "start it again: it then takes the model's hash"
            )
        return config

    def close(self) -> None:
        """End the job. A round that it was in begins anew where it is asked for again."""
        if self._job is not None:
            self._job.stop()
            self._job = None


def job_of(run: str, training: TrainingConfig, bank: BankConfig, runs: Path) -> JobSpec:
    """The bank's job for a run: the federation says what is learnt, the bank on what and where. Raises ConfigError."""
    column = bank.unit.column if isinstance(bank.unit, UnitColumn) else None
    values: dict[str, Any] = {
        "name": run,
        "output": runs,
        "task": training.task,
        "model": {"path": str(bank.base_model)},
        "method": method_of(training).model_dump(),
        "data": {
            **({"on_bad_row": "skip"} if training.privacy else {}),  # that one row does not fit the terms is not for others to see
            **bank.data.model_dump(exclude_unset=True),
            **_held_out(training, bank),
            **({"group_by": column} if column else {}),
            "labels": training.labels,
            "max_length": training.local.max_length,
            "over_length": "truncate",
        },
        "train": {
            "max_steps": training.local.steps,
            "global_batch_size": min(training.local.batch, bank.units),
            "learning_rate": training.local.learning_rate,
            "schedule": "constant",
            "warmup": 0,
            "max_grad_norm": 0.0 if training.privacy else training.local.clip_norm,
        },
        "checkpoint": {"best_by": None},
        "tracking": {"tensorboard": False},
        "cluster": bank.cluster.model_dump(),
    }
    if training.privacy is not None:
        values["privacy"] = {
            "epsilon": training.privacy.epsilon,
            "delta": training.privacy.delta,
            "clip_norm": training.local.clip_norm,
            "unit": bank.unit,
            "units": bank.units,
            "ledger": bank.ledger,
            "restarts": 0,
        }
    return validate(JobSpec, values, source=f"run {run}, as bank.yaml and the federation have it", hint="mend bank.yaml")


def _held_out(training: TrainingConfig, bank: BankConfig) -> dict[str, Any]:
    """Which rows the model is evaluated on, and not trained: none, those of public files, or a share of the units."""
    match training.evaluation:
        case "off":
            return {"validation": [], "validation_fraction": 0.0}
        case "public_data" if not bank.data.validation:
            raise ConfigError("evaluation: public_data: data.validation names no files", "name files of public rows there, in bank.yaml")
        case "noised" if "validation_fraction" not in bank.data.model_fields_set:
            return {"validation_fraction": HELD_OUT}
    return {}


def method_of(training: TrainingConfig) -> LoraMethod:
    """A is trained where it is averaged too; elsewhere it is the same at all banks, and B alone is."""
    shape = training.adapter
    return LoraMethod(rank=shape.rank, alpha=shape.alpha, targets=shape.targets, train_a=training.aggregation.method == "fedavg")


def order_of(task: Task, bank: BankConfig) -> Order:
    """A task as the training job is told of it. Raises ConfigError for a budget that was not reserved."""
    training, steps = task.training, task.training.local.steps if task.kind == "train" else 0
    private = None
    if training.privacy is not None and steps:
        if task.budget is None or task.budget.plan is None or task.budget.training is None:
            raise ConfigError("private training without a reservation", "reserve the round's budget first")
        private = PrivateSteps(task.budget.plan, task.budget.training)
    evaluation = None if training.evaluation == "off" else _evaluation_of(task, bank)
    rate = training.learning_rate(task.round)
    return Order(task.round, task.attempt, steps, rate, task.adapter, private, evaluation, training.keeps_moments)


def _evaluation_of(task: Task, bank: BankConfig) -> Evaluation:
    """Where banks weigh alike, each counts what share of its own units is right."""
    most = task.training.aggregation.most_units or bank.units
    if task.training.evaluation == "public_data":
        return Evaluation(most)
    if task.budget is None or task.budget.evaluation_noise is None or task.budget.evaluation is None:
        raise ConfigError("a noised evaluation without a reservation", "reserve the round's budget first")
    return Evaluation(most, task.budget.evaluation_noise, task.budget.evaluation)


def work_of(task: Task, answer: bytes) -> Work:
    """What the training job's answer says. Raises ConfigError, TrainingFailed."""
    done = unpack_answer(answer)
    if isinstance(done, Failed):
        raise TrainingFailed(f"training answered with {done.error}", f"{done.message}; {done.hint}")
    facts = {"steps": done.steps, "charged": done.charged, "verdicts": done.verdicts}
    return Work(done.adapter or task.adapter, done.metrics, facts)


def write_start(training: TrainingConfig, base_model: Path, seed: int, folder: Path) -> None:
    """What a run begins with, as a new folder in Hugging Face layout with its tokenizer: A drawn as PEFT does, B zero, a new head as its
    model draws it; a function of the seed.

    The base model is loaded for it, in float32 and main memory. Raises ModelError, OSError.
    """
    import torch

    from trainers.config import ModelConfig
    from trainers.model import Loaded, add_adapters, load_base, load_tokenizer, names_on_disk, save_trained
    from trainers.worker import quiet

    quiet()
    model = ModelConfig(path=str(base_model), dtype="float32")
    tokenizer = load_tokenizer(model)
    base = load_base(model, training.task, tokenizer, labels=training.labels, device=torch.device("cpu"), seed=seed)
    module = add_adapters(base, method_of(training), training.task, quantized=False)
    names = names_on_disk(module)
    tensors = {name: tensor for name, tensor in module.state_dict().items() if name in names}
    save_trained(Loaded(module, base, tokenizer), tensors, folder, labels=training.labels)


class _Job:
    """The process, or the driver of those on a cluster, and its spool."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self._spool = Spool(spec.run_dir / "rounds")
        self._claim = self._spool.claim()
        self._process: subprocess.Popen[bytes] | None = None
        if self._alive() and _read(spec.run_dir / "job.json") != _text(spec):
            self.stop()  # it has outlived a bank's process that had another bank.yaml

    def take(self, name: str, until: float) -> bytes:
        """The answer to a request that says nothing, as `ask`."""
        answer = self.ask(name, b"", until)
        self._spool.withdraw(name)
        return answer

    def keep_only(self, name: str) -> None:
        """All other answers were taken for good."""
        self._spool.keep_only(name)

    def ask(self, name: str, content: bytes, until: float) -> bytes:
        """The answer, which is kept: who was killed with it in hand may ask again. Raises TrainingFailed where the job has died, and died
        again, and where there is none by then: the job is ended, so that the bank can go on."""
        if self._claim.closed:
            self._claim = self._spool.claim()
        for _ in range(2):
            if not self._alive():
                self._start()
            if (answer := self._spool.ask(name, content, waiting=lambda: self._alive() and time.monotonic() < until)) is not None:
                return answer
            if time.monotonic() >= until:
                self._spool.withdraw(name)
                self.stop()
                raise TrainingFailed("training took longer than its round waits for it",
                                     "fewer steps a round, a longer timeouts.update in federation.yaml, or a faster machine")  # fmt: skip
            if self._process is not None and self._process.returncode in _FINAL:
                break
        log = self.spec.run_dir / LOG
        raise TrainingFailed("the training job has ended", f"its last words: {_last_words(_read(log))}; all it said is in {log}")

    def stop(self) -> None:
        until = time.monotonic() + _STOP_SECONDS
        self._spool.ask(STOP, b"", waiting=lambda: self._alive() and time.monotonic() < until)
        while self._alive() and time.monotonic() < until:
            time.sleep(0.05)
        self._spool.withdraw(STOP)
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            self._process.kill()
            self._process.wait()
        self._claim.close()

    def _start(self) -> None:
        run_dir = write_job(self.spec)
        (run_dir / "job.json").write_text(_text(self.spec))
        self._spool.withdraw(STOP)
        module, config = ("trainers", "config.json") if _is_one_process(self.spec) else ("cluster", "job.json")
        arguments = [sys.executable, "-m", module, str(run_dir / config), "--rounds", str(run_dir / "rounds")]
        with open(run_dir / LOG, "ab", opener=partial(os.open, mode=0o600)) as log:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _alive(self) -> bool:
        """Of a job that an earlier process of the bank has started, the lease says so."""
        if self._process is not None:
            return self._process.poll() is None
        try:
            check_free(self.spec.run_dir)
        except RunBusyError:
            return True
        return False


def _is_one_process(spec: JobSpec) -> bool:
    cluster = spec.cluster
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    workers = max(1, gpus) if cluster.workers == "auto" and cluster.gpus_per_worker != 0 else cluster.most
    return cluster.address is None and workers == 1


def _last_words(log: str) -> str:
    """The error it named, or else the end of what it said."""
    lines = [line.strip() for line in log.splitlines()]
    named = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return " / ".join(lines[named[-1] :][:_LINES_SHOWN] if named else lines[-_LINES_SHOWN:])


def _text(spec: JobSpec) -> str:
    return spec.model_dump_json(indent=1)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
