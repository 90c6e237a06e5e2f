"""A bank's own account of what it was asked and what it did: a chained line for every decision, on disk before the answer leaves.

Worker and gateway both write to it. It holds no private row, and is what a person reads and a report for a regulator is made of.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from federation.errors import JournalError
from privacy import chain


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Decision:
    """What was asked of a bank, and what it did."""

    bank: str
    run: str
    round: int
    attempt: int
    asked: Mapping[str, str]
    rule: str
    """That forbade it; empty if none did"""
    released: str
    """Kind and hash of what left the bank; empty if nothing did"""
    epsilon: float | None
    """What its population has spent in all, this included; None without privacy"""
    time: str = field(default_factory=_now)


def note(path: Path, decision: Decision) -> None:
    """Add a decision, by any process of the bank; on disk when this returns. Raises JournalError where the chain is broken."""
    try:
        chain.append(path, [asdict(decision)], JournalError)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}", "nothing leaves the bank that is not on record: the disk needs room") from error


def decisions(path: Path) -> list[Decision]:
    """All of them, the chain verified. Raises JournalError, naming the first line that does not follow from the one before."""
    try:
        return [Decision(**row) for row in chain.follow(path, JournalError)[0]]
    except TypeError as error:
        raise JournalError(f"{path}: not a bank's record: {error}", "is it the right file?") from error
