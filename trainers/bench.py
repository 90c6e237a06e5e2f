"""What a step of a job costs: `measure`, run by every worker of a benchmark.

Model, engine and step are built and run as in training; only the rows are generated: exactly `data.max_length` random tokens each, all
learnt, as many to a forward pass as `train.micro_batch_tokens` holds, one pass a worker and step. That is the least work between two
exchanges of gradients, so communication weighs as much as it can.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from privacy.errors import ConsortiumError
from trainers import flops, footprint
from trainers.config import TrainConfig, read_config
from trainers.cpu import fast_products
from trainers.data.prepare import Prepared
from trainers.events import EventLog
from trainers.finish import peak_memory
from trainers.lease import Lease
from trainers.loop import Run, StepWork, train_step, works
from trainers.model import load_model_config, load_tokenizer, shape_of
from trainers.report import write_atomically
from trainers.versions import versions
from trainers.worker import PACKAGES, build, decide, device_name, quiet, watched
from trainers.world import World

RESULT, REASON = "result.json", "reason.txt"
WARM_UP = 3
PROFILED = 2
"""Steps before and after those that are timed"""


def measure(folder: Path, *, steps: int) -> None:
    """Measure the job of `folder/config.json` over `steps` steps; all ranks call it.

    Rank 0 leaves `result.json`. The first worker to fail leaves why in `reason.txt`, in one line, and raises.
    """
    quiet()
    world = World.from_environment()
    world.connect()
    try:
        found = _measure(read_config(folder / "config.json"), folder, world, steps)
    except Exception as error:
        with contextlib.suppress(FileExistsError), (folder / REASON).open("x") as stream:
            stream.write(reason(error))
        raise
    if found is not None:
        write_atomically(folder / RESULT, json.dumps(found, indent=1))


def reason(error: Exception) -> str:
    """Why a point could not be measured, in one line."""
    if isinstance(error, ConsortiumError):
        return error.message
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory: " + ". ".join(line.split(". ")[1:3])
    return f"{type(error).__name__}: {line}"


def _measure(config: TrainConfig, folder: Path, world: World, steps: int) -> dict[str, Any] | None:
    """What all workers found, on rank 0."""
    shape = shape_of(config.model, config.task)
    config, _ = decide(config, shape, world)
    config = _one_pass_a_step(config, world.size, steps=WARM_UP + steps + PROFILED)
    tokenizer = load_tokenizer(config.model) if config.model.add_tokens else None
    data = [generate_rows(config, count) for count in (config.train.global_batch_size, 0)]
    run, _, _ = build(config, shape, tokenizer, data, folder, world, EventLog(None), Lease(folder, "bench"))
    run.engine.train()
    with fast_products(longest=int(run.train.lengths.max())), watched(run), contextlib.closing(works(run, 0)) as upcoming:
        _timed(run, upcoming, range(WARM_UP))
        times, waits = _timed(run, upcoming, range(WARM_UP, WARM_UP + steps))
        peak, reserved = peak_memory(world), _reserved(world)  # the profiler has memory of its own
        share = _communication_share(run, upcoming, range(WARM_UP + steps, WARM_UP + steps + PROFILED))
    mine: dict[str, Any] = {"times": times, "waits": waits, "share": share, "peak": peak, "reserved": reserved}
    every = world.gather(mine)
    if not world.is_main:
        return None
    counted = footprint.measure(config, "cuda" if world.device.type == "cuda" else "cpu")
    return {
        "step_seconds": np.max([worker["times"] for worker in every], axis=0).tolist(),
        "data_share": max(sum(worker["waits"]) / sum(worker["times"]) for worker in every),
        "communication_share": max(worker["share"] for worker in every),
        "tokens_per_step": int(run.train.lengths.sum()),
        "length": config.data.max_length,
        "peak_memory_bytes": max(worker["peak"] for worker in every),
        "peak_reserved_bytes": max((worker["reserved"] for worker in every), key=lambda size: size or 0),
        "zero_stage": run.engine.stage,
        "flops_per_token": run.flops_per_token,
        "flops_formula": flops.FORMULAS[config.method.type],
        "peak_flops": run.peak_flops,
        "parameters": shape.parameters,
        "shape": asdict(shape),
        "footprint": None if counted is None else asdict(counted),
        "device": device_name(world),
        "versions": versions(PACKAGES),
        "settings": {"dtype": run.config.model.dtype, "micro_batch_tokens": run.config.train.micro_batch_tokens, "layout": run.layout,
                     "activation_checkpointing": run.config.train.activation_checkpointing, "attention": run.config.model.attention},
    }  # fmt: skip


def _one_pass_a_step(config: TrainConfig, workers: int, *, steps: int) -> TrainConfig:
    """As many rows a step as fill one forward pass on each worker."""
    length, tokens = config.data.max_length, config.train.micro_batch_tokens
    assert isinstance(length, int) and isinstance(tokens, int)
    update = {
        "global_batch_size": workers * max(1, tokens // length),
        "max_steps": steps,
        "epochs": None,
        "micro_batch_tokens": max(tokens, length),
    }
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


class _Rows:
    """The columns of rows that do not exist: tokens are drawn from seed and index when they are asked for."""

    def __init__(self, length: int, vocabulary: int, classes: int, seed: int) -> None:
        self.length, self.vocabulary, self.classes, self.seed = length, vocabulary, classes, seed

    def __getitem__(self, indices: list[int]) -> dict[str, Any]:
        ids = [np.random.default_rng([self.seed, index]).integers(self.vocabulary, size=self.length) for index in indices]
        nowhere = [0] * len(indices)
        learnt = [np.ones(self.length, dtype=bool)] * len(indices)
        return {"ids": ids, "learnt": learnt, "label": [i % self.classes for i in indices], "file": nowhere, "line": indices}


def generate_rows(config: TrainConfig, count: int) -> Prepared:
    """`count` rows of exactly `data.max_length` random tokens, all learnt; for classify with the classes of the model's head."""
    shape, length, classify = load_model_config(config.model), config.data.max_length, config.task == "classify"
    assert isinstance(length, int)
    labels = sorted(shape.id2label.values()) if classify else []
    return Prepared(
        rows=_Rows(length, shape.get_text_config().vocab_size, max(1, len(labels)), config.train.seed),
        lengths=np.full(count, length),
        targets=np.full(count, 1 if classify else length - 1),
        units=np.arange(count),
        labels=labels,
        files=["generated"],
        labels_met=labels,
    )


def _timed(run: Run, upcoming: Iterator[StepWork], steps: Iterable[int]) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of those the seconds it waited for its batch."""
    times, waits = [], []
    for step in steps:
        began = time.perf_counter()
        work = next(upcoming)
        waits.append(time.perf_counter() - began)
        train_step(run, step, work)
        times.append(time.perf_counter() - began)
    return times, waits


def _communication_share(run: Run, upcoming: Iterator[StepWork], steps: Iterable[int]) -> float:
    """Share of these steps, run under torch's profiler, during which a collective operation was under way on this worker.

    Counted are NCCL's kernels on a GPU and gloo's operations on a CPU, from start to end: with the wait for slower workers, and whether or
    not something was computed meanwhile. The profiler slows the computing of small models more than their communication.
    """
    gpu = run.world.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        times, _ = _timed(run, upcoming, steps)
    prefix = "nccl" if gpu else "gloo:"
    spans = [(event.time_range.start, event.time_range.end) for event in profiler.events() or () if event.name.startswith(prefix)]
    return min(1.0, covered(spans) / 1e6 / sum(times))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of a line that these stretches of it cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _reserved(world: World) -> int | None:
    """Bytes that torch has taken from the GPU; None on a CPU."""
    return torch.cuda.max_memory_reserved(world.device) if world.device.type == "cuda" else None
