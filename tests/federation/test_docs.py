"""docs/federation.md: its files are read as they stand there, and it has every rule of the policy."""

import re
from pathlib import Path

from federation.config import BankConfig, load_bank, load_federation
from federation.policy import _RULES, Policy, Spent, check
from tests.federation.test_policy import NIGHT
from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "federation.md").read_text()


def _write_blocks(folder: Path) -> tuple[Path, Path]:
    federation, bank = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (folder / "federation.yaml").write_text(federation)
    (folder / "bank.yaml").write_text(bank)
    return folder / "federation.yaml", folder / "bank.yaml"


def test_the_bank_of_the_page_allows_what_its_federation_asks(tmp_path: Path) -> None:
    federation, bank = _write_blocks(tmp_path)
    training, config = load_federation(federation).training, load_bank(bank)
    assert training is not None
    asks = training.proposal(config.policy.bundles[0], colluders=1)
    assert check(asks, config.policy, Spent(attempts=1, epsilon=0.0), NIGHT) is None


def test_both_files_of_the_page_are_complete(tmp_path: Path) -> None:
    federation, bank = _write_blocks(tmp_path)
    training = load_federation(federation).training
    assert training is not None
    assert set(type(training).model_fields) == training.model_fields_set
    assert set(BankConfig.model_fields) == load_bank(bank).model_fields_set


def test_every_rule_has_its_line() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == list(_RULES) == list(Policy.model_fields)
