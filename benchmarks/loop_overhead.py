"""What our loop costs: `train_step` (DeepSpeed ZeRO-1 and ZeRO-2) against a bare PyTorch loop that does the same work.

    python benchmarks/loop_overhead.py [--steps 40] [--json OUT] [--workers 1 2] [--stages 1 2]

Both train a copy of one LoRA Llama (6 layers, 256 wide, rank 16, random weights, float32) on the same passes, the very tensors our loop
makes, in the same processes (gloo, one thread each). The bare loop is what one would write by hand: loss summed over the learnt tokens and
divided by the global count, backward, one all-reduce of the flattened gradients, clipping to 1.0, torch's fused AdamW; but that the model
is the same to its attention and its adapters' arithmetic (trainers.attention, trainers.lora), which are not the loop's. Steps alternate,
ours first and the bare loop first in turn; a time is that from one barrier to the next. In ours are the batch of the next step, made by a
thread meanwhile as in `fit`, and the event that is written; the bare loop gets its tensors for nothing and writes nothing.
Measured: the ratio of the two times of a step, its median and quartiles over the steps during which other programs had less than a tenth of
the processors (over all, where there are fewer than eight such); and the same of the processor time that all workers spent on a step, which
others disturb less. The losses of both loops must agree within 1e-4.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from facts import facts
from small_llama import write_llama

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from trainers import worker  # noqa: E402
from trainers.attention import use_blocks  # noqa: E402
from trainers.checkpoint import Progress  # noqa: E402
from trainers.loop import Run, StepWork, step_work, train_step  # noqa: E402
from trainers.lora import fuse_updates  # noqa: E402
from trainers.model import add_adapters, load_base, load_tokenizer  # noqa: E402
from trainers.objectives import NextToken  # noqa: E402

VOCABULARY, RANK = 2048, 16
EXAMPLES_A_STEP = 32
WARM_UP = 4
LOSS_TOLERANCE = 1e-4
DISTURBED, FEWEST = 0.1, 8
"""Share of the processors others may have; steps that must remain"""
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy")


@dataclass
class Result:
    """Milliseconds are medians. Ratios are those of single steps, ours over bare; `cpu` is processor time, summed over workers."""

    workers: int
    stage: int
    ours_ms: float
    bare_ms: float
    batch_ms: float
    """Making one step's batch, in a thread beside the step before"""
    passes: float
    tokens: float
    loss_difference: float
    ours_cpu_ms: float
    bare_cpu_ms: float
    undisturbed: float
    """Share of the steps"""
    ratios: list[float]
    cpu_ratios: list[float]


class BareLoop:
    """The loop without us: a second copy of the model and torch, nothing else."""

    def __init__(self, run: Run) -> None:
        config = run.config
        tokenizer = load_tokenizer(config.model)
        base = load_base(config.model, config.task, tokenizer, labels=[], device=run.world.device, seed=config.train.seed)
        use_blocks(base)
        self.module = NextToken(add_adapters(base, config.method, config.task, quantized=False), base)
        fuse_updates(self.module.model)
        self.module.load_state_dict(run.engine.module.state_dict())
        self.module.train()
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, betas=config.train.betas, weight_decay=0.0, fused=True)

    def step(self, work: StepWork, rate: float) -> float:
        """One step; the loss, which rides along with the gradients."""
        total = torch.zeros(1)
        for micro in work.passes:
            summed, _ = self.module(micro.batch)
            (summed / work.targets).backward()
            total += summed.detach() / work.targets
        flat = torch.cat([p.grad.view(-1) for p in self.parameters] + [total])
        dist.all_reduce(flat)
        for parameter, gradient in zip(self.parameters, flat[:-1].split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = gradient.view_as(parameter)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(flat[-1])


class OurLoop:
    """A step as `fit` makes it: the batch of the next one is made beside it."""

    def __init__(self, run: Run, ahead: ThreadPoolExecutor) -> None:
        self.run, self.ahead = run, ahead
        self.losses: list[float] = []
        self.upcoming = ahead.submit(step_work, run, 0)
        run.log.emit = self._note(run.log.emit)  # type: ignore[method-assign]

    def _note(self, emit: Callable[..., None]) -> Callable[..., None]:
        def wrapped(event: str, **fields: Any) -> None:
            self.losses.append(fields["loss"])
            emit(event, **fields)

        return wrapped

    def step(self, step: int, work: StepWork) -> float:
        self.upcoming = self.ahead.submit(step_work, self.run, step + 1)
        train_step(self.run, step, work)
        return self.losses[-1]


def compare(run: Run, steps: int) -> dict[str, Any]:
    """Alternate single steps of both loops."""
    bare, clocks = BareLoop(run), {"ours": Clock(run), "bare": Clock(run)}
    differences, passes, tokens = [], [], []
    run.engine.train()
    with ThreadPoolExecutor(1) as ahead:
        ours = OurLoop(run, ahead)
        for step in range(WARM_UP + steps):
            work, rate = ours.upcoming.result(), run.learning_rate(step)
            turns = {"ours": partial(ours.step, step, work), "bare": partial(bare.step, work, rate)}
            losses = {name: clocks[name].time(turns[name]) for name in sorted(turns, reverse=step % 2 == 0)}
            differences.append(abs(losses["ours"] - losses["bare"]))
            passes.append(len(work.passes))
            tokens.append(work.tokens)
    return {
        "batch_ms": 1000 * _batch_seconds(run),
        "passes": statistics.mean(passes),
        "tokens": statistics.mean(tokens),
        "loss_difference": max(differences),
        **_ratios(clocks["ours"], clocks["bare"]),
    }


class Clock:
    """Seconds of each step from one barrier to the next, processor time over all workers, and the share others had of the processors."""

    def __init__(self, run: Run) -> None:
        self.world = run.world
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.others: list[float] = []

    def time(self, step: Callable[[], float]) -> float:
        dist.barrier()
        began, busy, used = time.perf_counter(), _busy_seconds(), time.process_time()
        loss = step()
        mine = time.process_time() - used
        dist.barrier()
        self.wall.append(time.perf_counter() - began)
        busy = _busy_seconds() - busy
        self.cpu.append(self.world.sum(mine)[0])
        self.others.append((busy - self.cpu[-1]) / self.wall[-1] / (os.cpu_count() or 1))
        return loss


def _busy_seconds() -> float:
    """Processor time this machine has spent since it started, and what its host took from it; 0 where that is not told."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, *interrupts_and_stolen = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def _ratios(ours: Clock, bare: Clock) -> dict[str, Any]:
    steps = range(WARM_UP, len(ours.wall))
    quiet = [step for step in steps if max(ours.others[step], bare.others[step]) <= DISTURBED]
    kept = quiet if len(quiet) >= FEWEST else steps
    found: dict[str, Any] = {"undisturbed": len(quiet) / len(steps)}
    for kind, mine, other in (("", ours.wall, bare.wall), ("cpu_", ours.cpu, bare.cpu)):
        found[f"ours_{kind}ms"], found[f"bare_{kind}ms"] = (
            1000 * statistics.median(times[step] for step in kept) for times in (mine, other)
        )
        found[f"{kind}ratios"] = [round(mine[step] / other[step], 4) for step in kept]
    return found


def _batch_seconds(run: Run) -> float:
    began = time.perf_counter()
    for step in range(10):
        step_work(run, step)
    return (time.perf_counter() - began) / 10


def _work(environment: dict[str, str], run_dir: Path, steps: int) -> dict[str, Any] | None:
    """One worker: everything up to the loop as in a real run, then the comparison in the place of `fit`."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []

    def measure(run: Run, progress: Progress) -> Progress:
        results.append(compare(run, steps))
        return progress

    with mock.patch.object(worker, "fit", measure), mock.patch.object(worker, "finish"):
        worker.train(run_dir, run_id="benchmark")
    dist.destroy_process_group()
    return results[0]


def _measure(folder: Path, *, workers: int, stage: int, steps: int) -> Result:
    run_dir = _make_run(folder, f"workers{workers}-zero{stage}", stage=stage, steps=WARM_UP + steps + 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(workers)}
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(workers)]
        found = list(pool.map(_work, ranks, [run_dir] * workers, [steps] * workers))
    assert found[0] is not None
    return Result(workers, stage, **found[0])


def _make_inputs(folder: Path) -> None:
    """Synthetic bank tickets, and a directory with a tokenizer and a model's shape."""
    from trainers.data.synthetic import write_demo_data

    data = write_demo_data(folder / "data", documents=300)
    texts = (json.loads(line)["text"] for line in data.policies.open())
    write_llama(folder / "model", texts, vocabulary=VOCABULARY, tie_word_embeddings=True)


def _make_run(folder: Path, name: str, *, stage: int, steps: int) -> Path:
    config = {
        "name": name,
        "task": "sft",
        "model": str(folder / "model"),
        "method": {"lora": {"rank": RANK}},
        "data": {"train": str(folder / "data" / "tickets_train.jsonl"), "validation_fraction": 0},
        "train": {"max_steps": steps, "global_batch_size": EXAMPLES_A_STEP, "learning_rate": 1e-3},
        "zero": stage,
        "tracking": {"tensorboard": False},
        "output": str(folder),
    }
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
    return folder / name


def _line(result: Result) -> str:
    low, middle, high = statistics.quantiles(result.ratios, n=4)
    cpu_low, cpu_middle, cpu_high = statistics.quantiles(result.cpu_ratios, n=4)
    return (
        f"{result.workers:>7}  {result.stage:>4}  {result.tokens:>6.0f}  {result.passes:>6.1f}  {result.batch_ms:>8.1f}  "
        f"{result.ours_ms:>7.1f}  {result.bare_ms:>7.1f}  {middle:>6.3f} ({low:.3f} - {high:.3f})  "
        f"{cpu_middle:>9.3f} ({cpu_low:.3f} - {cpu_high:.3f})  {result.loss_difference:>10.1e}  {result.undisturbed:>11.0%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each loop (default 40)")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2], choices=[1, 2, 3])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{'workers':>7}  {'ZeRO':>4}  {'tokens':>6}  {'passes':>6}  {'batch ms':>8}  {'ours ms':>7}  {'bare ms':>7}  "
          f"{'ratio':>6} {'(quartiles)':>15}  {'CPU ratio':>9} {'(quartiles)':>15}  {'loss diff.':>10}  {'undisturbed':>11}")  # fmt: skip
    results = []
    with tempfile.TemporaryDirectory() as folder:
        _make_inputs(Path(folder))
        for workers, stage in product(arguments.workers, arguments.stages):
            results.append(_measure(Path(folder), workers=workers, stage=stage, steps=arguments.steps))
            print(_line(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts(PACKAGES), "results": [asdict(result) for result in results]}, indent=1))
    agree = all(result.loss_difference <= LOSS_TOLERANCE for result in results)
    if not agree:
        print(f"the losses differ by more than {LOSS_TOLERANCE}: this was not the same work", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
