"""benchmarks/README.md says what the files in benchmarks/results say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_committed_page_and_its_pictures_are_what_the_files_of_results_give() -> None:
    done = _run(REPOSITORY, "--check")
    assert done.returncode == 0, done.stderr


def test_a_figure_that_changes_changes_page_and_picture(tmp_path: Path) -> None:
    for path in (_copy(tmp_path) / "results").glob("dp_overhead-*.json"):
        stored = json.loads(path.read_text())
        for row in stored["results"]:
            row["ratios"] = [2 * ratio for ratio in row["ratios"]]
        path.write_text(json.dumps(stored))
    done = _run(tmp_path, "--check")
    assert done.returncode == 1 and done.stderr.count("run make results") == 2, done.stderr
    assert _run(tmp_path).returncode == 0 and _run(tmp_path, "--check").returncode == 0


def test_the_newest_file_counts_and_an_older_one_is_a_line_under_it(tmp_path: Path) -> None:
    page, results = _copy(tmp_path) / "README.md", tmp_path / "benchmarks" / "results"
    older = next(results.glob("plan_truth-*.json"))
    rows = [{"kind": "tensors", "what": "made up", "predicted": 3e9, "truth": 2e9, "error": 50.0}]
    newer = {"command": "python benchmarks/plan_truth.py --quick", "date": "2999-01-01T10:20:30+00:00", "gpu": "a card", "results": rows}
    (results / "plan_truth-2999-01-01.json").write_text(json.dumps(newer))
    assert _run(tmp_path).returncode == 0
    text = page.read_text()
    assert "`python benchmarks/plan_truth.py --quick`" in text and "2999-01-01 10:20 UTC" in text and "GPU: a card" in text
    assert "worst of 1 | 50.0 % | at most 20 % | **missed**" in text
    assert f"Before that: [{older.name}](results/{older.name})" in text


def test_what_a_file_lacks_is_not_measured(tmp_path: Path) -> None:
    page, results = _copy(tmp_path) / "README.md", tmp_path / "benchmarks" / "results"
    rows = json.loads(next(results.glob("secagg-*.json")).read_text())["results"]
    (results / "secagg-2999-01-01.json").write_text(json.dumps({"results": rows[:3]}))
    assert _run(tmp_path).returncode == 0
    assert "10 banks, 40 million | not measured | at most 4.1 |  |" in page.read_text()
    assert "- Versions: not recorded" in page.read_text()


def test_a_file_that_no_chapter_is_about_is_refused(tmp_path: Path) -> None:
    (_copy(tmp_path) / "results" / "weather-2026-11-20.json").write_text("{}")
    done = _run(tmp_path, "--check")
    assert done.returncode == 1 and "weather-2026-11-20.json" in done.stderr


def test_a_benchmark_writes_its_command_without_folders() -> None:
    code = "import json, sys; sys.path.insert(0, 'benchmarks'); from facts import facts; print(json.dumps(facts(['numpy'])))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--json", "/home/me/out.json"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["command"].endswith(" --json out.json")
    assert found.keys() == {"command", "cpu", "cores", "gpu", "versions", "revision", "date", "load"}


def _copy(folder: Path) -> Path:
    shutil.copytree(REPOSITORY / "benchmarks", folder / "benchmarks")
    return folder / "benchmarks"


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benchmarks" / "results.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
