"""`consortium data audit` and `data redact` as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import helpers

IBAN = "DE89 3704 0044 0532 0130 00"


def _consortium(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "consortium", "data", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd=cwd, env=os.environ | {"PYTHONPATH": f"{helpers.REPOSITORY}:{cwd}"},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two rows with one IBAN, written in two ways, and a plug-in that takes Anna for a name."""
    helpers.write_jsonl(
        tmp_path / "rows.jsonl", [{"text": f"Anna pays from {IBAN} now"}, {"text": f"anna pays from {IBAN.replace(' ', '')} NOW"}]
    )
    (tmp_path / "plugin.py").write_text("def names(text):\n    return [(0, 4)] if text.startswith('Anna') else []\n")
    return tmp_path


def test_an_audit_shows_where_and_never_what_and_fails_only_when_asked(folder: Path) -> None:
    shown = _consortium("audit", "rows.jsonl", cwd=folder)
    failed = _consortium("audit", "rows.jsonl", "--fail-on", "iban,leakage", "--json", cwd=folder)

    assert (shown.returncode, failed.returncode) == (0, 1), shown.stderr + failed.stderr
    assert "rows.jsonl:1  text  DE** **** 3000" in shown.stdout and "names of people were not looked for" in shown.stdout
    assert json.loads(failed.stdout)["counts"]["IBAN"] == 2 and "0532" not in shown.stdout + failed.stdout


def test_redaction_makes_a_key_says_so_and_is_the_same_the_next_time(folder: Path) -> None:
    first = _consortium("redact", "rows.jsonl", "one.jsonl", "--key", "key", "--names", "plugin:names", cwd=folder)
    second = _consortium("redact", "rows.jsonl", "two.jsonl", "--key", "key", "--names", "plugin:names", cwd=folder)

    assert first.returncode == 0 and "made the key key" in first.stderr and "made" not in second.stderr
    assert (folder / "one.jsonl").read_text() == (folder / "two.jsonl").read_text()
    assert "[NAME:" in (folder / "one.jsonl").read_text() and "0130" not in (folder / "one.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("audit", "rows.jsonl", "--fail-on", "IBN"), "did you mean IBAN?"),
        (("audit", "rows.jsonl", "--names", "absent"), "no such plug-in (installed: none)"),
        (("redact", "rows.jsonl", "rows.jsonl", "--key", "key"), "is there already"),
    ],
)
def test_a_mistake_is_a_line_and_a_hint_and_leaves_no_key(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    done = _consortium(*arguments, cwd=folder)

    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "key").exists()
