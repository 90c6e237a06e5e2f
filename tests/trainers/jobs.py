"""Jobs of a second for the tests of the training process: their data, their run directories, and ways to run them."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import helpers

_WORDS = ["account", "balance", "branch", "card", "cash", "charge", "cheque", "credit", "deposit", "fee", "interest", "loan", "mortgage"]
WIDE = {"hidden_size": 200, "intermediate_size": 512}
"""Of a Llama that ZeRO-3 does shard: parameters of up to 100,000 values stay whole on every worker."""
TRAIN = {"max_steps": 10, "global_batch_size": 6, "learning_rate": 2e-3}


def write_rows(folder: Path, *, count: int = 40, seed: int = 0, name: str = "rows.jsonl") -> Path:
    """Prompts and completions of 10 to 80 tokens."""
    words = random.Random(seed)
    rows = [
        {
            "prompt": f"Customer {i}: " + " ".join(words.choices(_WORDS, k=words.randint(1, 12))),
            "completion": " " + " ".join(words.choices(_WORDS, k=words.randint(1, 12))),
        }
        for i in range(count)
    ]
    return helpers.write_jsonl(folder / name, rows)


def write_labelled_rows(folder: Path, *, count: int = 40, seed: int = 0, name: str = "labelled.jsonl") -> Path:
    """Texts whose class is the word they begin with."""
    words = random.Random(seed)
    rows = []
    for _ in range(count):
        label = words.choice(_WORDS[:3])
        rows.append({"text": " ".join([label, *words.choices(_WORDS, k=words.randint(1, 20))]), "label": label})
    return helpers.write_jsonl(folder / name, rows)


def write_unlike_rows(folder: Path, *, name: str = "unlike.jsonl") -> Path:
    """Answers as the other rows have none: the better those are learnt, the less likely these become."""
    rows = [{"prompt": f"Customer {i}: card", "completion": f" {i * 7919} {i * 6101}"} for i in range(1, 11)]
    return helpers.write_jsonl(folder / name, rows)


def make_job(folder: Path, model_dir: Path, rows: Path, /, *, task: str = "sft", **blocks: Any) -> Path:
    """A run directory; `data` and `train` are laid over the defaults of these tests, `model` over the model's path."""
    data = {"train": str(rows), "validation_fraction": 0} | blocks.pop("data", {})
    train = TRAIN | blocks.pop("train", {})
    base = {"path": str(model_dir), "dtype": "float32"} | blocks.pop("model", {})
    return helpers.make_run(folder, task=task, model=base, data=data, train=train, **{"tracking": {"tensorboard": False}} | blocks)


def train_all(run_dirs: Sequence[Path]) -> None:
    """Train one job after the other in this process, or (through helpers.run_distributed) in this group of processes."""
    for run_dir, problem in zip(run_dirs, try_all(run_dirs), strict=True):
        assert not problem, f"{run_dir}: {problem}"


def try_all(run_dirs: Sequence[Path]) -> list[str]:
    """As train_all; what each job ended with, empty for those that ended well."""
    from trainers.errors import TrainersError
    from trainers.worker import train

    problems = []
    for run_dir in run_dirs:
        try:
            train(run_dir, run_id="test")
            problems.append("")
        except TrainersError as error:
            problems.append(f"{type(error).__name__}: {error}")
    return problems


def train_here(run_dir: Path) -> list[float]:
    """Train in this process; the losses."""
    train_all([run_dir])
    return helpers.losses(run_dir)


def as_left_after(step: int, run_dir: Path, folder: Path, **blocks: Any) -> Path:
    """A copy of a finished run as a crash after the checkpoint of `step` would have left it; `blocks` replace blocks of its job."""
    shutil.copytree(run_dir / "checkpoints", folder / "checkpoints")
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    config = json.loads((run_dir / "config.json").read_text()) | blocks
    (folder / "config.json").write_text(json.dumps(config, default=str))
    lines = (run_dir / "events.jsonl").read_text().splitlines(keepends=True)
    before = [line for line in lines if (event := json.loads(line))["step"] <= step and event["event"] not in ("trained", "end")]
    (folder / "events.jsonl").write_text("".join(before))
    return folder


def difference(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest between two curves of the same length."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
