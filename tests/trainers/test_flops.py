import pytest
import torch

from trainers.flops import FORMULAS, flops_per_token, peak_flops

LLAMA_8B = {"linear": 7_504_000_000, "adapter": 41_900_000, "attention_width": 4096, "layers": 32}


@pytest.mark.parametrize(
    ("length", "full", "gigaflops"),
    [(4096, False, 33.49), (4096, True, 48.25), (512, False, 30.7), (8192, False, 36.7), (2048, True, 46.6), (32768, True, 70.8)],
)
def test_llama_8b_costs_what_was_counted_by_hand(length: int, full: bool, gigaflops: float) -> None:
    shape = LLAMA_8B | {"adapter": 0 if full else LLAMA_8B["adapter"]}
    counted = flops_per_token(**shape, length=length, full=full)
    assert counted / 1e9 == pytest.approx(gigaflops, abs=0.06 if length != 4096 else 0.006)


def test_adapters_save_the_gradients_of_the_frozen_weights() -> None:
    shape = LLAMA_8B | {"adapter": 0}
    assert flops_per_token(**shape, length=0, full=True) == 6 * LLAMA_8B["linear"]
    assert flops_per_token(**shape, length=0, full=False) == 4 * LLAMA_8B["linear"]


def test_causal_attention_costs_half_of_the_square() -> None:
    one_layer = flops_per_token(linear=0, adapter=0, attention_width=64, layers=1, length=128, full=True)
    scores_and_values = 2 * (2 * 128 * 64)  # two products, two operations for each multiplication, for all 128 places
    assert one_layer == 3 * scores_and_values / 2


def test_every_method_has_its_formula_in_words() -> None:
    assert set(FORMULAS) == {"full", "lora"}


def test_a_cpu_has_no_peak_to_be_measured_against() -> None:
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40", None),
        ("NVIDIA H20", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_a_part_of_its_name(monkeypatch: pytest.MonkeyPatch, name: str, teraflops: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == (None if teraflops is None else teraflops * 1e12)
