"""What `consortium plan` predicts of memory, against what is really there.

    python benchmarks/plan_truth.py [--quick] [--json OUT]

tensors    whole models at their real shapes (every layer, fake tensors, no data), forth and back twice, as torch's own MemTracker counts
           them: weights, gradients, all that is kept, logits. 4-bit weights are emulated: half a byte a number is kept and made into
           numbers anew in both directions, as bitsandbytes does. Attention is torch's own fused kernel for a CPU.
process    DeepSpeed itself on gloo, one and two workers, ZeRO 1, 2 and 3: the largest resident size of the worst worker in two steps of two
           passes, less that of the same process before the model was made. A Llama of 4 layers as wide as Llama 3.2 1B, 2 GB in float32.
gpu        (where there is one) torch.cuda.max_memory_allocated in the same steps, 1B, bfloat16.

The prediction is trainers.memory's; nothing in it was fitted to a row here. Printed are prediction, truth and error in percent, then the
median and the worst.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system, so that the resident size is what is used

import torch
import torch.distributed as dist
import torch.nn.functional as F
from facts import facts
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM

from trainers import attention
from trainers.attention import use_blocks
from trainers.config import SHAPES, TrainConfig, validate
from trainers.cpu import fast_products
from trainers.data.batches import Batch, places_of
from trainers.engine import Engine, sharded_loading
from trainers.footprint import measure
from trainers.lora import fuse_updates
from trainers.memory import Memory, memory_of_job
from trainers.model import DTYPES, add_adapters, decoder_blocks, load_model_config
from trainers.objectives import NextToken
from trainers.world import World

GB = 1e9
LAYERS = 4
"""Of the model in `process`"""
TENSORS = ("weights", "quantized", "adapters", "gradients", "activations", "dequantized", "mask", "logits")
"""Terms of the prediction that a MemTracker sees of a pass"""


@dataclass
class Result:
    kind: str
    what: str
    predicted: float
    """Bytes"""
    truth: float

    @property
    def error(self) -> float:
        """Percent; above 0 where more was predicted than there is."""
        return 100 * (self.predicted / self.truth - 1)


class FourBit(torch.autograd.Function):
    """x (..., in) W^T with W (out, in) kept packed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        ctx.packed, ctx.shape = packed, shape
        return x @ x.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients[0] @ gradients[0].new_empty(ctx.shape), None, None


@dataclass(frozen=True)
class Head:
    """A head that is no module: the tracker allows one call of a module in a pass, and chunks of logits make many."""

    weight: torch.Tensor

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight)

    def parameters(self) -> list[torch.Tensor]:
        return [self.weight]


def pack(linear: nn.Linear) -> None:
    """Let a linear layer have its weight at 4.127 bits a number."""
    shape = tuple(linear.weight.shape)
    linear.register_buffer("packed", torch.empty(int(linear.weight.numel() * (0.5 + 1 / 64 + 4 / 64 / 256)), dtype=torch.uint8))
    linear.weight = nn.Parameter(torch.empty(0, dtype=linear.weight.dtype), requires_grad=False)
    linear.forward = lambda x: FourBit.apply(x, linear.packed, shape)  # type: ignore[method-assign]


def make_config(model: dict[str, Any], method: str, row: int, **blocks: Any) -> TrainConfig:
    quantization = {"quantization": "nf4"} if method == "nf4" else {}
    values = {"task": "sft", "data": {"train": "rows.jsonl", "max_length": row}, "method": "full" if method == "full" else "lora"}
    return validate(TrainConfig, values | {"model": model | quantization} | blocks, source="plan_truth")


def build(config: TrainConfig) -> NextToken:
    """The objective as a worker makes it, with random weights, 4-bit ones emulated."""
    base = AutoModelForCausalLM.from_config(load_model_config(config.model), dtype=DTYPES[config.model.dtype])
    base.new_layers, base.new_tokens = [], []
    use_blocks(base)
    if config.model.quantization == "nf4":
        for linear in [module for block in decoder_blocks(base) for module in block.modules() if type(module) is nn.Linear]:
            pack(linear)
    module = add_adapters(base, config.method, config.task, quantized=True)  # adapters as wide as the model, on the meta device too
    if config.zero.stage != 3:
        fuse_updates(module)
    if config.train.activation_checkpointing is True:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return NextToken(module, base)


def predict(config: TrainConfig, device: Literal["cuda", "cpu"], *, workers: int) -> Memory:
    footprint = measure(config, device)
    assert footprint is not None
    return memory_of_job(config, footprint, workers=workers)


def tensors(quick: bool) -> Iterator[Result]:
    """Whole models on fake tensors."""
    shapes = ["llama-3.2-1b"] if quick else ["llama-3.2-1b", "llama-3.1-8b"]
    for shape, method, row, again in product(shapes, ("full", "lora", "nf4"), (1024, 4096), (False, True)):
        config = make_config(
            {"shape": shape, "dtype": "bfloat16"}, method, row, zero=1, train={"activation_checkpointing": again, "micro_batch_tokens": row}
        )
        memory = predict(config, "cuda", workers=1)
        predicted = sum(getattr(memory, term) for term in TENSORS)
        what = f"{shape} {method:4} {row} tokens, activations {'computed again' if again else 'kept'}"
        yield Result("tensors", what, predicted, _tracked(config, row))


def fake(module: nn.Module) -> None:
    """Give a module on the meta device fake tensors of a CPU; tied ones stay tied.

    Frozen parameters become buffers: the tracker hangs a hook on every parameter, which torch allows on trained ones only.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}
    for part in module.modules():
        for name, old in [*part._parameters.items(), *part._buffers.items()]:
            if old is None:
                continue
            if old not in made:
                new = torch.empty(old.shape, dtype=old.dtype)
                made[old] = nn.Parameter(new) if old.requires_grad else new
            part._parameters.pop(name, None)
            own = part._parameters if old.requires_grad else part._buffers
            own[name] = made[old]


def _tracked(config: TrainConfig, row: int) -> float:
    with torch.device("meta"):
        objective = build(config)
    with FakeTensorMode():
        fake(objective)
        objective.train()
        objective._head[0] = Head(objective._head[0].weight)
        tracker = MemTracker()
        tracker.track_external(objective)
        ids = torch.zeros(1, row, dtype=torch.long)
        batch = Batch(ids, ids, None, ids, learnt=None, blocks=torch.tensor([[[(1, row)]]], dtype=torch.int32))
        with tracker, mock.patch.object(attention, "blocks_of", return_value=((1, row),)):  # fake tensors have no values to read
            for _ in range(2):
                hidden = objective._last_hidden(batch)
                objective.summed_loss(hidden.flatten(0, 1), torch.zeros(row, dtype=torch.long)).backward()
                del hidden
                tracker.reset_mod_stats()
        return float(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def process(quick: bool) -> Iterator[Result]:
    """DeepSpeed in real processes on CPUs."""
    methods, workers = (("lora",), (2,)) if quick else (("full", "lora"), (1, 2))
    with tempfile.TemporaryDirectory() as folder:
        shape = json.loads((SHAPES / "llama-3.2-1b.json").read_text()) | {"num_hidden_layers": LAYERS}
        (Path(folder) / "config.json").write_text(json.dumps(shape))
        for method, count, stage in product(methods, workers, (1, 2, 3)):
            config = make_config({"path": folder, "dtype": "float32"}, method, 128, zero=stage,
                                 train={"activation_checkpointing": False, "micro_batch_tokens": 256})  # fmt: skip
            yield Result("process", f"{method:4} {count} workers, ZeRO-{stage}", predict(config, "cpu", workers=count).total,
                         max(_in_processes(config, count)))  # fmt: skip


def gpu(quick: bool) -> Iterator[Result]:
    """One worker on a GPU; the context is not torch's to count."""
    if not torch.cuda.is_available():
        return
    for method, row, again in product(("lora",) if quick else ("full", "lora"), (1024, 4096), (False, True)):
        config = make_config({"shape": "llama-3.2-1b", "dtype": "bfloat16"}, method, row, zero=1,
                             train={"activation_checkpointing": again, "micro_batch_tokens": 2 * row})  # fmt: skip
        memory = predict(config, "cuda", workers=1)
        what = f"{method:4} {row} tokens, activations {'computed again' if again else 'kept'}"
        yield Result("gpu", what, memory.total - memory.context, max(_in_processes(config, 1)))


def _in_processes(config: TrainConfig, count: int) -> list[float]:
    """Each worker's height above what it had before the model was made."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(_train, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, config) for rank in range(count)]
        return [future.result() for future in pending]


def _train(environment: dict[str, str], config: TrainConfig) -> float:
    """Two steps of two passes in this process; the bytes at their height."""
    os.environ.update(environment)
    world = World.from_environment()
    world.connect()
    cuda = world.device.type == "cuda"
    with fast_products(longest=128) if not cuda else contextlib.nullcontext():
        before = 0 if cuda else _resident("VmRSS")
        with sharded_loading(config, world_size=world.size), world.device:
            objective = build(config)
        engine = Engine(objective, config, world)
        del objective
        engine.train()
        row, tokens = config.data.max_length, config.train.micro_batch_tokens
        assert isinstance(row, int) and isinstance(tokens, int)
        ids = torch.randint(0, 1000, (1, tokens), device=world.device)
        positions = torch.arange(row, device=world.device).repeat(tokens // row)[None]
        batch = Batch(ids, positions, None, ids, places_of(ids), blocks=torch.tensor([[[(tokens // row, row)]]], dtype=torch.int32))
        _forget_height(cuda)
        for _ in range(2):
            for _ in range(2):
                engine.backward(engine(batch)[0] / tokens)
            engine.step(1e-5)
        height = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
    dist.destroy_process_group()
    return float(height - before)


def _resident(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _forget_height(cuda: bool) -> None:
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model on fake tensors, one method in processes")
    parser.add_argument("--json", type=Path, help="write the results there too")
    arguments = parser.parse_args()
    results: list[Result] = []
    for kind in (tensors, process, gpu):
        for result in kind(arguments.quick):
            results.append(result)
            print(f"{result.kind:8} {result.what:60} predicted {result.predicted / GB:8.3f} GB, is {result.truth / GB:8.3f} GB, "
                  f"{result.error:+6.1f} %", flush=True)  # fmt: skip
    for name in dict.fromkeys(result.kind for result in results):
        errors = [abs(result.error) for result in results if result.kind == name]
        print(f"{name:8} {len(errors)} rows, error: median {statistics.median(errors):.1f} %, worst {max(errors):.1f} %")
    if arguments.json:
        rows = [asdict(result) | {"error": result.error} for result in results]
        arguments.json.write_text(json.dumps({**facts(("torch", "deepspeed", "transformers", "peft")), "results": rows}, indent=1))


if __name__ == "__main__":
    main()
