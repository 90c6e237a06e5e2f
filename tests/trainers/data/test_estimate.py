"""A sample of the rows says what all of them would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests import helpers
from trainers.config import DataConfig
from trainers.data.estimate import SAMPLED, estimate
from trainers.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)


def _write(folder: Path, lengths: list[int], **options: Any) -> DataConfig:
    rows = [{"prompt": "x", "completion": " y" * length} for length in lengths]
    return DataConfig(train=[helpers.write_jsonl(folder / "rows.jsonl", rows)], validation_fraction=0.25, **options)


def test_all_rows_are_counted_and_few_are_encoded(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    short = int(estimate(_write(tmp_path, [10]), "sft", tokenizer).lengths[0])
    found = estimate(_write(tmp_path, [10] * 2 * SAMPLED + [100] * 2 * SAMPLED), "sft", tokenizer)
    assert (found.rows, found.sampled, len(found.lengths)) == (3 * SAMPLED, SAMPLED, SAMPLED)
    long = int(found.lengths.max())
    assert long > 5 * 10 and found.tokens == pytest.approx(3 * SAMPLED * (short + long) / 2, rel=0.05)  # rows at the end count too
    assert found.learnt == pytest.approx(found.mean_length, abs=3)


def test_rows_too_long_are_left_out_or_cut_as_training_does(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [5] * 3 + [500]
    kept = estimate(_write(tmp_path, lengths), "sft", tokenizer, max_length=64)
    cut = estimate(_write(tmp_path, lengths, over_length="truncate"), "sft", tokenizer, max_length=64)
    assert kept.lengths.max() < 64 and len(kept.lengths) == 3
    assert cut.lengths.max() == 64 and len(cut.lengths) == 4


def test_a_long_row_weighs_by_its_square(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = estimate(_write(tmp_path, [5, 50]), "sft", tokenizer)
    assert found.square_mean == pytest.approx(float(np.sum(found.lengths**2) / np.sum(found.lengths)))


def test_bad_rows_do_not_count(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = _write(tmp_path, [5] * 8)
    with data.train[0].open("a") as stream:
        stream.write("{broken\n")
    assert estimate(data, "sft", tokenizer).rows == 6


def test_data_without_a_good_row_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"no row of data\.train can be learnt from"):
        estimate(DataConfig(train=[tmp_path / "rows.jsonl"]), "sft", tokenizer)
