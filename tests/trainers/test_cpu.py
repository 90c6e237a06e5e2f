import pytest
import torch

from trainers import cpu


def _settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()


def test_products_are_as_exact_as_before() -> None:
    first, second = torch.randn(64, 333), torch.randn(333, 70)
    exact = first.double() @ second.double()
    before = (first @ second - exact).abs().max()

    with cpu.fast_products(longest=100):
        error = (first @ second - exact).abs().max()

    assert error <= 4 * before


def test_settings_are_put_back_even_after_an_error() -> None:
    before = _settings()

    with pytest.raises(KeyError), cpu.fast_products(longest=100):
        raise KeyError

    assert _settings() == before


def test_attention_over_wide_rows_stays_in_blocks() -> None:
    with cpu.fast_products(longest=100_000):
        assert torch.backends.cuda.flash_sdp_enabled()


def test_where_products_would_be_rounded_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "onednn_is_exact", lambda: False)
    before = _settings()

    with cpu.fast_products(longest=100):
        assert _settings() == before
