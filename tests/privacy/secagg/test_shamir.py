"""Secret sharing: any threshold of shares gives the secret, fewer say nothing."""

import os
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import PlanError
from privacy.secagg import shamir
from privacy.secagg.shamir import combine, split

SECRET = os.urandom(32)


def _make_shares(shares: int, threshold: int) -> dict[int, bytes]:
    return dict(enumerate(split(SECRET, shares, threshold), start=1))


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with 40 bases."""
    twos = (number - 1 & 1 - number).bit_length() - 1
    for base in range(2, 42):
        power = pow(base, number >> twos, number)
        powers = {pow(power, 2**square, number) for square in range(twos)}
        if power != 1 and number - 1 not in powers:
            return False
    return True


def test_the_modulus_is_the_least_prime_above_all_secrets() -> None:
    assert shamir._PRIME == next(number for number in range(2**256 + 1, 2**257, 2) if _is_prime(number)) == 2**256 + 297


def test_the_public_example_comes_out() -> None:
    """1234 modulo 1613 with coefficients 166 and 94: the worked example of "Shamir's secret sharing" in Wikipedia."""
    points = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}

    assert {x: shamir._evaluate([1234, 166, 94], x, 1613) for x in points} == points
    assert {shamir._at_zero(chosen, [points[x] for x in chosen], 1613) for chosen in combinations(points, 3)} == {1234}


def test_shares_below_the_threshold_fit_every_secret_equally() -> None:
    prime, threshold = 11, 3
    for chosen in combinations(range(1, 6), threshold - 1):
        seen = {}
        for polynomial in product(range(prime), repeat=threshold):
            values = tuple(shamir._evaluate(polynomial, x, prime) for x in chosen)
            seen.setdefault(values, []).append(polynomial[0])

        assert len(seen) == prime ** (threshold - 1)
        assert all(sorted(secrets) == list(range(prime)) for secrets in seen.values())


@settings(deadline=None)
@given(st.data(), st.binary(min_size=32, max_size=32))
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject, secret: bytes) -> None:
    shares = data.draw(st.integers(2, 100))
    threshold = data.draw(st.integers(2, shares))
    split_up = dict(enumerate(split(secret, shares, threshold), start=1))
    chosen = data.draw(st.permutations(range(1, shares + 1)))[: data.draw(st.integers(threshold, shares))]

    assert combine({x: split_up[x] for x in chosen}, threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_least_and_the_greatest_secret_are_secrets(secret: bytes) -> None:
    assert combine(dict(enumerate(split(secret, 3, 2), start=1)), 2) == secret


def test_shares_of_one_secret_differ_each_time() -> None:
    assert not set(split(SECRET, 50, 10)) & set(split(SECRET, 50, 10))


def test_too_few_shares_are_refused() -> None:
    with pytest.raises(PlanError, match="at least 3 shares"):
        combine({1: bytes(33), 2: bytes(33)}, 3)


@pytest.mark.parametrize("x", [0, -1])
def test_a_share_that_is_nobodys_is_refused(x: int) -> None:
    with pytest.raises(PlanError, match="from 1 up"):
        combine({x: SECRET.rjust(33, b"\0"), **_make_shares(3, 2)}, 2)


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), (2**256 + 297).to_bytes(33, "big"), b"\xff" * 33])
def test_what_is_no_share_is_refused(share: bytes) -> None:
    with pytest.raises(PlanError, match="x = 2 is not a share"):
        combine({**_make_shares(3, 3), 2: share}, 3)


def test_shares_that_meet_above_all_secrets_are_refused() -> None:
    beyond = (2**256 + 5).to_bytes(33, "big")  # a constant polynomial

    with pytest.raises(PlanError, match="do not belong"):
        combine({1: beyond, 2: beyond}, 2)


def test_one_share_below_the_threshold_is_not_enough() -> None:
    shares = _make_shares(5, 4)

    assert combine(shares, 4) == SECRET
    assert combine(shares, 3) != SECRET


def test_a_changed_share_gives_another_secret_if_it_is_among_the_lowest() -> None:
    shares = _make_shares(5, 3)
    shares[4] = bytes(33)

    assert combine(shares, 3) == SECRET
    assert combine({x: shares[x] for x in (1, 2, 4)}, 3) != SECRET


@pytest.mark.parametrize(("length", "shares", "threshold"), [(31, 3, 2), (33, 3, 2), (32, 3, 4), (32, 3, 1), (32, 1, 1)])
def test_a_sharing_that_cannot_be_or_hides_nothing_is_refused(length: int, shares: int, threshold: int) -> None:
    with pytest.raises(PlanError):
        split(bytes(length), shares, threshold)
