"""A run as it is in earnest, but for the network: banks with training jobs of their own, private rows, and one that is away."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save

from federation.rounds import bank as bank_side
from federation.rounds.local import LocalTrainer
from privacy.ledger import Ledger
from tests.federation.enrolment import BANKS, Federation
from tests.federation.loopback import RUN, Loopback, World, make_world, planned
from tests.federation.runs import start_of
from tests.trainers.jobs import write_labelled_rows
from trainers.data.prepare import describe_file

LABELS = ["cash", "branch", "card", "account", "balance"]
ROWS = 40


def _make_banks(world: World, model: Path) -> None:
    """Rows, budgets and a base model for three of them."""
    for number, name in enumerate(BANKS[:3]):
        folder = world.bank_folder(name)
        rows = write_labelled_rows(folder, count=ROWS, seed=number)
        path = folder / "bank.yaml"
        path.write_text(
            yaml.safe_dump(yaml.safe_load(path.read_text()) | {"base_model": str(model), "units": ROWS, "cluster": {"workers": 1}}).replace(
                "rows.jsonl", rows.name
            )
        )
        with Ledger.open(world.config(name).ledger) as ledger:
            ledger.attach("retail", describe_file(rows)["sha256"], str(rows), ROWS)


class _Without(Loopback):
    """The last bank."""

    def reachable(self) -> frozenset[str]:
        return frozenset(BANKS[:3])


@pytest.mark.slow
def test_three_banks_train_an_adapter_with_jobs_of_their_own(made: Federation, bert_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_side, "plan_round", planned)
    world = make_world(made)
    _make_banks(world, bert_dir)
    world.ask(
        labels=LABELS,
        aggregation={"most_units": ROWS},
        local={"steps": 4, "batch": 10, "learning_rate": 0.01, "clip_norm": 1, "max_length": 16},
    )
    start = start_of(world.training, bert_dir, 1, world.run_folder / "adapter")
    (world.run_folder / "start.safetensors").write_bytes(save(dict(start)))
    trainers = {name: LocalTrainer(partial(world.config, name), world.bank_folder(name) / "runs") for name in BANKS[:3]}
    for name, trainer in trainers.items():
        world.banks[name] = bank_side.Bank(world.bank_folder(name), lambda name=name: world.config(name), "a" * 64, trainer)
    try:
        _Without(world).run()
    finally:
        world.close()
        for trainer in trainers.values():
            trainer.close()
    result = json.loads((world.run_folder / "result" / "result.json").read_text())
    adapter = load_file(world.run_folder / "result" / "adapter_model.safetensors")
    assert [round["banks"] for round in result["rounds"]] == [[*BANKS[:3]]] * 2 and {*result["metrics"]} == {*"012"}
    assert {name for name in start if not np.array_equal(start[name], adapter[name])} == {name for name in start if "lora_A" not in name}
    assert [(run[-1], charged, closed) for run, charged, closed in world.held("alder")] == [("1", 4, True), ("1", 1, True)] * 2 + [
        ("1", 1, True)
    ]
    assert RUN in world.held("alder")[0][0]
