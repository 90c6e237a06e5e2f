"""Which base model a directory holds: one hash that is the same at every bank, whatever the directory's name and place."""

import hashlib
from pathlib import Path

from federation.errors import FactsError
from federation.files import translated

_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def base_model_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of its files; hidden ones, which downloads leave behind, do not count.

    Every byte is read: some seconds for 10 GB. Raises FolderError, or FactsError where it holds no model, or one that is pickled.
    """
    with translated(folder):
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if "config.json" not in {path.name for path in files}:
            raise FactsError(f"{folder}: no config.json", "the directory of a model as Hugging Face lays it out")
        if pickled := [path.name for path in files if path.suffix in _PICKLED]:
            raise FactsError(f"{folder}: {pickled[0]} is pickled, which may hold code", "convert the weights to safetensors, and remove it")
        total = hashlib.sha256()
        for path in files:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{digest}  {path.name}\n".encode())
    return total.hexdigest()
