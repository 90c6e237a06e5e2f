"""A bank that trains in no time (federated_round.py); all else is what `consortium federation bank` starts.

`python -m federated_bank HOME BANK.yaml`: its own process, as federation/sides.py starts it; with `side` after these, all of it.
"""

import sys
from pathlib import Path

import numpy as np

from federation.rounds.local import Task, Work
from federation.sides import answer, take_part
from privacy.errors import ConsortiumError


def train(task: Task) -> Work:
    """An update of its own: Flower would send one that is alike at all banks once."""
    random = np.random.default_rng()
    moved = {name: tensor + random.random(tensor.shape, np.float32) for name, tensor in task.adapter.items() if "lora_B" in name}
    return Work({**task.adapter, **moved}, ())


if __name__ == "__main__":
    home, config, *side = map(Path, sys.argv[1:])
    try:
        if side:
            take_part(home, config, tell=print, module="federated_bank")
        else:
            answer(home, config, train)
    except ConsortiumError as error:
        sys.exit(f"error: {error}\n  hint: {error.hint}")
