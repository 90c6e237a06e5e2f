"""A training process that keeps base model, engine and rows loaded, and takes rounds from a spool: a bank's side of federated training.

A round brings an adapter and says how many steps to take from it; the answer is the adapter after them. What has to survive is on disk in
the spool: the order until it is answered, the answer until it is taken. So there are no checkpoints: a process that was killed, and is
started again, begins the round it was in anew, from the order. Its private steps are charged anew, and where the round's reservation holds
fewer than the round has, it takes those that are left: nothing of the steps before was released. What a round leaves to the next one is
in moments.py.

`Rounds` is the same without a spool, for many jobs that differ in their rows: a simulation's, whose banks share one model.

In a private job every round has a plan and a reservation of its own, fresh secrets and its own self-tests: where one fails, the answer is
an error, and nothing else leaves. The ledger has a step, and an evaluation, before it is made.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from privacy.errors import BudgetRefused, ConsortiumError, LedgerError, PlanError, PromiseBroken
from privacy.evaluation import event, public, release
from privacy.ledger import Ledger, Reservation
from privacy.plan import Event, PrivacyPlan
from privacy.stream import Stream
from trainers import moments
from trainers.config import UnitColumn
from trainers.cpu import fast_products
from trainers.data.prepare import Summary
from trainers.data.sampler import Sampler
from trainers.defaults import Choice
from trainers.engine import gathered
from trainers.errors import ConfigError, RunBusyError
from trainers.events import Listener
from trainers.loop import Run, ordinary_steps, rightness
from trainers.model import load_tokenizer, names_on_disk, shape_of
from trainers.orders import READY, STOP, Done, Evaluation, Failed, Order, PrivateSteps
from trainers.private import Private, begin, charge, enter_on_main, private_steps, verdicts, with_secrets
from trainers.private_work import Units
from trainers.report import write_report
from trainers.spool import Spool
from trainers.worker import Opened, build, decide, opened, prepare_data, sampler_of, start_facts, watched

_ABANDONED_SECONDS = 600.0
"""After which a process ends that nobody will ask again: the one that did has died, and was not started again"""
_WAIT_SECONDS = 20.0
"""How long rank 0 looks for an order before it tells the others that there is none yet: no collective may wait for hours"""


@dataclass
class Model:
    """What stays loaded, beside the engine."""

    module: nn.Module
    """The base model with its adapter"""
    base: nn.Module
    """The Hugging Face model within"""
    names: Mapping[str, str]
    """Of the adapter's parameters in `module`, by those on disk"""
    private: Private | None = None
    """Of the round before, whose hooks in the model the next one uses"""


@dataclass
class Job:
    """Rows, and the model that learns from them."""

    run: Run
    model: Model
    digests: tuple[str, ...]
    """SHA-256 of its files, those to train on first"""
    folder: Path
    """Of the run; moments are kept there"""


def train_rounds(run_dir: Path, *, run_id: str, spool: Path, choices: Sequence[Choice] = (), listeners: Sequence[Listener] = ()) -> None:
    """Load the job of `run_dir/config.json` and answer the orders in `spool` (see orders.py) until one says to stop. All ranks call it.

    Raises ConsortiumError where the job cannot be loaded; what is wrong with a round is the round's answer.
    """
    with opened(run_dir, run_id=run_id, listeners=listeners) as held:
        job = _load(held, choices)
        with fast_products(longest=int(job.run.train.lengths.max())):
            taken = _serve(job, spool)
        held.log.emit("end", step=taken, status="stopped", metrics={}, output=str(spool))
        held.world.on_main(lambda: write_report(run_dir))


class Rounds:
    """Rounds of many jobs in this process, one after the other. They share one model and engine: they are alike but for their rows, their
    batches and the population that pays for them."""

    def __init__(self) -> None:
        self._jobs: dict[Path, Job] = {}

    def take(self, run_dir: Path, order: bytes) -> bytes:
        """Answer an order (see orders.py) for the job of `run_dir/config.json`. Raises ConsortiumError where the job cannot be loaded."""
        with opened(run_dir, run_id=run_dir.name, listeners=()) as held:
            if (job := self._jobs.get(run_dir)) is None:
                first = next(iter(self._jobs.values()), None)
                job = self._jobs[run_dir] = _load(held, ()) if first is None else _beside(first, held)
            job.run.log, job.run.lease = held.log, held.lease
            with fast_products(longest=int(job.run.train.lengths.max())):
                return _try(job, order).pack()


def _load(held: Opened, choices: Sequence[Choice]) -> Job:
    tokenizer = load_tokenizer(held.config.model)
    shape = shape_of(held.config.model, held.config.task)
    config, chosen_here = decide(held.config, shape, held.world)
    if config.method.type != "lora":
        raise ConfigError(f"method: {config.method.type}: rounds are of an adapter", "set method: lora")
    summary, *data = prepare_data(config, tokenizer, held.run_dir, held.world)
    run, loaded, chosen_with_model = build(config, shape, tokenizer, data, held.run_dir, held.world, held.log, held.lease)
    choices = [*choices, *chosen_here, *chosen_with_model]
    held.log.emit("start", step=0, steps=run.sampler.steps, **start_facts(run, summary, shape, choices))
    names = {on_disk: name for name, on_disk in names_on_disk(loaded.module).items()}
    return Job(run, Model(loaded.module, loaded.base, names), _digests(summary), held.run_dir)


def _beside(job: Job, held: Opened) -> Job:
    """Another job on the model of this one, whose decisions it takes over."""
    decided, own = job.run.config, held.config
    data = own.data.model_copy(update={"max_length": decided.data.max_length, "packing": decided.data.packing})
    train = decided.train.model_copy(update={"global_batch_size": own.train.global_batch_size})
    config = decided.model_copy(update={"data": data, "train": train, "privacy": own.privacy})
    summary, *sides = prepare_data(config, load_tokenizer(config.model), held.run_dir, held.world)
    for side in sides:
        side.number_classes_as(job.run.train.labels)
    run = replace(job.run, config=config, train=sides[0], validation=sides[1], sampler=sampler_of(config, len(sides[0])))
    return Job(run, job.model, _digests(summary), held.run_dir)


def _digests(summary: Summary) -> tuple[str, ...]:
    return tuple(file["sha256"] for file in summary.files)


def _serve(job: Job, folder: Path) -> int:
    """Answer one request after the other; the steps taken in all."""
    world, taken = job.run.world, 0
    spool, owned = world.on_main(lambda: Spool(folder)), time.monotonic()
    while True:
        found = world.on_main(lambda: _next(job.run, spool))
        if found is None:
            owned = owned if world.on_main(lambda: spool.is_abandoned) else time.monotonic()
            if world.on_main(partial(_expired, owned)):
                return taken
            continue
        owned = time.monotonic()
        name, content = found
        answer = b""
        if name not in (READY, STOP):
            done = _try(job, content)
            taken, answer = taken + (done.steps if isinstance(done, Done) else 0), done.pack()
        world.on_main(partial(spool.answer, name, answer))
        if name == STOP:
            return taken


def _expired(owned: float) -> bool:
    return time.monotonic() - owned > _ABANDONED_SECONDS


def _next(run: Run, spool: Spool) -> tuple[str, bytes] | None:
    until = time.monotonic() + _WAIT_SECONDS
    found = spool.next(waiting=lambda: time.monotonic() < until and not run.lease.lost)
    if run.lease.lost:
        raise RunBusyError("another process has taken over the run directory", "this one ends without another write to it")
    return found


def _try(job: Job, content: bytes) -> Done | Failed:
    """A mistake in an order, or a round that went wrong on all ranks alike, is its answer; the next one begins from its own adapter."""
    try:
        return _take(job, Order.unpack(content))
    except RunBusyError:
        raise
    except ConsortiumError as error:
        job.run.engine.forget_gradients()
        job.run.log.emit("warning", step=0, message=f"a round was answered with {type(error).__name__}: {error.message}")
        return Failed.of(error)


def _take(job: Job, order: Order) -> Done:
    began, run = time.perf_counter(), _of_round(job.run, order)
    if (order.private is None) == (run.config.privacy is not None) and order.steps:
        raise ConfigError("private steps are for a job with a privacy block, and such a job takes no others", "order what the job is for")
    run.engine.alive_at = time.monotonic()  # it may have waited for hours
    _put(job, order)
    with watched(run):
        metrics = () if order.evaluation is None else _evaluate(job, order.evaluation)
        done = Done({}, metrics, steps=0, charged=0, verdicts={}, seconds=0.0)
        run.engine.train()
        if order.steps and order.private is not None:
            done = _train_privately(job, run, order.private, done)
        elif order.steps:
            done = replace(done, steps=_count(ordinary_steps(run, 0)))
    adapter = {**order.adapter, **_trained(job)} if order.steps else {}
    if order.steps and order.keep_moments:
        _keep_moments(job, order.round)
    seconds = time.perf_counter() - began
    run.log.emit("round", step=done.steps, round=order.round, attempt=order.attempt, steps=done.steps, seconds=round(seconds, 2))
    return replace(done, adapter=adapter, seconds=seconds)


def _of_round(run: Run, order: Order) -> Run:
    """With the round's rate, and an order of the rows and a dropout that no other round of the run has."""
    train = run.config.train.model_copy(update={"seed": round_seed(run.config.train.seed, order.round, order.attempt)})
    return replace(
        run,
        config=run.config.model_copy(update={"train": train}),
        sampler=Sampler(run.sampler.examples, run.sampler.batch_size, seed=train.seed, max_steps=max(1, order.steps)),
        learning_rate=lambda step: order.learning_rate,
    )


def round_seed(seed: int, round: int, attempt: int) -> int:
    """What stands in the place of `train.seed` in a round."""
    return int(np.random.SeedSequence([seed, round, attempt]).generate_state(1)[0])


def _put(job: Job, order: Order) -> None:
    """The order's adapter into the model, whatever the ZeRO stage, and the optimizer as it was left, or as new."""
    if order.adapter.keys() != job.model.names.keys():
        other = min(order.adapter.keys() ^ job.model.names.keys())
        raise ConfigError(f"{other} is {'no part of' if other in order.adapter else 'missing in'} the adapter of this job",
                          "rank, targets and labels have to be those of the job")  # fmt: skip
    parameters = dict(job.model.module.named_parameters())
    # in an order that is the same on all ranks, as safetensors' own is not
    tensors = {job.model.names[on_disk]: torch.from_numpy(order.adapter[on_disk]) for on_disk in sorted(order.adapter)}
    for name, tensor in tensors.items():
        if (shape := getattr(parameters[name], "ds_shape", parameters[name].shape)) != tensor.shape:
            raise ConfigError(f"{name} is {tuple(tensor.shape)}, expected {tuple(shape)}", "rank and targets have to be those of the job")
        if not bool(tensor.isfinite().all()):
            raise ConfigError(f"{name} has NaN or infinity in it", "the run has diverged: begin from an earlier round's adapter")
    engine, private = job.run.engine, job.run.config.privacy is not None
    kept = None
    if order.keep_moments and order.steps:
        kept = job.run.world.on_main(lambda: moments.read(job.folder, order.round, engine.shapes, private=private))
    engine.begin_with({name: tensors[name.removeprefix("model.")] for name in engine.names}, kept)
    for name, tensor in tensors.items():
        if not parameters[name].requires_grad:
            with torch.no_grad(), gathered([parameters[name]], modify=True):
                parameters[name].copy_(tensor)


def _keep_moments(job: Job, round: int) -> None:
    """For the next round, unless they would spoil it. A disk that is full costs the moments, and no round that is paid for."""
    run, left = job.run, job.run.engine.whole_moments()
    if not left.finite:
        return
    try:
        run.world.on_main(lambda: moments.write(job.folder, round, left, private=run.config.privacy is not None))
    except OSError as error:
        run.log.emit("warning", step=0, message=f"the optimizer's moments are not kept: {error}")


def _trained(job: Job) -> dict[str, np.ndarray]:
    """What the steps have changed, by its names on disk."""
    masters = job.run.engine.whole_masters()
    return {on_disk: masters[f"model.{name}"].numpy() for on_disk, name in job.model.names.items() if f"model.{name}" in masters}


def _train_privately(job: Job, run: Run, steps: PrivateSteps, done: Done) -> Done:
    world, privacy = run.world, run.config.privacy
    assert privacy is not None
    most = privacy.unit.max_records if isinstance(privacy.unit, UnitColumn) else None
    units = Units.of(run.train, max_records=most)
    with contextlib.ExitStack() as stack:
        digests = job.digests[: len(run.config.data.train)]
        reservation = enter_on_main(stack, world, lambda: _held(job, steps.reservation, steps.plan.event, digests))
        left = world.on_main(lambda: _left(reservation))
        if not left:
            raise BudgetRefused("none of the round's reserved steps is left", "a new attempt has a reservation of its own")
        job.model.private = _begin(job, steps.plan, units, reservation)
        taken = _count(private_steps(job.model.private, run, steps.plan.steps - min(left, steps.plan.steps)))
        charged = world.on_main(lambda: left - _left(reservation))
        found = verdicts(run, job.model.private, charged)
    if not found.passed:
        raise PromiseBroken(f"the round's own tests failed: {', '.join(found.failed)}", "nothing of it leaves; find the fault first")
    return replace(done, steps=taken, charged=charged, verdicts=asdict(found))


def _begin(job: Job, plan: PrivacyPlan, units: Units, reservation: Reservation | None) -> Private:
    if job.model.private is None:
        return begin(plan, units, job.run.engine, job.model.base, job.run.world, reservation)
    job.model.private.whole.update(job.run.engine.whole())
    return with_secrets(plan, units, job.model.private.gradients, job.model.private.whole, job.run.world, reservation)


@contextlib.contextmanager
def _held(job: Job, id: str, planned: Event, digests: Sequence[str]) -> Iterator[Reservation]:
    """The reservation, if it is of what is planned and of the population whose files these are. Raises LedgerError, PromiseBroken."""
    privacy = job.run.config.privacy
    assert privacy is not None
    with Ledger.open(privacy.ledger) as ledger:
        reservation = ledger.reservation(id)
        if (population := ledger.population_of(digests)) != reservation.held.population:
            raise LedgerError(f"the rows are of {population}, the budget is of {reservation.held.population}",
                              "a round is paid for by the population whose rows it reads")  # fmt: skip
        if reservation.held.event != planned:
            raise PromiseBroken("the round plans other steps than the ledger has reserved for it", "reserve what is planned")
        yield reservation


def _left(reservation: Reservation | None) -> int:
    assert reservation is not None
    held = reservation.held
    return 0 if held.closed else held.event.steps - held.charged


def _evaluate(job: Job, asked: Evaluation) -> tuple[float, float]:
    """Of the model as it is. An evaluation that was charged before and never answered is not made again: 0 of 0 units say nothing."""
    run, privacy = job.run, job.run.config.privacy
    most = privacy.unit.max_records if privacy is not None and isinstance(privacy.unit, UnitColumn) else None
    if asked.noise_multiplier is None:
        if privacy is not None:
            run.world.on_main(lambda: _check_public(job, privacy.ledger))
    elif not _charged(job, asked):
        return 0.0, 0.0
    right = rightness(run, run.validation)
    means = np.array([right[records].mean() for records in Units.of(run.validation, max_records=most).records])
    if asked.noise_multiplier is None:
        return public(means, asked.most_units)
    noise = asked.noise_multiplier
    return run.world.on_main(lambda: release(means, asked.most_units, noise, Stream()))


def _check_public(job: Job, ledger_path: Path) -> None:
    """That rows evaluated without noise are no population's, as far as the ledger knows: it knows files, by their content."""
    data = job.run.config.data
    if not data.validation:
        raise PlanError("an evaluation without noise of rows held out of private ones", "data.validation names files that are public")
    with Ledger.open(ledger_path) as ledger:
        attached = ledger.book().files
    for path, digest in zip(data.validation, job.digests[len(data.train) :], strict=True):
        if digest in attached:
            raise ConfigError(f"{path.name}: its rows are attached to {attached[digest].population}, and would be evaluated without noise",
                              "data.validation names files that are public, or the evaluation is noised")  # fmt: skip


def _charged(job: Job, asked: Evaluation) -> bool:
    """Whether the ledger has let this one through. All held-out rows have to be the population's, those of files of their own too."""
    privacy, world = job.run.config.privacy, job.run.world
    if privacy is None or asked.reservation is None or asked.noise_multiplier is None:
        raise ConfigError("a noised evaluation without a budget", "it takes a job with a privacy block, and a reservation")
    id, planned = asked.reservation, event(asked.noise_multiplier, privacy.units)
    with contextlib.ExitStack() as stack:
        reservation = enter_on_main(stack, world, lambda: _held(job, id, planned, job.digests))
        if not world.on_main(lambda: _left(reservation)):
            return False
        world.on_main(lambda: charge(reservation))
    return True


def _count(steps: Iterator[object]) -> int:
    with contextlib.closing(steps):  # type: ignore[type-var]
        return sum(1 for _ in steps)
