"""What was promised and what was done, for a machine and for a person: `dp_statement.json` and a paragraph of the model card.

What a claim must say for a reader to be able to rely on it or to refuse it: NIST SP 800-226 (2025), and Ponomareva et al. 2023 (How to
DP-fy ML, arXiv 2303.00654, section 5.3). Written by runs whose self-tests passed and whose accountants agree; there is no other way to
have one.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from privacy.accountant import PRV_ERROR, cross_check
from privacy.errors import PromiseBroken
from privacy.ledger import Status
from privacy.plan import Event, PrivacyPlan
from privacy.selftest import Verdicts

FILE = "dp_statement.json"
FORMAT = 1

NOT_COVERED = (
    "losses, norms, batch sizes and evaluations of the run: they stay with the bank, in a file of its own",
    "how long steps take, and that the run took place",
    "the base model, its tokenizer and whatever they were trained on",
    "the names of classes, the number of units and all settings: they are taken to be public",
    "facts about the population as a whole, which a model is meant to learn",
    "people who are units of several banks or populations: what each has released about them adds up",
    "attacks on the rounding of single-precision sums (Mironov 2012)",
)


@dataclass(frozen=True)
class Run:
    """What the trainer knows of the run that the plan does not."""

    name: str
    unit: str
    """record, or the column whose values are the units"""
    max_records: int | None
    steps_taken: int
    """In the model: steps taken again after a failure count once here"""
    secret: bool
    """False where samples or noise came from a seed"""
    canaries: int
    released: Literal["adapter", "model"]
    trained: tuple[str, ...]
    """What is trained, in words"""
    base_model: str


def make_statement(plan: PrivacyPlan, run: Run, charged: Event, verdicts: Verdicts, status: Status, ledger: str) -> dict[str, Any]:
    """The statement of a run whose ledger has `charged`. Raises PromiseBroken where a precondition does not hold."""
    if not verdicts.passed:
        raise PromiseBroken(f"the run's own tests failed: {', '.join(verdicts.failed)}",
                            "no statement is written, and the model must not leave the bank")  # fmt: skip
    if charged.steps < run.steps_taken:
        raise PromiseBroken(f"{run.steps_taken} steps were taken and {charged.steps} charged", "no statement is written")
    check = cross_check([charged], plan.delta)
    return {
        "format": FORMAT,
        "private": run.secret,
        "run": run.name,
        "claim": {
            "epsilon": rounded_up(check.pld, 4),
            "delta": plan.delta,
            "unit": run.unit,
            "most_records_of_a_unit": run.max_records,
            "neighbouring": "one unit more or less, with all its records",
            "units_declared": plan.units,
            "released": f"the {run.released} (every intermediate one might be); nothing else of the run",
            "trust": f"the bank that ran it is trusted with its own rows; nobody who receives the {run.released} is",
        },
        "mechanism": {
            "name": "DP-SGD: flat clipping by unit, Gaussian noise on the sum (Abadi et al. 2016)",
            "clip_norm": plan.clip_norm,
            "noise_multiplier": plan.noise_multiplier,
            "sampling": "Poisson over units, truncated (Ganesh 2025); one secret stream for all workers",
            "sampling_rate": plan.sampling_rate,
            "expected_batch": plan.expected_batch,
            "cap": plan.cap,
            "steps_planned": plan.steps,
            "steps_reserved": plan.steps + plan.spare_steps,
            "steps_charged": charged.steps,
            "steps_in_the_model": run.steps_taken,
            "trained": list(run.trained),
            "randomness": "AES-256-CTR keyed by the operating system at every start; no key is stored"
            if run.secret
            else "a seed: NOT PRIVATE",
            "precision": "gradients, norms and sums in float32, noise computed in float64",
        },
        "accounting": {
            "accountant": "privacy loss distribution, pessimistic estimate",
            "package": f"dp-accounting {version('dp-accounting')}",
            "cross_check": {"prv": round(check.prv, 4), "package": f"opacus {version('opacus')}", "stated_error": PRV_ERROR},
            "rdp": round(check.rdp, 4),
        },
        "history": {
            "ledger": ledger,
            "population_granted": {"epsilon": status.grant.epsilon, "delta": status.grant.delta},
            "population_charged_epsilon": rounded_up(status.epsilon_charged, 4),
            "population_proven_epsilon": rounded_up(status.filter.proven, 4),
            "reservations": len(status.reservations),
        },
        "public_inputs": {"base_model": run.base_model, "units": plan.units},
        "self_tests": asdict(verdicts),
        "canaries": run.canaries,
        "not_covered": list(NOT_COVERED),
        "code": code_digest(),
    }


def paragraph(statement: Mapping[str, Any]) -> str:
    """The claim in words, for the model card."""
    claim, mechanism, history = statement["claim"], statement["mechanism"], statement["history"]
    if not statement["private"]:
        return "**Not private**: samples and noise came from a seed, as in a test."
    together = history["population_granted"] | {"epsilon": history["population_proven_epsilon"]}
    unit = "every record" if claim["unit"] == "record" else f"everyone told apart by `{claim['unit']}`"
    return (
        f"Trained with differential privacy: {bound(claim)} for {unit}, where neighbouring "
        f"sets differ by {claim['neighbouring']}. DP-SGD over {mechanism['steps_charged']} charged steps with clipping norm "
        f"{mechanism['clip_norm']:g}, noise multiplier {mechanism['noise_multiplier']:g} and sampling rate "
        f"{mechanism['sampling_rate']:.4g} of {claim['units_declared']:,} units (truncated Poisson). All runs on this population so far, "
        f"each chosen in sight of those before: {bound(together)}. Not covered: {'; '.join(statement['not_covered'])}."
    )


def bound(claim: Mapping[str, Any]) -> str:
    """Epsilon and delta in words, never less than they are."""
    return f"epsilon {rounded_up(claim['epsilon'], 2):.2f} at delta {claim['delta']:g}"


def rounded_up(value: float, digits: int) -> float:
    """For who reads an epsilon: never less than it is."""
    return math.ceil(value * 10.0**digits) / 10.0**digits


def code_digest(package: Path = Path(__file__).parent) -> str:
    """SHA-256 over the sources of a package, this one or another, by name."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
