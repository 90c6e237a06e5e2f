"""A private run: `private_steps` and `private_step`, in the place of the ordinary ones of trainers.loop.

A step, on every worker: the same secret coins decide who takes part; the records of a unit lie on one worker, where its gradient is clipped
and added up; every worker adds noise to a stretch of its own of the sum; DeepSpeed brings the sums together and takes the step. The ledger
has the step before its noise is added. Nothing of a step but the new weights is public.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privacy.dp_full import GhostGradients
from privacy.errors import BudgetRefused, PlanError
from privacy.gradients import Gradients, Pass
from privacy.ledger import Reservation
from privacy.noise import GaussianNoise
from privacy.plan import PrivacyPlan
from privacy.sampling import UnitSampler
from privacy.selftest import SelfTest, Verdicts
from privacy.statement import FILE, paragraph
from privacy.stream import Stream, fresh_key
from trainers import promise as promises
from trainers.by_unit import gradients_by_unit
from trainers.checkpoint import Progress
from trainers.config import UnitColumn
from trainers.engine import Engine
from trainers.errors import RunBusyError
from trainers.loop import Run, Step, fit
from trainers.private_work import PrivatePass, PrivateWork, Units, private_work, without_unit
from trainers.promise import Promise
from trainers.world import World

_REPLAYED = 1e-3
"""Of the clipping norm, when a step is replayed: all but the shortest gradients are clipped, and one clipped too little or twice shows"""
_REPLAYED_UNITS = 64
"""Most units of a replayed step, if not four a worker. Every round of a federation replays one: with all units that is two steps more."""


@dataclass
class Private:
    """What a private run has besides `Run`."""

    plan: PrivacyPlan
    units: Units
    sampler: UnitSampler
    noise: GaussianNoise
    dropout: Stream
    """Its seeds. Which numbers it drops of a unit depends on who else is drawn: known to others, it would move the sum beyond the norm."""
    gradients: Gradients
    whole: dict[str, torch.Tensor]
    """The trained parameters as the passes compute with them, whole on every worker"""
    reservation: Reservation | None
    """Rank 0 has it"""
    test: SelfTest
    taken: int = 0
    """Steps of this start"""
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "noise"))


def fit_private(run: Run, base: Any, promise: Promise, run_dir: Path, progress: Progress) -> None:
    """Train as promised, and state it. `base` is the Hugging Face model. Rank 0 alone has the ledger open. Raises PromiseBroken."""
    privacy, charged_before = run.config.privacy, 0
    assert privacy is not None
    most = privacy.unit.max_records if isinstance(privacy.unit, UnitColumn) else None
    with contextlib.ExitStack() as stack:
        reservation = enter_on_main(stack, run.world, lambda: promises.held(promise, run.config, steps=progress.step))
        if reservation is not None:
            charged_before = reservation.held.charged
        units = Units.of(run.train, max_records=most)
        private = begin(promise.plan, units, run.engine, base, run.world, reservation)
        fit(run, progress, partial(private_steps, private))
        charged = 0 if reservation is None else reservation.held.charged - charged_before
        found = verdicts(run, private, charged)
    run.world.on_main(
        lambda: promises.close(promise, run.config, run_dir, steps=progress.step, secret=private.noise.secret, verdicts=found)
    )
    if run.world.is_main:
        run.log.emit("statement", step=progress.step, claim=paragraph(json.loads((run_dir / FILE).read_text())))


def enter_on_main(
    stack: contextlib.ExitStack, world: World, held: Callable[[], contextlib.AbstractContextManager[Reservation]]
) -> Reservation | None:
    """The open reservation on rank 0, None elsewhere; a ledger that cannot be opened is everyone's error."""
    opened: list[Reservation] = []
    world.on_main(lambda: opened.append(stack.enter_context(held())))
    return opened[0] if opened else None


def begin(
    plan: PrivacyPlan, units: Units, engine: Engine, base: Any, world: World, reservation: Reservation | None, *, seed: int | None = None
) -> Private:
    """Make the layers leave their gradients unit by unit, and draw the secrets of this start. All ranks call it, once for a model.

    With a `seed` nothing is secret: for tests. Raises PlanError where the model mixes examples, or trains what is not seen by unit.
    """
    whole = engine.whole()
    return with_secrets(plan, units, _gradients(engine, base, whole, world.device), whole, world, reservation, seed=seed)


def with_secrets(
    plan: PrivacyPlan,
    units: Units,
    gradients: Gradients,
    whole: dict[str, torch.Tensor],
    world: World,
    reservation: Reservation | None,
    *,
    seed: int | None = None,
) -> Private:
    """Fresh secrets and tests for a plan, over layers that leave their gradients already. All ranks call it. Raises PlanError."""
    if len(units) > plan.units:
        raise PlanError(f"the rows are of {len(units)} units, more than privacy.units: {plan.units}",
                        "declare a number that the population never exceeds; the promise is made for it")  # fmt: skip
    key = world.on_main(fresh_key) if seed is None else seed.to_bytes(32, "big")
    noise, dropout = (Stream() if seed is None else Stream(seed=seed + 1 + world.size * turn + world.rank) for turn in range(2))
    return Private(
        plan=plan,
        units=units,
        sampler=UnitSampler(len(units), plan.sampling_rate, plan.cap, Stream(key)),
        noise=GaussianNoise(plan.noise_scale, noise),
        dropout=dropout,
        gradients=gradients,
        whole=whole,
        reservation=reservation,
        test=SelfTest(plan),
    )


def _gradients(engine: Engine, base: Any, whole: dict[str, torch.Tensor], device: torch.device) -> Gradients:
    if engine.module.model is base:  # without adapters: whole layers are trained
        return GhostGradients(engine.module, engine.names, device)
    return gradients_by_unit(engine.module, base, engine.names, whole, device)


def private_steps(private: Private, run: Run, first: int) -> Generator[Step]:
    """Take one step after the other from `first` on.

    Ends early, and says so, when the reserved steps are used up: after failures that made too many be taken again.
    """
    with contextlib.closing(_works(run, private)) as upcoming:
        for step in range(first, private.plan.steps):
            try:
                yield private_step(run, private, step, next(upcoming))
            except BudgetRefused as refused:
                run.log.emit("warning", step=step, message=f"{refused.message}: the run ends here, at the promise it made")
                return


def private_step(run: Run, private: Private, step: int, work: PrivateWork) -> Step:
    """One step over the units drawn; see the head of this file. Raises what the ledger raises, and RunBusyError."""
    began = time.perf_counter()
    run.world.on_main(partial(charge, private.reservation))
    stretch = _stretch(private.gradients.size, run.world)
    noise = private.pool.submit(private.noise.draw, len(stretch))
    total, loss = clipped_sum(run, private, work, int(private.dropout.integers(1)[0]))
    if private.test.moved is None and len(work.drawn):
        private.test.moved = _replay(run, private, work.drawn)
    loss, lost, asked = run.world.sum(loss, float(run.lease.lost), float(run.notice.is_due))
    if lost:
        raise RunBusyError("another run has taken over the run directory", "this one ends without another write to it")
    _add_noise(private, total, stretch, noise)
    total /= private.plan.expected_batch
    run.engine.accumulate(dict(private.gradients.split(total)))
    rate = run.learning_rate(step)
    norm = run.engine.step(rate)
    private.whole.update(run.engine.whole())
    private.test.saw_draw(work.drawn)
    private.taken += 1
    run.log.emit(
        "step",
        step=step + 1,
        epoch=round(run.sampler.epoch(step + 1), 4),
        learning_rate=rate,
        units=len(work.drawn),
        loss=round(loss / max(1, work.targets), 6),
        grad_norm=round(norm, 6),
        seconds=round(time.perf_counter() - began, 4),
    )
    return Step(tokens=0, ask=asked > 0)


def clipped_sum(run: Run, private: Private, work: PrivateWork, seed: int, *, shrink: float = 1.0) -> tuple[torch.Tensor, float]:
    """This worker's share of the sum of gradients clipped to `shrink` times the norm (numbers,), and of the loss."""
    torch.manual_seed(seed)
    total, loss = torch.zeros(private.gradients.size, device=run.world.device), 0.0
    for group in work.groups:
        passes = (_pass(run, part) for part in group.passes)
        loss += private.gradients.add_clipped(total, shrink * private.plan.clip_norm, len(group.units), passes)
    return total, loss


def _pass(run: Run, part: PrivatePass) -> Pass:
    rows, width = part.batch.input_ids.shape
    return Pass(part.segments, rows, width, lambda: run.engine.compute(part.batch.to(run.world.device)))


def _add_noise(private: Private, total: torch.Tensor, stretch: range, noise: "Future[np.ndarray]") -> None:
    mine = total[stretch.start : stretch.stop]
    before = mine.cpu().numpy().copy()
    mine += torch.from_numpy(noise.result()).to(total.device)
    private.test.saw_noise(before, mine.cpu().numpy())


def charge(reservation: Reservation | None) -> None:
    if reservation is not None:
        reservation.charge(1)


def _stretch(size: int, world: World) -> range:
    """Of the sum's numbers, those to which this worker adds the noise."""
    each = math.ceil(size / world.size)
    return range(min(size, each * world.rank), min(size, each * (world.rank + 1)))


def _replay(run: Run, private: Private, drawn: np.ndarray) -> float:
    """How far the sum over units moves with one unit's rows exchanged for nothing, over the norm it is clipped to. All ranks call it.

    The shapes stay, so that what other units contribute is computed by the same operations: what else moves, leaked.
    """
    work = private_work(run, private.units, drawn[: max(_REPLAYED_UNITS, 4 * run.world.size)])
    run.engine.train(False)  # dropout would draw otherwise for a changed pass
    both = [clipped_sum(run, private, each, 0, shrink=_REPLAYED)[0] for each in (work, without_unit(work, int(drawn[0])))]
    run.engine.train()
    moved = sum(float(part.double().square().sum()) for _, part in private.gradients.split(both[0].sub_(both[1])))
    return math.sqrt(run.world.sum(moved)[0]) / (_REPLAYED * private.plan.clip_norm)


def verdicts(run: Run, private: Private, charged: int) -> Verdicts:
    """Of this start, brought together from all workers; `charged` counts on rank 0."""
    shares = run.world.gather(private.test.share())
    charged = run.world.on_main(lambda: charged)
    sampler = private.sampler  # has drawn for a step that is not taken any more, too
    return private.test.judge(shares, coins=sampler.coins, drawn=sampler.drawn, steps=private.taken, charged=charged)


def _works(run: Run, private: Private) -> Generator[PrivateWork]:
    """This worker's share of step after step; while one is computed, a thread draws and makes the next."""
    with ThreadPoolExecutor(1, "batches") as ahead:
        upcoming = ahead.submit(_next_work, run, private)
        try:
            while True:
                work = upcoming.result()
                upcoming = ahead.submit(_next_work, run, private)
                yield work
        finally:
            upcoming.cancel()


def _next_work(run: Run, private: Private) -> PrivateWork:
    return private_work(run, private.units, private.sampler.draw())
