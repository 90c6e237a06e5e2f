"""A run directory's copy on an object store, through fsspec: checkpoints as they are written, the rest with each of them.

A store knows no renaming. A checkpoint is there when its manifest is, which is put last.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers.errors import CheckpointError, ConfigError


class Store:
    """Files under a URL, by names relative to it.

    Raises ConfigError for a URL that means nothing here, CheckpointError when the store cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        import fsspec.core

        self.url = url
        with self._errors():
            try:
                self._fs, root = fsspec.core.url_to_fs(url)
            except (ImportError, ValueError) as error:
                raise ConfigError(
                    f"output: {url}: {error}", "as in s3://bucket/runs, with the package that fsspec asks for installed"
                ) from error
        self._root = root.rstrip("/")

    def put(self, file: Path, name: str) -> None:
        with self._errors():
            place = f"{self._root}/{name}"
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(file), place)

    def put_folder(self, folder: Path, name: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(file, f"{name}/{file.relative_to(folder)}")

    def get(self, name: str, file: Path) -> bool:
        """Fetch a file; False where there is none. A reader of `file` sees the old one or the new one."""
        temporary = file.with_name(f".{file.name}.fetched")
        with self._errors():
            if not self._fs.exists(f"{self._root}/{name}"):
                return False
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fs.get_file(f"{self._root}/{name}", str(temporary))
        temporary.chmod(0o600)
        temporary.replace(file)
        return True

    def write(self, name: str, content: bytes) -> None:
        with self._errors():
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", content)

    def read(self, name: str) -> bytes | None:
        """A small file as it is now; None where there is none."""
        with self._errors():
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def has(self, name: str) -> bool:
        with self._errors():
            return bool(self._fs.exists(f"{self._root}/{name}"))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files in a folder, by their paths below it; none where there is no folder."""
        with self._errors():
            self._fs.invalidate_cache()
            place = f"{self._root}/{folder}"
            if not self._fs.exists(place):
                return {}
            found: dict[str, Any] = self._fs.find(place, detail=True)
            start = len(self._fs._strip_protocol(place)) + 1
            return {path[start:]: int(entry["size"]) for path, entry in found.items()}

    def remove(self, folder: str) -> None:
        with self._errors():
            if self._fs.exists(f"{self._root}/{folder}"):
                self._fs.rm(f"{self._root}/{folder}", recursive=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # every store has exceptions of its own
            raise CheckpointError(f"output: {self.url}: {type(error).__name__}: {error}", "are address and credentials right?") from error


def publish(run_dir: Path, store: Store | None, model: Path | None = None) -> None:
    """Copy to the store, if there is one, what a run has to show: its configuration, events and reports, and its model."""
    if store is None:
        return
    if model is not None:
        store.put_folder(model, model.name)
    for name in ("config.json", "events.jsonl", "report.json", "report.html"):
        if (run_dir / name).exists():
            store.put(run_dir / name, name)
