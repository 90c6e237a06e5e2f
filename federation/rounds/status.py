"""What happens in a run, told while it happens: a line in events.jsonl for each event, and status.json, whole at every change.

    run_started {run, rounds, round, bundle}                     finished {}   stopped {}   failed {message}
    attempt {round, attempt, kind, banks}                        failed_attempt {message}
    exchange {number, name, answered, of, seconds, bytes_in, bytes_out}
    refusal {bank, rule, asked, allowed}                         failure {bank, message}
    unreachable {bank, message}
    round {round, attempt, banks, metrics, seconds}

Metrics are of the model that the round began with.
"""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from federation.config import TrainingConfig
from federation.rounds.journal import Journal, Round
from privacy import disk
from trainers.events import EventLog


class Status:
    """To be used in a `with`. Methods may raise OSError."""

    def __init__(self, folder: Path, journal: Journal, training: TrainingConfig, bundle: str) -> None:
        self._events, self._path = EventLog(folder / "events.jsonl"), folder / "status.json"
        self._lines = folder / "events.jsonl"
        before = json.loads(self._path.read_bytes()) if self._path.exists() else {}
        self._banks: dict[str, dict[str, str]] = {}
        self._shown: dict[str, Any] = {
            "run": journal.run,
            "state": "running",
            "rounds": training.rounds,
            "round": journal.round,
            "attempt": journal.attempt,
            "kind": "train",
            "exchange": None,
            "banks": self._banks,
            "bytes_in": before.get("bytes_in", 0),
            "bytes_out": before.get("bytes_out", 0),
            "metrics": [{"round": each.round} | dict(each.metrics) for each in journal.rounds if each.metrics],
            "message": "",
            "started": before.get("started", time.time()),
        }
        self._bytes = (0, 0)
        self._events.emit("run_started", run=journal.run, rounds=training.rounds, round=journal.round, bundle=bundle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    @property
    def answering(self) -> frozenset[str]:
        """Banks whose last letter was answered."""
        return frozenset(bank for bank, shown in self._banks.items() if shown["state"] == "answered")

    def refusals(self) -> list[dict[str, Any]]:
        """All of the run, also those before it was taken up again."""
        events = [json.loads(line) for line in self._lines.read_text().splitlines()]
        return [event for event in events if event["event"] == "refusal"]

    def waiting(self, here: Collection[str], quorum: int) -> None:
        self._banks.clear()
        self._banks.update({bank: {"state": "reachable", "detail": ""} for bank in sorted(here)})
        self._show(state="waiting", message=f"{len(here)} of {quorum} banks are connected")

    def attempt(self, round: int, attempt: int, kind: str, cohort: Collection[str]) -> None:
        refused = {bank: shown for bank, shown in self._banks.items() if shown["state"] == "refused" and bank not in cohort}
        self._banks.clear()
        self._banks.update(refused | {bank: {"state": "reachable", "detail": ""} for bank in cohort})
        self._events.emit("attempt", round=round, attempt=attempt, kind=kind, banks=[*cohort])
        self._show(state="running", round=round, attempt=attempt, kind=kind, exchange=None, message="")

    def exchange(self, number: int, name: str, asked: Collection[str]) -> None:
        self._bytes = self._shown["bytes_in"], self._shown["bytes_out"]
        for bank in asked:
            self._banks[bank] = {"state": "asked", "detail": ""}
        self._show(exchange={"number": number, "name": name, "answered": 0, "of": len(asked)})

    def exchanged(self, seconds: float) -> None:
        into, out = (self._shown[side] - before for side, before in zip(("bytes_in", "bytes_out"), self._bytes, strict=True))
        self._events.emit("exchange", **self._shown["exchange"], seconds=round(seconds, 3), bytes_in=into, bytes_out=out)

    def sent(self, size: int) -> None:
        self._shown["bytes_out"] += size

    def received(self, size: int) -> None:
        self._shown["bytes_in"] += size

    def bank(self, bank: str, state: str, detail: str = "") -> None:
        """What is known of it: asked, answered, refused, failed, unreachable or late."""
        self._banks[bank] = {"state": state, "detail": detail}
        self._shown["exchange"]["answered"] += state == "answered"
        self._show()

    def refusal(self, bank: str, rule: str, asked: str, allowed: str) -> None:
        self._events.emit("refusal", bank=bank, rule=rule, asked=asked, allowed=allowed)
        self.bank(bank, "refused", f"{rule}: asked {asked}, allowed {allowed}")

    def unreachable(self, bank: str, message: str) -> None:
        """A leg to it has failed; told once for as long as the reason is the same."""
        if self._banks.get(bank) != {"state": "unreachable", "detail": message}:
            self._events.emit("unreachable", bank=bank, message=message)
        self.bank(bank, "unreachable", message)

    def failure(self, bank: str, message: str) -> None:
        self._events.emit("failure", bank=bank, message=message)
        self.bank(bank, "failed", message)

    def failed(self, message: str) -> None:
        """An attempt was."""
        self._events.emit("failed_attempt", message=message)
        self._show(message=message)

    def round(self, closed: Round, seconds: float) -> None:
        metrics: Mapping[str, float] = closed.metrics
        self._events.emit(
            "round", round=closed.round, attempt=closed.attempt, banks=closed.banks, metrics=metrics, seconds=round(seconds, 3)
        )
        if metrics:
            self._shown["metrics"].append({"round": closed.round} | dict(metrics))
        self._show()

    def ended(self, state: str, **why: str) -> None:
        self._events.emit(state, **why)
        self._show(state=state, exchange=None, **{"message": "", **why})

    def _show(self, **changes: Any) -> None:
        self._shown |= changes | {"updated": time.time()}
        disk.write(self._path, [json.dumps(self._shown).encode()])
