"""Models by their name on the hub, on machines that do not reach it."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from trainers import model as models
from trainers.config import ModelConfig
from trainers.errors import ModelError
from trainers.model import load_model_config


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of a machine whose hub refuses connections."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
        models._hub_answers.cache_clear()
        yield tmp_path
    models._hub_answers.cache_clear()


def test_what_is_not_there_is_said_without_a_second_try(unreachable: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelError, match="cannot load the model of bank/model") as caught:
        load_model_config(ModelConfig(path="bank/model"))
    assert caught.value.hint == "no network? give the path of a directory"
    assert not [record for record in caplog.records if "etrying" in record.getMessage()]


def test_what_is_in_the_cache_is_used(unreachable: Path, llama_dir: Path) -> None:
    folder = unreachable / "models--bank--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    shutil.copytree(llama_dir, folder / "snapshots" / ("a" * 40))
    assert load_model_config(ModelConfig(path="bank/model")).model_type == "llama"


def test_a_hub_that_answers_and_a_proxy_are_asked(unreachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not models._hub_answers()
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        models._hub_answers.cache_clear()
        assert models._hub_answers()
    models._hub_answers.cache_clear()
    assert not models._hub_answers()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    models._hub_answers.cache_clear()
    assert models._hub_answers()
