"""Shamir's secret sharing (1979) of 32 bytes: any `threshold` shares give the secret, fewer say nothing about it.

A share is the value at x = 1, 2, ... of a polynomial over the integers modulo p = 2^256 + 297, the least prime above 2^256, whose
constant term is the secret and whose other coefficients are random: for fewer points than coefficients every secret has exactly one
polynomial through them. Shares carry no proof: whether a rebuilt secret is the right one must be seen from something else.

Python's integers take a time that depends on their values: only for secrets that live for one session. PyCryptodome's sharing, over
GF(2^128), took 100 times as long to split among 100 banks, and thousands of times as long for the same 67 of them to rebuild 100 secrets.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from privacy.errors import PlanError

SECRET_BYTES = 32
SHARE_BYTES = 33
_PRIME = 2**256 + 297


def split(secret: bytes, shares: int, threshold: int) -> list[bytes]:
    """Shares of 33 bytes each; the one at index i belongs to x = i + 1. PlanError for a threshold below 2 or above `shares`."""
    if len(secret) != SECRET_BYTES:
        raise PlanError(f"expected a secret of {SECRET_BYTES} bytes, got {len(secret)}", "derive a seed or key of that size")
    if not 2 <= threshold <= shares:
        raise PlanError(
            f"expected a threshold from 2 to {shares}, the number of shares, got {threshold}", "with 1, each share is the secret"
        )
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    return [_evaluate(coefficients, x, _PRIME).to_bytes(SHARE_BYTES, "big") for x in range(1, shares + 1)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the shares at the `threshold` lowest x. PlanError for too few of them, and for any that cannot be shares of one."""
    points = sorted(shares)[:threshold]
    if len(points) < threshold or points[0] < 1:
        raise PlanError(f"expected at least {threshold} shares at x from 1 up, got {len(shares)}", "ask more banks for theirs")
    secret = _at_zero(points, [_parse(x, shares[x]) for x in points], _PRIME)
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise PlanError("the shares do not belong to one secret", "one of them is wrong")
    return secret.to_bytes(SECRET_BYTES, "big")


def _parse(x: int, share: bytes) -> int:
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= _PRIME:
        raise PlanError(f"what came for x = {x} is not a share", f"a share is {SHARE_BYTES} bytes, a number below 2^256 + 297")
    return value


def _evaluate(coefficients: Sequence[int], x: int, prime: int) -> int:
    """The polynomial at x by Horner's rule; the constant term comes first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def _at_zero(points: Sequence[int], values: Sequence[int], prime: int) -> int:
    """What the polynomial of least degree through these has at 0."""
    return sum(weight * value for weight, value in zip(_weights(tuple(points), prime), values, strict=True)) % prime


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Lagrange's, for the value at 0. Kept, as the same banks help to rebuild many secrets."""
    weights = []
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above = above * other % prime
                below = below * (other - x) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)
