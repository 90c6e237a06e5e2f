"""float32 on a CPU: oneDNN's matrix products in place of torch's default library, which on AMD's processors reaches half their speed."""

import contextlib
from collections.abc import Iterator
from functools import cache

import torch

_SHORT = 512
"""Tokens. To this width the attention kernel that works in small blocks gains nothing by them, and its blocks are too small for oneDNN."""


@contextlib.contextmanager
def fast_products(*, longest: int) -> Iterator[None]:
    """Within it float32 products are oneDNN's where these are as exact; `longest` is the widest row, in tokens. Nothing changes on a GPU.

    torch hands float32 to oneDNN only where it may round factors to bfloat16 (`medium`). oneDNN makes use of that on processors with
    bfloat16 matrix units and computes in float32 on all others: which of the two is tried, once.
    """
    if torch.cuda.is_available() or not onednn_is_exact():
        yield
        return
    precision, blockwise = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.enable_flash_sdp(blockwise and longest > _SHORT)  # the CPU's switch too
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.enable_flash_sdp(blockwise)


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
