"""What one GPU gives: tokens a second and memory of a step, beside other trainers and the plan's prediction, and what a private step costs.

    python benchmarks/gpu.py [--cases lora,full,...] [--steps 10] [--tiny] [--json OUT]

    lora      Llama-3.1-8B's shape, LoRA of rank 16 on all linear layers      private   the same, each row a unit: clipped, noised, AES
    nf4       the same on a base model in nf4 with double quantisation        Trainer   the same by Hugging Face's Trainer with PEFT
    full      Llama-3.2-3B's shape, all weights                               TRL       the same by TRL's SFTTrainer
    short     as lora, of documents an eighth as long, packed                 dense     the same with a mask: model.attention: sdpa

Weights are random, in bfloat16; rows are 4096 random tokens, each one document, as many a step as `--rows`, in one pass; no activation
checkpointing. Each case is a process of its own: the median of so many steps after three, until the GPU has finished. Memory is the
allocator's height; beside it what `consortium plan` predicts, less the context, which the allocator does not see. The limit is 790 TFLOP/s,
what products of matrices reach on an H100 or H200, by the same count of FLOPs. The private step is without its ledger (dp_overhead.py).

Nothing is installed, and no Ray is needed; a case that fails says why, and the others go on. --tiny runs all of it on a CPU with a model
of two layers and rows of 64 tokens, to see that it works; its figures mean nothing. Cases are added to OUT; what is there is kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed
os.environ |= {"HF_HUB_OFFLINE": "1"}

from facts import facts  # noqa: E402

LIMIT_FLOPS = 790e12
RANK, ALPHA = 16, 32
WARM_UP = 3
CASE_SECONDS = 540
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "bitsandbytes", "trl")
CASES = {"lora": "llama-3.1-8b", "private": "llama-3.1-8b", "nf4": "llama-3.1-8b", "full": "llama-3.2-3b", "Trainer": "llama-3.1-8b",
         "TRL": "llama-3.1-8b", "short": "llama-3.1-8b", "dense": "llama-3.1-8b"}  # fmt: skip
SWITCHES = {"nf4": {"quantization": "nf4"}, "dense": {"attention": "sdpa"}}
"""In the job's model, by case"""


@dataclass(frozen=True)
class Terms:
    """What one case is measured with."""

    case: str
    steps: int
    rows: int
    tiny: bool

    @property
    def length(self) -> int:
        return 64 if self.tiny else 4096

    @property
    def parts(self) -> int:
        """Documents that share a row."""
        return 8 if self.case in ("short", "dense") else 1

    def model(self, folder: Path) -> dict[str, Any]:
        """As a job file has it."""
        if self.tiny:
            return {"path": str(_tiny_model(folder)), "dtype": "float32"}
        return {"shape": CASES[self.case], "dtype": "bfloat16"}

    def job(self, folder: Path) -> dict[str, Any]:
        count = self.rows * self.parts
        promise = {"noise_multiplier": 1.0, "delta": 0.1 / count, "clip_norm": 0.1, "unit": "record", "units": count, "ledger": "none"}
        return {
            "name": self.case,
            "task": "sft",
            "model": self.model(folder) | SWITCHES.get(self.case, {}),
            "method": "full" if self.case == "full" else {"lora": {"rank": RANK, "alpha": ALPHA}},
            "data": {"train": "generated", "max_length": self.length // self.parts},
            "train": {
                "max_steps": 10**6, "global_batch_size": count, "micro_batch_tokens": self.rows * self.length, "learning_rate": 1e-4,
                "activation_checkpointing": False,
            },
            "zero": 1,
            "tracking": {"tensorboard": False},
        } | ({"privacy": promise} if self.case == "private" else {})  # fmt: skip


def _tiny_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "model").exists():
        shape = LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, max_position_embeddings=256)  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(str(folder / "model"))
    return folder / "model"


# in the process of a case


def measure(terms: Terms, folder: Path) -> dict[str, Any]:
    """Seconds of each step, tokens of a step, the height of memory; of ours FLOPs and the prediction too."""
    import torch

    torch.manual_seed(0)
    if terms.case in ("Trainer", "TRL"):
        return _measure_peer(terms, folder)
    return _measure_private(terms, folder) if terms.case == "private" else _measure_ours(terms, folder)


def _measure_ours(terms: Terms, folder: Path) -> dict[str, Any]:
    from trainers import bench

    (folder / "config.json").write_text(json.dumps(terms.job(folder)))
    bench.measure(folder, steps=terms.steps)
    found = json.loads((folder / bench.RESULT).read_text())
    kept = ("step_seconds", "tokens_per_step", "peak_memory_bytes", "flops_per_token")
    return {name: found[name] for name in kept} | {"predicted_bytes": _predicted(terms, folder)}


def _predicted(terms: Terms, folder: Path) -> float | None:
    """By the plan, without what is not the allocator's; None where it cannot say."""
    from trainers.config import TrainConfig, validate
    from trainers.footprint import measure as footprint_of
    from trainers.memory import memory_of_job

    config = validate(TrainConfig, terms.job(folder), source="benchmark")
    footprint = footprint_of(config, "cpu" if terms.tiny else "cuda")
    if footprint is None:
        return None
    memory = memory_of_job(config, footprint, workers=1)
    return float(memory.total - memory.context)


def _measure_private(terms: Terms, folder: Path) -> dict[str, Any]:
    """All units in every batch: so that it has the rows of the ordinary step."""
    from privacy.plan import PrivacyPlan
    from trainers.bench import generate_rows
    from trainers.config import TrainConfig, validate
    from trainers.cpu import fast_products
    from trainers.events import EventLog
    from trainers.finish import peak_memory
    from trainers.lease import Lease
    from trainers.model import shape_of
    from trainers.private import Units, begin, private_steps
    from trainers.worker import build, decide, quiet
    from trainers.world import World

    quiet()
    world = World.from_environment()
    world.connect()
    config = validate(TrainConfig, terms.job(folder), source="benchmark")
    shape = shape_of(config.model, config.task)
    config, _ = decide(config, shape, world)
    data = [generate_rows(config, count) for count in (terms.rows, 0)]
    run, loaded, _ = build(config, shape, None, data, folder, world, EventLog(None), Lease(folder, "bench"))
    run.engine.train()
    plan = PrivacyPlan(terms.rows, terms.rows, 10**6, 0, 0.1, 1.0, 0.1 / terms.rows)
    steps = private_steps(begin(plan, Units.of(run.train, max_records=None), run.engine, loaded.base, world, None), run, 0)
    with fast_products(longest=terms.length):
        seconds = _timed(lambda: next(steps), terms.steps)
    return {
        "step_seconds": seconds,
        "tokens_per_step": terms.rows * terms.length,
        "peak_memory_bytes": peak_memory(world),
        "flops_per_token": run.flops_per_token,
        "predicted_bytes": _predicted(terms, folder),
    }


def _timed(step: Callable[[], Any], count: int) -> list[float]:
    seconds = []
    for _ in range(WARM_UP + count):
        began = time.perf_counter()
        step()
        _finish()
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]


def _finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measure_peer(terms: Terms, folder: Path) -> dict[str, Any]:
    """As their documentation has it: PEFT, sdpa attention, AdamW fused where there is a GPU, tokens already made."""
    import datasets
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from trainers.config import ModelConfig
    from trainers.model import load_model_config

    shape, gpu = load_model_config(ModelConfig(**terms.model(folder))), torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        base = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16 if gpu else torch.float32)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    ids = np.random.default_rng(0).integers(shape.vocab_size, size=(terms.rows * (WARM_UP + terms.steps), terms.length))
    mask = {"attention_mask": np.ones_like(ids)} if terms.case == "TRL" else {}  # without which it does not begin
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, **mask})
    module = get_peft_model(base, lora)
    seconds = list(_peer_steps(terms, module, rows, folder, bf16=gpu))
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    return {"step_seconds": seconds[WARM_UP:], "tokens_per_step": terms.rows * terms.length, "peak_memory_bytes": peak}


def _peer_steps(terms: Terms, module: Any, rows: Any, folder: Path, *, bf16: bool) -> Iterator[float]:
    """Seconds from the end of one step to the end of the next."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    common: dict[str, Any] = {
        "output_dir": str(folder / "peer"), "per_device_train_batch_size": terms.rows, "max_steps": WARM_UP + terms.steps, "bf16": bf16,
        "use_cpu": not bf16, "gradient_checkpointing": False, "learning_rate": 1e-4, "remove_unused_columns": False,
        "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "logging_strategy": "no", "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True,
        "optim": "adamw_torch_fused" if bf16 else "adamw_torch",
    }  # fmt: skip
    ends = [0.0]

    class AtStepEnd(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            ends[0] = time.perf_counter()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            _finish()
            ends.append(time.perf_counter())

    if terms.case == "Trainer":
        trainer: Any = Trainer(module, TrainingArguments(**common), data_collator=default_data_collator, train_dataset=rows)
    else:
        from transformers import PreTrainedTokenizerFast
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(**common, max_length=terms.length, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = SFTTrainer(
            module, config, train_dataset=rows, data_collator=default_data_collator, processing_class=_tokenizer(PreTrainedTokenizerFast)
        )
    trainer.add_callback(AtStepEnd())
    trainer.train()
    return (later - earlier for earlier, later in pairwise(ends))


def _tokenizer(kind: Any) -> Any:
    """One that is asked for nothing but its padding."""
    from tokenizers import Tokenizer, models

    return kind(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")), pad_token="<pad>", eos_token="<eos>")


# here


def run(terms: Terms) -> dict[str, Any]:
    """What a case's process has found, or why it found nothing."""
    with tempfile.TemporaryDirectory() as name:
        result, log = Path(name) / "found.json", Path(name) / "log"
        given = ["--cases", terms.case, "--steps", str(terms.steps), "--rows", str(terms.rows)] + ["--tiny"] * terms.tiny
        command = [sys.executable, __file__, "--measure", str(result), *given]
        with log.open("wb") as stream:
            try:
                subprocess.run(command, check=True, stdout=stream, stderr=stream, timeout=CASE_SECONDS)
                return {"case": terms.case, "rows": terms.rows, "length": terms.length} | json.loads(result.read_text())
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                why = "took too long" if isinstance(error, subprocess.TimeoutExpired) else (said[-1] if said else str(error))
                return {"case": terms.case, "rows": terms.rows, "length": terms.length, "failed": why[:300]}


def show(results: list[dict[str, Any]]) -> None:
    print(f"{'':8}  {'tokens/s':>8}  {'of limit':>8}  {'ms a step':>9}  {'peak GB':>7}  {'planned':>7}")
    for row in results:
        if "failed" in row:
            print(f"{row['case']:8}  failed: {row['failed']}")
            continue
        seconds = statistics.median(row["step_seconds"])
        speed, flops, planned = row["tokens_per_step"] / seconds, row.get("flops_per_token"), row.get("predicted_bytes")
        share = f"{speed * flops / LIMIT_FLOPS:.1%}" if flops else ""
        print(f"{row['case']:8}  {speed:>8,.0f}  {share:>8}  {1000 * seconds:>9.0f}  {row['peak_memory_bytes'] / 1e9:>7.2f}  "
              f"{f'{planned / 1e9:.2f}' if planned else '':>7}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="of those above, with commas between (default: all)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    parser.add_argument("--rows", type=int, default=2, help="of a step (default 2)")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers on a CPU, to see that all works")
    parser.add_argument("--json", type=Path, help="results, added to")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := {*arguments.cases.split(",")} - {*CASES}:
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    wanted = [Terms(case, arguments.steps, arguments.rows, arguments.tiny) for case in arguments.cases.split(",")]
    if arguments.measure:
        arguments.measure.write_text(json.dumps(measure(wanted[0], arguments.measure.parent)))
        return 0
    there = arguments.json is not None and arguments.json.exists()
    stored: dict[str, Any] = json.loads(arguments.json.read_text()) if there else {"results": []}
    import torch  # so that facts names the GPU

    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; --tiny runs all of it on a CPU")
    done = {row["case"] for row in stored["results"] if "failed" not in row}
    for terms in wanted:
        if terms.case in done:
            continue
        print(f"{terms.case} ...", file=sys.stderr, flush=True)
        stored["results"] = [row for row in stored["results"] if row["case"] != terms.case] + [run(terms)]
        stored |= facts([name for name in PACKAGES if find_spec(name)]) | {"tiny": arguments.tiny}
        if arguments.json:
            arguments.json.write_text(json.dumps(stored, indent=1))
    show(stored["results"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
