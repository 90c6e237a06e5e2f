"""What the rows of a ledger amount to: grants, files and reservations, read off one row after another. No disk, no clock."""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from privacy.errors import LedgerError
from privacy.filter import Filter
from privacy.plan import Event

FORMAT = 1


@dataclass(frozen=True)
class Grant:
    """A population's budget, for good: not a year's, not a job's."""

    epsilon: float
    delta: float
    by: str
    """Who granted it, empty where it was not said"""


@dataclass(frozen=True)
class Attachment:
    """A training file, known by its content, and whose rows it holds."""

    population: str
    sha256: str
    path: str
    """Where it lay, for the reader"""
    units: int
    """Declared"""


@dataclass(frozen=True)
class Held:
    """A reservation."""

    id: str
    population: str
    run: str
    event: Event
    order: float
    charged: int = 0
    """Steps that were applied, or were about to be"""
    closed: bool = False

    @property
    def counted(self) -> Event:
        """What counts against the budget: all reserved steps while it is open, those charged once it is closed."""
        return self.event.times(self.charged) if self.closed else self.event


class Book:
    """Rows read so far."""

    def __init__(self) -> None:
        self.id = ""
        self.grants: dict[str, Grant] = {}
        self.files: dict[str, Attachment] = {}
        """By SHA-256"""
        self.held: dict[str, Held] = {}
        """By reservation"""

    def read(self, kind: str, population: str, body: dict[str, Any]) -> None:
        """Take in the next row. Raises ValueError, KeyError or TypeError for one that no ledger would have written."""
        if (kind == "ledger") != (not self.id):
            raise ValueError("the first row, and no other, names the ledger")
        match kind:
            case "ledger":
                _expect(body["format"] == FORMAT, "written by another version")
                self.id = body["id"]
            case "grant":
                self.grants[population] = Grant(**body)
            case "attach":
                _expect(body["sha256"] not in self.files, "a file attached twice")
                self.files[body["sha256"]] = Attachment(population, **body)
            case "reserve":
                _expect(body["id"] not in self.held and population in self.grants, "a reservation made twice, or without a grant")
                _expect(body["event"]["steps"] >= 1, "a reservation of no steps")
                self.held[body["id"]] = Held(population=population, **body | {"event": Event(**body["event"])})
            case "charge":
                held = self._open(body["id"])
                _expect(body["from"] == held.charged and 0 < body["steps"] <= held.event.steps - held.charged, "steps out of order")
                self.held[held.id] = replace(held, charged=held.charged + body["steps"])
            case "close":
                held = self._open(body["id"])
                self.held[held.id] = replace(held, closed=True)
            case _:
                raise ValueError(f"a row of kind {kind!r}")

    def _open(self, id: str) -> Held:
        held = self.held[id]
        _expect(not held.closed, "a closed reservation")
        return held

    def grant(self, population: str) -> Grant:
        """Raises LedgerError."""
        if population not in self.grants:
            near = difflib.get_close_matches(population, self.grants, n=1)
            raise LedgerError(
                f"no budget is granted to {population!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                f"an act of the compliance officer: consortium privacy ledger grant {population} --epsilon E --delta D --ledger LEDGER",
            )
        return self.grants[population]

    def reservation(self, id: str) -> Held:
        """Raises LedgerError."""
        if id not in self.held:
            raise LedgerError(f"no reservation {id!r} in this ledger", "consortium privacy ledger show lists them")
        return self.held[id]

    def reservations(self, population: str) -> list[Held]:
        return [held for held in self.held.values() if held.population == population]

    def filter(self, population: str) -> Filter:
        """Raises LedgerError where nothing is granted.

        The order is fixed by the reservations that count. One that was closed before its first step has released nothing and fixes nothing.
        """
        grant = self.grant(population)
        counted = [held for held in self.reservations(population) if held.counted.steps]
        order = counted[0].order if counted else None
        return Filter(population, grant.epsilon, grant.delta, tuple(held.counted for held in counted), order)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
