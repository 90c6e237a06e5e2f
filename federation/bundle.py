"""The Flower app bundle (FAB): what the coordinator sends to every bank, the same bytes everywhere for one version of consortium.

It holds no code. Its two components are modules of the consortium that a bank has installed, and it names that code by a hash of all its
sources: a bank with other sources answers with a named error (flower/client.py), and its gateway knows the bundle by its own hash.
A FAB is a zip archive with `pyproject.toml` and `.info/CONTENT`, a line `path,SHA-256,bits` for each file (flwr/cli/build.py). Here it is
stored, not compressed, as compressors differ from machine to machine.
"""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

_PACKAGES = ("cluster", "consortium", "federation", "privacy", "trainers")
_SOURCES = Path(__file__).parents[1]
_BEGINNING = (1980, 1, 1, 0, 0, 0)
_APP = """\
[project]
name = "consortium"
version = "1"
description = "Banks that train one adapter together"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "consortium"

[tool.flwr.app.components]
serverapp = "federation.flower.server:app"
clientapp = "federation.flower.client:app"

[tool.flwr.app.config]
code = "{code}"
run = ""
"""


@cache
def code() -> str:
    """SHA-256 of the sources that run here, in hexadecimal: of each file's path and content."""
    paths = sorted(path for package in _PACKAGES for path in (_SOURCES / package).rglob("*.py"))
    lines = [f"{sha256(path.read_bytes())} {path.relative_to(_SOURCES).as_posix()}\n" for path in paths]
    return sha256("".join(lines).encode())


def build() -> bytes:
    """The bundle of the sources that run here."""
    app = _APP.format(code=code()).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in (("pyproject.toml", app), (".info/CONTENT", f"pyproject.toml,{sha256(app)},{8 * len(app)}".encode())):
            entry = zipfile.ZipInfo(name, _BEGINNING)
            entry.create_system, entry.external_attr = 3, 0o600 << 16  # as on Unix, wherever it is made
            archive.writestr(entry, content)
    return packed.getvalue()


def sha256(bundle: bytes) -> str:
    """As a bank's policy lists it and Flower addresses it."""
    return hashlib.sha256(bundle).hexdigest()
