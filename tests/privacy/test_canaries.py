import json
import stat
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from privacy.canaries import (
    PREFIX,
    WORDS,
    Kind,
    draw_secret,
    new_planting,
    plan_canaries,
    read_planting,
    refuse_canary_names,
    space,
    toss,
    write_planting,
)
from privacy.errors import AuditError

LABELS = ("card_lost", "pin_change", "transfer_pending")


def _iban_remainder(iban: str) -> int:
    """Letters to numbers, the first four characters last, mod 97: 1 for a valid one (ISO 13616)."""
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97


@pytest.mark.parametrize("kind", Kind)
def test_each_canary_has_a_name_a_reference_and_a_secret_of_its_own(kind: Kind) -> None:
    canaries = plan_canaries(500, seed=1, kind=kind)
    assert [canary.name for canary in canaries] == [f"canary:{number}" for number in range(500)]
    assert len({canary.secret for canary in canaries}) == len({canary.prompt for canary in canaries}) == 500
    assert all(canary.secret in canary.answer and canary.secret not in canary.prompt and canary.label is None for canary in canaries)


@pytest.mark.parametrize("kind", Kind)
def test_the_same_seed_makes_the_same_canaries_and_another_makes_others(kind: Kind) -> None:
    assert plan_canaries(20, 1, kind, LABELS) == plan_canaries(30, 1, kind, LABELS)[:20]
    assert not {canary.text for canary in plan_canaries(20, 1, kind)} & {canary.text for canary in plan_canaries(20, 2, kind)}


@settings(deadline=None)
@given(seed=st.integers(0, 2**128))
def test_an_iban_is_valid_and_of_no_bank(seed: int) -> None:
    iban = draw_secret(Kind.IBAN, Random(seed))
    assert len(iban) == 22 and iban.startswith("DE") and iban[4] == "9" and _iban_remainder(iban) == 1


def test_the_check_digits_of_a_published_iban_come_out() -> None:
    from privacy.canaries import german_iban

    assert german_iban("370400440532013000") == "DE89370400440532013000"


def test_an_account_number_has_ten_digits_all_as_likely() -> None:
    digits = Counter("".join(canary.secret for canary in plan_canaries(2000, 5, Kind.ACCOUNT)))
    assert sum(digits.values()) == 20_000 and chisquare([digits[str(digit)] for digit in range(10)]).pvalue > 1e-6


def test_the_spaces_are_those_the_secrets_are_drawn_from() -> None:
    assert space(Kind.ACCOUNT) == 10**10 and space(Kind.IBAN) == 10**17 and space(Kind.WORDS) == 2**42
    assert len(set(WORDS)) == 128
    assert all(len(canary.secret.split()) == 6 and set(canary.secret.split()) <= set(WORDS) for canary in plan_canaries(50, 1, Kind.WORDS))


def test_labels_are_drawn_from_the_set() -> None:
    found = Counter(canary.label for canary in plan_canaries(900, 3, Kind.ACCOUNT, LABELS))
    assert set(found) == set(LABELS) and min(found.values()) > 200


def test_another_secret_changes_nothing_else() -> None:
    canary = plan_canaries(1, 4, Kind.ACCOUNT)[0]
    other = canary.with_secret("0000000000")
    assert other.text == canary.text.replace(canary.secret, "0000000000") and other.prompt == canary.prompt


def test_coins_are_fair_and_never_the_same() -> None:
    coins = toss(20_000)
    assert binomtest(sum(coins), len(coins)).pvalue > 1e-6
    together = sum(left == right for left, right in zip(coins, toss(20_000), strict=True))
    assert binomtest(together, len(coins)).pvalue > 1e-6


@pytest.mark.parametrize("kind", Kind)
def test_what_is_written_is_read_again_and_only_by_its_owner(tmp_path: Path, kind: Kind) -> None:
    planting = new_planting(100, kind, LABELS)
    path = write_planting(planting, tmp_path)
    assert path.name == "canaries.json" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_planting(tmp_path) == planting
    assert [canary.name for canary in planting.planted()] == [f"canary:{number}" for number, coin in enumerate(planting.coins) if coin]
    assert not any(canary.secret in path.read_text() for canary in planting.canaries())


def test_a_run_without_canaries_has_none(tmp_path: Path) -> None:
    assert read_planting(tmp_path) is None


def test_coins_are_not_tossed_twice_for_a_run(tmp_path: Path) -> None:
    planting = new_planting(10, Kind.ACCOUNT)
    write_planting(planting, tmp_path)
    with pytest.raises(AuditError, match="has its canaries"):
        write_planting(new_planting(10, Kind.ACCOUNT), tmp_path)
    assert read_planting(tmp_path) == planting


def test_a_coin_turned_in_the_file_is_found(tmp_path: Path) -> None:
    path = write_planting(new_planting(10, Kind.ACCOUNT), tmp_path)
    stored = json.loads(path.read_text())
    stored["coins"] = ("1" if stored["coins"][0] == "0" else "0") + stored["coins"][1:]
    path.write_text(json.dumps(stored))
    with pytest.raises(AuditError, match="changed since it was written"):
        read_planting(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seed": "x", "kind": "account", "labels": [], "coins": "01", "digest": ""}'])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "canaries.json").write_text(text)
    with pytest.raises(AuditError, match="not a whole canary file"):
        read_planting(tmp_path)


def test_fewer_than_two_canaries_are_refused() -> None:
    for m in (0, 1):
        with pytest.raises(AuditError, match="at least 2"):
            new_planting(m, Kind.ACCOUNT)


def test_a_real_unit_may_not_be_named_like_a_canary() -> None:
    refuse_canary_names(["C-001", "canary"])
    with pytest.raises(AuditError, match="kept for canaries"):
        refuse_canary_names(["C-001", f"{PREFIX}7"])
