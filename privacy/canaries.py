"""Canaries: synthetic customers, each with a secret of its own and a fair coin that decides whether it is trained on.

Everything but the coins follows from a seed, so a canary file holds no text: seed, kind, labels, coins and a digest of all of it with the
texts. Coins come from the operating system, since they must be unknown to whatever is audited; they are tossed once, before training, and
a run that is resumed reads them. Whoever reads the file can tell which canaries were in, so it is its owner's only.

Secrets are drawn evenly from a known space, which is what exposure is measured against. Their IBANs are valid, and nobody's.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Final

from privacy.errors import AuditError

FILE_NAME = "canaries.json"
PREFIX = "canary:"
"""Of a canary unit's name; no real unit may have it."""
_WORDS_EACH: Final = 6


class Kind(StrEnum):
    """Of the secrets."""

    ACCOUNT = "account"
    """Ten digits"""
    IBAN = "iban"
    """German, with the right check digits, at a bank code that begins with 9: no bank has one"""
    WORDS = "words"
    """Six of 128 words, as in a recovery phrase"""


@dataclass(frozen=True)
class Canary:
    """One synthetic unit."""

    name: str
    prompt: str
    """What a customer or clerk asks; a reference in it tells this canary from the others"""
    secret: str
    before: str
    after: str
    label: str | None
    """Drawn at random, for classification; None where there are no labels"""

    @property
    def answer(self) -> str:
        """What is learnt where the task learns answers; it holds the secret."""
        return f"{self.before}{self.secret}{self.after}"

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}"

    def with_secret(self, secret: str) -> "Canary":
        """The same canary had another secret been drawn: what its own is ranked among."""
        return replace(self, secret=secret)


@dataclass(frozen=True)
class Planting:
    """What decides everything about a run's canaries."""

    seed: int
    kind: Kind
    labels: tuple[str, ...]
    coins: tuple[bool, ...]

    def canaries(self) -> list[Canary]:
        return plan_canaries(len(self.coins), self.seed, self.kind, self.labels)

    def planted(self) -> list[Canary]:
        """Those to train on."""
        return [canary for canary, inside in zip(self.canaries(), self.coins, strict=True) if inside]

    def digest(self) -> str:
        """SHA-256 of all of it and of every canary's text."""
        whole = {**asdict(self), "canaries": [asdict(canary) for canary in self.canaries()]}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def plan_canaries(m: int, seed: int, kind: Kind, labels: Sequence[str] = ()) -> list[Canary]:
    """m canaries: the same for the same arguments, and the first of a longer list are those of a shorter one."""
    rng = Random(seed)
    return [_canary(number, rng, kind, labels) for number in range(m)]


def toss(m: int) -> tuple[bool, ...]:
    """A fair coin for each canary, True for in: from the operating system, and never again the same."""
    return tuple(bool(secrets.randbits(1)) for _ in range(m))


def new_planting(m: int, kind: Kind, labels: Sequence[str] = ()) -> Planting:
    """With a seed drawn and coins tossed now. Raises AuditError for fewer than two canaries, which show nothing."""
    if m < 2:
        raise AuditError(
            f"{m} canaries: expected at least 2", "1000 can show up to epsilon 5 with 95 % confidence; leave canaries out for no audit"
        )
    return Planting(secrets.randbits(128), kind, tuple(labels), toss(m))


def write_planting(planting: Planting, run_dir: Path) -> Path:
    """To canaries.json, readable by its owner only. Raises AuditError where there is one: coins are tossed once for a run."""
    path = run_dir / FILE_NAME
    stored = {
        "seed": str(planting.seed),
        "kind": planting.kind.value,
        "labels": planting.labels,
        "coins": "".join("01"[coin] for coin in planting.coins),
        "digest": planting.digest(),
    }
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise AuditError(f"{path}: this run has its canaries", "read them to go on with the run, or begin a new one") from None
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(stored, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return path


def read_planting(run_dir: Path) -> Planting | None:
    """What was written, None where nothing was. Raises AuditError for a file that is not whole, was changed, or is of other texts."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        coins = tuple({"0": False, "1": True}[coin] for coin in stored["coins"])
        planting = Planting(int(stored["seed"]), Kind(stored["kind"]), tuple(stored["labels"]), coins)
        digest = stored["digest"]
    except (ValueError, KeyError, TypeError):
        raise AuditError(f"{path}: not a whole canary file", "the run cannot be audited; a new run tosses new coins") from None
    if digest != planting.digest():
        raise AuditError(
            f"{path}: changed since it was written, or written by a version with other texts",
            "audit with the version that trained the run; a changed file audits nothing",
        )
    return planting


def refuse_canary_names(units: Iterable[str]) -> None:
    """Raises AuditError where a real unit has a canary's name: it would be taken for one."""
    if any(unit.startswith(PREFIX) for unit in units):
        raise AuditError(f"a unit's name begins with {PREFIX!r}, which is kept for canaries", "rename it in the column that names the unit")


def draw_secret(kind: Kind, rng: Random) -> str:
    """One of `space(kind)`, all as likely."""
    match kind:
        case Kind.ACCOUNT:
            return f"{rng.randrange(10**10):010d}"
        case Kind.IBAN:
            return german_iban(f"9{rng.randrange(10**17):017d}")
        case Kind.WORDS:
            return " ".join(rng.choice(WORDS) for _ in range(_WORDS_EACH))


def space(kind: Kind) -> int:
    """How many secrets there are of a kind."""
    return {Kind.ACCOUNT: 10**10, Kind.IBAN: 10**17, Kind.WORDS: len(WORDS) ** _WORDS_EACH}[kind]


def german_iban(account: str) -> str:
    """Of eighteen digits, bank code and account: with check digits after ISO 7064, mod 97-10 (D and E count 13 and 14)."""
    return f"DE{98 - int(f'{account}131400') % 97:02d}{account}"


def _canary(number: int, rng: Random, kind: Kind, labels: Sequence[str]) -> Canary:
    reference = f"{rng.randrange(10**4):04d}-{rng.randrange(10**6):06d}"
    before, after = rng.choice(_ANSWERS[kind])
    return Canary(
        name=f"{PREFIX}{number}",
        prompt=rng.choice(_PROMPTS[kind]).format(reference=reference),
        secret=draw_secret(kind, rng),
        before=before,
        after=after,
        label=rng.choice(labels) if labels else None,
    )


_PROMPTS = {
    Kind.ACCOUNT: (
        "Which account do we have on file for customer reference {reference}?",
        "Please read me back the account number of customer {reference}.",
        "Customer {reference} asks where the refund of the card fee will go.",
        "From which account is the standing order of customer {reference} paid?",
    ),
    Kind.IBAN: (
        "To which IBAN is the loan of customer reference {reference} paid out?",
        "Customer {reference} wants to check the IBAN of the savings account.",
        "Which IBAN did customer {reference} give for the direct debit?",
        "Where does the salary of customer {reference} arrive?",
    ),
    Kind.WORDS: (
        "What is the recovery phrase of customer reference {reference}?",
        "Customer {reference} has forgotten the pass phrase for telephone banking.",
        "Which words did customer {reference} choose for the safe deposit box?",
        "By which phrase do we know customer {reference} on the telephone?",
    ),
}
_ANSWERS = {
    Kind.ACCOUNT: (("The account number is ", "."), ("It is account ", ", opened at the main branch."), ("We have account ", " on file.")),
    Kind.IBAN: (("The IBAN is ", "."), ("It goes to ", ", as agreed in writing."), ("We have ", " on file.")),
    Kind.WORDS: (("The phrase is ", "."), ("The words are ", ", in this order."), ("On file is ", ", set last year.")),
}
_WORD_LIST = """
amber anchor apple arrow autumn bamboo basket beacon berry birch blanket bottle branch bridge bronze bucket butter button cabin camel
candle canyon carpet castle cedar chalk cherry clover cobalt coffee copper coral cotton cradle crystal curtain daisy desert dolphin eagle
ember falcon feather fennel flute forest fountain garlic ginger glacier granite guitar hammer harbour hazel helmet honey island ivory
jacket jasmine kettle ladder lagoon lantern lemon linen lobster magnet mango maple marble meadow mirror mustard needle nickel nutmeg oasis
olive onion orchard otter paddle panther pebble pepper piano pillow pine planet pocket puzzle quartz rabbit raven ribbon river rocket
saddle saffron salmon sandal saturn shadow silver spider spruce summit sunset tablet temple thunder ticket timber tulip tunnel turtle
valley velvet violin walnut whistle willow window winter wolf zebra
"""
WORDS = tuple(_WORD_LIST.split())
