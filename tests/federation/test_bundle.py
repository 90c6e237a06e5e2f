"""The bundle is the same bytes everywhere, names the code, and is one that Flower takes."""

import os
import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

from flwr.cli.config_utils import get_fab_config
from flwr.cli.install import install_from_fab
from flwr.common.config import validate_config

from federation import bundle

_ROOT = Path(__file__).parents[2]


def test_the_bundle_holds_nothing_of_this_machine() -> None:
    built = bundle.build()
    assert built == bundle.build()
    with zipfile.ZipFile(BytesIO(built)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert str(_ROOT).encode() not in text and str(Path.home()).encode() not in text


def test_flower_takes_the_bundle(tmp_path: Path) -> None:
    assert validate_config(get_fab_config(bundle.build())) == (True, [], [])
    assert install_from_fab(bundle.build(), install_dir=tmp_path, skip_prompt=True).is_dir()


def test_the_same_sources_elsewhere_make_the_same_bundle_and_others_another(tmp_path: Path) -> None:
    for package in ("cluster", "consortium", "federation", "privacy", "trainers"):
        shutil.copytree(_ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert _hash_at(tmp_path) == bundle.sha256(bundle.build())
    with (tmp_path / "trainers" / "loop.py").open("a") as file:
        file.write("# changed\n")
    assert _hash_at(tmp_path) != bundle.sha256(bundle.build())


def _hash_at(folder: Path) -> str:
    code = "from federation import bundle; print(bundle.sha256(bundle.build()), end='')"
    environment = {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "1", "PATH": os.defpath}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
