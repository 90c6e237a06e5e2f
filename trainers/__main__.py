"""A worker without Ray: `python -m trainers RUN/config.json`, alone or under torchrun; with `--rounds SPOOL` it takes rounds (rounds.py).

SIGUSR1 (Slurm: `--signal=USR1@120`) says that the machine is about to be taken away: a checkpoint is written at once.
"""

import signal
import sys
import threading
import uuid
from pathlib import Path

from privacy.errors import ConsortiumError


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 and (len(arguments) != 3 or arguments[1] != "--rounds"):
        print("usage: python -m trainers RUN/config.json [--rounds SPOOL]", file=sys.stderr)
        return 2
    from trainers.progress import Display
    from trainers.rounds import train_rounds
    from trainers.worker import train

    run_dir, run_id = Path(arguments[0]).resolve().parent, uuid.uuid4().hex
    told = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: told.set())
    try:
        if len(arguments) == 3:
            train_rounds(run_dir, run_id=run_id, spool=Path(arguments[2]), listeners=[Display()])
        else:
            train(run_dir, run_id=run_id, listeners=[Display()], leaving=told.is_set)
    except ConsortiumError as error:
        print(f"error: {error}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
