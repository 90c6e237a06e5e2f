"""`consortium privacy` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consortium import privacy_plan as command
from consortium.ledger import show_ledger, verify_ledger
from privacy.errors import BudgetRefused, LedgerError, PlanError
from privacy.ledger import Ledger
from tests import helpers, warm


def _privacy(*arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.run("consortium", "privacy", *arguments, environment={"COLUMNS": "250"})


def _plan(**changes: Any) -> None:
    settings = {"epsilon": None, "noise": 0.8, "delta": None, "epochs": None, "steps": 100, "spare_steps": 0, "ledger": None,
                "population": None, "as_json": False}  # fmt: skip
    command.plan_privacy(100_000, 512, **settings | changes)


def test_a_budget_from_grant_to_verified_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, rows = tmp_path / "bank.ledger", helpers.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    at = ("--ledger", ledger)
    assert _privacy("ledger", "create", *at).returncode == 0
    granted = _privacy("ledger", "grant", "retail", "--epsilon", 10, "--delta", 1e-6, "--by", "A. Officer", *at)
    assert granted.returncode == 0 and "epsilon 10 at delta 1e-06" in granted.stdout and "above 8 and promises little" in granted.stderr
    assert _privacy("ledger", "attach", "retail", rows, "--units", 100_000, *at).returncode == 0
    again = _privacy("ledger", "attach", "retail", rows, "--units", 100_000, *at)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and "attached to retail already" in again.stderr

    with Ledger.open(ledger) as opened:
        from trainers.data.prepare import describe_file

        assert opened.population_of([describe_file(rows)["sha256"]]) == "retail"
    shown = json.loads(_privacy("ledger", "show", *at, "--json").stdout)
    assert shown["populations"]["retail"]["remaining"] == 10 and shown["populations"]["retail"]["files"][0]["path"] == str(rows)
    show_ledger(ledger, None, as_json=False)
    text = capsys.readouterr().out
    assert "granted by A. Officer" in text and shown["head"]["hash"] in text
    verify_ledger(ledger, shown["head"]["hash"])
    assert "the noted head is among them" in capsys.readouterr().out
    unknown = _privacy("ledger", "verify", "--head", "ab" * 32, *at)
    assert unknown.returncode == 1 and "no row has the noted hash" in unknown.stderr and "Traceback" not in unknown.stderr


def test_an_abandoned_runs_reservation_can_be_closed(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "bank.ledger") as ledger:
        ledger.grant("retail", 8.0, 1e-6)
        reservation = ledger.reserve("retail", _event(), "abandoned")
        reservation.charge(2)
        closed = _privacy("ledger", "close", reservation.id, "--ledger", ledger.path)
        assert closed.stdout.strip() == f"closed {reservation.id} of abandoned: 2 steps stay spent, 8 are given back"
        assert reservation.held.closed


def test_a_missing_ledger_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    missing = _privacy("ledger", "show", "--ledger", tmp_path / "none")
    assert missing.returncode == 2 and missing.stdout == "" and len(missing.stderr.splitlines()) == 2
    assert "no such ledger" in missing.stderr and "hint: " in missing.stderr


def test_the_plan_shows_each_batch_and_what_the_ledger_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger.create(tmp_path / "bank.ledger") as ledger:
        ledger.grant("retail", 4.0, 1e-6)
    _plan(noise=0.6, steps=585, ledger=ledger.path, population="retail")
    printed = capsys.readouterr().out
    assert "100,000 units, delta 1e-06 (the delta granted to retail)" in printed
    verdicts = {int(words[0]): words[6] for line in printed.splitlines() if (words := line.split()) and words[0].isdigit()}
    assert verdicts == {128: "admitted", 256: "refused", 512: "refused", 1024: "refused", 2048: "refused"}
    assert "512: the budget of retail (epsilon 4, delta 1e-06) does not allow 585 steps" in printed and "admitted: " in printed


def test_the_plan_as_json_suggests_a_delta_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    _plan(noise=0.5, steps=600, as_json=True)
    printed = capsys.readouterr()
    plan = json.loads(printed.out)
    assert plan["delta"] == 1e-6 and "power of ten" in plan["delta_reason"]
    middle = next(row for row in plan["rows"] if row["batch"] == 512)
    assert middle["signal"] == 1024 and 8 < middle["epsilon"] < 9 and middle["admitted"] is None
    assert "is above 8 and promises little" in printed.err


def test_the_plan_refuses_what_promises_nothing(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="less than 1 / units"):
        _plan(delta=1e-5)
    with pytest.raises(PlanError, match="both of --ledger and --population"):
        _plan(population="retail")
    with pytest.raises(LedgerError, match="no such ledger"):
        _plan(population="retail", ledger=tmp_path / "none")


def test_over_budget_is_exit_code_3(tmp_path: Path) -> None:
    """What main() does with a refusal, wherever it comes from."""
    with Ledger.create(tmp_path / "bank.ledger") as ledger:
        ledger.grant("retail", 0.3, 1e-6)
        with pytest.raises(BudgetRefused):
            ledger.reserve("retail", _event(0.5, 600), "run")
    code = (
        "import sys, pathlib, consortium.main as m\nfrom privacy.ledger import Ledger\nfrom privacy.plan import Event\n"
        "@m.app.command()\ndef spend() -> None:\n"
        f"    Ledger.open(pathlib.Path({str(ledger.path)!r})).reserve('retail', Event(0.5, 0.00512, 100000, 735, 600), 'run')\n"
        "sys.argv = ['consortium', 'spend']\nm.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=helpers.REPOSITORY)
    assert done.returncode == 3 and done.stderr.startswith("error: the budget of retail") and "hint: admitted: " in done.stderr


def _event(noise: float = 1.0, steps: int = 10) -> Any:
    from privacy.planner import Wish

    return Wish(100_000, 512, 1e-6, noise=noise, steps=steps).event(noise, 512)
