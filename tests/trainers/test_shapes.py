from pathlib import Path
from typing import get_args

import pytest
import torch

from trainers.config import SHAPES, ModelConfig, ShapeName
from trainers.errors import ModelError
from trainers.model import load_tokenizer, shape_of


def test_every_known_shape_has_its_file() -> None:
    assert {path.stem for path in Path(SHAPES).glob("*.json")} == set(get_args(ShapeName))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("qwen2.5-7b", 7_615_616_512),
        ("mistral-7b", 7_248_023_552),
        ("falcon-7b", 6_921_720_704),
    ],
)
def test_a_known_shape_has_as_many_parameters_as_its_makers_say(name: ShapeName, parameters: int) -> None:
    assert shape_of(ModelConfig(shape=name), "sft").parameters == parameters


def test_a_shape_cannot_be_trained_for_it_has_no_tokenizer() -> None:
    with pytest.raises(ModelError, match=r"llama-3\.1-8b has no tokenizer") as caught:
        load_tokenizer(ModelConfig(shape="llama-3.1-8b"))
    assert "plan and bench" in caught.value.hint
    assert torch.get_default_device() == torch.device("cpu")
