"""What compliance and regulator see: the numbers that are in the files, nothing from elsewhere, and no name that breaks out."""

import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from federation.dossier.page import render, write_dossier
from federation.dossier.progress import read_progress
from federation.dossier.report import bank_dossier, coordinator_dossier, errors_of, privacy_of, protection
from federation.enrolment.registry import Registry
from federation.errors import FactsError, FolderError, JournalError
from federation.rounds.budget import noise_of_evaluations
from privacy.errors import LedgerError
from privacy.evaluation import release
from privacy.stream import Stream
from tests.federation.conftest import Command
from tests.federation.enrolment import BANKS, Federation
from tests.federation.runs import make_bank, make_run
from tests.federation.sessions import sessions


@pytest.fixture
def signed(made: Federation) -> Federation:
    """With a roster in force."""
    made.sign(made.propose())
    return made


def _text(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2])).split())


def _is_self_contained(page: str) -> bool:
    """Links are within the page, and there is no address in it."""
    return not re.search(r"(src|href)\s*=\s*([^\"']|[\"'](?!#))|url\((?!#)|@import|<script|<link|https?:", page)


def test_the_coordinators_dossier_has_what_the_journal_and_the_events_say(signed: Federation) -> None:
    home = signed.folder / "coordinator"
    make_run(home, rounds=2, evaluation="noised", metrics=["accuracy"], aggregation={"most_units": 2000})
    dossier = coordinator_dossier(home, "spring", [])
    first, second = dossier["rounds"]
    assert (first["attempts"], second["attempts"], first["seconds"], first["bytes"]) == (2, 1, 42.0, 6 * 700_090)
    assert first["banks"] == ("alder", "cedar", "dogwood") and second["metrics"]["accuracy"] == pytest.approx(0.5)
    assert [(each["bank"], each["rule"], each["attempt"]) for each in dossier["refusals"]] == [("birch", "most_clip", 1)]
    assert [each["message"] for each in dossier["failures"]] == ["cedar: the bank's disk is full", "2 banks are left, 3 are needed"]
    assert dossier["began"] == "2026-09-21T14:13:20+00:00" and dossier["outcome"] == "going on"
    page = render(dossier)
    assert _is_self_contained(page)
    text = _text(page)
    for member in dossier["roster"]["members"]:
        assert f"{member['name']} {member['fingerprint']}" in text
    assert (
        f"0.4500 ± {first['errors']['accuracy']:.4f}" in text
        and "4 banks (all) 16 4e-05" in text
        and "b" * 64 in text
        and dossier["code"]["privacy"] in text
    )


def test_names_cannot_break_out_of_the_page(signed: Federation) -> None:
    home = signed.folder / "coordinator"
    make_run(home, rounds=1)
    page = render(coordinator_dossier(home, "spring", []))
    assert "1.0 &lt;script&gt;" in page and "<script>" not in page
    page = render(bank_dossier(*_bank(signed, 0), []))
    assert "A. Officer &lt;officer&gt;" in page


def _bank(signed: Federation, rounds: int) -> tuple[Path, Path]:
    home = make_bank(signed.folder / "alder", rounds)
    return home, home / "bank.yaml"


def test_a_banks_dossier_has_its_own_budget_over_time_and_its_refusals(signed: Federation) -> None:
    dossier = bank_dossier(*_bank(signed, 2), [])
    history, budget = dossier["budget"]["history"], dossier["budget"]
    proven = [moment["proven"] for moment in history]
    assert len(history) == 1 + 2 * 2 and proven == sorted(proven) and proven[0] == 0 < proven[-1] == budget["proven"]
    assert {moment["granted"] for moment in history} == {4.0}
    assert [each["epsilon"] for each in dossier["attempts"]] == [None, proven[2], proven[4]]
    assert dossier["attempts"][1]["released"] == ["Keys", "Shares", "Masked", "View", "Reveal", "Receipt"]
    assert dossier["refusals"][0]["rule"] == "most_clip" and dossier["transcripts"] is None
    page = render(dossier)
    assert _is_self_contained(page)
    said = re.search(r"no more than epsilon ([0-9.]+) at delta 1e-06", _text(page))
    assert said and budget["proven"] <= float(said[1]) < budget["proven"] + 0.001 and budget["head"]["hash"] in page
    assert 'aria-label="epsilon of the population' in page


def test_a_run_without_rounds_and_a_bank_that_was_asked_nothing_have_a_page(signed: Federation) -> None:
    home = signed.folder / "coordinator"
    make_run(home, rounds=0)
    assert "No round was aggregated." in render(coordinator_dossier(home, "spring", []))
    home, config = _bank(signed, 0)
    (home / "record.jsonl").unlink()
    page = render(bank_dossier(home, config, []))
    assert "The bank was asked nothing yet." in page and "No session of secure aggregation was begun." in page


def test_the_dossier_says_whether_transcripts_agree(made: Federation, tmp_path: Path) -> None:
    with sessions(made) as held:
        held.run()
        paths = held.export(tmp_path)
        shutil.copytree(held.transcript("alder").parent, made.folder / "alder" / "vault")
    home = made.folder / "coordinator"
    make_run(home, rounds=1)
    text = _text(render(coordinator_dossier(home, "spring", paths)))
    assert "transcripts agree" in text and "round 1, attempt 1, run run receipt receipt receipt receipt agree" in text
    own = bank_dossier(*_bank(made, 0), [])["transcripts"]
    assert own["banks"] == ("alder",) and own["others"] == list(BANKS[1:]) and not own["findings"]


def test_a_banks_own_transcript_outlives_its_peers_keys(made: Federation) -> None:
    with sessions(made) as held:
        held.run()
        shutil.copytree(held.transcript("alder").parent, made.folder / "alder" / "vault")
    made.join("birch", rotate=True)
    made.sign(made.propose())
    where = _bank(made, 0)
    assert bank_dossier(*where, [])["transcripts"]["findings"]
    assert not bank_dossier(*where, [], [held.roster])["transcripts"]["findings"]


def test_error_bars_are_the_spread_of_what_banks_release(signed: Federation) -> None:
    """Their standard deviation over 1000 evaluations is known to 2.2 %; a sensitivity of 1 would be 29 % off."""
    make_run(home := signed.folder / "coordinator", rounds=1, evaluation="noised", metrics=["accuracy"], aggregation={"most_units": 50_000})
    training, (round,) = Registry(home).config.training, read_progress(home / "runs" / "spring").rounds
    assert training is not None
    noise = noise_of_evaluations(training)
    assert noise is not None
    means = (np.arange(10_000) % 5 < 4).astype(np.float64)
    drawn = np.array([[release(means, 50_000, noise, Stream()) for _ in round.banks] for _ in range(1000)]).sum(axis=1)
    told = replace(round, metrics={"accuracy": 0.8, "count": 30_000.0})
    assert errors_of(training, told)["accuracy"] == pytest.approx(np.std(drawn[:, 0] / drawn[:, 1]), rel=0.15)
    assert errors_of(training, told)["count"] == pytest.approx(np.std(drawn[:, 1]) * 50_000, rel=0.15)


def test_what_several_banks_spend_on_one_customer_adds_up(signed: Federation) -> None:
    make_run(home := signed.folder / "coordinator", rounds=0)
    training = Registry(home).config.training
    assert training is not None and training.privacy is not None
    stated = privacy_of(training.privacy, 4)["of_several_banks"]
    assert [(each["banks"], each["epsilon"]) for each in stated] == [(1, 4.0), (2, 8.0), (4, 16.0)]
    assert privacy_of(training.privacy, 2)["of_several_banks"] == stated[:2]
    assert protection(training, 1)["may_vanish"] == 1


def test_what_is_missing_or_was_exchanged_is_said(signed: Federation) -> None:
    home = signed.folder / "coordinator"
    with pytest.raises(FolderError, match="has no run 'autumn'"):
        coordinator_dossier(home, "autumn", [])
    folder = make_run(home, rounds=1)
    config = home / "federation.yaml"
    config.write_text(config.read_text().replace("rounds: 10", "rounds: 11"))
    with pytest.raises(FactsError, match="is not what the run spring began with"):
        coordinator_dossier(home, "spring", [])
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"attempt": 2', '"attempt": 3', 1))
    with pytest.raises(JournalError, match="line"):
        coordinator_dossier(home, "spring", [])
    bank, bank_yaml = _bank(signed, 0)
    (bank / "bank.ledger").unlink()
    with pytest.raises(LedgerError, match="no such ledger"):
        bank_dossier(bank, bank_yaml, [])


def test_both_files_are_for_their_owner_and_say_the_same(signed: Federation, tmp_path: Path) -> None:
    dossier = bank_dossier(*_bank(signed, 1), [])
    page = write_dossier(tmp_path / "out", dossier)
    kept = json.loads((tmp_path / "out" / "dossier.json").read_bytes())
    assert kept["format"] == 1 and kept["budget"]["proven"] == dossier["budget"]["proven"]
    assert {path.stat().st_mode & 0o777 for path in (page, page.with_name("dossier.json"))} == {0o600}


def test_the_report_command_knows_whose_folder_it_is(signed: Federation, tmp_path: Path, consortium: Command) -> None:
    home = signed.folder / "coordinator"
    make_run(home, rounds=1)
    code, out, _ = consortium("report", "--home", home, "--run", "spring")
    assert code == 0 and Path(out.strip()) == home / "report" / "spring" / "dossier.html" and Path(out.strip()).is_file()
    code, _, err = consortium("report", "--home", home)
    assert code == 2 and "of one run" in err
    bank, _ = _bank(signed, 1)
    assert consortium("report", "--home", bank, "--output", tmp_path / "b")[0] == 0 and (tmp_path / "b" / "dossier.html").is_file()
    code, _, err = consortium("report", "--home", tmp_path)
    assert code == 2 and "neither a bank's folder nor a coordinator's" in err and "hint: " in err
