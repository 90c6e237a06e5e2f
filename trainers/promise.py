"""A private run's promise: made before a row is read, kept in the run directory, closed by a statement. Rank 0 does all of it."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from privacy.canaries import Kind, Planting, new_planting, read_planting, write_planting
from privacy.errors import LedgerError, PromiseBroken
from privacy.filter import calibrate
from privacy.ledger import Ledger, Reservation
from privacy.plan import PrivacyPlan
from privacy.selftest import Verdicts
from privacy.statement import FILE, Run, make_statement
from trainers.config import PrivacyConfig, TrainConfig, UnitColumn
from trainers.data.prepare import describe_file
from trainers.defaults import Choice, intervals

_PROMISE = "privacy.json"


@dataclass(frozen=True)
class Promise:
    plan: PrivacyPlan
    reason: str
    """Why the noise is what it is"""
    population: str
    ledger: str
    """Its id"""
    reservation: str
    terms: dict[str, Any]
    """The job's privacy block, but for where the ledger lies"""
    broken: str = ""
    """Why there will never be a statement: going on with the run must not lead to one"""

    @property
    def choices(self) -> list[Choice]:
        steps = f"{self.plan.steps} steps and {self.plan.spare_steps} spare ones are reserved for {self.population}"
        return [
            Choice("privacy.noise_multiplier", self.plan.noise_multiplier, self.reason),
            Choice("privacy.ledger", self.reservation, steps),
        ]


def steps_of(config: TrainConfig) -> int:
    """Steps of a private job: epochs are over the units declared."""
    assert config.privacy is not None
    if config.train.max_steps is not None:
        return config.train.max_steps
    return math.ceil((config.train.epochs or 0) * config.privacy.units / config.train.global_batch_size)


def make_promise(config: TrainConfig, run_dir: Path) -> Promise:
    """The run's promise: the one it made when it first started, or a new one, its steps reserved in the ledger.

    Raises LedgerError for files that no population has, BudgetRefused, PlanError, DataError.
    """
    assert config.privacy is not None
    path = run_dir / _PROMISE
    with Ledger.open(config.privacy.ledger) as ledger:
        population = ledger.population_of([describe_file(file)["sha256"] for file in config.data.train])
        if path.exists():
            return _still_holds(_read(path), config.privacy, population)
        plan, reason = _plan(config, config.privacy, ledger, population)
        held = ledger.reserve(population, plan.event, config.name)
        promise = Promise(plan, reason, population, ledger.id, held.id, _terms(config.privacy))
        _write(path, promise)
    return promise


def check_files(promise: Promise, config: TrainConfig, digests: Sequence[str]) -> None:
    """Raises LedgerError where the files that were read, known by SHA-256, are not the population's: they changed after the promise."""
    assert config.privacy is not None
    with Ledger.open(config.privacy.ledger) as ledger:
        _still_holds(promise, config.privacy, ledger.population_of(digests))


def _still_holds(promise: Promise, privacy: PrivacyConfig, population: str) -> Promise:
    """Raises LedgerError where a run that goes on would do something else than it has its budget for, PromiseBroken where it has failed."""
    if promise.broken:
        raise PromiseBroken(promise.broken, "no statement is ever written for this run; find the fault, and start one of another name")
    if (population, _terms(privacy)) != (promise.population, promise.terms):
        raise LedgerError("the rows or the privacy block are others than this run has its budget for",
                          "put them back as they were, or start a run of another name, with a budget of its own")  # fmt: skip
    return promise


def _terms(privacy: PrivacyConfig) -> dict[str, Any]:
    return privacy.model_dump(mode="json", exclude={"ledger"})


def _plan(config: TrainConfig, privacy: PrivacyConfig, ledger: Ledger, population: str) -> tuple[PrivacyPlan, str]:
    """Calibrated on all steps that are reserved, spare ones included."""
    steps = steps_of(config)
    _, save_every, _ = intervals(config, steps, evaluates=True)

    def plan(noise: float) -> PrivacyPlan:
        batch, spare = config.train.global_batch_size, privacy.restarts * min(save_every, steps)
        return PrivacyPlan(privacy.units, batch, steps, spare, privacy.clip_norm, noise, privacy.delta)

    if privacy.noise_multiplier is not None:
        return plan(privacy.noise_multiplier), "as the job says"
    assert privacy.epsilon is not None
    noise, reason = calibrate(privacy.epsilon, lambda noise: plan(noise).event, privacy.delta, ledger.filter(population))
    return plan(noise), f"for epsilon {privacy.epsilon:g}: {reason}"


def plant_canaries(config: TrainConfig, run_dir: Path, labels: Sequence[str]) -> Planting | None:
    """The run's canaries, their coins tossed when it first starts; None for a run without. Raises AuditError."""
    found = read_planting(run_dir)
    if found is None and config.privacy is not None and config.privacy.audit is not None:
        found = new_planting(config.privacy.audit.canaries, Kind.ACCOUNT, labels if config.task == "classify" else ())
        write_planting(found, run_dir)
    return found


@contextlib.contextmanager
def held(promise: Promise, config: TrainConfig, *, steps: int) -> Iterator[Reservation]:
    """The promise's reservation, in its ledger, to go on with after so many `steps`.

    Raises LedgerError where it is another ledger than the promise was made in, PromiseBroken where not all of the steps were charged to it
    or what it reserves is not what the promise plans.
    """
    assert config.privacy is not None
    with Ledger.open(config.privacy.ledger) as ledger:
        if ledger.id != promise.ledger:
            raise LedgerError(f"{config.privacy.ledger} is another ledger than the one this run has its budget from",
                              "put the first one back; steps that were charged there cannot be charged here")  # fmt: skip
        reservation = ledger.reservation(promise.reservation)
        if reservation.held.event != promise.plan.event:
            raise PromiseBroken(f"{_PROMISE} plans other steps than the ledger has reserved for it", "put it back as it was")
        if (charged := reservation.held.charged) < steps:
            raise PromiseBroken(f"the run's checkpoint has {steps} steps, of which {charged} were charged to its reservation",
                                f"{_PROMISE} is not the one it began with: put that back, or start a run of another name")  # fmt: skip
        yield reservation


def close(promise: Promise, config: TrainConfig, run_dir: Path, *, steps: int, secret: bool, verdicts: Verdicts) -> None:
    """Write the statement and give back what was not used. Raises PromiseBroken where there is nothing to state."""
    privacy = config.privacy
    assert privacy is not None
    with Ledger.open(privacy.ledger) as ledger:
        reservation = ledger.reservation(promise.reservation)
        taken = reservation.held
        column = privacy.unit if isinstance(privacy.unit, UnitColumn) else None
        run = Run(
            name=config.name,
            unit="record" if column is None else column.column,
            max_records=None if column is None else column.max_records,
            steps_taken=steps,
            secret=secret,
            canaries=privacy.audit.canaries if privacy.audit else 0,
            released="model" if config.private_full else "adapter",
            trained=_trained(config),
            base_model=config.model.name,
        )
        charged = promise.plan.event.times(taken.charged)
        try:
            statement = make_statement(promise.plan, run, charged, verdicts, ledger.status(promise.population), promise.ledger)
        except PromiseBroken as broken:
            _write(run_dir / _PROMISE, replace(promise, broken=broken.message))
            raise
        reservation.close()
    text = json.dumps(statement, indent=1, ensure_ascii=False, allow_nan=False)
    temporary = run_dir / f".{FILE}"
    temporary.write_text(text + "\n")
    temporary.rename(run_dir / FILE)


def _trained(config: TrainConfig) -> tuple[str, ...]:
    layers = "linear layers and normalisations; embeddings and the head over tokens are those of the base model"
    return (layers if config.private_full else "LoRA adapters", *(["classification head"] if config.task == "classify" else []))


def _read(path: Path) -> Promise:
    values = json.loads(path.read_text())
    return Promise(**values | {"plan": PrivacyPlan(**values["plan"])})


def _write(path: Path, promise: Promise) -> None:
    temporary = path.with_suffix(".tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(asdict(promise), stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)
