import os
import platform
import subprocess
import sys

import pytest
import torch

from trainers import cpu

_FAULTS = """
import resource, torch
from trainers import cpu
{call}
def step():
    kept = [torch.ones(2**20 + 2**16 * i) for i in range(8)]
    return sum(float(each[-1]) for each in kept)
for _ in range(5): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


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


def _page_faults(call: str, **environment: str) -> int:
    """Of five steps that allocate and free 35 MB each, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS.format(call=call)], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory allocator of glibc")
def test_memory_is_used_again_by_the_next_step() -> None:
    assert _page_faults("cpu.keep_memory()") < 100
    assert _page_faults("pass") > 5000
    assert _page_faults("cpu.keep_memory()", MALLOC_TRIM_THRESHOLD_="131072") > 5000  # as the environment asks
