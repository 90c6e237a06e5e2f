"""`consortium demo`: the main job from nothing. Data, a tokenizer and a small model are made here; no network, no downloaded weights."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.job import JobSpec
from consortium.training import run
from trainers.data.synthetic import DemoData, write_demo_data

VOCABULARY = 2048
WORKERS = 2
EVALUATED = 300
console = Console(stderr=True, highlight=False, soft_wrap=True)


def run_demo(folder: Path) -> dict[str, Any]:
    """Pretrain a small Llama on policy texts, fine-tune an adapter on customers' tickets, compare both on held-out customers.

    A stage that has been finished in `folder` is kept, one that was interrupted goes on.
    """
    began = time.monotonic()
    folder = folder.resolve()
    console.print("[bold]1. data[/]  messages of bank customers with intents and replies; policy documents")
    data = write_demo_data(folder / "data", documents=2000)
    make_shape(folder / "shape", data.policies)
    console.print("[bold]2. pretrain[/]  all weights of a small Llama, from random, on the policy documents")
    base = run_once(pretrain_job(folder, data.policies))
    console.print("[bold]3. fine-tune[/]  a LoRA adapter on it: answer a customer, naming the intent first")
    tuned = run_once(_sft_job(folder, data))
    console.print(f"[bold]4. evaluate[/]  on {EVALUATED} messages of customers held out from training")
    results = {"before": _evaluate(base, data, adapter=False), "after": _evaluate(tuned, data, adapter=True)}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    _show(results, tuned, time.monotonic() - began)
    return results


def make_shape(folder: Path, policies: Path) -> None:
    """A directory with a tokenizer and a config.json, without weights: what `from_scratch` starts from."""
    from transformers import LlamaConfig

    from trainers.data.tokenizer import train_tokenizer

    texts = (json.loads(line)["text"] for line in policies.open())
    tokenizer = train_tokenizer(texts, folder, vocabulary=VOCABULARY)
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.06,  # a narrow model with the usual 0.02 takes long to begin to attend
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(str(folder))


def pretrain_job(folder: Path, policies: Path) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "base",
            "task": "pretrain",
            "model": {"path": str(folder / "shape"), "from_scratch": True},
            "method": "full",
            "data": {"train": policies, "validation_fraction": 0.05, "max_length": 256},
            "train": {"epochs": 1, "global_batch_size": 8, "learning_rate": 2e-3, "warmup": 0.05, "weight_decay": 0.1, "eval_every": 60},
            "zero": 2,
            "cluster": {"workers": WORKERS},
            "output": folder / "runs",
        }
    )


def _sft_job(folder: Path, data: DemoData) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "assistant",
            "task": "sft",
            "model": str(folder / "runs" / "base" / "model"),
            "method": {"lora": {"rank": 32}},
            "data": {"train": data.tickets_train, "validation_fraction": 0.05, "group_by": "customer_id"},
            "train": {"epochs": 2, "global_batch_size": 8, "learning_rate": 2e-3, "eval_every": 300},
            "zero": 2,
            "cluster": {"workers": WORKERS},
            "output": folder / "runs",
        }
    )


def run_once(job: JobSpec) -> Path:
    report = job.run_dir / "report.json"
    if report.exists() and json.loads(report.read_text())["status"] == "finished":
        console.print(f"  finished before, kept: {job.run_dir}")
    else:
        run(job)
    return job.run_dir


def _evaluate(run_dir: Path, data: DemoData, *, adapter: bool) -> dict[str, Any]:
    """Perplexity of the answers, and how often the right intent is the likeliest beginning of one."""
    import torch

    from trainers.config import DataConfig, ModelConfig
    from trainers.evaluate import read_items, score, summarise
    from trainers.model import load_finetuned
    from trainers.worker import quiet

    quiet()
    torch.set_num_threads(1)  # a model this small loses more by waiting for a second thread than it gains
    base = ModelConfig(path=str(run_dir.parent / "base" / "model"), dtype="float32")
    loaded = load_finetuned(run_dir / ("adapter" if adapter else "model"), base, "sft", device=torch.device("cpu"))
    items = read_items(DataConfig(train=[data.tickets_test]), "sft", data.tickets_test, limit=EVALUATED)
    return summarise(score(loaded, "sft", items, max_length=512, label_column="intent"))


def _show(results: dict[str, Any], tuned: Path, seconds: float) -> None:
    out = Console(highlight=False, soft_wrap=True)
    table = Table("held-out customers", "before", "after", box=None, padding=(0, 2))
    for name, title in (("perplexity", "perplexity of the answers"), ("accuracy", "intent accuracy"), ("macro_f1", "intent macro-F1")):
        table.add_row(title, *(f"{results[side][name]:.3f}" for side in ("before", "after")))
    out.print(table)
    out.print(f"  adapter  {tuned / 'adapter'}\n  report   {tuned / 'report.html'}\n  in {seconds:.0f} s")
    out.print(f"  try it:  echo 'I lost my card in Lyon' | consortium predict {tuned}")
