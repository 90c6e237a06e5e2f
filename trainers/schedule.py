"""Learning rate as a function of the step, so that nothing of it needs saving."""

import math
from collections.abc import Callable
from typing import Literal


def learning_rate_schedule(
    kind: Literal["cosine", "linear", "constant"], *, peak: float, total_steps: int, warmup: float
) -> Callable[[int], float]:
    """The rate of step 0, 1, ..., total_steps - 1: linear warm-up to `peak`, then down to 0 (Loshchilov & Hutter 2017, eq. 5, for cosine).

    `warmup` below 1 is a share of all steps, from 1 a number of steps.
    """
    share = math.ceil(round(warmup * total_steps, 6))  # 0.07 * 100 is a little more than 7
    warmup_steps = share if warmup < 1 else min(int(warmup), total_steps)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * ((step + 1) / warmup_steps)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        match kind:
            case "cosine":
                return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
            case "linear":
                return peak * max(0.0, 1 - progress)
            case "constant":
                return peak

    return rate
