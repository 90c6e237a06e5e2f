"""A bank's budget ledger: durable, blocking, tamper-evident.

A file of SQLite with one table of rows that are only ever added: who granted which budget to a population of customers, which training
files hold its rows, and each step that was taken on them. What the rows amount to is in book.py, what they allow in filter.py.

- **Durable**: WAL with synchronous=FULL. What has returned has been through fsync; a process that is killed leaves whole rows or none. WAL
  needs memory shared between processes: the file belongs on a disk of the machine, not on a network file system.
- **Blocking**: what is to be spent is looked up and written down in one transaction, under SQLite's write lock. Of two processes after the
  last of a budget one is refused. A reservation counts as spent in full until it is closed, and that gives back only steps never taken.
- **Tamper-evident**: each row has a SHA-256 over itself and the hash before it; each opening verifies all of them, and a process that has
  the file open those that came since. This shows a changed, lost, added or swapped row. It cannot show that a tail was cut off, nor that
  someone who may write to the file calculated the chain anew: for this the compliance officer notes the head
  (`consortium privacy ledger show`) elsewhere, and `verify` looks for the note. Triggers refuse UPDATE and DELETE; they prevent accidents,
  not intent.

Populations are people, declared by the officer, and not files: another export of the same customers has to be attached to the same
population by hand, as a file is known by its content. So adding a row never renews a budget. Someone who is in two populations has spent
the sum of what both have.
"""

import hashlib
import json
import math
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from privacy import disk
from privacy.accountant import epsilon
from privacy.book import FORMAT, Attachment, Book, Grant, Held
from privacy.errors import BudgetRefused, LedgerCorrupt, LedgerError
from privacy.filter import Filter
from privacy.plan import Event

BUSY_SECONDS = 30.0
"""How long to wait for other processes that write."""
_START = "0" * 64
_SCHEMA = (
    "CREATE TABLE rows (number INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, population TEXT NOT NULL, body TEXT NOT NULL, "
    "hash TEXT NOT NULL)",
    "CREATE TRIGGER rows_stay BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'rows of a ledger are never changed'); END",
    "CREATE TRIGGER rows_remain BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'rows of a ledger are never deleted'); END",
    "CREATE TRIGGER rows_follow BEFORE INSERT ON rows WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM rows) "
    "BEGIN SELECT RAISE(ABORT, 'rows of a ledger are added at its end'); END",
)
_COLUMNS = "number, time, kind, population, body, hash"


@dataclass(frozen=True)
class Head:
    """The last row: its number, from 1, and its hash, which stands for all rows up to it."""

    number: int
    hash: str


@dataclass(frozen=True)
class Status:
    """How a population stands.

    `filter` is what blocks, and `filter.proven` holds however the jobs were chosen. The epsilons by PLD are tighter, and hold for jobs
    whose noise, rate and steps were chosen beforehand.
    """

    grant: Grant
    files: tuple[Attachment, ...]
    reservations: tuple[Held, ...]
    filter: Filter
    epsilon_charged: float
    """By PLD at the grant's delta, of all steps taken"""
    epsilon_reserved: float
    """And of all that count against the budget"""


@dataclass(frozen=True)
class Moment:
    """How a population stood after a row."""

    time: str
    """ISO 8601, UTC"""
    proven: float
    """Epsilon of all that counted against the budget then"""
    granted: float


class Ledger:
    """An open ledger; to be closed, or used in a `with`. Every method may raise LedgerCorrupt."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._book = Book()
        self._head = Head(0, _START)

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new ledger, readable by its owner only. Raises LedgerError where something is there already or the place cannot be written."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            disk.sync(path.parent)
        except OSError as error:
            raise LedgerError(
                f"{path}: {error.strerror}", "a ledger is created once; name a new file in a directory that is there"
            ) from error
        with _translated(path):
            connection = _connect(path)
            with closing(connection):
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                cls(path, connection)._append("ledger", "", {"id": secrets.token_hex(8), "format": FORMAT})
                connection.execute("COMMIT")
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """One that is there, its whole chain verified. Raises LedgerError, LedgerCorrupt."""
        if not path.is_file():
            raise LedgerError(
                f"{path}: no such ledger", f"an act of the compliance officer: consortium privacy ledger create --ledger {path}"
            )
        with _translated(path):
            ledger = cls(path, _connect(path))
        try:
            if not ledger.head().number:
                raise _corrupt(path, "it has no rows")
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def id(self) -> str:
        """Drawn when the ledger was created."""
        return self.book().id

    def book(self) -> Book:
        """All rows written so far, by any process."""
        with _translated(self.path):
            self._read()
        return self._book

    def head(self) -> Head:
        self.book()
        return self._head

    def has(self, hash: str) -> bool:
        """Whether this was the head once."""
        with _translated(self.path):
            return self._connection.execute("SELECT 1 FROM rows WHERE hash = ?", (hash,)).fetchone() is not None

    def grant(self, population: str, epsilon: float, delta: float, *, by: str = "", replace: bool = False) -> None:
        """Give a population its budget. One that has a budget keeps it unless `replace`; its events stay either way. Raises LedgerError."""
        if not population.isprintable() or not population.strip() or len(population) > 64:
            raise LedgerError(f"population {population!r}: expected a name of 1 to 64 printable characters", "as in retail-2026")
        if not (0 < epsilon < math.inf and 0 < delta < 1):
            raise LedgerError(
                f"epsilon {epsilon:g}, delta {delta:g}: expected epsilon above 0 and delta between 0 and 1",
                "`consortium privacy plan` shows what a budget allows",
            )
        with self._writing() as book:
            if (stands := book.grants.get(population)) and not replace:
                raise LedgerError(
                    f"{population} has a budget: epsilon {stands.epsilon:g}, delta {stands.delta:g}",
                    "--replace gives another one; what was spent stays spent",
                )
            for file in book.files.values():
                if file.population == population:
                    _check_delta(delta, file.units, file.path)
            self._append("grant", population, asdict(Grant(epsilon, delta, by)))

    def attach(self, population: str, sha256: str, path: str, units: int) -> None:
        """Declare that the file of this content holds rows of `units` units of a population. Raises LedgerError."""
        with self._writing() as book:
            grant = book.grant(population)
            if stands := book.files.get(sha256):
                raise LedgerError(
                    f"{path}: attached to {stands.population} already, as {stands.path}", "a file's rows are one population's"
                )
            if units < 1:
                raise LedgerError(f"{units} units: expected at least 1", "--units is the number of customers whose rows the file may hold")
            _check_delta(grant.delta, units, path)
            readable = path.encode(errors="backslashreplace").decode()  # a file's name need not be text
            self._append("attach", population, {"sha256": sha256, "path": readable, "units": units})

    def population_of(self, digests: Collection[str]) -> str:
        """The one population to which all files of these contents (SHA-256) are attached. Raises LedgerError."""
        files = self.book().files
        if missing := [digest for digest in digests if digest not in files]:
            raise LedgerError(
                f"{len(missing)} of {len(digests)} training files are attached to no population: sha256 {missing[0][:16]}...; "
                "a file that was changed is another one",
                f"an act of the compliance officer: consortium privacy ledger attach POPULATION FILE --units N --ledger {self.path}",
            )
        found = sorted({files[digest].population for digest in digests})
        if len(found) != 1:
            raise LedgerError(f"training files of {len(found)} populations: {', '.join(found)}", "a job trains on the rows of exactly one")
        return found[0]

    def reserve(self, population: str, event: Event, run: str) -> "Reservation":
        """Set aside what all steps of `event` cost. Raises BudgetRefused, with what would be admitted; LedgerError."""
        with self._writing() as book:
            filter, id = book.filter(population), secrets.token_hex(8)
            _check_delta(filter.delta, event.units, "the job")
            if not (event.steps >= 1 and 0 < event.sampling_rate <= 1 and 0 < event.noise_multiplier < math.inf):
                raise LedgerError(f"{event}: expected steps from 1, a rate up to 1 and noise above 0", "a PrivacyPlan makes sound events")
            order = filter.demand(event)
            self._append("reserve", population, {"id": id, "run": run, "event": asdict(event), "order": order})
        return Reservation(self, id)

    def reservation(self, id: str) -> "Reservation":
        """One made before, to go on with after a crash. Raises LedgerError."""
        self.book().reservation(id)
        return Reservation(self, id)

    def filter(self, population: str) -> Filter:
        """What a population's budget still admits. Raises LedgerError."""
        return self.book().filter(population)

    def status(self, population: str) -> Status:
        """Raises LedgerError."""
        book = self.book()
        held, filter = tuple(book.reservations(population)), book.filter(population)
        charged, counted = _merged([each.event.times(each.charged) for each in held]), _merged(filter.events)
        reserved = epsilon(counted, filter.delta)
        return Status(
            book.grant(population),
            tuple(file for file in book.files.values() if file.population == population),
            held,
            filter,
            reserved if charged == counted else epsilon(charged, filter.delta),
            reserved,
        )

    def history(self, population: str) -> list[Moment]:
        """After each row that changed what counts against the population's budget, or the budget. Raises LedgerError."""
        book, last, moments = Book(), self.head().number, list[Moment]()
        self.book().grant(population)
        with _translated(self.path):
            rows = self._connection.execute("SELECT time, kind, population, body FROM rows WHERE number <= ? ORDER BY number", (last,))
            for time, kind, whose, body in rows:
                book.read(kind, whose, json.loads(body))
                if whose == population and kind in ("grant", "reserve", "close"):
                    moments.append(Moment(time, book.filter(population).proven, book.grant(population).epsilon))
        return moments

    def _charge(self, id: str, steps: int) -> None:
        with self._writing() as book:
            held = book.reservation(id)
            if steps < 1:
                raise LedgerError(f"{steps} steps: expected at least 1", "close() gives back steps that are not taken")
            left = 0 if held.closed else held.event.steps - held.charged
            if steps > left:
                raise BudgetRefused(
                    f"run {held.run} has {left} of its {held.event.steps} reserved steps left, {steps} more are needed"
                    + (": its reservation is closed" if held.closed else ""),
                    "the run ends here; what it has released is paid for",
                )
            self._append("charge", held.population, {"id": id, "from": held.charged, "steps": steps})

    def _close(self, id: str) -> None:
        with self._writing() as book:
            held = book.reservation(id)
            if not held.closed:
                self._append("close", held.population, {"id": id})

    @contextmanager
    def _writing(self) -> Iterator[Book]:
        """One transaction that no other writer comes between: the book as it stands, then at most one row, on disk at the end."""
        with _translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._read()
                yield self._book
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _read(self) -> None:
        """Verify and take in the rows since the last look, and see that the head of that time is still there."""
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM rows WHERE number >= ? ORDER BY number", (self._head.number,))
        if self._head.number:
            seen = rows.fetchone()
            if seen is None or (seen[0], seen[-1]) != (self._head.number, self._head.hash):
                raise _corrupt(self.path, f"row {self._head.number} is gone or another than it was")
        for row in rows:
            number, _, kind, population, body, hash = row
            try:
                if number != self._head.number + 1 or hash != _hash(self._head.hash, row[:-1]):
                    raise ValueError("its hash does not follow from the row before it")
                self._book.read(kind, population, json.loads(body))
            except (ValueError, KeyError, TypeError) as error:
                raise _corrupt(self.path, f"row {number} does not fit: {error}") from error
            self._head = Head(number, hash)

    def _append(self, kind: str, population: str, body: dict[str, Any]) -> None:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        row = (self._head.number + 1, datetime.now(UTC).isoformat(timespec="microseconds"), kind, population, text)
        self._connection.execute(f"INSERT INTO rows ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", (*row, _hash(self._head.hash, row)))


class Reservation:
    """A run's share of a budget, on which all its attempts draw."""

    def __init__(self, ledger: Ledger, id: str) -> None:
        self._ledger = ledger
        self.id = id

    @property
    def held(self) -> Held:
        """As it stands in the ledger."""
        return self._ledger.book().reservation(self.id)

    def charge(self, steps: int = 1) -> None:
        """Write down steps that are about to be taken; on disk when this returns. Raises BudgetRefused when not so many are left."""
        self._ledger._charge(self.id, steps)

    def close(self) -> None:
        """Give back the steps never charged; no more can be. Nothing happens to one that is closed."""
        self._ledger._close(self.id)


def verify(path: Path, noted: str | None = None) -> Head:
    """Calculate the whole chain of a ledger again; its head.

    `noted` is the hash of a head that was written down elsewhere. Raises LedgerCorrupt at the first row that does not fit, and where no row
    has the noted hash: rows were cut off, or the chain was calculated anew. LedgerError where there is no ledger.
    """
    with Ledger.open(path) as ledger:
        head = ledger.head()
        if noted is not None and not ledger.has(noted):
            raise _corrupt(path, f"no row has the noted hash {noted}; the head is row {head.number}, {head.hash}")
        return head


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        if (mode := connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]) != "wal":
            raise LedgerError(f"{path}: SQLite's journal is {mode!r}, expected 'wal'", "the ledger's disk has to be writable and local")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's exceptions as ours."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # ours
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorname", "").split("_")[1:2]:
            case ["CORRUPT"]:
                raise _corrupt(path, str(error)) from error
            case ["BUSY"]:
                hint = f"another process has been writing for {BUSY_SECONDS:.0f} seconds; try again"
            case ["NOTADB" | "ERROR"]:
                hint = "is this file a ledger? `consortium privacy ledger create` makes one"
            case _:
                hint = "the ledger's disk has to be writable and local"
        raise LedgerError(f"{path}: {error}", hint) from error


def _corrupt(path: Path, found: str) -> LedgerCorrupt:
    return LedgerCorrupt(f"{path}: {found}", "nothing it says can be relied on: restore it from a backup and find out who wrote to it")


def _hash(before: str, row: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps([before, *row], separators=(",", ":")).encode()).hexdigest()


def _check_delta(delta: float, units: int, whose: str) -> None:
    """Raises LedgerError."""
    if delta * units >= 1:
        raise LedgerError(
            f"delta {delta:g} for {units} units ({whose}): expected less than 1 / units = {1 / units:.1e}",
            "at 1 / units a mechanism that publishes one unit whole would pass; consortium privacy ledger grant --replace",
        )


def _merged(events: Sequence[Event]) -> list[Event]:
    """Steps alike as one event: quicker to compose."""
    steps: dict[Event, int] = {}
    for event in (event for event in events if event.steps):
        steps[event.times(1)] = steps.get(event.times(1), 0) + event.steps
    return [step.times(count) for step, count in steps.items()]
