"""Drafts of a training block and of a bank.yaml."""

import math
from datetime import datetime
from pathlib import Path

import pytest

from federation.base_model import base_model_hash
from federation.config import load_bank, load_federation
from federation.policy import Spent, check
from tests.federation.conftest import Command
from tests.federation.enrolment import Federation
from tests.federation.test_base_model import _make_model

LABELS = "card lost\ntransfer pending\n"


def test_a_drafted_bank_allows_what_the_drafted_federation_asks_for_and_nothing_more(
    made: Federation, tmp_path: Path, consortium: Command
) -> None:
    model = _make_model(tmp_path / "model")
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "rows.csv").write_text("text,label,customer_id\nlost it,card lost,1\n")
    home = made.folder / "coordinator"
    facts = ("--base-model", model, "--banks", 4, "--units", 2000)

    code, _, err = consortium("draft-training", "--home", home, *facts, "--labels", tmp_path / "labels.txt")
    assert (code, err) == (0, "")
    code, _, err = consortium("draft-bank", tmp_path / "bank.yaml", "--for", home / "federation.yaml", "--bank", "alder",
                              "--base-model", model, "--train", tmp_path / "rows.csv", "--units", 1500,
                              "--unit", "customer_id")  # fmt: skip
    assert (code, err) == (0, "")

    federation, bank = load_federation(home / "federation.yaml"), load_bank(tmp_path / "bank.yaml")
    training = federation.training
    assert training is not None
    assert (training.labels, training.threshold, training.base_model.sha256) == (
        ["card lost", "transfer pending"],
        3,
        base_model_hash(model),
    )
    asked = training.proposal(bank.policy.bundles[0], federation.colluders)
    assert check(asked, bank.policy, Spent(1, 0.0), datetime.now()) is None
    for rule, changed in {
        "base_models": training.model_copy(update={"base_model": training.base_model.model_copy(update={"sha256": "0" * 64})}),
        "least_threshold": training.model_copy(update={"threshold": 2}),
        "most_rounds": training.model_copy(update={"rounds": training.rounds + 1}),
        "evaluation": training.model_copy(update={"evaluation": "public_data"}),
        "most_clip": training.model_copy(update={"encoding": training.encoding.model_copy(update={"clip": 65.0})}),
        "most_epsilon_round": training.model_copy(update={"privacy": None, "evaluation": "off", "metrics": []}),
    }.items():
        refused = check(changed.proposal(bank.policy.bundles[0], federation.colluders), bank.policy, Spent(1, 0.0), datetime.now())
        assert refused is not None
        assert refused.rule.startswith(rule) or (rule, refused.rule) == ("least_threshold", "least_in_sum")
    every_attempt = (training.rounds + 1) * training.attempts  # the last model is evaluated in a round of its own
    assert check(asked, bank.policy, Spent(every_attempt, 0.0), datetime.now()) is None
    for rule, spent in {"most_attempts": Spent(every_attempt + 1, 0.0), "most_epsilon": Spent(1, math.nextafter(8.0, 9))}.items():
        refused = check(asked, bank.policy, spent, datetime.now())
        assert refused is not None
        assert refused.rule == rule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--banks", 2), "2 banks of which 1 may collude"),
        (("--banks", 4), "0 labels for task classify"),
        (("--banks", 4, "--task", "sft", "--labels", "labels.txt"), "2 labels for task sft"),
    ],
)
def test_what_cannot_work_is_refused_and_the_file_is_as_it_was(
    made: Federation, tmp_path: Path, consortium: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text(LABELS)
    file = made.folder / "coordinator" / "federation.yaml"
    before = file.read_text()

    code, _, err = consortium(
        "draft-training", "--home", file.parent, "--base-model", _make_model(tmp_path / "model"), "--units", 100, *arguments
    )

    assert code == 2
    assert message in err
    assert file.read_text() == before


@pytest.mark.parametrize("spoilt", ["labels.txt", "coordinator/federation.yaml"])
def test_a_file_that_is_not_in_utf_8_is_named(made: Federation, tmp_path: Path, consortium: Command, spoilt: str) -> None:
    labels = made.folder / "labels.txt"
    labels.write_text(LABELS)
    (made.folder / spoilt).write_bytes("# Überweisung\n".encode("latin-1"))

    code, _, err = consortium("draft-training", "--home", made.folder / "coordinator", "--base-model", _make_model(tmp_path / "model"),
                              "--banks", 4, "--units", 100, "--labels", labels)  # fmt: skip

    assert code == 2
    assert f"{spoilt}: expected text in UTF-8, got byte 0xdc at 2" in err


def test_a_bank_is_told_when_its_model_is_another(made: Federation, tmp_path: Path, consortium: Command) -> None:
    model, file = _make_model(tmp_path / "model"), made.folder / "coordinator" / "federation.yaml"
    consortium("draft-training", "--home", file.parent, "--base-model", model, "--banks", 4, "--units", 100, "--task", "sft")
    (model / "model.safetensors").write_bytes(b"another revision")
    (tmp_path / "rows.csv").write_text("text\nlost it\n")

    code, _, err = consortium("draft-bank", tmp_path / "bank.yaml", "--for", file, "--bank", "alder", "--base-model", model,
                              "--train", tmp_path / "rows.csv", "--units", 100)  # fmt: skip

    assert code == 2
    assert "is it the model, and the revision" in err
    assert not (tmp_path / "bank.yaml").exists()
