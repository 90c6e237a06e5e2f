"""Federations in one process: who gets which rows, what is changed for other numbers of banks, and whole runs by the command."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from federation.base_model import base_model_hash
from federation.config import check_federation
from federation.errors import FactsError
from federation.partition import Partition, deal, split
from federation.simulation import fitted
from tests import helpers
from tests.federation.conftest import Command
from trainers.errors import DataError

LABELS = ["card", "loan", "cash"]
DELTA = 1e-4


def _rows(folder: Path, customers: int, *, seed: int = 0, name: str = "rows.jsonl") -> Path:
    """Two rows of each customer, whose class is their first word; the class goes with the region, mostly."""
    words, rows = random.Random(seed), []
    for number in range(customers):
        label = words.choice(LABELS)
        region = LABELS.index(label) if words.random() < 0.8 else 3
        rows += [{"text": f"{label} {words.randint(0, 99)}", "label": label, "customer_id": number, "region": region} for _ in range(2)]
    words.shuffle(rows)
    return helpers.write_jsonl(folder / name, rows)


def _federation(folder: Path, model: Path, **changes: Any) -> Path:
    training = {
        "task": "classify",
        "base_model": {"name": "tiny", "sha256": base_model_hash(model)},
        "adapter": {"rank": 4, "alpha": 8, "targets": "all-linear"},
        "labels": LABELS,
        "local": {"steps": 20, "batch": 8, "learning_rate": 5e-3, "clip_norm": 0.5, "max_length": 16},
        "rounds": 2,
        "cohort": 4,
        "quorum": 3,
        "threshold": 3,
        "privacy": None,
        "encoding": {"clip": 16.0, "fraction_bits": 24},
        "evaluation": "off",
    }
    path = folder / "federation.yaml"
    path.write_text(yaml.safe_dump({"name": "orchard", "hosts": ["localhost"], "colluders": 1, "training": training | changes}))
    return path


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.3", "by:region"])
def test_every_row_is_at_one_bank_and_every_customer_too(tmp_path: Path, how: str) -> None:
    shares = split(_rows(tmp_path, 60), Partition.parse(how), 3, task="classify", unit="customer_id", seed=0)
    customers = [{row["customer_id"] for row in share.rows} for share in shares]
    assert sum(len(share.rows) for share in shares) == 120 and len(set.union(*customers)) == sum(map(len, customers)) == 60
    assert [share.units for share in shares] == [len(mine) for mine in customers] and min(map(len, customers)) >= 10


def test_banks_have_the_less_in_common_the_smaller_alpha_is() -> None:
    kinds = [str(number % 10) for number in range(2000)]

    def apart(how: str) -> float:
        """How far the banks' shares of the classes are from those of all, between 0 and 1."""
        dealt = deal(Partition.parse(how), kinds, 5, np.random.default_rng(1))
        assert np.bincount(dealt).tolist() == [400] * 5
        shares = np.array([np.bincount(np.arange(2000)[dealt == bank] % 10, minlength=10) / 400 for bank in range(5)])
        return float(np.abs(shares - 0.1).sum(1).mean() / 2)

    assert apart("iid") < 0.1 < apart("dirichlet:5") < apart("dirichlet:0.5") - 0.1 < apart("dirichlet:0.05") - 0.2


def test_what_has_one_value_goes_to_one_bank() -> None:
    dealt = deal(Partition.parse("by:region"), ["north"] * 5 + ["south"] * 3 + ["east"] * 2, 2, np.random.default_rng(0))
    assert dealt.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("how", "banks", "message"),
    [
        ("dirichlet:0", 3, "partition dirichlet:0: expected"),
        ("random", 3, "partition random: expected"),
        ("by:label", 4, "label has 3 values for 4 banks"),
        ("iid", 61, "60 units for 61 banks"),
    ],
)
def test_what_cannot_be_dealt_is_said(tmp_path: Path, how: str, banks: int, message: str) -> None:
    with pytest.raises(FactsError, match=message):
        split(_rows(tmp_path, 60), Partition.parse(how), banks, task="classify", unit="customer_id", seed=0)


def test_a_row_without_a_customer_is_named_by_its_line(tmp_path: Path) -> None:
    rows = helpers.write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "card", "customer": 1}])
    with pytest.raises(FactsError, match=r"^--unit customer_id: .*rows.jsonl:1 has no such column$") as caught:
        split(rows, Partition("iid"), 1, task="classify", unit="customer_id", seed=0)
    assert caught.value.hint == "it has text, label, customer"
    with pytest.raises(FactsError, match=r"^--partition by:region: .*rows.jsonl:1 has no such column$"):
        split(rows, Partition.parse("by:region"), 1, task="classify", unit=None, seed=0)
    helpers.write_jsonl(rows, [{"text": "a", "label": ["card"], "customer": 1}])
    with pytest.raises(DataError, match=r"rows.jsonl:1: "):
        split(rows, Partition("iid"), 1, task="classify", unit=None, seed=0)


def test_what_other_numbers_of_banks_change_is_told(tmp_path: Path, bert_dir: Path) -> None:
    config = check_federation(yaml.safe_load(_federation(tmp_path, bert_dir).read_text()), source="")
    same, unchanged = fitted(config, 4)
    many, changes = fitted(config, 100)
    assert unchanged == [] and same.training and many.training
    assert (many.training.cohort, many.training.quorum, many.training.threshold) == (100, 51, 51)
    assert [line.split(":")[0] for line in changes] == ["cohort", "quorum", "threshold", "encoding.fraction_bits"]
    with pytest.raises(FactsError, match="2 banks of which 1 may collude"):
        fitted(config, 2)


def test_three_banks_learn_together_in_this_process(tmp_path: Path, bert_dir: Path, consortium: Command) -> None:
    home = tmp_path / "simulation"
    code, out, err = consortium(
        "simulate", _federation(tmp_path, bert_dir), "--banks", 3, "--data", _rows(tmp_path, 60), "--base-model", bert_dir,
        "--partition", "dirichlet:5", "--unit", "customer_id", "--test", _rows(tmp_path, 40, seed=1, name="test.jsonl"),
        "--workers", 0, "--output", home,
    )  # fmt: skip
    assert code == 0, err
    assert "cohort: 4 in federation.yaml, 3 for 3 banks" in out and "the sum of bank-1, bank-2, bank-3" in out
    tables = out[out.index("after round") :].splitlines()
    expected = _accuracy(home / "coordinator" / "runs" / "simulation", bert_dir, tmp_path / "test.jsonl")
    assert [line.split()[0] for line in tables[1:4]] == ["0", "1", "2"] and float(tables[3].split()[1]) == pytest.approx(expected, abs=0.02)
    assert sum(int(line.split()[1]) for line in tables[5:8]) == 120 and all("not private" in line for line in tables[5:8])
    transcripts = [(home / "banks" / f"bank-{number}" / "vault" / "transcript.jsonl").read_text() for number in (1, 2, 3)]
    assert all(transcript.count("\n") > 2 for transcript in transcripts)  # secure aggregation has taken place
    assert json.loads((home / "coordinator" / "runs" / "simulation" / "result" / "result.json").read_text())["refusals"] == []


def test_a_simulation_that_cannot_begin_leaves_nothing(tmp_path: Path, bert_dir: Path, consortium: Command) -> None:
    path = _federation(tmp_path, bert_dir, base_model={"name": "another", "sha256": "a" * 64})
    rows, home = _rows(tmp_path, 20), tmp_path / "simulation"
    asked = ("simulate", path, "--banks", 3, "--data", rows, "--base-model", bert_dir, "--workers", 0, "--output", home)
    code, _, err = consortium(*asked)
    assert (code, home.exists()) == (2, False) and "federation.yaml names aaaa" in err
    code, _, err = consortium(*asked, "--test", tmp_path / "nowhere.jsonl")
    assert (code, home.exists()) == (2, False) and "nowhere.jsonl: no such file" in err
    home.mkdir()
    code, _, err = consortium(*asked)
    assert code == 2 and "is there already" in err


@torch.no_grad()
def _accuracy(run: Path, model: Path, rows: Path) -> float:
    """Of a run's result in an ordinary model, row by row."""
    shutil.copy(run / "result" / "adapter_model.safetensors", run / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(LABELS), dtype=torch.float32)
    learnt, tokenizer = PeftModel.from_pretrained(base, run / "adapter").eval(), AutoTokenizer.from_pretrained(model)
    said = [json.loads(line) for line in rows.read_text().splitlines()]
    best = [learnt(**tokenizer(row["text"], return_tensors="pt")).logits.argmax().item() for row in said]
    return float(np.mean([LABELS[place] == row["label"] for place, row in zip(best, said, strict=True)]))


@pytest.mark.slow
def test_twenty_banks_learn_privately_on_ray(tmp_path: Path, bert_dir: Path, consortium: Command) -> None:
    """Two workers train for all of them; each bank's own ledger has what its rounds cost, within what was promised."""
    training = {"privacy": {"epsilon": 8, "epsilon_round": 8, "delta": DELTA}, "evaluation": "noised", "metrics": ["accuracy"]}
    code, out, err = consortium(
        "simulate", _federation(tmp_path, bert_dir, **training), "--banks", 20, "--data", _rows(tmp_path, 400), "--base-model", bert_dir,
        "--partition", "dirichlet:0.5", "--unit", "customer_id", "--workers", 2, "--output", tmp_path / "simulation",
    )  # fmt: skip
    assert code == 0, err
    spent = [line.split() for line in out.splitlines() if line.strip().startswith("bank-")]
    assert len(spent) == 20 and all(units == "20" and 4 < float(epsilon) <= 8 for _, _, units, epsilon in spent)
    assert "evaluation of the final model" in out
