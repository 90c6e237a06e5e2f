"""Facts in JSON files, and folders that only their owner may read."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.errors import FactsError, FolderError
from privacy import disk
from trainers.mistakes import explain

Digest = Annotated[bytes, Field(min_length=32, max_length=32, description="64 hexadecimal digits")]
"""SHA-256"""
Signature = Annotated[bytes, Field(min_length=64, max_length=64, description="128 hexadecimal digits")]
"""Ed25519"""


class Facts(BaseModel):
    """Read from JSON, bytes in hexadecimal; no field is unknown and none can change."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex")

    @property
    def canonical(self) -> bytes:
        """Equal facts are equal bytes, however the file was laid out: what is hashed and signed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


T = TypeVar("T", bound=Facts)


def read(kind: type[T], path: Path) -> T:
    """Raises FolderError, or FactsError that names every field which is not as it should be."""
    with translated(path):
        text = path.read_bytes()
    try:
        if not isinstance(values := json.loads(text), dict):
            raise ValueError("expected a block of fields")
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise FactsError(
            f"{path}: " + "; ".join(explain(kind, values, error)), "changed on its way? Ask its sender for it again"
        ) from error
    except ValueError as error:
        raise FactsError(f"{path}: not JSON of ours ({error})", "ask its sender for it again") from error


def write(path: Path, facts: Facts) -> None:
    """In place of what was there. Raises FolderError."""
    write_bytes(path, facts.model_dump_json(indent=1).encode() + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """In place of what was there. Raises FolderError."""
    with translated(path):
        _make(path.parent)
        disk.write(path, [data])


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """All of them, in a folder of that name which was empty or not there; or nothing. Raises FolderError."""
    with translated(folder):
        _make(folder.parent)
        with TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir(mode=0o700)
            for name, data in files.items():
                disk.write(made / name, [data])
            os.rename(made, folder)
        disk.sync(folder.parent)


def check_private(folder: Path) -> None:
    """FolderError unless it is there and only its owner may look into it."""
    with translated(folder):
        mode = folder.stat().st_mode
        if not stat.S_ISDIR(mode):
            raise FolderError(f"{folder}: not a directory", "name the folder, not a file in it")
        if mode & 0o077:
            raise FolderError(f"{folder}: others than its owner may look into it", f"chmod 700 {folder}")


def _make(folder: Path) -> None:
    """With what is missing above it, all 0700: `mkdir(parents=True)` would leave those above open."""
    for each in (*reversed(folder.parents), folder):
        each.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """What goes wrong with a file in here is a FolderError, or a FactsError where it is not text."""
    try:
        yield
    except FolderError:
        raise
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}", "is it the right path, with room, and yours?") from error
    except UnicodeDecodeError as error:
        raise FactsError(
            f"{path}: expected text in UTF-8, got byte 0x{error.object[error.start]:02x} at {error.start}", "save it in UTF-8"
        ) from error
