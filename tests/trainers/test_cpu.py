import os
import platform
import subprocess
import sys

import pytest
import torch

from trainers import cpu

_GIVEN_BACK = """
import ctypes, os
from trainers import cpu
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
parts = [libc.malloc(20 * 2**20) for _ in range(5)]
for part in parts: ctypes.memset(part, 1, 20 * 2**20)
height = resident()
for part in parts: libc.free(part)
print((height - resident()) // 2**20)
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


def _given_back(call: str, **environment: str) -> int:
    """MiB of 100 that are freed, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _GIVEN_BACK.format(call=call)], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory allocator of glibc")
def test_memory_is_kept_for_the_next_step() -> None:
    assert _given_back("cpu.keep_memory()") < 10
    assert _given_back("pass") > 70
    assert _given_back("cpu.keep_memory()", MALLOC_TRIM_THRESHOLD_="131072") > 70  # as the environment asks
