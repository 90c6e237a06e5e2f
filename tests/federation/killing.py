"""Sides killed with SIGKILL in every exchange of a run over real processes: `python -m tests.federation.killing [coordinator|bank]`.

A coordinator is started again and the run resumed, seven times; the last time its machine is lost, and another goes on with a copy of its
folder. In another run a bank is started again, seven times, each bank in its turn. Exit code 1 if something is not as it should be.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from federation.dossier.verify import Check
from federation.rounds.journal import rounds_of
from tests.federation.enrolment import BANKS
from tests.federation.loopback import RUN, in_the_clear
from tests.federation.system import COORDINATOR, EXCHANGES, System, system, table, until

UPDATE = EXCHANGES.index("update")
PATIENCE = dict.fromkeys(EXCHANGES[:-1], 200)
"""Seconds, in which a bank that was killed is there again: Flower lets it in after a minute"""


class Kill(NamedTuple):
    """One, as it was seen from outside."""

    exchange: int
    side: str
    round: int
    attempt: int
    time: float
    """Seconds since 1970"""
    seconds: float
    """Until the side said that it was up again"""
    told: str
    """To who followed the run"""


def kill_coordinator(folder: Path, rounds: int) -> tuple[list[Kill], Check, str]:
    """What was killed, banks' transcripts compared, and how the run ended. AssertionError if something is not as it should be."""
    with system(folder / "federation", rounds=rounds, timeouts=PATIENCE) as made:
        made.start(COORDINATOR, *BANKS)
        kills = []
        for exchange in range(len(EXCHANGES)):
            began, following = time.time(), made.order()
            until(lambda exchange=exchange, began=began: made.reaches(exchange, began), f"exchange {exchange}")  # type: ignore[misc]
            at = made.status
            made.kill(COORDINATOR)
            killed, told = time.time(), following.communicate(timeout=60)[0].splitlines()
            assert following.returncode == 1 and not [line for line in told if "Traceback" in line], told
            if exchange == len(EXCHANGES) - 1:
                made.move()
            made.start(COORDINATOR)
            error = next(line for line in told if line.startswith("error: "))
            kills.append(Kill(exchange, COORDINATOR, at["round"], at["attempt"], killed, time.time() - killed, error))
        following = made.order()
        ended = following.communicate(timeout=600)[0]
        assert following.returncode == 0, ended
        return kills, _check(made, kills, folder), ended


def kill_banks(folder: Path, rounds: int) -> tuple[list[Kill], Check, str]:
    """The same, of banks."""
    with system(folder / "federation", rounds=rounds, timeouts=PATIENCE) as made:
        made.start(COORDINATOR, *BANKS)
        kills, began, following = [], time.time(), made.order()
        for exchange in range(len(EXCHANGES)):
            bank = BANKS[exchange % len(BANKS)]
            until(lambda exchange=exchange, began=began: made.reaches(exchange, began), f"exchange {exchange}")  # type: ignore[misc]
            at, killed = made.status, time.time()
            made.kill(bank)
            made.start(bank)
            began = time.time()
            kills.append(Kill(exchange, bank, at["round"], at["attempt"], killed, began - killed, ""))
        ended = following.communicate(timeout=900)[0]
        assert following.returncode == 0, ended
        return kills, _check(made, kills, folder), ended


def _check(made: System, kills: list[Kill], folder: Path) -> Check:
    """Each round was aggregated once and its result is the mean in the clear; ledgers have no more and no less than was done; transcripts
    bear one another out."""
    result = json.loads((made.run_folder / "result" / "result.json").read_text())
    rounds = rounds_of(made.run_folder)[2]
    assert [each.round for each in rounds] == [*range(made.world.training.rounds + 2)]
    assert all(made.stop(side) == 0 for side in (*BANKS, COORDINATOR))
    adapter = load_file(made.run_folder / "result" / "adapter_model.safetensors")
    for name, tensor in in_the_clear(made.world, result["rounds"]).items():
        np.testing.assert_allclose(adapter[name], tensor, atol=1e-6)
    _check_ledgers(made, kills if kills[0].side == COORDINATOR else [])
    found = made.transcripts(folder / "transcripts")
    assert not found.findings and not found.others, found.findings
    return found


def _check_ledgers(made: System, failed: list[Kill]) -> None:
    """Private steps are charged for attempts that came to training, also where they failed then, and for no others. What was not taken is
    not held back; a bank that was away at a round's end closes its reservation when it is asked again."""
    aggregated = {(event["round"], event["attempt"]): event["banks"] for event in made.events("round")}
    came_to = {(kill.round, kill.attempt): kill.exchange for kill in failed}
    for bank in BANKS:
        held = made.world.held(bank)
        assert all(closed or charged for _, charged, closed in held), (bank, held)
        trained = {name for name, charged, _ in held if charged > 1}
        for event in made.events("attempt"):
            which = event["round"], event["attempt"]
            is_trained = f"orchard/{RUN}, round {which[0]}, attempt {which[1]}" in trained
            masked = event["banks"] if came_to.get(which, 0) > UPDATE else aggregated.get(which, ())
            if event["kind"] == "train" and bank in masked:
                assert is_trained, (bank, which, held)
            elif event["kind"] == "evaluate" or came_to.get(which, UPDATE) < UPDATE:
                assert not is_trained, (bank, which, held)


def _show(kills: list[Kill], found: Check, ended: str) -> None:
    rows = [(kill.side, EXCHANGES[kill.exchange], kill.round, kill.attempt, f"{kill.seconds:.0f} s", kill.told) for kill in kills]
    print(table(("killed", "in exchange", "round", "attempt", "up again after", "who followed was told"), rows))
    print(ended)
    print("each round aggregated once, as the mean in the clear; ledgers have what was trained, and hold nothing back;")
    print(f"{len(found.sessions)} sessions in the transcripts of {', '.join(found.banks)}, {len(found.findings)} findings")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("side", nargs="?", choices=["coordinator", "bank"], help="both where none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where all is kept")
    given = parser.parse_args()
    for side in [given.side] if given.side else ["coordinator", "bank"]:
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            _show(*(kill_coordinator if side == "coordinator" else kill_banks)((given.folder or Path(scratch)) / side, given.rounds))
            print(f"{time.monotonic() - began:.0f} s in all\n", flush=True)


if __name__ == "__main__":
    main()
