"""`consortium privacy audit` on real private runs, and on a twin without privacy."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from consortium import audit
from consortium.suggest import suggest_values
from consortium.tune import tune_job
from privacy.canaries import read_planting
from privacy.errors import AuditError, PromiseBroken
from tests import helpers
from tests.trainers.test_private import _make_ledger, _make_rows, _make_run
from trainers.errors import ConfigError

CANARIES = 40


@pytest.fixture(scope="module")
def audited(llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    rows = _make_rows(folder)
    ledger = _make_ledger(folder, rows)
    privacy = {"audit": {"canaries": CANARIES}, "units": 200, "delta": 1e-3}
    run_dir = _make_run(folder / "runs" / "run", llama_dir, rows, ledger, privacy=privacy, data={"train": str(rows), "max_length": 160})
    helpers.train(run_dir)
    return run_dir


def test_canaries_are_planted_by_coins_that_only_the_bank_can_read(audited: Path) -> None:
    planting = read_planting(audited)

    assert planting is not None and len(planting.coins) == CANARIES
    assert 0 < sum(planting.coins) < CANARIES
    assert stat.S_IMODE((audited / "canaries.json").stat().st_mode) == 0o600
    assert json.loads((audited / "dp_statement.json").read_text())["canaries"] == CANARIES
    assert "canary" not in (audited / "events.jsonl").read_text()


def test_an_audit_says_what_the_canaries_show_and_keeps_it_for_the_bank(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit.audit_run(audited, twin=False, as_json=False)

    printed = capsys.readouterr().out
    assert "catches bugs and is no proof" in printed and "AUC" in printed and "secrets extracted" in printed
    kept = json.loads((audited / "audit.json").read_text())["private"]
    assert kept["verdict"]["lower_bound"] <= kept["verdict"]["claim"]["epsilon"]
    assert 0 <= kept["membership"]["low"] <= kept["membership"]["value"] <= kept["membership"]["high"] <= 1
    assert kept["planted"] == sum(read_planting(audited).coins)  # type: ignore[union-attr]
    assert stat.S_IMODE((audited / "audit.json").stat().st_mode) == 0o600


def test_a_false_claim_is_refuted_and_ends_with_an_error(audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that tell every canary, against a claim that forbids it."""
    run_dir = tmp_path / "run"
    shutil.copytree(audited, run_dir)
    statement = json.loads((run_dir / "dp_statement.json").read_text())
    statement["claim"]["epsilon"] = 0.1
    (run_dir / "dp_statement.json").write_text(json.dumps(statement))
    coins = read_planting(run_dir).coins  # type: ignore[union-attr]
    likelier = iter([np.where(coins, 5.0, 0.0), np.zeros(CANARIES)])  # after, before

    monkeypatch.setattr(audit, "_likelier", lambda *_: next(likelier))
    monkeypatch.setattr(audit, "_membership", lambda *_: None)
    monkeypatch.setattr(audit, "_exposures", lambda *_: {"most": 8.0, "planted": 0.0, "left_out": 0.0, "of": 33.0})

    with pytest.raises(PromiseBroken, match="is refuted"):
        audit.audit_run(run_dir, twin=False, as_json=True)


def test_a_run_that_is_not_private_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no private run"):
        audit.audit_run(tmp_path, twin=False, as_json=False)


def test_nothing_is_chosen_by_private_rows(audited: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("train.learning_rate: {choice: [1e-3, 1e-4]}")
    with pytest.raises(ConfigError, match="chosen by private rows"):
        tune_job(audited / "config.json", space, [], trials=2, concurrent=None, scheduler="random", metric=None, resume=False, output=None)
    with pytest.raises(ConfigError, match="follows from the rows, which are private"):
        suggest_values(audited / "config.json", [], None, as_json=True)
