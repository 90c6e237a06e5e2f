"""`consortium plan` as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consortium import plan as command
from consortium.plan import plan_job
from tests import helpers, warm
from trainers.errors import TrainersError
from trainers.model import load_tokenizer


def _write_job(folder: Path, **blocks: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(json.dumps({"task": "sft", "model": {"shape": "llama-3.1-8b"}, "data": "rows.jsonl"} | blocks))  # JSON is YAML
    return path


def _plan(path: Path, *overrides: str, **options: Any) -> None:
    settings = {"gpus": "1,2", "gpu": "h100", "price": 3.5, "project": None, "tokens": None, "as_json": False}
    plan_job(path, overrides, **settings | options)


def test_the_command_prints_what_fits_and_the_cheapest(tmp_path: Path) -> None:
    options = ["--gpus", "1,8", "--price", "3.5", "--tokens", "1e8", "--project", "64"]
    done = warm.run("consortium", "plan", _write_job(tmp_path), *options, environment={"COLUMNS": "200"})
    assert done.returncode == 0 and done.stderr == ""
    assert "llama-3.1-8b, lora, rows of 4096 tokens on h100 (79 GiB, 10% of it kept free)" in done.stdout
    assert "cheapest that fits: " in done.stdout and "hours" in done.stdout and "projected rows assume" in done.stdout
    first = next(line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["1", "1*"])
    assert first[-1] == "fits" and 14.9 < float(first[3]) < 15.1  # 8.03 billion weights of two bytes


def test_help_imports_no_torch() -> None:
    code = (
        "import sys, consortium.main; sys.argv = ['consortium', 'plan', '--help']\ntry: consortium.main.main()\nexcept SystemExit: pass\n"
    )
    heavy = "print(sorted(set(sys.modules) & {'torch', 'ray', 'transformers', 'pydantic'}))"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True, cwd=helpers.REPOSITORY)
    assert "Will it fit" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_json_has_every_term(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plan(_write_job(tmp_path, model={"shape": "llama-3.2-1b"}), as_json=True, tokens=1e6)
    plan = json.loads(capsys.readouterr().out)
    assert [(row["gpus"], row["stage"]) for row in plan["rows"]] == [(1, 1), (2, 1), (2, 2), (2, 3)]
    assert plan["rows"][0]["total_bytes"] == pytest.approx(sum(plan["rows"][0]["memory"].values()))
    assert plan["cheapest"]["cost"] == pytest.approx(3.5 * plan["cheapest"]["gpus"] * plan["cheapest"]["hours"])


def test_a_page_shows_what_the_screen_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    _plan(_write_job(tmp_path, model={"shape": "llama-3.2-1b"}), gpus="1,2", project="64", tokens=1e8, page=page)
    said, text = capsys.readouterr().out, page.read_text()
    assert said.endswith(f"  page  {page}\n") and "</html>" in text
    for word in ("GiB of a worker", "limit: every FLOP of the cards", "what may be used", "64 x ZeRO-3", "ZeRO 2, predicted"):
        assert word in text
    speeds = [line.split()[3] for line in said.splitlines() if " kept " in line or "again " in line]
    assert speeds and all(speed in text for speed in speeds)


def test_no_way_of_running_a_job_is_faster_than_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("full", "lora"):
        _plan(_write_job(tmp_path, model={"shape": "llama-3.2-1b"}, method=method), as_json=True, tokens=1e8)
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert all(0.2 < row["tokens_per_second"] / row["limit_tokens_per_second"] < 0.7 for row in rows)  # products alone reach 0.7


def test_hours_need_data_or_a_number_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plan(_write_job(tmp_path, model={"shape": "llama-3.2-1b"}), gpus="1")
    assert "hours need data (a shape has no tokenizer): give --tokens N" in capsys.readouterr().out


def test_hours_of_a_small_job_are_not_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plan(_write_job(tmp_path, model={"shape": "llama-3.2-1b"}), gpus="1", tokens=1000.0)
    said = re.search(r", ([\d.e-]+) hours, ([\d.e-]+): ", capsys.readouterr().out)
    assert said is not None and 0 < float(said[1]) < 0.001 and float(said[2]) == pytest.approx(3.5 * float(said[1]), rel=0.1)


def test_tokens_are_estimated_from_the_data(llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.data.estimate.SAMPLED", 10)
    rows = [{"text": "the customer pays the fee " * (1 + number % 5)} for number in range(40)]
    helpers.write_jsonl(tmp_path / "rows.jsonl", rows)
    seen: list[Any] = []
    monkeypatch.setattr(command, "_show", lambda plan, job, out: seen.append(plan))

    _plan(
        _write_job(tmp_path, model=str(llama_dir), task="pretrain", method="full", data={"train": "rows.jsonl", "validation_fraction": 0.2})
    )

    from trainers.config import ModelConfig

    tokenizer = load_tokenizer(ModelConfig(path=str(llama_dir)))
    real = 0.8 * sum(len(tokenizer(row["text"])["input_ids"]) + 1 for row in rows)
    [plan] = seen
    assert plan.work.tokens == pytest.approx(real, rel=0.2)
    assert plan.work.source.startswith("estimate from a sample of 10 rows, of 32 to train on")


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ({}, {"gpus": "0,1"}, "--gpus 0: expected a whole number from 1 to 1,000,000"),
        ({}, {"gpus": "many"}, "--gpus many: expected a whole number"),
        ({}, {"project": "-64"}, "--project -64: expected a whole number"),
        ({}, {"gpus": "9" * 400}, "--gpus 99999999999999999999: expected a whole number"),
        ({}, {"project": ""}, "--project '': expected values"),
        ({}, {"gpus": "1,8", "project": "8"}, "--project 8: expected more than 8"),
        ({}, {"price": float("inf")}, "--price inf: expected a finite number"),
        ({}, {"tokens": float("nan")}, "--tokens nan: expected a finite number"),
        ({"train": {"max_steps": 10}}, {"tokens": 1e6}, "--tokens: train.max_steps already says"),
        ({}, {"gpu": "h300"}, "did you mean h100|did you mean h200"),
        ({"model": {"shape": "llama-3.1-9b"}}, {}, "model.shape"),
        ({"data": None}, {}, "data"),
        ({"model": "unknown"}, {}, "architecture|model type"),
        ({}, {"page": Path("job.yaml")}, "--page job.yaml: expected a name that ends in .html"),
        ({}, {"page": Path("nowhere/plan.html")}, "--page nowhere/plan.html: no directory nowhere"),
        ({"model": {"shape": "llama-3.2-1b"}}, {"page": Path("/proc/plan.html"), "tokens": 1e6}, "--page /proc/plan.html: "),
        ({}, {"benchmark": Path("bench.json")}, "--measured: measured points are drawn on a page"),
        ({}, {"benchmark": Path("nowhere.json"), "page": Path("plan.html")}, "nowhere.json: No such file"),
    ],
)
def test_bad_input_is_a_line_and_a_hint(tmp_path: Path, blocks: dict[str, Any], options: dict[str, Any], message: str) -> None:
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "nothing-of-the-kind", "architectures": ["Nothing"]}')
    if blocks.get("model") == "unknown":
        blocks = {"model": str(tmp_path / "unknown")}
    with pytest.raises(TrainersError, match=message) as caught:
        _plan(_write_job(tmp_path, **blocks), **options)
    assert caught.value.exit_code == 2 and caught.value.hint and "\n" not in caught.value.message
