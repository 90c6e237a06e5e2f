"""federation.yaml and bank.yaml: what they say, and which mistakes are caught in which words."""

import subprocess
import sys
from pathlib import Path

import pytest

from federation.config import TrainingConfig, load_bank, load_federation
from federation.policy import Spent, check
from tests.federation.test_policy import NIGHT
from tests.helpers import REPOSITORY
from trainers.errors import ConfigError

FEDERATION = f"""
name: intents
hosts: [fed.example.com]
colluders: 1
training:
  task: classify
  base_model: {{name: MiniLM, sha256: {"a" * 64}}}
  adapter: {{rank: 16, alpha: 32, targets: all-linear}}
  labels: [card, loan]
  local: {{steps: 20, batch: 64, learning_rate: 1.0e-3, clip_norm: 0.1, max_length: 64}}
  rounds: 10
  cohort: 4
  quorum: 4
  threshold: 3
  aggregation: {{method: fedsvd, momentum: 0.9}}
  privacy: {{epsilon: 4, epsilon_round: 0.5, delta: 1.0e-5}}
  encoding: {{clip: 1.0, fraction_bits: 28}}
  evaluation: off
  timeouts: {{update: 60}}
"""
BANK = f"""
bank: bank-a
base_model: models/minilm
data: {{train: tickets.jsonl, columns: {{text: query}}}}
unit: {{column: customer, max_records: 8}}
units: 5000
population: retail
ledger: bank.ledger
cluster: {{workers: 2}}
policy:
  base_models: [{"a" * 64}]
  bundles: [{"b" * 64}]
  aggregation: [ffa, fedsvd]
  tasks: [{{task: classify, labels: [card, loan], max_length: 64}}]
  adapters: [{{rank: 16, alpha: 32, targets: all-linear}}]
  least_members: 4
  least_in_sum: 3
  least_honest_in_sum: 2
  least_threshold: 3
  most_clip: 1
  most_rounds: 10
  most_attempts: 30
  most_epsilon_round: 0.5
  most_epsilon: 4
  evaluation: off
  metrics: []
  hours: 20:00-06:00
"""


def _write(folder: Path, text: str, *changes: tuple[str, str]) -> Path:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "some.yaml"
    path.write_text(text)
    return path


def _mistake(folder: Path, *changes: tuple[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_federation(_write(folder, FEDERATION, *changes))
    assert "federation init" in caught.value.hint
    return str(caught.value)


def _training(folder: Path, *changes: tuple[str, str]) -> TrainingConfig:
    training = load_federation(_write(folder, FEDERATION, *changes)).training
    assert training is not None
    return training


def test_a_bank_allows_what_the_federation_asks(tmp_path: Path) -> None:
    training, bank = _training(tmp_path), load_bank(_write(tmp_path, BANK))
    assert check(training.proposal("b" * 64, 1), bank.policy, Spent(1, 0.5), NIGHT) is None
    assert training.evaluation == bank.policy.evaluation == "off"  # which YAML takes for false
    assert bank.policy.hours == "20:00-06:00"


def test_paths_of_a_bank_are_relative_to_its_file(tmp_path: Path) -> None:
    bank = load_bank(_write(tmp_path, BANK, ("ledger: bank.ledger", "ledger: /safe/bank.ledger")))
    assert bank.data.train == [tmp_path / "tickets.jsonl"] and bank.base_model == tmp_path / "models/minilm"
    assert bank.ledger == Path("/safe/bank.ledger")


def test_without_secure_aggregation_or_privacy_a_careful_bank_takes_no_part(tmp_path: Path) -> None:
    policy = load_bank(_write(tmp_path, BANK)).policy
    shown = _training(tmp_path, ("evaluation", "secure_aggregation: false\n  evaluation"))
    unnoised = _training(tmp_path, ("privacy: {epsilon: 4, epsilon_round: 0.5, delta: 1.0e-5}", "privacy: null"))
    refusals = [check(asked.proposal("b" * 64, 1), policy, Spent(1, 0.5), NIGHT) for asked in (shown, unnoised)]
    assert [refusal and refusal.rule for refusal in refusals] == ["least_in_sum", "most_epsilon_round"]


def test_banks_can_be_enrolled_before_it_is_known_what_they_train(tmp_path: Path) -> None:
    assert load_federation(_write(tmp_path, FEDERATION[: FEDERATION.index("training:")])).training is None


def test_the_hash_is_of_what_is_agreed_and_not_of_how_it_is_written(tmp_path: Path) -> None:
    swapped = [("  rounds: 10\n", ""), ("  task", "  # the same\n  rounds: 10\n  task")]
    hashes = [_training(tmp_path, *changes).hash for changes in ([], swapped, [("rounds: 10", "rounds: 11")])]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quorum", "quorom", "unknown field training.quorom, did you mean training.quorum?"),
        ("momentum", "momentun", "unknown field training.aggregation.momentun, did you mean training.aggregation.momentum?"),
        ("threshold: 3", "threshold: 2", r"training.threshold: 2 of 4 banks of which 1 may collude: expected 3 or more (2t > n + c)"),
        ("threshold: 3", "threshold: 5", "training.quorum: 4: expected 5 (the threshold) to 4 (the cohort)"),
        ("quorum: 4", "quorum: 5", "training.quorum: 5: expected 3 (the threshold) to 4 (the cohort)"),
        ("colluders: 1", "colluders: 3", "training.cohort: 4 banks of which 3 may collude: expected 5 or more (n >= c + 2)"),
        ("fedsvd", "flora", "training.aggregation.method: flora stacks the banks' factors, of which only the sum is seen"),
        ("fedsvd", "krum", "training.aggregation.method: krum compares the banks' updates"),
        ("fedsvd", "sgd", "training.aggregation.method: expected ffa, fedsvd or fedavg, got"),
        ("fraction_bits: 28", "fraction_bits: 30", "can wrap around with 30 fraction bits modulo 2^32: at most 28 fraction bits"),
        ("epsilon_round: 0.5", "epsilon_round: 5", "a round may cost 5.0, more than epsilon for the whole run"),
        ("  privacy: {epsilon: 4, epsilon_round: 0.5, delta: 1.0e-5}\n", "", "training.privacy is required"),
        ("evaluation: off", "evaluation: off\n  metrics: [accuracy]", "training.metrics: accuracy: with evaluation: off there are none"),
        ("evaluation: off", "evaluation: private", "training.evaluation: expected noised, public_data or off"),
        ("evaluation: off", "evaluation: noised\n  metrics: [f1]", "training.metrics.0: expected accuracy, got"),
        ("evaluation: off", "evaluation: noised", "training.metrics: none, and evaluation: noised: say which, as in [accuracy]"),
        ("[card, loan]", "[card]", "training.labels: two or more are needed for task: classify"),
        ("[card, loan]", "[card, loan, card]", "training.labels: card: more than once"),
        ("task: classify", "task: sft", "training.labels: task: sft has none: leave them out"),
        ("batch: 64", "batch: 0", "training.local.batch: expected a whole number of at least 1"),
        ("a" * 64, "abc", "training.base_model.sha256: expected a SHA-256, 64 hexadecimal digits"),
        ("update: 60", "update: 0", "training.timeouts.update: expected a number above 0"),
    ],
)
def test_a_mistake_says_what_is_expected_and_why(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in _mistake(tmp_path, (old, new))


def test_noised_evaluation_needs_a_budget_to_take_from(tmp_path: Path) -> None:
    unnoised = ("privacy: {epsilon: 4, epsilon_round: 0.5, delta: 1.0e-5}", "privacy: null")
    told = _mistake(tmp_path, unnoised, ("evaluation: off", "evaluation: noised\n  metrics: [accuracy]"))
    assert "training.evaluation: noised needs training.privacy" in told


def test_an_accuracy_is_two_numbers_of_the_vector(tmp_path: Path) -> None:
    told = _training(tmp_path, ("evaluation: off", "evaluation: noised\n  metrics: [accuracy]"))
    assert told.metric_names == ("accuracy", "count")
    assert _training(tmp_path).metric_names == ()


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    told = _mistake(tmp_path, ("threshold: 3", "threshold: 2"), ("quorum: 4", "quorum: 1"))
    assert "threshold: 2" in told and "quorum: 1" in told


def test_hours_that_yaml_would_take_for_a_number_are_refused(tmp_path: Path) -> None:
    """20:00 is 1200 in YAML 1.1."""
    with pytest.raises(ConfigError, match=r"policy.hours: expected two times of day, as in 20:00-06:00"):
        load_bank(_write(tmp_path, BANK, ("20:00-06:00", "20:00")))


def test_enrolling_banks_needs_nothing_heavy_of_the_configuration() -> None:
    code = "import sys, federation.config; print({'torch', 'ray', 'flwr', 'numpy', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
