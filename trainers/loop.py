"""The training loop: `fit` and `train_step`. Set-up is in trainers.worker, everything a step needs is in `Run`."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers import checkpoint
from trainers.checkpoint import Progress
from trainers.config import TrainConfig
from trainers.data.batches import Batch, collate
from trainers.data.packing import Layout, MicroBatch, place
from trainers.data.prepare import Prepared
from trainers.data.sampler import Sampler
from trainers.engine import Engine
from trainers.errors import NonFiniteLoss, RunBusyError
from trainers.events import EventLog
from trainers.lease import Lease
from trainers.metrics import classification_metrics, perplexity
from trainers.notice import Notice
from trainers.storage import Store, publish
from trainers.world import World

_DIVERGED = 3
"""Evaluations in a row with falling training and rising validation loss before a warning."""


@dataclass
class Run:
    """Everything the loop needs, ready to use."""

    config: TrainConfig
    world: World
    engine: Engine
    train: Prepared
    validation: Prepared
    sampler: Sampler
    learning_rate: Callable[[int], float]
    eval_every: int
    save_every: int
    layout: Layout
    hidden_size: int
    pad_id: int
    flops_per_token: float
    peak_flops: float | None
    log: EventLog
    checkpoints: Path
    lease: Lease
    notice: Notice
    store: Store | None = None
    """Where checkpoints are kept, if not in `checkpoints`"""

    @property
    def classify(self) -> bool:
        return self.config.task == "classify"


@dataclass(frozen=True)
class Step:
    """What one step did."""

    tokens: int
    """Of its global batch, padding not counted"""
    ask: bool
    """A worker wants all to ask whether a machine is leaving"""


@dataclass
class Pass:
    """One forward pass of this worker, and the examples in it."""

    batch: Batch
    examples: list[int]


@dataclass
class StepWork:
    """What this worker does in a step. `targets` and `tokens` count over all workers."""

    passes: list[Pass]
    targets: int
    tokens: int
    padded_tokens: int


Steps = Callable[["Run", int], Generator["Step"]]
"""Takes one step after the other from the one given on."""


def ordinary_steps(run: Run, first: int) -> Generator[Step]:
    with contextlib.closing(works(run, first)) as upcoming:
        for step in range(first, run.sampler.steps):
            yield train_step(run, step, next(upcoming))


def fit(run: Run, progress: Progress, steps: Steps = ordinary_steps) -> Progress:
    """Train from `progress.step` to the end, evaluating and saving on the way; stops early when the job says so, or `steps` end.

    Raises NonFiniteLoss, CheckpointError, RunBusyError, and what `steps` raise.
    """
    started, trained = time.perf_counter(), 0
    run.engine.train()  # a model comes from its directory in evaluation, without dropout
    with contextlib.closing(steps(run, progress.step)) as taken:
        while not _exhausted(run, progress) and (done := next(taken, None)) is not None:
            trained += done.tokens
            progress.step += 1
            leaving = done.ask and run.notice.heard()
            last = progress.step == run.sampler.steps
            better = False
            if len(run.validation) and (last or progress.step % run.eval_every == 0):
                better = _evaluate_and_judge(run, progress)
            if last or better or progress.step % run.save_every == 0 or _exhausted(run, progress) or leaving:
                _save(run, progress)
    seconds = time.perf_counter() - started
    run.log.emit("trained", step=progress.step, seconds=round(seconds, 2), tokens_per_second=round(trained / seconds, 1))
    return progress


def train_step(run: Run, step: int, work: StepWork) -> Step:
    """One optimizer step over a global batch.

    The loss is the sum over all loss tokens of the batch divided by their number, whatever the number of workers and passes.
    """
    began = time.perf_counter()
    torch.manual_seed(draw_seed(run, step))
    total = torch.zeros((), dtype=torch.float64, device=run.world.device)
    for micro in work.passes:
        summed, _ = run.engine(micro.batch.to(run.world.device))
        run.engine.backward(summed / work.targets)
        total += summed.detach()
    loss, lost, asked = run.world.sum(float(total), float(run.lease.lost), float(run.notice.is_due))
    if lost:
        raise RunBusyError("another run has taken over the run directory", "this one ends without another write to it")
    loss /= work.targets
    if not math.isfinite(loss):
        raise _non_finite(run, step, work, loss)
    rate = run.learning_rate(step)
    norm = run.engine.step(rate)
    if not math.isfinite(norm):
        raise NonFiniteLoss(
            f"the gradient norm became {norm} at step {step + 1}", "lower train.learning_rate; the last checkpoint is intact"
        )
    _report_step(run, step, work, loss=loss, rate=rate, norm=norm, seconds=time.perf_counter() - began)
    return Step(work.tokens, ask=asked > 0)


def works(run: Run, step: int) -> Generator[StepWork]:
    """This worker's share of each step from `step` on; while one is computed, a thread makes the next."""
    with ThreadPoolExecutor(1, "batches") as ahead:
        upcoming = ahead.submit(step_work, run, step)
        try:
            while True:
                work, step = upcoming.result(), step + 1
                upcoming = ahead.submit(step_work, run, step)
                yield work
        finally:
            upcoming.cancel()


def step_work(run: Run, step: int) -> StepWork:
    """This worker's share of the global batch of `step`, as tensors."""
    return _work(run, run.train, run.sampler.batch(step))


def _work(run: Run, data: Prepared, indices: np.ndarray) -> StepWork:
    lengths = data.lengths[indices]
    assert isinstance(run.config.train.micro_batch_tokens, int)
    placement = place(
        lengths,
        workers=run.world.size,
        micro_batch_tokens=run.config.train.micro_batch_tokens,
        layout=run.layout,
        hidden_size=run.hidden_size,
    )
    passes = [_pass(run, data, indices, micro) for micro in placement.micro_batches[run.world.rank]]
    return StepWork(passes, int(data.targets[indices].sum()), int(lengths.sum()), placement.padded_tokens)


def _pass(run: Run, data: Prepared, indices: np.ndarray, micro: MicroBatch) -> Pass:
    weight = 1.0 if micro.rows else 0.0
    shortest = int(np.argmin(data.lengths[indices]))  # a dummy computes it and discards what it finds
    places, widths = (micro.rows, micro.widths) if micro.rows else ([[shortest]], None)
    examples = [int(indices[place]) for row in places for place in row]
    samples = iter(data.samples(examples))
    rows = [[next(samples) for _ in row] for row in places]
    batch = collate(rows, layout=run.layout, classify=run.classify, pad_id=run.pad_id, widths=widths, weight=weight)
    return Pass(batch, examples if micro.rows else [])


def draw_seed(run: Run, step: int) -> int:
    """Dropout's seed: a function of seed, step and rank, so that a resumed run draws what the uninterrupted one would."""
    return int(np.random.SeedSequence([run.config.train.seed, step, run.world.rank]).generate_state(1, np.uint64)[0] >> 1)


def _report_step(run: Run, step: int, work: StepWork, *, loss: float, rate: float, norm: float, seconds: float) -> None:
    speed = work.tokens / seconds
    fields: dict[str, Any] = {"mfu": round(speed * run.flops_per_token / run.peak_flops, 4)} if run.peak_flops else {}
    run.log.emit(
        "step",
        step=step + 1,
        epoch=round(run.sampler.epoch(step + 1), 4),
        loss=round(loss, 6),
        learning_rate=rate,
        grad_norm=round(norm, 6),
        tokens=work.tokens,
        tokens_per_second=round(speed, 1),
        padding_share=round(1 - work.tokens / work.padded_tokens, 4),
        seconds=round(seconds, 4),
        **fields,
    )


def _non_finite(run: Run, step: int, work: StepWork, loss: float) -> NonFiniteLoss:
    """Name the samples whose own loss is not finite; every worker looks through its share, with as many forward passes each."""
    mine = [example for micro in work.passes for example in micro.examples]
    culprits = []
    with torch.no_grad():
        for turn in range(max(run.world.gather(len(mine)))):
            example = mine[turn] if turn < len(mine) else int(run.sampler.batch(step)[0])
            sample = run.train.samples([example])[0]
            batch = collate([[sample]], layout=run.layout, classify=run.classify, pad_id=run.pad_id)
            if not math.isfinite(float(run.engine(batch.to(run.world.device))[0])) and turn < len(mine):
                culprits.append(sample.origin)
    found = [origin for share in run.world.gather(culprits) for origin in share]
    where = f"; first sample: {found[0]} ({len(found)} of {len(run.sampler.batch(step))} in the batch)" if found else ""
    return NonFiniteLoss(
        f"the loss became {loss} at step {step + 1}{where}",
        "look at the sample, or lower train.learning_rate in a run of another name (--set name=NAME): this one goes on as it began",
    )


def evaluate(run: Run, data: Prepared) -> dict[str, Any]:
    """Mean loss and perplexity, for classify the loss and all of `classification_metrics`, over `data`; every worker computes its share."""
    run.engine.train(False)
    loss, targets, truth, chances = 0.0, 0, [], []
    with torch.no_grad():
        for indices in _slices(len(data), 8 * run.config.train.global_batch_size):
            work = _work(run, data, indices)
            targets += work.targets
            for micro in work.passes:
                summed, logits = run.engine(micro.batch.to(run.world.device))
                loss += float(summed)
                if logits is not None and micro.examples:
                    chances += logits.softmax(-1).tolist()
                    truth += micro.batch.targets.tolist()
    run.engine.train()
    loss = run.world.sum(loss)[0]
    if not run.classify:
        return {"eval_loss": loss / targets, "perplexity": perplexity(loss, targets)}
    truth, chances = ([row for part in run.world.gather(mine) for row in part] for mine in (truth, chances))
    return {"eval_loss": loss / targets, **classification_metrics([data.labels[c] for c in truth], np.array(chances), data.labels)}


def rightness(run: Run, data: Prepared) -> np.ndarray:
    """How right the model is on each example: of its targets the share that is the likeliest. (examples,), the same on every worker."""
    alone, mine = replace(run, layout="padded"), []
    run.engine.train(False)
    with torch.no_grad():
        for indices in _slices(len(data), 8 * run.config.train.global_batch_size):
            for micro in _work(alone, data, indices).passes:
                shares, _ = run.engine(micro.batch.to(run.world.device), right=True)
                mine += list(zip(micro.examples, shares.tolist(), strict=False))  # a dummy has none
    run.engine.train()
    found = np.zeros(len(data))
    for example, share in (pair for part in run.world.gather(mine) for pair in part):
        found[example] = share
    return found


def _slices(count: int, size: int) -> Iterable[np.ndarray]:
    return (np.arange(start, min(count, start + size)) for start in range(0, count, size))


def _evaluate_and_judge(run: Run, progress: Progress) -> bool:
    """Evaluate, keep the score of the best, warn of over-fitting; whether this is the best so far.

    Of a private run nothing is kept: a checkpoint would show the score, and which ones are left the best step.
    """
    metrics = evaluate(run, run.validation)
    run.log.emit("eval", step=progress.step, metrics={name: round(value, 6) for name, value in metrics.items() if isinstance(value, float)})
    if run.config.privacy is not None:
        return False
    criterion = run.config.checkpoint.best_by or "eval_loss"
    value = metrics[criterion] if criterion == "eval_loss" else -metrics[criterion]
    better = math.isfinite(value) and (progress.best_value is None or value < progress.best_value)
    if better:
        progress.best_step, progress.best_value, progress.evaluations_without_gain = progress.step, value, 0
    else:
        progress.evaluations_without_gain += 1
        if progress.evaluations_without_gain == _DIVERGED:
            run.log.emit("warning", step=progress.step, message=f"over-fitting: {criterion} has not improved for {_DIVERGED} evaluations "
                         f"since step {progress.best_step}; train.early_stopping would stop here")  # fmt: skip
    return better and run.config.checkpoint.best_by is not None


def _exhausted(run: Run, progress: Progress) -> bool:
    patience = run.config.train.early_stopping
    return patience is not None and progress.evaluations_without_gain >= patience


def _save(run: Run, progress: Progress) -> None:
    began, keep, best = time.perf_counter(), run.config.checkpoint.keep, progress.best_step
    with run.engine.resting():
        size = checkpoint.save(run.checkpoints, run.engine, progress, run.world, run.store)
        run.world.on_main(lambda: checkpoint.prune(run.checkpoints, keep=keep, best_step=best, store=run.store))
        run.log.emit("checkpoint", step=progress.step, bytes=size, seconds=round(time.perf_counter() - began, 3))
        run.world.on_main(lambda: publish(run.checkpoints.parent, run.store))
