"""Training on a CPU: float32 products by oneDNN in place of torch's default library, which on AMD's processors reaches half their speed,
and memory that does not go back to the kernel after every step.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from functools import cache

import torch

SHORT = 512
"""Tokens. To this width the attention kernel that works in small blocks gains nothing by them, and its blocks are too small for oneDNN."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)"""


def keep_memory() -> None:
    """Let glibc keep the memory that a step gives back for the next one, which would else be cleared anew by the kernel, page by page.

    Arrays of more than 32 MiB, the most that glibc itself would take from its heap, still come from the kernel and go back to it. Where the
    environment says how (MALLOC_TRIM_THRESHOLD_ and its like), it stays at that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not torch.cuda.is_available() and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)


@contextlib.contextmanager
def fast_products(*, longest: int) -> Iterator[None]:
    """Within it float32 products are oneDNN's where these are as exact; `longest` is the widest row, in tokens. Nothing changes on a GPU.

    The process keeps its memory from here on.

    torch hands float32 to oneDNN only where it may round factors to bfloat16 (`medium`). oneDNN makes use of that on processors with
    bfloat16 matrix units and computes in float32 on all others: which of the two is tried, once.
    """
    keep_memory()
    if torch.cuda.is_available() or not onednn_is_exact():
        yield
        return
    blockwise = torch.backends.cuda.flash_sdp_enabled()  # the CPU's switch too
    torch.backends.cuda.enable_flash_sdp(blockwise and longest > SHORT)
    try:
        with _products("medium"):
            yield
    finally:
        torch.backends.cuda.enable_flash_sdp(blockwise)


def default_products() -> contextlib.AbstractContextManager[None]:
    """Within it float32 products are those of torch's default library."""
    return _products("highest")


@contextlib.contextmanager
def _products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def onednn_is_exact() -> bool:
    """Whether products in `medium` precision are as exact as in `highest` on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    before, numbers = torch.get_float32_matmul_precision(), torch.Generator().manual_seed(0)
    first, second = (torch.randn(256, 256, generator=numbers) for _ in range(2))
    exact = first.double() @ second.double()
    errors = []
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            errors.append(float((first @ second - exact).abs().max()))
    finally:
        torch.set_float32_matmul_precision(before)
    return errors[1] < 10 * errors[0]
