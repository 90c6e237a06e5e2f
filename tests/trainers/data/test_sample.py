"""A sample of the rows says what all of them would."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests import helpers
from trainers.config import DataConfig
from trainers.data.sample import SAMPLED, sample
from trainers.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)


def _write(folder: Path, lengths: list[int]) -> DataConfig:
    rows = [{"prompt": "x " * length, "completion": " y"} for length in lengths]
    return DataConfig(train=[helpers.write_jsonl(folder / "rows.jsonl", rows)], validation_fraction=0.25)


def test_all_rows_are_counted_and_few_are_encoded(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = sample(_write(tmp_path, [10] * 2 * SAMPLED + [100] * 2 * SAMPLED), "sft", tokenizer)
    assert found.rows == 3 * SAMPLED
    assert (
        found.longest > 5 * 10
        and found.p99 == found.longest
        and found.median in (found.longest, sample(_write(tmp_path, [10]), "sft", tokenizer).longest)
    )
    assert 1 <= found.learnt <= 4


def test_bad_rows_do_not_count(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = _write(tmp_path, [5] * 8)
    with data.train[0].open("a") as stream:
        stream.write("{broken\n")
    assert sample(data, "sft", tokenizer).rows == 6


def test_a_file_without_a_good_row_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"no row of data\.train can be read"):
        sample(DataConfig(train=[tmp_path / "rows.jsonl"]), "sft", tokenizer)
