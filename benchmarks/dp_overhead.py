"""What privacy costs: our private step against our ordinary one, and against Opacus (hooks, ghost clipping) on the same model and batch.

    python benchmarks/dp_overhead.py [--rounds 12] [--length 256] [--units 8] [--json OUT]

A LoRA Llama (6 layers, 256 wide, rank 16, random weights, float32), `units` rows of `length` random tokens, each row a unit. Every variant
is a process of its own, one thread; they take turns, in another order every round, a step each (after two to warm up); a ratio is that of
two steps of one round. All run with the switches that our worker sets on a CPU. In ours are sampling (of all units: the batch has to be the
same), packing, clipping, noise from AES, DeepSpeed ZeRO-1 and the events; the ledger is left out of the time and measured by itself. In
Opacus' are clipping, noise from torch, and AdamW; noise and clipping norm are the same.
Memory is what the process grows by in a step, at its height. FLOPs are torch's count of matrix products in a step.
Ends with `consortium RATIO`: private over ordinary, the median.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from facts import facts
from small_llama import write_weights

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed

VARIANTS = ("ordinary", "private", "opacus-hooks", "opacus-ghost")
VOCABULARY, RANK = 2048, 16
CLIP, NOISE = 0.1, 1.0
WARM_UP = 2
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "opacus")


@dataclass
class Result:
    """Of one variant; milliseconds and ratios by round."""

    variant: str
    milliseconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """Over the ordinary step of the same round"""
    flops: int = 0
    memory: int = 0
    """Bytes"""


def _config(folder: Path, *, units: int, length: int, private: bool) -> dict[str, Any]:
    promise = {"noise_multiplier": NOISE, "delta": 0.1 / units, "clip_norm": CLIP, "unit": "record", "units": units, "ledger": "none"}
    return {
        "name": "private" if private else "ordinary",
        "task": "sft",
        "model": {"path": str(folder / "model"), "from_scratch": False, "dtype": "float32"},
        "method": {"lora": {"rank": RANK}},
        "data": {"train": "generated", "max_length": length, "packing": False},
        "train": {"max_steps": 10**6, "global_batch_size": units, "learning_rate": 1e-3, "micro_batch_tokens": units * length},
        "zero": 1,
        "tracking": {"tensorboard": False},
    } | ({"privacy": promise} if private else {})


def _ours(folder: Path, *, units: int, length: int, private: bool) -> Callable[[], None]:
    """A step of our own loop, as a function."""
    from privacy.plan import PrivacyPlan
    from trainers.bench import generate_rows
    from trainers.config import TrainConfig, validate
    from trainers.events import EventLog
    from trainers.lease import Lease
    from trainers.loop import ordinary_steps
    from trainers.model import shape_of
    from trainers.private import Units, begin, private_steps
    from trainers.worker import build, decide, quiet
    from trainers.world import World

    quiet()
    world = World.from_environment()
    world.connect()
    config = validate(TrainConfig, _config(folder, units=units, length=length, private=private), source="benchmark")
    shape = shape_of(config.model, config.task)
    config, _ = decide(config, shape, world)
    data = [generate_rows(config, count) for count in (units, 0)]
    run, loaded, _ = build(config, shape, None, data, folder, world, EventLog(folder / f"{config.name}.jsonl"), Lease(folder, "bench"))
    run.engine.train()
    if not private:
        steps = ordinary_steps(run, 0)
    else:
        plan = PrivacyPlan(units, units, 10**6, 0, CLIP, NOISE, 0.1 / units)
        state = begin(plan, Units.of(run.train, max_records=None), run.engine, loaded.base, world, None)
        steps = private_steps(state, run, 0)

    def step() -> None:
        next(steps)

    return step


def _opacus(folder: Path, *, units: int, length: int, ghost: bool) -> Callable[[], None]:
    """A step with Opacus, as its documentation has it."""
    import numpy as np
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    module = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    ids = torch.from_numpy(np.random.default_rng(0).integers(VOCABULARY, size=(units, length)))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    criterion = nn.CrossEntropyLoss(reduction="mean")
    settings: dict[str, Any] = {"noise_multiplier": NOISE, "max_grad_norm": CLIP, "expected_batch_size": units}
    wrapped: Any = GradSampleModuleFastGradientClipping(module, max_grad_norm=CLIP) if ghost else GradSampleModule(module)
    private: Any = (DPOptimizerFastGradientClipping if ghost else DPOptimizer)(optimizer, **settings)
    ghost_loss = DPLossFastGradientClipping(wrapped, private, criterion) if ghost else None

    def step() -> None:
        logits = wrapped(input_ids=ids, use_cache=False).logits[:, :-1]
        flat, targets = logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1)
        if ghost_loss is not None:
            ghost_loss(flat, targets, shape=(units, length - 1)).backward()
        else:
            criterion(flat, targets).backward()
        private.step()
        private.zero_grad()

    return step


def _serve(connection: Any, variant: str, folder: Path, units: int, length: int) -> None:
    """A variant's process: for each number received, a step, answered by its seconds; then FLOPs and memory."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainers.cpu import fast_products

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if variant.startswith("opacus"):
        step = _opacus(folder, units=units, length=length, ghost=variant.endswith("ghost"))
    else:
        step = _ours(folder, units=units, length=length, private=variant == "private")
    with fast_products(longest=length):
        for _ in range(WARM_UP):
            step()
        connection.send("ready")
        while connection.recv():
            began = time.perf_counter()
            step()
            connection.send(time.perf_counter() - began)
        with FlopCounterMode(display=False) as counter:
            step()
        connection.send((counter.get_total_flops(), _growth(step)))


def _growth(step: Callable[[], None]) -> int:
    """Bytes by which the process grows during a step, at its height."""
    import psutil

    process, heights, stop = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            heights.append(process.memory_info().rss)

    ctypes.CDLL(None).malloc_trim(0)  # what the steps before have left is not lying ready for this one
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    stop.set()
    watcher.join()
    return max(heights) - before


def measure(folder: Path, *, rounds: int, units: int, length: int) -> list[Result]:
    """All variants, a step each in turn."""
    context = get_context("spawn")
    connections, processes = {}, []
    for variant in VARIANTS:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(theirs, variant, folder, units, length)))
        processes[-1].start()
        theirs.close()  # one that dies is then noticed
        assert ours.recv() == "ready"
        connections[variant] = ours
    results = {variant: Result(variant) for variant in VARIANTS}
    for number in range(rounds):
        turn = number % len(VARIANTS)
        for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
            connections[variant].send(True)
            results[variant].milliseconds.append(1000 * connections[variant].recv())
        for result in results.values():
            result.ratios.append(round(result.milliseconds[-1] / results["ordinary"].milliseconds[-1], 4))
        print(f"round {number + 1}/{rounds}", end="\r", file=sys.stderr)
    for variant, connection in connections.items():
        connection.send(False)
        results[variant].flops, results[variant].memory = connection.recv()
    for process in processes:
        process.join()
    return list(results.values())


def _ledger_milliseconds(folder: Path) -> float:
    """Of one charge, written through to the disk."""
    from privacy.ledger import Ledger
    from privacy.plan import Event

    with Ledger.create(folder / "ledger.db") as ledger:
        ledger.grant("people", 10.0, 1e-6)
        reservation = ledger.reserve("people", Event(1.0, 0.01, 1000, 1000, 300), "benchmark")
        began = time.perf_counter()
        for _ in range(200):
            reservation.charge()
    return 1000 * (time.perf_counter() - began) / 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="steps of each variant (default 12)")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write all results to this file")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder / "model", vocabulary=VOCABULARY, max_position_embeddings=2048)
        results = measure(folder, rounds=arguments.rounds, units=arguments.units, length=arguments.length)
        ledger = _ledger_milliseconds(folder)
    ordinary = results[0]
    print(f"{'':14}  {'ms a step':>9}  {'ratio':>6}  {'quartiles':>13}  {'FLOPs':>6}  {'memory':>9}")
    for result in results:
        low, middle, high = statistics.quantiles(result.ratios, n=4)
        print(f"{result.variant:14}  {statistics.median(result.milliseconds):9.0f}  {middle:6.3f}  {low:.3f} - {high:.3f}  "
              f"{result.flops / ordinary.flops:6.3f}  {result.memory / 2**20:5.0f} MiB")  # fmt: skip
    print(f"a charge to the ledger: {ledger:.1f} ms")
    if arguments.json:
        found = {"units": arguments.units, "length": arguments.length, "ledger_ms": ledger, "results": [asdict(r) for r in results]}
        arguments.json.write_text(json.dumps({**facts(PACKAGES), **found}, indent=1))
    print(f"consortium {statistics.median(results[1].ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
