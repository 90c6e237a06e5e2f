"""Scores of canaries as the best attack would give them: nothing helps an auditor more."""

import numpy as np

from privacy.audit import Scores


def tossed_gaussian_scores(mu: float, canaries: int, seed: int) -> Scores:
    """On Gaussian noise of standard deviation sensitivity / mu, no canary touching another."""
    rng = np.random.default_rng(seed)
    coins = rng.random(canaries) < 0.5
    return Scores.tossed(rng.normal(size=canaries) + mu * coins, list(coins))


def tossed_dp_sgd_scores(noise: float, rate: float, steps: int, canaries: int, seed: int) -> Scores:
    """On every noisy sum of steps into each of which a canary is drawn with probability `rate`: its likelihood ratio."""
    rng = np.random.default_rng(seed)
    coins = rng.random(canaries) < 0.5
    drawn = (rng.random((canaries, steps)) < rate) & coins[:, None]
    seen = drawn + noise * rng.normal(size=(canaries, steps))
    ratios = np.log1p(rate * np.expm1((seen - 0.5) / noise**2))
    return Scores.tossed(ratios.sum(axis=1), list(coins))
