"""What a run's folder at the coordinator says of it, read while it goes on or afterwards, without its lock.

journal.jsonl   what was aggregated: this counts (rounds/journal.py)
events.jsonl    what happened, with times, for people: a line torn by a crash is left out
status.json     how things stand, written anew with every change
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from federation.files import translated
from federation.rounds.journal import rounds_of

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Of a bank."""

    time: str
    round: int
    attempt: int
    bank: str
    rule: str
    asked: str
    allowed: str


@dataclass(frozen=True)
class Failure:
    """Of an attempt or a leg."""

    time: str
    round: int
    attempt: int
    message: str


@dataclass(frozen=True)
class Round:
    """One that was aggregated."""

    round: int
    attempts: int
    """That it took"""
    banks: tuple[str, ...]
    """Whose updates are in the sum"""
    metrics: Mapping[str, float]
    """Of the model that the round began with"""
    seconds: float | None
    """Of the attempt that was aggregated; None where the event is lost"""
    bytes: int
    """Both ways, over all attempts"""
    adapter: str
    """SHA-256 of what it led to"""


@dataclass(frozen=True)
class Progress:
    """A run so far."""

    run: str
    config: str
    """SHA-256 of the training's configuration"""
    start: str
    """SHA-256 of the adapter that the first round began with"""
    rounds: tuple[Round, ...]
    refusals: tuple[Refusal, ...]
    failures: tuple[Failure, ...]
    began: str
    ended: str
    """Time of the last event"""
    outcome: str
    """finished, failed or going on"""


def read_progress(folder: Path) -> Progress:
    """Raises JournalError where there is no run, or its journal was changed."""
    run, config, (start, *closed) = rounds_of(folder)
    events = read_events(folder / "events.jsonl")
    placed = _placed(events)
    last = {event["round"]: event for event in events if event["event"] == "round"}
    rounds = tuple(
        Round(
            each.round,
            each.attempt,
            each.banks,
            each.metrics,
            last.get(each.round, {}).get("seconds"),
            sum(
                event["bytes_in"] + event["bytes_out"] for round, _, event in placed if round == each.round and event["event"] == "exchange"
            ),
            each.adapter,
        )
        for each in closed
    )
    return Progress(run, config, start.adapter, rounds, _refusals(placed), _failures(placed), *_times(events), _outcome(events))


def read_events(path: Path) -> list[Event]:
    """None where there is no file."""
    if not path.exists():
        return []
    with translated(path):
        lines = path.read_bytes().splitlines()
    events: list[Event] = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event and "time" in event:
            events.append(event)
    return events


def _placed(events: Sequence[Event]) -> list[tuple[int, int, Event]]:
    """Each event with the round and attempt it belongs to."""
    placed, round, attempt = [], 0, 0
    for event in events:
        round, attempt = event.get("round", round), event.get("attempt", attempt)
        placed.append((round, attempt, event))
    return placed


def _refusals(placed: Sequence[tuple[int, int, Event]]) -> tuple[Refusal, ...]:
    return tuple(
        Refusal(when(event), round, attempt, *(str(event.get(name, "")) for name in ("bank", "rule", "asked", "allowed")))
        for round, attempt, event in placed
        if event["event"] == "refusal"
    )


def _failures(placed: Sequence[tuple[int, int, Event]]) -> tuple[Failure, ...]:
    return tuple(
        Failure(when(event), round, attempt, f"{event['bank']}: {event['message']}" if event.get("bank") else str(event.get("message", "")))
        for round, attempt, event in placed
        if event["event"] in ("failure", "failed_attempt", "failed")
    )


def _times(events: Sequence[Event]) -> tuple[str, str]:
    return (when(events[0]), when(events[-1])) if events else ("", "")


def _outcome(events: Sequence[Event]) -> str:
    last = events[-1]["event"] if events else ""
    return str(last) if last in ("finished", "failed", "stopped") else "going on"


def when(event: Event) -> str:
    """Its time, ISO 8601 in UTC."""
    return datetime.fromtimestamp(event["time"], UTC).isoformat(timespec="seconds")
