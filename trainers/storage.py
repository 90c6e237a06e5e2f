"""A run directory's copy on an object store, through fsspec: checkpoints as they are written, the rest with each of them.

A store knows no renaming. A checkpoint is there when its manifest is, which is put last.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from trainers.errors import CheckpointError, ConfigError

T = TypeVar("T")
_PAUSES = (1.0, 4.0, 15.0, 60.0)
"""Seconds, before something is tried again"""
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)


class Store:
    """Files under a URL, by names relative to it.

    Raises ConfigError for a URL that means nothing here, CheckpointError when the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        import fsspec.core

        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"output: {url}: {error}", "as in s3://bucket/runs, with the package that fsspec asks for installed"
            ) from error
        except Exception as error:  # every store has exceptions of its own
            raise _unreachable(url, error) from error
        self._root = root.rstrip("/")
        self._reached = False

    def put(self, file: Path, name: str) -> None:
        place = f"{self._root}/{name}"

        def put() -> None:
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(file), place)

        self._try(put)

    def put_folder(self, folder: Path, name: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(file, f"{name}/{file.relative_to(folder)}")

    def get(self, name: str, file: Path) -> bool:
        """Fetch a file; False where there is none. A reader of `file` sees the old one or the new one."""
        temporary = file.with_name(f".{file.name}.fetched")

        def get() -> bool:
            if not self._fs.exists(f"{self._root}/{name}"):
                return False
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fs.get_file(f"{self._root}/{name}", str(temporary))
            return True

        if not self._try(get):
            return False
        temporary.chmod(0o600)
        temporary.replace(file)
        return True

    def write(self, name: str, content: bytes) -> None:
        def write() -> None:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", content)

        self._try(write)

    def read(self, name: str) -> bytes | None:
        """A small file as it is now; None where there is none."""

        def read() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

        return self._try(read)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files in a folder, by their paths below it; none where there is no folder."""
        place = f"{self._root}/{folder}"

        def sizes() -> dict[str, int]:
            self._fs.invalidate_cache()
            if not self._fs.exists(place):
                return {}
            found: dict[str, Any] = self._fs.find(place, detail=True)
            start = len(self._fs._strip_protocol(place)) + 1
            return {path[start:]: int(entry["size"]) for path, entry in found.items()}

        return self._try(sizes)

    def remove(self, folder: str) -> None:
        def remove() -> None:
            if self._fs.exists(f"{self._root}/{folder}"):
                self._fs.rm(f"{self._root}/{folder}", recursive=True)

        self._try(remove)

    def _try(self, work: Callable[[], T]) -> T:
        """Again, after a while, where a store that has been reached fails: a run of days is not to end by a minute of its store's."""
        for pause in (*_PAUSES, None):
            try:
                done = work()
                self._reached = True
                return done
            except Exception as error:  # every store has exceptions of its own
                if pause is None or not self._reached or isinstance(error, _LASTING):
                    raise _unreachable(self.url, error) from error
                time.sleep(pause)
        raise AssertionError


def _unreachable(url: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"output: {url}: {type(error).__name__}: {error}", "are address and credentials right?")


def publish(run_dir: Path, store: Store | None, model: Path | None = None) -> None:
    """Copy to the store, if there is one, what a run has to show: its configuration, events and reports, and its model."""
    if store is None:
        return
    if model is not None:
        store.put_folder(model, model.name)
    for name in ("config.json", "events.jsonl", "report.json", "report.html"):
        if (run_dir / name).exists():
            store.put(run_dir / name, name)
