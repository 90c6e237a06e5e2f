"""Helpers of the tests: tiny models of every family, job directories, and functions run on several gloo processes."""

import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests import warm

REPOSITORY = Path(__file__).resolve().parents[1]
VOCABULARY = 512
PRIVACY = {"noise_multiplier": 1.0, "delta": 1e-5, "clip_norm": 0.1, "unit": "record", "units": 5000, "ledger": "bank.ledger"}
"""Of a job that is planned, not run"""


def make_tokenizer(folder: Path) -> None:
    """Byte-level BPE trained on a little of the synthetic text; bos <s>, eos and pad </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from trainers.data.synthetic import generate_policy_documents

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        generate_policy_documents(50, seed=0),
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def make_model(family: str, folder: Path, **changes: Any) -> None:
    """A model of `family` with two layers, 64 wide, random weights of a fixed seed; with the tokenizer."""
    import torch
    import transformers as hf

    small = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
    gated = {**small, "intermediate_size": 128, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    configs: dict[str, Any] = {
        "llama": lambda: hf.LlamaConfig(**gated | changes),
        "mistral": lambda: hf.MistralConfig(**gated | {"sliding_window": 32} | changes),
        "qwen3": lambda: hf.Qwen3Config(**gated | {"head_dim": 16} | changes),
        "gemma3": lambda: hf.Gemma3TextConfig(**gated | {"head_dim": 16, "sliding_window": 32, "sliding_window_pattern": 2} | changes),
        "falcon": lambda: hf.FalconConfig(**small | {"bos_token_id": 1, "eos_token_id": 2} | changes),
        "gpt2": lambda: hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2, **changes
        ),
        "bert": lambda: hf.BertConfig(**small | {"intermediate_size": 128, "pad_token_id": 2} | changes),
        "modernbert": lambda: hf.ModernBertConfig(
            **small
            | {"intermediate_size": 128, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
            | changes
        ),
    }
    auto = hf.AutoModel if family in ("bert", "modernbert") else hf.AutoModelForCausalLM
    torch.manual_seed(0)
    hf.logging.disable_progress_bar()
    auto.from_config(configs[family]()).save_pretrained(folder)
    make_tokenizer(folder)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_run(folder: Path, *, workers: int = 1, **config: Any) -> Path:
    """A run directory `folder` with this configuration, as the launcher would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"name": folder.name, "output": str(folder.parent), **config}, default=str))
    return folder


def start_workers(run_dir: Path, *, workers: int = 1) -> list[warm.Running]:
    """`python -m trainers` on this many processes, as torchrun would start them."""
    shared, arguments = _rendezvous(workers), [run_dir / "config.json"]
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(workers)]
    return [warm.Running("trainers", arguments, environment) for environment in ranks]


def train(run_dir: Path, *, workers: int = 1, expect: int = 0) -> str:
    """Train a run directory to its end; what the workers printed. Fails unless every worker exits with `expect`."""
    ended = [process.finish() for process in start_workers(run_dir, workers=workers)]
    output = "".join(process.stdout + process.stderr for process in ended)
    assert all(process.returncode == expect for process in ended), output
    return output


def run_distributed(
    function: Callable[..., Any], workers: int = 2, *args: Any, expect: type[Exception] | tuple[type[Exception], ...] = ()
) -> list[Any]:
    """`function(*args)` on so many gloo processes; what it returned, by rank.

    Each process has RANK, WORLD_SIZE and LOCAL_RANK set and is in the process group; `function` is one of a module's, to be pickled.
    An exception of a process is raised here; one of a type in `expect` stands in the list, in the place of the result.
    """
    shared = _rendezvous(workers)
    with ProcessPoolExecutor(workers, warm.context()) as pool:
        ranks = [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(workers)]
        pending = [pool.submit(_in_group, environment, function, args) for environment in ranks]
        errors = [future.exception() for future in pending]
    if unexpected := [error for error in errors if error is not None and not isinstance(error, expect)]:
        raise unexpected[0]
    return [future.result() if error is None else error for error, future in zip(errors, pending, strict=True)]


def _in_group(environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    import torch.distributed as dist

    warm.take_over(environment)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    dist.barrier()  # one that failed at once would close its sockets while others still connect
    try:
        return function(*args)
    finally:
        dist.destroy_process_group()


def _rendezvous(workers: int) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def losses(run_dir: Path) -> list[float]:
    """Training loss by step; the last record of a step that was done again."""
    by_step = {event["step"]: event["loss"] for event in events(run_dir, "step")}
    return [by_step[step] for step in sorted(by_step)]
