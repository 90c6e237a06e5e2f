"""`consortium bench` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consortium.bench import run_bench
from tests import helpers
from trainers.errors import ConfigError

COMMAND = [sys.executable, "-m", "consortium", "bench"]
OPTIONS: dict[str, Any] = dict.fromkeys(("workers", "methods", "stages", "lengths", "projected", "price", "output"))


def _consortium_bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=helpers.REPOSITORY,
        env=os.environ | {"COLUMNS": "220"},
    )  # fmt: skip


def _write_job(folder: Path, model: Path) -> Path:
    path = folder / "job.yaml"
    path.write_text(f"model: {model}\nmethod: {{lora: {{rank: 4}}}}\ntrain: {{micro_batch_tokens: 64}}\noutput: {folder}\n")
    return path


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("workers", "", "--workers '': expected values with commas between them"),
        ("workers", "1,,2", "--workers '1,,2'"),
        ("workers", "0", "--workers 0: expected a whole number of at least 1"),
        ("workers", "1,two", "--workers two: expected a whole number"),
        ("methods", "lora,qlora", "--method qlora: expected of full, lora, nf4, int8"),
        ("stages", "4", "--zero 4: expected of 1, 2, 3"),
        ("lengths", "1", "--seq 1: expected a whole number of at least 2"),
        ("projected", "2", "--project 2: expected more workers than the 4"),
    ],
)
def test_a_mistake_in_a_list_is_one_line_before_anything_starts(
    llama_dir: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_bench(_write_job(tmp_path, llama_dir), [], **OPTIONS | {"workers": "4", option: value}, steps=1)
    assert caught.value.message.startswith(message) and "\n" not in caught.value.message


def test_results_that_are_there_are_not_overwritten(llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a benchmark"):
        run_bench(_write_job(tmp_path, llama_dir), [], **OPTIONS | {"output": tmp_path}, steps=1)


def test_a_cluster_too_small_for_every_point_is_the_users_mistake(llama_dir: Path, tmp_path: Path) -> None:
    done = _consortium_bench(_write_job(tmp_path, llama_dir), "--workers", "999")
    assert done.returncode == 2 and "error: 999 workers need 999 CPUs" in done.stderr and "hint:" in done.stderr


def test_the_help_of_bench_imports_nothing_heavy() -> None:
    code = (
        "import sys, consortium.main; sys.argv = ['consortium', 'bench', '--help']\ntry: consortium.main.main()\nexcept SystemExit: pass\n"
    )
    heavy = "print(sorted(set(sys.modules) & {'torch', 'ray', 'transformers', 'datasets', 'deepspeed', 'numpy', 'pydantic'}))"
    output = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True, cwd=helpers.REPOSITORY).stdout
    assert "--project" in output and output.splitlines()[-1] == "[]"


def test_one_command_leaves_a_table_json_page_and_picture_that_can_be_compared(llama_dir: Path, tmp_path: Path) -> None:
    job, output = _write_job(tmp_path, llama_dir), tmp_path / "out"
    done = _consortium_bench(job, "--workers", "1", "--seq", "16", "--steps", "3", "--price", "2", "--project", "64", "--output", output)
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "bench.json").read_text())
    assert (results["schema"], results["finished"]) == (1, True)
    assert [entry["status"] for entry in results["points"]] == ["measured", "failed"]  # one worker tells nothing of communication
    assert {"bench.html", "bench.png"} <= {path.name for path in output.iterdir()} and "cost/M" in done.stdout
    compared = _consortium_bench("compare", output, output / "bench.json")
    assert compared.returncode == 0 and "1.000" in compared.stdout


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_measured(llama_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--workers", "1", "--seq", "16,32", "--steps", "3", "--output", str(output)]
    process = subprocess.Popen(
        [*COMMAND, str(_write_job(tmp_path, llama_dir)), *arguments], stderr=subprocess.PIPE, text=True, cwd=helpers.REPOSITORY
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "length16" in line:
            break
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(timeout=120) == 130
    results = json.loads((output / "bench.json").read_text())
    assert not results["finished"] and [entry["length"] for entry in results["points"]] == [16]
    assert (output / "bench.html").exists()
