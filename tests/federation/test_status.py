"""`consortium federation status`, on both kinds of folders."""

import json
from pathlib import Path

from tests.federation.conftest import Command
from tests.federation.enrolment import Federation
from tests.federation.runs import make_bank, make_run


def test_a_run_shows_its_exchange_its_banks_and_its_metrics(made: Federation, consortium: Command) -> None:
    home = made.folder / "coordinator"
    make_run(home, rounds=3)
    code, out, _ = consortium("status", "--home", home, "--once")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and lines[0].startswith("spring running round 4 of 10, attempt 1")
    assert any(line.startswith("exchange 2, update") and line.endswith("1 of 3 banks") for line in lines)
    assert "birch refused most_clip: asked 1.0 [bold], allowed 0.5 or less" in lines and "cedar asked" in lines
    assert "2 0.5000 812.50" in lines
    assert json.loads(consortium("status", "--home", home, "--json")[1])["exchange"]["of"] == 3


def test_the_run_last_heard_of_is_shown_unless_another_is_named(made: Federation, consortium: Command) -> None:
    home = made.folder / "coordinator"
    make_run(home, rounds=1)
    make_run(home, rounds=1, run="summer")
    assert consortium("status", "--home", home)[1].startswith("summer")
    assert consortium("status", "--home", home, "--run", "spring")[1].startswith("spring")
    code, _, err = consortium("status", "--home", home, "--run", "winter")
    assert code == 2 and "there are: spring, summer" in err


def test_a_bank_shows_what_it_answered_and_what_it_has_spent(made: Federation, consortium: Command) -> None:
    made.sign(made.propose())
    home = make_bank(made.folder / "alder", rounds=2)
    code, out, _ = consortium("status", "--home", home)
    shown = json.loads(consortium("status", "--home", home, "--json")[1])
    assert code == 0 and out.startswith("alder  orchard, version 1 of the roster")
    spent = float(out.partition("epsilon spent by retail: ")[2].partition(" of 4")[0])
    assert shown["budget"]["proven"] <= spent < shown["budget"]["proven"] + 0.001 and "rounds contributed to: 2; refusals: 1" in out
    assert "most_clip: asked 1.0, allowed 0.5 or less" in out and "keys, shares, masked, view, reveal, receipt" in out


def test_folders_without_a_run_a_budget_or_a_federation(made: Federation, consortium: Command, tmp_path: Path) -> None:
    code, out, _ = consortium("status", "--home", made.folder / "birch")
    assert code == 0 and "no roster in force yet" in out and "no bank.yaml here" in out and "asked nothing yet" in out
    code, _, err = consortium("status", "--home", made.folder / "coordinator")
    assert code == 2 and "no run was begun yet" in err and "hint: " in err
    code, _, err = consortium("status", "--home", tmp_path)
    assert code == 2 and "neither a bank's folder nor a coordinator's" in err
    folder = make_run(made.folder / "coordinator", rounds=1)
    (folder / "status.json").write_text("[1]")
    code, _, err = consortium("status", "--home", made.folder / "coordinator")
    assert code == 2 and "not a status of ours" in err
