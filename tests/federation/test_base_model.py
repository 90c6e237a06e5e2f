"""A base model's hash."""

import shutil
from pathlib import Path

import pytest

from federation.base_model import base_model_hash
from federation.errors import FactsError, FolderError


def test_a_copy_has_the_same_hash_whatever_was_downloaded_beside_it(tmp_path: Path) -> None:
    first = _make_model(tmp_path / "first")
    copy = shutil.copytree(first, tmp_path / "models" / "second")
    (copy / ".cache").mkdir()
    (copy / ".gitattributes").write_text("x")

    assert base_model_hash(copy) == base_model_hash(first)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weights, changed"),
        lambda folder: (folder / "model.safetensors").rename(folder / "model-2.safetensors"),
        lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
        lambda folder: (folder / "tokenizer.json").unlink(),
    ],
)
def test_a_changed_renamed_new_or_missing_file_is_another_model(tmp_path: Path, change) -> None:
    folder = _make_model(tmp_path / "model")
    before = base_model_hash(folder)

    change(folder)

    assert base_model_hash(folder) != before


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = _make_model(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(FactsError, match=r"pytorch_model\.bin is pickled"):
        base_model_hash(folder)


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match=r"no config\.json"):
        base_model_hash(tmp_path)
    with pytest.raises(FolderError, match="No such file"):
        base_model_hash(tmp_path / "nowhere")


def _make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}.items():
        (folder / name).write_bytes(content)
    return folder
