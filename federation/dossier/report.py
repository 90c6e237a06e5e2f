"""The dossier: what a compliance officer and a regulator are shown of a federation, as data. How it looks is in page.py.

A bank's is made of its own record, ledger and transcript; the coordinator's of a run's journal and events. Everything in it is read from
files that were written as things happened, and what is not known is missing: nothing is reckoned back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from federation.config import BankConfig, PrivacyFloor, TrainingConfig, load_bank
from federation.dossier.progress import Progress, Round, read_events, read_progress
from federation.dossier.verify import Check, Transcripts, check, identities, read_exports
from federation.enrolment.home import Home
from federation.enrolment.registry import Registry
from federation.enrolment.roster import Roster
from federation.errors import FactsError, FolderError
from federation.rounds.budget import noise_of_evaluations
from federation.rounds.record import Decision, decisions
from privacy.evaluation import SENSITIVITY
from privacy.ledger import Ledger
from privacy.secagg.identity import fingerprint
from privacy.secagg.transcript import read
from privacy.statement import code_digest
from trainers.versions import versions

FORMAT = 1
Dossier = dict[str, Any]

NOT_COVERED = (
    "a bank's own machine: whoever reads its disk or memory has its rows, its keys and its updates",
    "what the sums and the models made of them tell: that is what epsilon bounds, and without privacy nothing does",
    "more banks that collude with the coordinator than the roster reckons with",
    "names of banks, who takes part when, sizes of messages, seconds: the coordinator sees them",
    "what a bank puts into its update: a sum hides a bank that means harm as well as one that means well",
    "one person under two names at a bank, or at several banks: what each has spent adds up",
    "lines that were cut off the end of a record, ledger or transcript, unless their heads were noted elsewhere or another bank holds them",
)
_PACKAGES = ("consortium", "flwr", "numpy", "cryptography", "torch", "transformers", "peft", "dp-accounting")


def side_of(home: Path) -> Literal["bank", "coordinator"]:
    """Whose folder it is. Raises FolderError where it is neither's."""
    if (home / "federation.yaml").is_file():
        return "coordinator"
    if (home / "keys").is_dir():
        return "bank"
    raise FolderError(
        f"{home}: neither a bank's folder nor a coordinator's",
        "one has keys/, as `consortium federation keygen` makes them, the other a federation.yaml: name it with --home",
    )


def record_of(home: Path) -> Path:
    return home / "record.jsonl"


def transcript_of(home: Path) -> Path:
    return home / "vault" / "transcript.jsonl"


def run_of(home: Path, run: str) -> Path:
    """A run's folder at the coordinator. Raises FolderError, naming those there are."""
    folder = home / "runs" / run
    if not (folder / "journal.jsonl").is_file():
        known = sorted(path.parent.name for path in (home / "runs").glob("*/journal.jsonl"))
        raise FolderError(f"{home}: has no run {run!a}", f"there are: {', '.join(known)}" if known else "none was begun yet")
    return folder


def coordinator_dossier(home: Path, run: str, exports: Sequence[Path]) -> Dossier:
    """Of one run. Raises FolderError, JournalError, FactsError; VaultError and NotTrusted for banks' transcripts."""
    registry, progress = Registry(home), read_progress(run_of(home, run))
    training, roster = registry.config.training, registry.in_force
    if training is None or training.hash.hex() != progress.config:
        raise FactsError(
            f"{home / 'federation.yaml'} is not what the run {run} began with", "put back the one it began with: banks agreed to it"
        )
    if roster is None:
        raise FolderError(f"{home}: no roster that all have signed", "consortium federation roster gather COPY...")
    keys = identities(signed.roster for signed in registry.rosters if not signed.missing)
    return _common("coordinator", roster) | {
        "run": run,
        "outcome": progress.outcome,
        "began": progress.began,
        "ended": progress.ended,
        "protection": protection(training, roster.colluders),
        "terms": _terms(training, progress, read_events(run_of(home, run) / "events.jsonl")),
        "privacy": training.privacy and privacy_of(training.privacy, len(roster.members)),
        "rounds": [asdict(each) | {"errors": errors_of(training, each)} for each in progress.rounds],
        "refusals": [asdict(each) for each in progress.refusals],
        "failures": [asdict(each) for each in progress.failures],
        "transcripts": _checked(check(read_exports(exports, keys), keys)) if exports else None,
    }


def bank_dossier(home: Path, config: Path, exports: Sequence[Path], older: Sequence[Roster] = ()) -> Dossier:
    """Of a bank; `older` rosters are those with keys that were replaced since.

    Raises FolderError, JournalError, LedgerError, ConfigError; VaultError and NotTrusted for transcripts.
    """
    bank, own = Home(home), load_bank(config)
    roster, noted = bank.roster_in_force, decisions(record_of(home))
    keys = identities([roster, *older])
    transcripts: Transcripts = read_exports(exports, keys)
    if (path := transcript_of(home)).exists():
        name, known, _ = read(path)
        transcripts = {name: known, **{other: facts for other, facts in transcripts.items() if other != name}}
    return _common("bank", roster) | {
        "bank": bank.keys_in(roster).name,
        "terms": {
            "unit": own.unit if isinstance(own.unit, str) else own.unit.column,
            "units": own.units,
            "population": own.population,
            "policy": own.policy.model_dump(mode="json"),
        },
        "budget": budget_of(own),
        "attempts": attempts_of(noted),
        "decisions": [asdict(each) for each in noted],
        "refusals": [_refusal(each) for each in noted if each.rule],
        "transcripts": _checked(check(transcripts, keys)) if transcripts else None,
    }


def protection(training: TrainingConfig, colluders: int) -> dict[str, Any]:
    """What secure aggregation hides from whom, in numbers and in words."""
    n, t = training.cohort, training.threshold
    if not training.secure_aggregation:
        return {"secure_aggregation": False, "words": ["Without secure aggregation the coordinator sees each bank's update."]}
    collude = {0: "no bank tells", 1: "one bank tells"}.get(colluders, f"{colluders} banks tell")
    words = [
        "Of each round the coordinator learns the sum of the banks' vectors, and of no single vector anything else: even if it lies, and "
        f"{collude} it all that is known there.",
        f"A sum has the vectors of {t} banks or more in it, at least {t - colluders} of them of banks that do not collude.",
        f"Of {n} banks in a round {n - t} may vanish without breaking it; with fewer than {t} left nothing is revealed.",
    ]
    return {
        "secure_aggregation": True,
        "cohort": n,
        "quorum": training.quorum,
        "threshold": t,
        "colluders": colluders,
        "may_vanish": n - t,
        "words": words,
    }


def privacy_of(floor: PrivacyFloor, banks: int) -> dict[str, Any]:
    """What the consortium promises a customer, of one bank and of several.

    Epsilons and deltas of several banks add up (basic composition: Dwork & Roth 2014, theorem 3.16).
    """
    counts = sorted({count for count in (1, 2, banks) if count <= banks})
    return {
        "unit": floor.level,
        "epsilon": floor.epsilon,
        "epsilon_round": floor.epsilon_round,
        "delta": floor.delta,
        "of_several_banks": [{"banks": count, "epsilon": count * floor.epsilon, "delta": count * floor.delta} for count in counts],
        "words": [
            f"Whoever sees all that the run releases learns of a {floor.level} of a bank no more than epsilon {floor.epsilon:g} at "
            f"delta {floor.delta:g} allows, of one round {floor.epsilon_round:g}. Who counts as one is declared by each bank, in its "
            "own dossier; its policy and ledger may allow less.",
            "Each bank adds the whole noise to its own update, before anything leaves. The promise needs no other bank and no coordinator "
            "to be honest.",
            "Outsiders, other banks and the coordinator are told the same number; for those who see sums only, no smaller one is claimed.",
            "A customer of several banks is protected by each for itself: what they spend adds up.",
        ],
    }


def errors_of(training: TrainingConfig, round: Round) -> dict[str, float]:
    """Standard errors of a round's metrics, by the noise that banks have added; none where there is none.

    Each bank's sum of correctness and its number of units have noise of the same deviation (privacy/evaluation.py); accuracy is the ratio
    of the banks' sums, and its error that of a ratio to first order.
    """
    noise = noise_of_evaluations(training)
    if noise is None or training.aggregation.most_units is None or not {"accuracy", "count"} <= round.metrics.keys():
        return {}
    accuracy, count = round.metrics["accuracy"], round.metrics["count"]
    deviation = noise * SENSITIVITY * math.sqrt(len(round.banks))
    return {"accuracy": deviation * math.sqrt(1 + accuracy**2) / count, "count": deviation}


def budget_of(config: BankConfig) -> dict[str, Any]:
    """The population's, from the bank's ledger, whatever it was spent on. Raises LedgerError, LedgerCorrupt."""
    with Ledger.open(config.ledger) as ledger:
        status, head = ledger.status(config.population), ledger.head()
        return {
            "population": config.population,
            "epsilon": status.grant.epsilon,
            "delta": status.grant.delta,
            "by": status.grant.by,
            "proven": status.filter.proven,
            "remaining": status.filter.remaining,
            "history": [asdict(moment) for moment in ledger.history(config.population)],
            "ledger": ledger.id,
            "head": asdict(head),
        }


def attempts_of(noted: Sequence[Decision]) -> list[dict[str, Any]]:
    """What became of each attempt that a bank was asked for, in the order of their beginning."""
    attempts: dict[tuple[str, int, int], list[Decision]] = {}
    for each in noted:
        attempts.setdefault((each.run, each.round, each.attempt), []).append(each)
    return [
        {
            "time": lines[0].time,
            "run": run,
            "round": round,
            "attempt": attempt,
            "kind": next((each.asked["kind"] for each in lines if "kind" in each.asked), ""),
            "released": [each.released.split()[0] for each in lines if each.released],
            "rules": list(dict.fromkeys(each.rule for each in lines if each.rule)),
            "banks": next((each.asked["banks"] for each in lines if "banks" in each.asked), ""),
            "epsilon": next((each.epsilon for each in reversed(lines) if each.epsilon is not None), None),
        }
        for (run, round, attempt), lines in attempts.items()
    ]


def _common(side: str, roster: Roster) -> Dossier:
    return {
        "format": FORMAT,
        "side": side,
        "federation": roster.federation,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "roster": {
            "version": roster.version,
            "hash": roster.hash.hex(),
            "previous": roster.previous.hex(),
            "colluders": roster.colluders,
            "coordinator": fingerprint(roster.coordinator),
            "authority": roster.authority.hex(),
            "members": [{"name": member.name, "fingerprint": member.fingerprint} for member in roster.members],
        },
        "code": {"privacy": code_digest(), "federation": code_digest(Path(__file__).parents[1])},
        "versions": versions(_PACKAGES),
        "not_covered": list(NOT_COVERED),
    }


def _terms(training: TrainingConfig, progress: Progress, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    started = next((event for event in events if event["event"] == "run_started"), {})
    return {
        "configuration": progress.config,
        "bundle": started.get("bundle"),
        "task": training.task,
        "base_model": training.base_model.model_dump(),
        "adapter": training.adapter.model_dump(),
        "start": progress.start,
        "aggregation": training.aggregation.model_dump(),
        "encoding": training.encoding.model_dump(),
        "rounds": training.rounds,
        "evaluation": training.evaluation,
    }


def _refusal(decision: Decision) -> dict[str, Any]:
    return {name: value for name, value in asdict(decision).items() if name in ("time", "run", "round", "attempt", "rule", "asked")}


def _checked(found: Check) -> dict[str, Any]:
    return asdict(found) | {"findings": [asdict(each) for each in found.findings], "others": list(found.others)}
