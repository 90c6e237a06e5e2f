"""Which examples a step trains on: a function of seed and step alone, the same for any number of workers and after any restart."""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np


class Sampler:
    """Examples in the order of one permutation for each epoch, a global batch at a time.

    Batches run across the border of two epochs, so that every batch is full but the last one and every example comes once an epoch.
    """

    def __init__(self, examples: int, batch_size: int, *, seed: int, epochs: float | None = None, max_steps: int | None = None) -> None:
        assert examples > 0 and (epochs is None) != (max_steps is None)
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.total = math.ceil(Fraction(str(epochs)) * examples) if epochs is not None else batch_size * (max_steps or 0)
        self.steps = math.ceil(self.total / batch_size)
        self._permutation = lru_cache(maxsize=2)(self._shuffle)

    def batch(self, step: int) -> np.ndarray:
        """Indices of the examples of `step` (from 0), at most `batch_size`."""
        positions = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.total))
        epochs, places = np.divmod(positions, self.examples)
        return np.array([self._permutation(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)], dtype=np.int64)

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return min(step * self.batch_size, self.total) / self.examples

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.examples)
