"""First drafts of what people then decide: a federation's `training` block, and a bank's bank.yaml.

A draft of a policy allows what the federation asks for and nothing else: for the bank's officer to read line by line, not to wave through.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from federation.config import FederationConfig, TrainingConfig
from federation.errors import FactsError
from trainers.config import Task

_TRAINING = """
training:                       # what is trained together; the same for all banks, which are told of it and refuse what they do not allow
  task: {task}
  labels: {labels}
  base_model:
    name: {name}
    sha256: {sha256}   # consortium federation hash DIR
  adapter: {{rank: 16, alpha: 32, targets: all-linear}}
  aggregation:
    method: ffa                 # ffa: B alone is trained | fedsvd: so it is, in a turned basis | fedavg: A and B
    momentum: 0                 # of the coordinator: steadies rounds of few steps
    most_units: {units}            # the most customers of any bank; a bank weighs what its own are of this. Null: all banks alike
  rounds: 10
  spare_rounds: 1               # attempts that failed, paid for beforehand
  attempts: 3                   # of a round, before the run ends
  local:                        # what a bank does in a round
    steps: 20
    batch: {batch}                  # customers of a step, expected; large batches drown noise
    learning_rate: 2.0e-3
    clip_norm: 0.1              # most that a customer's gradient may measure
    max_length: 256             # tokens of an example
  cohort: {banks}                     # banks in a round, at most
  quorum: {threshold}                     # and at least
  threshold: {threshold}                  # banks whose help reveals a sum: more than half of cohort + colluders
  secure_aggregation: true
  privacy:                      # what every bank promises its customers, at least
    epsilon: 4                  # for the whole run
    epsilon_round: 3            # and for a round of it
    delta: {delta:g}                # {delta_reason}
  encoding:                     # how an update becomes integers, that masks hide
    clip: {clip:g}                   # most that an update may measure; about learning_rate x steps x sqrt(numbers sent) is natural
    fraction_bits: {bits}           # the most with which {banks} updates cannot overflow
  evaluation: noised            # of each round's model, by the banks on customers held out | public_data | off
  metrics: [{metric}]
  timeouts: {{update: 7200}}      # seconds for training; the other exchanges have 300
"""

_BANK = """\
# {bank} in {federation}. This file stays at the bank: what it does not allow does not happen, whoever asks.

bank: {bank}
coordinator: {coordinator}
base_model: {base_model}
data:
  train: {train}
  # columns: {{text: query, label: intent}}
  # validation_fraction: 0.1    # customers held out, for noised evaluation
unit: {unit}
units: {units}                     # customers there are at most, declared and public
population: customers           # as the compliance officer has named them in the ledger
ledger: {ledger}
# cluster: {{workers: 2}}         # GPUs or nodes of the bank; see consortium init

policy:                         # drafted from what {federation} asks for: each line is the officer's to change
  base_models: [{sha256}]
  bundles: [{bundle}]   # consortium federation bundle
  tasks: [{task}]
  aggregation: [{method}]
  adapters: [{adapter}]
  least_members: {quorum}              # banks a round must begin with
  least_in_sum: {in_sum}               # banks whose updates are in any sum that is revealed
  least_honest_in_sum: {honest}        # of them, those that do not collude
  least_threshold: {threshold}
  most_clip: {clip:g}
  most_rounds: {rounds}               # of a run
  most_attempts: {attempts}             # at its rounds, repeated ones and the last evaluation included: in each a vector may leave
  most_epsilon_round: {epsilon_round}       # at a delta up to that of the population's grant
  most_epsilon: {epsilon}            # of all that was ever charged to the population, as the ledger proves it: more than by PLD
  evaluation: {evaluation}            # this or off. noised: of customers held out | public_data: exact, of rows you vouch are public | off
  metrics: [{metrics}]
  hours: null                   # 20:00-06:00, in the bank's time
"""
_UPDATE = 64.0
_RECORDS = 8


def draft_training(*, task: str, labels: Sequence[str], base_model: Path, sha256: str, banks: int, colluders: int, units: int) -> str:
    """A `training` block, to be put at the end of federation.yaml. Raises FactsError."""
    from privacy.planner import suggest_delta
    from privacy.secagg.fixed_point import fit
    from privacy.secagg.rules import least_threshold

    if banks < colluders + 2:
        raise FactsError(
            f"{banks} banks of which {colluders} may collude: expected {colluders + 2} or more",
            "or a sum could be one honest bank's update",
        )
    if task not in get_args(Task):
        raise FactsError(f"--task {task}: expected {', '.join(get_args(Task))}", "classify chooses one of the labels")
    if (task == "classify") != bool(labels):
        raise FactsError(f"{len(labels)} labels for task {task}", "classify needs the names of all classes, and no other task has any")
    delta, reason = suggest_delta(units, None)
    return _TRAINING.format(
        task=task,
        labels=json.dumps(list(labels), ensure_ascii=False),
        name=json.dumps(base_model.resolve().name, ensure_ascii=False),
        sha256=sha256,
        banks=banks,
        threshold=least_threshold(banks, colluders),
        units=units,
        batch=min(units, max(8, 2 ** (units // 8).bit_length())),
        delta=delta,
        delta_reason=reason,
        clip=_UPDATE,
        bits=fit(banks, _UPDATE, 32).fraction_bits,
        metric="accuracy",
    )


def draft_bank(
    federation: FederationConfig, *, bank: str, base_model: Path, train: Path, unit: str, units: int, bundle: str, coordinator: str
) -> str:
    """A bank.yaml for the federation's `training` block; `unit` is record or a column's name. FactsError where there is no block."""
    training = training_of(federation)
    proposal, privacy = training.proposal(bundle, federation.colluders), training.privacy
    return _BANK.format(
        federation=federation.name,
        bank=bank,
        coordinator=coordinator,
        base_model=json.dumps(str(base_model)),
        train=json.dumps(str(train)),
        unit=unit if unit == "record" else f"{{column: {json.dumps(unit)}, max_records: {_RECORDS}}}",
        units=units,
        ledger="ledger.db",
        sha256=proposal.base_model,
        bundle=bundle,
        task=json.dumps(proposal.task.model_dump(mode="json"), ensure_ascii=False),
        method=proposal.aggregation,
        adapter=json.dumps(proposal.adapter.model_dump(mode="json")).replace('"', ""),
        quorum=proposal.members,
        in_sum=proposal.in_sum,
        honest=max(0, proposal.in_sum - proposal.colluders),
        threshold=proposal.threshold,
        clip=proposal.clip,
        rounds=proposal.rounds,
        attempts=training.attempts * (training.rounds + bool(training.metrics)),
        epsilon_round=privacy.epsilon_round if privacy else "null",
        epsilon=2 * privacy.epsilon if privacy else "null",
        evaluation=proposal.evaluation,
        metrics=", ".join(proposal.metrics),
    )


def training_of(federation: FederationConfig) -> TrainingConfig:
    """FactsError where there is none yet."""
    if federation.training is None:
        raise FactsError(f"{federation.name} has no training block yet", "its coordinator writes one: consortium federation draft-training")
    return federation.training


def parsed(text: str) -> dict[str, Any]:
    """The values of a draft. It was written here: no mistakes are expected."""
    return dict(yaml.safe_load(text))
