"""`consortium bench` as a user runs it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consortium.bench import run_bench
from consortium.plan import plan_job
from tests import helpers, warm
from trainers.errors import ConfigError

COMMAND = [sys.executable, "-m", "consortium", "bench"]
OPTIONS: dict[str, Any] = dict.fromkeys(("workers", "methods", "stages", "lengths", "projected", "price", "output"))


def _consortium_bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.run("consortium", "bench", *arguments, environment={"COLUMNS": "220"})


def _write_job(folder: Path, model: Path) -> Path:
    path = folder / "job.yaml"
    path.write_text(f"model: {model}\nmethod: {{lora: {{rank: 4}}}}\ntrain: {{micro_batch_tokens: 64}}\noutput: {folder}\n")
    return path


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("workers", "", "--workers '': expected values with commas between them"),
        ("workers", "1,,2", "--workers '1,,2'"),
        ("workers", "0", "--workers 0: expected a whole number from 1 to 1,000,000"),
        ("workers", "1,two", "--workers two: expected a whole number"),
        ("methods", "lora,qlora", "--method qlora: expected of full, lora, nf4, int8"),
        ("stages", "4", "--zero 4: expected of 1, 2, 3"),
        ("lengths", "1", "--seq 1: expected a whole number from 2"),
        ("workers", "9" * 5000, "--workers 99999999999999999999: expected a whole number"),
        ("price", float("inf"), "--price inf: expected a finite number"),
        ("projected", "2", "--project 2: expected more than 4"),
    ],
)
def test_a_mistake_in_a_list_is_one_line_before_anything_starts(
    llama_dir: Path, tmp_path: Path, option: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_bench(_write_job(tmp_path, llama_dir), [], **OPTIONS | {"workers": "4", option: value}, steps=1)
    assert caught.value.message.startswith(message) and "\n" not in caught.value.message


def test_results_that_are_there_are_not_overwritten(llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a benchmark"):
        run_bench(_write_job(tmp_path, llama_dir), [], **OPTIONS | {"output": tmp_path}, steps=1)


def test_a_mistake_is_two_lines_and_exit_code_2(llama_dir: Path, tmp_path: Path) -> None:
    done = _consortium_bench(_write_job(tmp_path, llama_dir), "--workers", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: --workers 0: expected a whole number from 1 to 1,000,000",
        "  hint: as in --workers 1,2,4,8",
    ]


def test_the_help_of_bench_imports_nothing_heavy() -> None:
    code = (
        "import sys, consortium.main; sys.argv = ['consortium', 'bench', '--help']\ntry: consortium.main.main()\nexcept SystemExit: pass\n"
    )
    heavy = "print(sorted(set(sys.modules) & {'torch', 'ray', 'transformers', 'datasets', 'deepspeed', 'numpy', 'pydantic'}))"
    output = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True, cwd=helpers.REPOSITORY).stdout
    assert "--project" in output and output.splitlines()[-1] == "[]"


def test_one_command_measures_what_it_can_and_leaves_table_json_page_and_picture(llama_dir: Path, tmp_path: Path) -> None:
    job, output = _write_job(tmp_path, llama_dir), tmp_path / "out"
    grid = ["--workers", "1,2,999", "--zero", "2", "--seq", "16", "--project", "1000"]
    done = _consortium_bench(job, *grid, "--steps", "4", "--price", "2", "--output", output)
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "bench.json").read_text())
    assert (results["schema"], results["finished"]) == (1, True)
    assert results["versions"]["torch"] and results["formulas"]["FLOPs, lora"].startswith("4 N")
    one, two, many, projected = results["points"]
    for entry in (one, two):
        assert entry["status"] == "measured" and entry["tokens_per_second"] > 0 and entry["mfu"] is None
        assert entry["tokens_per_step"] == 64 * entry["workers"] and len(entry["found"]["step_seconds"]) == 4
        assert 0 <= entry["communication_share"] <= 1 and 0 <= entry["data_share"] <= 1 and entry["peak_memory_bytes"] > 50 * 2**20
    assert one["efficiency"] == 1 and two["communication_share"] > 0
    assert many["status"] == "failed" and "999 workers need 999 CPUs" in many["reason"]
    assert projected["status"] == "projected" and projected["tokens_per_second"] > two["tokens_per_second"]
    page = (output / "bench.html").read_text()
    assert "projected" in page and not re.findall(r'(?:src|href)="(?!#)|url\((?!#)|@import|<script', page)
    assert (output / "bench.png").exists() and "cost/M" in done.stdout and "projected" in done.stdout
    compared = _consortium_bench("compare", output, output / "bench.json")
    assert compared.returncode == 0 and "1.000" in compared.stdout
    _check_plan_beside(job, output)


def _check_plan_beside(job: Path, measured: Path) -> None:
    """The plan of what was measured draws both points; that of rows of another length has none to draw."""
    page = measured / "plan.html"
    options: dict[str, Any] = {"gpus": "1,2", "gpu": "cpu", "price": None, "project": None, "tokens": 1e6, "as_json": True}
    overrides = ["data=generated", "task=sft", "zero.stage=2"]
    plan_job(job, [*overrides, "data.max_length=16"], **options, page=page, benchmark=measured)
    text = page.read_text()
    assert "measured, peak" in text and "ZeRO 2, measured" in text and "predicted" not in text  # the speed of a CPU is not
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)|@import|<script', text)
    with pytest.raises(ConfigError, match=r"nothing of .*, lora, rows of 32 tokens") as caught:
        plan_job(job, [*overrides, "data.max_length=32"], **options, page=page, benchmark=measured)
    assert caught.value.hint.endswith("lora, rows of 16")
    with pytest.raises(ConfigError, match="the plan of h100"):
        plan_job(job, [*overrides, "data.max_length=16"], **options | {"gpu": "h100"}, page=page, benchmark=measured)


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_measured(llama_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--workers", "1", "--seq", "16,32", "--steps", "3", "--output", str(output)]
    command = [*COMMAND, str(_write_job(tmp_path, llama_dir)), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=helpers.REPOSITORY) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "length16" in line:
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 130
    results = json.loads((output / "bench.json").read_text())
    assert not results["finished"] and [entry["length"] for entry in results["points"]] == [16]
    assert (output / "bench.html").exists()
