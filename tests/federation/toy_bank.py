"""A bank whose training is a few numbers (loopback.py); all else is what `consortium federation bank` starts.

`python -m tests.federation.toy_bank HOME BANK.yaml`: its own process, as federation/sides.py starts it; with `side` after these, all of it.
"""

import sys
from contextlib import suppress
from pathlib import Path

from federation.config import load_bank
from federation.rounds import bank
from federation.sides import answer, take_part
from tests.federation.loopback import Toy, planned


def main(home: Path, config: Path, *what: str) -> None:
    if what:
        with suppress(KeyboardInterrupt):
            take_part(home, config, tell=lambda text: print(text, flush=True), module="tests.federation.toy_bank")
    else:
        bank.plan_round = planned  # whose calibration takes seconds
        here = load_bank(config)
        answer(home, config, Toy(here.bank, here.ledger))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
