"""`consortium federation demo`, as a user runs it: some minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from federation.flower.processes import environment


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_ends_with_transcripts_that_agree_though_a_bank_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "consortium", "federation", "demo", "--output", str(tmp_path / "demo")]

    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())

    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "demo" / "coordinator" / "runs" / "demo" / "result" / "result.json").read_text())
    assert [len(each["banks"]) for each in result["rounds"][:2]] == [4, 4]  # the one that was killed had sent its vector
    assert "porto is killed" in done.stdout and "porto is started again" in done.stdout
    assert "4 transcripts agree" in done.stdout
    assert "all in one place" in done.stdout
