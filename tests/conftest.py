"""What tests share: tiny models and tokenizers made on the spot, and one local Ray for all that need it."""

import os

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0", DS_ACCELERATOR="cpu", TOKENIZERS_PARALLELISM="false"
)

from pathlib import Path

import pytest

from tests import helpers


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of 512 tokens, without a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    helpers.make_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    helpers.make_model("llama", folder)
    return folder


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    helpers.make_model("bert", folder)
    return folder
