"""Rounds of federated training on Ray: `python -m cluster RUN/job.json --rounds SPOOL`, as a bank starts it.

The same as `python -m trainers RUN/config.json --rounds SPOOL`, with as many workers as the job's cluster block asks for.
"""

import json
import sys
from pathlib import Path

from cluster.job import JobSpec
from privacy.errors import ConsortiumError
from trainers.config import validate


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[1] != "--rounds":
        print("usage: python -m cluster RUN/job.json --rounds SPOOL", file=sys.stderr)
        return 2
    from cluster.launch import launch
    from trainers.progress import Display

    path, spool = Path(arguments[0]), Path(arguments[2]).resolve()
    try:
        launch(validate(JobSpec, json.loads(path.read_bytes()), source=str(path)), Display(), rounds=spool)
    except ConsortiumError as error:
        print(f"error: {error}" + (f"\n  hint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
