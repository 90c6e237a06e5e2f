"""Noise that would hide a whole bank: the arithmetic, against noise that was drawn, and the refusal."""

import numpy as np
import pytest

from federation.config import PrivacyFloor
from federation.institution import arithmetic, least_banks, relative_noise


@pytest.mark.parametrize(("z", "coordinates", "banks"), [(1.0, 40_000, 10), (0.5, 90_000, 300)])
def test_the_ratio_is_that_of_noise_that_was_drawn(z: float, coordinates: int, banks: int) -> None:
    """Of clip 3, which cancels: the standard deviation of the length is 0.4 % and less."""
    drawn = np.random.default_rng(1).normal(scale=z * 3.0, size=coordinates) / banks
    assert np.linalg.norm(drawn) / 3.0 == pytest.approx(relative_noise(z, coordinates, banks), rel=0.02)


def test_with_one_bank_less_than_the_least_the_noise_is_longer_than_the_update() -> None:
    least = least_banks(1.1, 1_000_000)
    assert relative_noise(1.1, 1_000_000, least) <= 1 < relative_noise(1.1, 1_000_000, least - 1)


def test_the_arithmetic_can_be_followed_with_a_pencil() -> None:
    assert "1 x 1,000 / 10 = 100 times; it takes 1,000 banks" in arithmetic(1.0, 1_000_000, 10)


def test_noise_for_institutions_is_refused_with_the_arithmetic() -> None:
    floor = {"epsilon": 4, "epsilon_round": 0.5, "delta": 1e-5}
    assert PrivacyFloor.model_validate(floor | {"level": "customer"}) == PrivacyFloor.model_validate(floor)
    with pytest.raises(ValueError, match=r"privacy.level: institution: noise that hides a whole bank .* 1,000 banks"):
        PrivacyFloor.model_validate(floor | {"level": "institution"})
