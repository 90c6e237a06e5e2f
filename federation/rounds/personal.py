"""A bank's own adapter: the federation's, trained further on the bank's rows alone. It stays at the bank, and its customers pay for it."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save

from federation.config import BankConfig, TrainingConfig
from federation.errors import FactsError, FolderError
from federation.files import translated
from federation.rounds.budget import plan_round, release, reserve
from federation.rounds.local import LocalTrainer, Task
from privacy import disk
from privacy.accountant import epsilon
from privacy.ledger import Ledger
from privacy.statement import rounded_up

_ADAPTER = "adapter_model.safetensors"


def personalise(training: TrainingConfig, bank: BankConfig, adapter: Path, output: Path, runs: Path, steps: int) -> dict[str, Any]:
    """Take so many local steps from the adapter in a directory, and write what came of it to a new one, with `personal.json`, returned.

    The terms are the training block's, its privacy included: `epsilon` is what these steps may cost, beside all that the population has
    spent. Raises BudgetRefused, PlanError, ConfigError, TrainingFailed, FolderError, FactsError.
    """
    if output.exists():
        raise FolderError(f"{output}: is there already", "name a new directory: nothing of yours is to be written over")
    terms = training.model_copy(
        update={
            "rounds": 1,
            "spare_rounds": 0,
            "evaluation": "off",
            "metrics": [],
            "local": training.local.model_copy(update={"steps": steps, "moments": "new"}),  # none that a round could go on from
        }
    )
    start, name, budget = _read(adapter), f"personal-{output.name}", None
    if terms.privacy is not None:
        budget = plan_round(terms, bank, "train")
        with Ledger.open(bank.ledger) as ledger:
            budget = reserve(budget, ledger, bank.population, name)
    trainer = LocalTrainer(lambda: bank, runs)
    try:
        work = trainer(Task(name, 1, 1, "train", terms, start, budget))
    finally:
        trainer.close()
        if budget is not None:
            with Ledger.open(bank.ledger) as ledger:
                release(budget, ledger)
    facts = {"steps": work.facts["steps"], "units": bank.units, "verdicts": work.facts["verdicts"]}
    if budget is not None and budget.plan is not None:
        cost = epsilon([budget.plan.event.times(work.facts["charged"])], budget.plan.delta)
        facts |= {"epsilon": rounded_up(cost, 4), "delta": budget.plan.delta}
    with translated(output):
        output.mkdir(mode=0o700)
        shutil.copytree(adapter, output, ignore=shutil.ignore_patterns("result.json", _ADAPTER), dirs_exist_ok=True)
        output.chmod(0o700)  # copied too
        disk.write(output / _ADAPTER, [save(dict(work.adapter))])
        disk.write(output / "personal.json", [json.dumps(facts, indent=1).encode()])
    return facts


def _read(adapter: Path) -> dict[str, Any]:
    with translated(adapter):
        try:
            return load_file(adapter / _ADAPTER)
        except FileNotFoundError:
            raise FactsError(f"{adapter}: no {_ADAPTER}", "the directory of an adapter, as `runs/RUN/result` of a coordinator") from None
