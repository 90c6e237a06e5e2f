"""`consortium privacy audit RUN`: an attack on a finished run by the canaries that were planted in it, and what it proves of the claim."""

import json
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cluster.job import read_job, write_job
from consortium.evaluation import Target, find_target, load_target
from consortium.tables import print_whole
from consortium.training import run as run_job
from privacy.attack import Estimate, auc, exposure, tpr_at_fpr
from privacy.audit import Claim, Outcome, Scores, clopper_pearson, judge, one_run
from privacy.canaries import FILE_NAME, Canary, Planting, draw_secret, read_planting, space
from privacy.errors import AuditError, PromiseBroken
from privacy.statement import FILE
from trainers.data.formats import BadRow, in_validation, split_key
from trainers.data.masking import opening
from trainers.data.planted import content_of
from trainers.data.prepare import contents
from trainers.evaluate import Item, answers, chat_prompt, score
from trainers.model import Loaded
from trainers.worker import quiet

CONFIDENCE = 0.95
BESIDE = 8
"""Other secrets that a canary's own is held beside, for its score"""
MEMBERS = 500
"""Rows of each side whose membership is guessed"""
RANKED, ALTERNATIVES, ASKED = 8, 255, 50
"""Canaries whose secret is ranked among so many others of its kind; canaries that the model is asked to complete"""

console = Console(stderr=True, highlight=False, soft_wrap=True)


def audit_run(run_dir: Path, *, twin: bool, as_json: bool) -> None:
    """Attack a private run, and with `twin` an ordinary one of the same job and canaries; print and keep what was found.

    Raises AuditError for a run that is not private or not finished, PromiseBroken where the claim is refuted.
    """
    quiet()
    claim, planting = _claim(run_dir), read_planting(run_dir)
    if planting is None:
        _show_verdict({"private": {"verdict": judge(claim, None).as_dict()}}, run_dir, as_json=as_json)
        return
    found = {"private": attack(run_dir, planting, claim)}
    if twin:
        found["twin"] = attack(_train_twin(run_dir), planting, claim)
    _show_verdict(found, run_dir, as_json=as_json)
    if found["private"]["verdict"]["outcome"] == Outcome.FAILED:
        raise PromiseBroken(found["private"]["verdict"]["sentence"], "the model must not leave the bank; find the fault first")


def attack(run_dir: Path, planting: Planting, claim: Claim) -> dict[str, Any]:
    """Scores of all canaries, those planted and those not, and what they show.

    A score is how much likelier training has made a canary's secret, beside others of its kind that might have stood there: what a prompt
    or a way of answering teaches falls out. For a classifier, whose base has no head, it is how likely the canary's class is.
    """
    target = find_target(run_dir)
    loaded, canaries = load_target(target), planting.canaries()
    if target.task == "classify":
        found_by = -_losses(loaded, target, canaries)
    else:
        found_by = _likelier(loaded, target, planting) - _likelier(load_target(target, base=True), target, planting)
    scores = Scores.tossed(found_by, planting.coins)
    proven = one_run(scores, claim, CONFIDENCE)
    found = {
        "verdict": judge(claim, proven).as_dict(),
        "clopper_pearson": clopper_pearson(scores, claim.delta, CONFIDENCE),
        "auc": asdict(auc(scores, CONFIDENCE)),
        "tpr_at_1_percent_fpr": asdict(tpr_at_fpr(scores, 0.01, CONFIDENCE)),
        "canaries": len(canaries),
        "planted": int(sum(planting.coins)),
    }
    if membership := _membership(loaded, target):
        found["membership"] = asdict(membership)
    if target.task != "classify":
        found["exposure_bits"] = _exposures(loaded, target, planting)
        found["extracted"] = _extracted(loaded, target, planting.planted()[:ASKED])
        found["asked"] = min(ASKED, int(sum(planting.coins)))
    return found


def _claim(run_dir: Path) -> Claim:
    path = run_dir / FILE
    if not path.exists():
        raise AuditError(f"{run_dir} has no {FILE}: it is no private run that came to its end", "a run with a privacy block writes one")
    claim = json.loads(path.read_text())["claim"]
    return Claim(claim["epsilon"], claim["delta"])


def _losses(loaded: Loaded, target: Target, canaries: list[Canary]) -> np.ndarray:
    """Of each canary, summed over its targets, in nats."""
    items = [Item(content_of(canary, target.task), {}, canary.name) for canary in canaries]
    with console.status("scoring canaries") as status:
        found = score(loaded, target.task, items, max_length=target.max_length,
                      progress=lambda done, total: status.update(f"scoring canaries {done}/{total}"))  # fmt: skip
    return np.asarray(found.loss)


def _likelier(loaded: Loaded, target: Target, planting: Planting) -> np.ndarray:
    """Nats by which each canary with its own secret is likelier than with others of its kind, on average; the same others every time."""
    rng = random.Random(planting.seed + 1)
    canaries = planting.canaries()
    others = [canary.with_secret(draw_secret(planting.kind, rng)) for canary in canaries for _ in range(BESIDE)]
    losses = _losses(loaded, target, [*canaries, *others])
    return np.asarray(losses[len(canaries) :].reshape(len(canaries), BESIDE).mean(1) - losses[: len(canaries)])


def _exposures(loaded: Loaded, target: Target, planting: Planting) -> dict[str, float]:
    """Mean bits by which a secret stands out among others of its kind, of planted canaries and of others; log2 of how many at most."""
    rng = random.Random(planting.seed)
    whole: dict[str, float] = {"most": exposure(1, ALTERNATIVES + 1)}
    sides = {"planted": True, "left_out": False}
    for name, inside in sides.items():
        chosen = [canary for canary, coin in zip(planting.canaries(), planting.coins, strict=True) if coin == inside][:RANKED]
        bits = []
        for canary in chosen:
            others = [canary.with_secret(draw_secret(planting.kind, rng)) for _ in range(ALTERNATIVES)]
            losses = _losses(loaded, target, [canary, *others])
            bits.append(exposure(1 + int((losses[1:] < losses[0]).sum()), ALTERNATIVES + 1))
        whole[name] = float(np.mean(bits)) if bits else 0.0
    return whole | {"of": float(np.log2(space(planting.kind)))}


def _membership(loaded: Loaded, target: Target) -> Estimate | None:
    """Can rows that were trained on be told from rows held out, by unit, of the same file, by how much likelier training made them?

    0.5 is chance. None where nothing was held out.
    """
    assert target.data is not None
    sides: dict[bool, list[Item]] = {True: [], False: []}
    for path in target.data.train:
        for row, content in contents(target.data, target.task, path):
            if not isinstance(content, BadRow):
                key = split_key(row.values or {}, content, target.data.group_by)
                side = sides[not in_validation(key, target.data.validation_fraction)]
                if len(side) < MEMBERS:
                    side.append(Item(content, {}, f"{row.file}:{row.line}"))
    if target.data.validation or not all(sides.values()):
        return None
    likelier = [-_mean_losses(loaded, target, sides[side]) for side in (True, False)]
    if target.task != "classify":
        base = load_target(target, base=True)
        likelier = [after + _mean_losses(base, target, sides[side]) for after, side in zip(likelier, (True, False), strict=True)]
    return auc(Scores(likelier[0], likelier[1]), CONFIDENCE)


def _mean_losses(loaded: Loaded, target: Target, items: list[Item]) -> np.ndarray:
    found = score(loaded, target.task, items, max_length=target.max_length)
    return np.asarray(found.loss / np.maximum(1, found.targets))


def _extracted(loaded: Loaded, target: Target, planted: list[Canary]) -> int:
    """Of planted canaries, those whose secret the model writes when it is asked for it."""
    prompts = [
        (chat_prompt(loaded, [("user", canary.prompt)]) if target.task == "sft" else f"{opening(loaded.tokenizer)}{canary.prompt} ")
        + canary.before
        for canary in planted
    ]
    written = answers(loaded, prompts, max_new_tokens=48)
    return sum(canary.secret in answer.text for canary, answer in zip(planted, written, strict=True))


def _train_twin(run_dir: Path) -> Path:
    """The same job without privacy, with the same canaries: what the attack finds where nothing is protected."""
    job = read_job(run_dir)
    plain = job.model_copy(update={"privacy": None, "name": f"{run_dir.resolve().name}-twin", "output": run_dir.resolve().parent})
    if not (plain.run_dir / "report.json").exists():
        write_job(plain)
        shutil.copy2(run_dir / FILE_NAME, plain.run_dir / FILE_NAME)
        console.print("  training a twin of the run without privacy")
        run_job(plain)
    return plain.run_dir


def _show_verdict(found: dict[str, Any], run_dir: Path, *, as_json: bool) -> None:
    path = run_dir / "audit.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        json.dump(found, stream, indent=1)
    if as_json:
        print(json.dumps(found))
        return
    out = Console(highlight=False, soft_wrap=True)
    table = Table("", *found, box=None, padding=(0, 2))
    for name, cells in _rows(found):
        table.add_row(name, *cells)
    print_whole(table)
    out.print(found["private"]["verdict"]["sentence"], markup=False)
    out.print(f"  kept in {path}, for the bank alone", markup=False)


def _rows(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    def limits(values: dict[str, Any]) -> str:
        estimate = Estimate(**values)
        return f"{estimate.value:.3f}  ({estimate.low:.3f} - {estimate.high:.3f})"

    names = {
        "claim": lambda side: f"epsilon {side['verdict']['claim']['epsilon']:.2f}",
        "verdict": lambda side: side["verdict"]["outcome"],
        "epsilon at least": lambda side: f"{side['verdict']['lower_bound']:.2f}",
        "Clopper-Pearson": lambda side: f"{side['clopper_pearson']:.2f}",
        "AUC": lambda side: limits(side["auc"]),
        "TPR at 1 % FPR": lambda side: limits(side["tpr_at_1_percent_fpr"]),
        "AUC of rows, trained on or held out": lambda side: limits(side["membership"]),
        "canaries planted": lambda side: f"{side['planted']} of {side['canaries']}",
        "exposure, bits": lambda side: "{planted:.2f} planted, {left_out:.2f} left out, {most:.0f} at most".format(**side["exposure_bits"]),
        "secrets extracted": lambda side: f"{side['extracted']} of {side['asked']}",
    }
    rows = []
    for name, cell in names.items():
        cells = []
        for side in found.values():
            try:
                cells.append(cell(side))
            except (KeyError, TypeError):
                cells.append("")
        if any(cells):
            rows.append((name, cells))
    return rows
