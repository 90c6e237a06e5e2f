"""What went through a gateway: a line for every request, how much there was for each bank, and which bundle a bank's gateway refused.

    gateway.jsonl     time, bank, method, path, status, bytes received and sent, and why where it was refused or broke off
    gateway.jsonl.1   what was there before, once the file had grown large
    traffic.json      totals for each bank, since the folder was made; a few seconds behind
    refused/NAME      at the coordinator: hash of the bundle, until its run has read it

Files 0600. Bytes are those of bodies, as their headers announce them: received from the side that asked, and sent to it.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from federation.errors import FactsError
from federation.files import translated, write_bytes
from privacy import disk

_LARGE = 64 * 2**20
_BEHIND = 5.0
"""Seconds after which totals are written again"""
_LONGEST = 200
"""Characters of a text that comes from outside"""
_LONGEST_LINE = 4096


@dataclass
class Totals:
    """Of one bank."""

    requests: int = 0
    refused: int = 0
    """Of the requests, those answered with an error, whoever made it"""
    received: int = 0
    sent: int = 0


class Traffic:
    """The folder's files, open for the one gateway that writes to them. Raises FolderError, and FactsError for totals that were damaged."""

    def __init__(self, folder: Path) -> None:
        self._lines, self._sums = folder / "gateway.jsonl", folder / "traffic.json"
        self._totals, self._written = totals(folder), time.monotonic()

    def note(self, *, bank: str, method: str, path: str, status: int, received: int, sent: int, why: str) -> None:
        """A request of a bank, or of nobody known: `bank` is empty then. `why` is empty where all went well."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "bank": bank, "method": method, "path": path[:_LONGEST], "status": status, "received": received, "sent": sent}
        line = json.dumps(row | ({"why": why[:_LONGEST]} if why else {})).encode() + b"\n"
        with translated(self._lines), open(os.open(self._lines, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as file:
            file.write(line)
            large = file.tell() > _LARGE
        if large:
            os.replace(self._lines, f"{self._lines}.1")
        if bank:
            total = self._totals.setdefault(bank, Totals())
            total.requests += 1
            total.refused += bool(why)
            total.received += received
            total.sent += sent
        if time.monotonic() - self._written > _BEHIND:
            self.write()

    def note_handshake(self, why: str) -> None:
        """A connection that came to nothing."""
        self.note(bank="", method="", path="", status=0, received=0, sent=0, why=f"handshake: {why}")

    def write(self) -> None:
        """The totals, as they are now."""
        with translated(self._sums):
            disk.write(self._sums, [json.dumps({bank: asdict(total) for bank, total in self._totals.items()}).encode()])
        self._written = time.monotonic()


def note_refused_bundle(folder: Path, bank: str, sha256: str) -> None:
    write_bytes(folder / "refused" / bank, sha256[:_LONGEST].encode())


def take_refused_bundle(folder: Path, bank: str, since: float) -> str | None:
    """The hash of the one that this bank has refused since then (seconds since 1970), told once."""
    path = folder / "refused" / bank
    with translated(path), suppress(FileNotFoundError):
        at, sha256 = path.stat().st_mtime, path.read_text()
        path.unlink()
        return sha256 if at >= since else None
    return None


def trouble(folder: Path, since: datetime) -> str:
    """Why the last request was refused or broke off; empty where it was not, or none was made since. Raises FolderError."""
    path, lines = folder / "gateway.jsonl", list[bytes]()
    with translated(path), suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        lines = file.read().splitlines()
    try:
        row = json.loads(lines[-1])
    except (IndexError, ValueError):  # there is none, or it is being written
        return ""
    return str(row.get("why", "")) if datetime.fromisoformat(row["time"]) >= since else ""


def totals(folder: Path) -> dict[str, Totals]:
    """By bank, at first none. Raises FolderError, and FactsError for a file that was damaged."""
    if not (path := folder / "traffic.json").exists():
        return {}
    with translated(path):
        text = path.read_bytes()
    try:
        return {bank: Totals(**row) for bank, row in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise FactsError(f"{path}: not a gateway's totals ({error})", "delete it: it is only for `status`") from error
