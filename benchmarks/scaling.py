"""Tokens a second by number of workers: `consortium bench` itself, on as many workers as this machine's processors, a thread each.

    python benchmarks/scaling.py [--workers 1,2] [--json OUT]

The model is a Llama (6 layers, 256 wide, random weights) in float32, rows of 512 tokens, each worker the same number of tokens a step,
whatever their number (weak scaling); LoRA of rank 16 and full fine-tuning at ZeRO 1, 2 and 3. Efficiency is tokens a second of a worker
over those of one alone. Workers on a CPU share its memory and, where processors are threads of one core, that too: what is lost there is
not communication, whose share of a step stands beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from facts import facts
from small_llama import write_llama

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # a checkout that is not installed
PACKAGES = ("torch", "deepspeed", "ray", "transformers", "peft")
JOB = """
name: scaling
model: {path: model}
method: {lora: {rank: 16}}
data: {train: generated, max_length: 512}
task: sft
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers of workers (default 1,2)")
    parser.add_argument("--steps", default="20", help="timed steps a point (default 20)")
    parser.add_argument("--json", type=Path, default=Path("scaling.json"), help="results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llama(folder / "model", (f"{number} and {number * number}" for number in range(2000)), vocabulary=512)
        (folder / "job.yaml").write_text(JOB)
        grid = ["--workers", arguments.workers, "--method", "lora,full", "--zero", "1,2,3", "--steps", arguments.steps]
        command = [sys.executable, "-m", "consortium", "bench", "job.yaml", *grid, "--output", "found"]
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})
        found = json.loads((folder / "found" / "bench.json").read_text())
    points = [{name: value for name, value in point.items() if name != "found"} for point in found["points"]]
    arguments.json.write_text(json.dumps(facts(PACKAGES) | {"parameters": found["parameters"], "results": points}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
