"""What the tests of the data layer share."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture
def tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer of 512 tokens, loaded anew: a test may give it another template."""
    return AutoTokenizer.from_pretrained(tokenizer_dir)
