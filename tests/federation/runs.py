"""A federation in the middle of a run: the coordinator's run folder, a bank's record and ledger, by what writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from federation.config import TrainingConfig
from federation.enrolment.registry import Registry
from federation.files import write_bytes
from federation.rounds.aggregate import State
from federation.rounds.journal import Journal
from federation.rounds.local import write_start
from federation.rounds.record import Decision, note
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from tests.federation.enrolment import BANKS
from tests.federation.test_config import BANK, FEDERATION

BEGAN = 1_790_000_000.0
"""Time of the first event"""
SENT = ("Keys", "Shares", "Masked", "View", "Reveal", "Receipt")
EXCHANGES = ("keys", "shares", "update", "view", "reveal", "receipt")


def start_of(training: TrainingConfig, base_model: Path, seed: int, folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The adapter that a run begins with, as it is written to that folder."""
    write_start(training, base_model, seed, folder)
    return load_file(folder / "adapter_model.safetensors")


def make_run(home: Path, rounds: int, run: str = "spring", **changes: Any) -> Path:
    """Of so many aggregated rounds, with other words in its `training` block. At first birch refused, and the first attempt failed."""
    config = yaml.safe_load(FEDERATION) | {"name": "orchard", "hosts": ["localhost"]}
    config["training"] |= changes
    write_bytes(home / "federation.yaml", yaml.safe_dump(config).encode())
    training = Registry(home).config.training
    assert training is not None
    folder, events = home / "runs" / run, [_event(0, "run_started", bundle="b" * 64)]
    banks, clock = tuple(name for name in BANKS if name != "birch"), 0
    with Journal.create(folder, run, training.hash.hex(), _state(0)) as journal:
        for round in range(1, rounds + 1):
            for attempt in (1, 2) if round == 1 else (1,):
                journal.begin_round(round, attempt)
                events.append(_event(clock, "attempt", round=round, attempt=attempt))
                if attempt == 1 and round == 1:
                    events.append(_event(clock + 1, "refusal", bank="birch", rule="most_clip", asked="1.0 <script>", allowed="0.5 or less"))
                    events.append(_event(clock + 2, "failure", bank="cedar", message="the bank's disk is full"))
                    events.append(_event(clock + 3, "failed_attempt", message="2 banks are left, 3 are needed"))
                    continue
                for number, name in enumerate(EXCHANGES):
                    clock += 7
                    exchange = {
                        "number": number,
                        "name": name,
                        "answered": 3,
                        "of": 3,
                        "seconds": 7.0,
                        "bytes_in": 700_000,
                        "bytes_out": 90,
                    }
                    events.append(_event(clock, "exchange", **exchange))
                metrics = {"accuracy": 0.4 + 0.05 * round, "count": 812.5}
                journal.close_round(round, attempt, _state(round), banks, metrics)
                events.append(_event(clock, "round", round=round, banks=banks, metrics=metrics, seconds=42.0))
    status = {
        "run": run,
        "state": "running",
        "rounds": training.rounds,
        "round": rounds + 1,
        "attempt": 1,
        "kind": "train",
        "exchange": {"number": 2, "name": "update", "answered": 1, "of": 3},
        "bytes_in": 700_000,
        "bytes_out": 9_000_000,
        "banks": {
            "alder": {"state": "answered", "detail": ""},
            "birch": {"state": "refused", "detail": "most_clip: asked 1.0 [bold], allowed 0.5 or less"},
            "cedar": {"state": "asked", "detail": ""},
        },
        "metrics": [{"round": each + 1, "accuracy": 0.4 + 0.05 * each, "count": 812.5} for each in range(rounds)],
        "message": "",
        "started": BEGAN,
        "updated": BEGAN + clock,
    }
    write_bytes(folder / "status.json", json.dumps(status).encode())
    write_bytes(folder / "events.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode() + b'{"event": "torn')
    return folder


def make_bank(home: Path, rounds: int, run: str = "spring") -> Path:
    """Its bank.yaml, with the ledger and record after so many rounds; the first invitation was refused."""
    write_bytes(home / "bank.yaml", BANK.replace("bank: bank-a", f"bank: {home.name}").encode())
    record = home / "record.jsonl"
    with Ledger.create(home / "bank.ledger") as ledger:
        ledger.grant("retail", 4.0, 1e-6, by="A. Officer <officer>")
        refused = {"letter": "invitation", "asked": "1.0", "allowed": "0.5 or less"}
        note(record, Decision(home.name, run, 1, 1, refused, "most_clip", "", None))
        for round in range(1, rounds + 1):
            event = PrivacyPlan(5000, 250, 20, 0, clip_norm=1.0, noise_multiplier=2.0, delta=1e-6).event
            reservation = ledger.reserve("retail", event, f"{run}-{round}")
            reservation.charge(20)
            reservation.close()
            epsilon = ledger.status("retail").filter.proven
            for kind in SENT:
                asked = {"letter": kind} | ({"kind": "train"} if kind == "Keys" else {})
                note(record, Decision(home.name, run, round, 2, asked, "", f"{kind} {'0' * 64}", epsilon))
            closed = {"letter": "close", "banks": "alder, cedar, dogwood", "model": "d" * 64}
            note(record, Decision(home.name, run, round, 2, closed, "", "", epsilon))
    return home


def _event(at: float, event: str, **facts: Any) -> dict[str, Any]:
    return {"time": BEGAN + at, "event": event, **facts}


def _state(round: int) -> State:
    return State({"b": np.full(3, round, np.float32)}, np.zeros(3, np.float32))
