"""Attention over examples that lie one behind the other in one row: each sees itself alone, and nothing is computed to be masked away.

transformers hands a mask of four dimensions to the attention as it is. Ours is none: it holds the layout of the row, its blocks as pairs
(rows, width) of int32, on the CPU whatever the device. Every other mask goes to transformers' own `sdpa`.
"""

from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainers.cpu import SHORT, default_products

_NAME = "consortium_blocks"
_UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some families add to scores, and we do not"""


def use_blocks(base: Any) -> bool:
    """Let a Hugging Face model take batches with `blocks`; False, and nothing is changed, where a family has its own attention only."""
    takes = bool(getattr(base, "_supports_attention_backend", False)) and _implementation(base) == "sdpa"
    if takes:
        base.set_attn_implementation(_NAME)
    return takes


def takes_blocks(base: Any) -> bool:
    return _implementation(base) == _NAME


def leave_blocks(base: Any) -> None:
    base.set_attn_implementation("sdpa")


def _implementation(base: Any) -> str | None:
    found: str | None = base.config.get_text_config()._attn_implementation
    return found


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, T, D), key and value (1, fewer heads, T, D) -> (1, T, heads, D); causal within each of the rows that make up T.

    Raises NotImplementedError for scores that a family changes before the softmax.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    if changes := [name for name in _UNKNOWN if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(changes)}")
    blocks = blocks_of(attention_mask)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, D), which is how they lie in memory
    if query.is_cuda and not dropout and kernel_is_right(query.dtype, query.shape[-1]):
        return _by_kernel(q, k, v, blocks, scaling, sliding_window)[None], None
    return _block_by_block(q, k, v, blocks, dropout, scaling, sliding_window)[None], None


AttentionInterface.register(_NAME, torch.compiler.disable(block_attention))
AttentionMaskInterface.register(_NAME, sdpa_mask)

Blocks = tuple[tuple[int, int], ...]


def blocks_of(layout: torch.Tensor) -> Blocks:
    """(1, 1, B, 2) -> B pairs of rows and width."""
    return tuple((rows, width) for rows, width in layout.view(-1, 2).tolist())


def _block_by_block(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Blocks, dropout: float, scale: float | None, window: int | None
) -> torch.Tensor:
    """Padding is at the end of a row, where no token looks: it needs no mask."""
    sizes, outputs = [rows * width for rows, width in blocks], []
    plainly = not (q.is_cuda or dropout or torch.backends.cuda.flash_sdp_enabled()) and q.dtype == torch.float32  # see trainers.cpu
    for (rows, width), *parts in zip(blocks, *(tensor.split(sizes) for tensor in (q, k, v)), strict=True):
        query, key, value = (part.unflatten(0, (rows, width)).transpose(1, 2) for part in parts)
        band = _band(width, window, q.device) if window is not None and window < width else None
        if plainly and width <= SHORT and band is None:
            found = _ShortRows.apply(query, key, value, scale or q.shape[-1] ** -0.5)
        else:
            grouped = q.shape[1] != k.shape[1]
            found = F.scaled_dot_product_attention(
                query, key, value, band, dropout, is_causal=band is None, scale=scale, enable_gqa=grouped
            )
        outputs.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _ShortRows(torch.autograd.Function):
    """softmax(scale q k^T) v, causal: q (rows, heads, W, D), k and v (rows, fewer heads, W, D) -> (rows, heads, W, D), in float32 on a CPU.

    Heads that share a key are taken together, as one of as many times the tokens. The products are small and every step has others, for
    each of which oneDNN would compile a kernel: torch's default library computes them.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        rows, heads, width, depth = query.shape
        q, (k, v) = _by_key(query, key.shape[1]), (tensor.flatten(0, 1) for tensor in (key, value))
        with default_products():
            products = torch.bmm(q, k.mT)
            each = products.view(-1, width, width)
            scores = torch.add(later_tokens(q.device)[:width, :width], each, alpha=scale, out=each).softmax(-1).view(products.shape)
            found = torch.bmm(scores, v)
        ctx.save_for_backward(q, k, v, scores)
        ctx.scale, ctx.shape = scale, (rows, heads, width, depth)
        return found.view(rows, heads, width, depth)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (g,), (q, k, v, scores) = gradients, ctx.saved_tensors
        rows, heads, width, depth = ctx.shape
        kept = len(k) // rows
        g = _by_key(g, kept)
        with default_products():
            of_scores = torch._softmax_backward_data(torch.bmm(g, v.mT), scores, -1, torch.float32)
            found = torch.bmm(of_scores, k).mul_(ctx.scale), torch.bmm(of_scores.mT, q).mul_(ctx.scale), torch.bmm(scores.mT, g)
        return found[0].view(rows, heads, width, depth), *(each.view(rows, kept, width, depth) for each in found[1:]), None


def _by_key(tensor: torch.Tensor, keys: int) -> torch.Tensor:
    """(rows, heads, W, D) -> (rows * keys, heads / keys * W, D)"""
    rows, heads, width, depth = tensor.shape
    return tensor.reshape(rows * keys, heads // keys * width, depth)


@cache
def later_tokens(device: torch.device) -> torch.Tensor:
    """(SHORT, SHORT), minus infinity where a token would see a later one."""
    return torch.full((SHORT, SHORT), -torch.inf, device=device).triu(1)


@lru_cache(maxsize=8)
def _band(width: int, window: int, device: torch.device) -> torch.Tensor:
    """(width, width), True where a token sees another: itself and the window - 1 before it."""
    return torch.ones(width, width, dtype=torch.bool, device=device).tril().triu(1 - window)


def _by_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: Blocks, scale: float | None, window: int | None) -> torch.Tensor:
    """torch's kernel for rows of any width (Dao 2023, as built into torch)."""
    from torch.nn.attention.varlen import varlen_attn

    borders, widest = _borders(blocks, q.device), max(width for _, width in blocks)
    shared: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    back = -1 if window is None else window - 1
    found = varlen_attn(
        q.contiguous(), k.contiguous(), v.contiguous(), borders, borders, widest, widest, scale=scale, window_size=(back, 0), **shared
    )
    assert isinstance(found, torch.Tensor)
    return found


@lru_cache(maxsize=2)
def _borders(blocks: Blocks, device: torch.device) -> torch.Tensor:
    """Where each row begins, and where the last ends: (rows + 1,) int32. All layers of a pass ask for the same."""
    widths = torch.tensor([0, *(width for rows, width in blocks for _ in range(rows))])
    return widths.cumsum(0).to(device=device, dtype=torch.int32)


@cache
def kernel_is_right(dtype: torch.dtype, head_width: int) -> bool:
    """Whether torch's kernel for rows of any width is there, for this GPU and these numbers, and right forth and back: tried."""
    numbers, blocks, scale = torch.Generator().manual_seed(0), ((1, 9), (1, 5), (1, 3)), head_width**-0.5
    q, k, v = (torch.randn(17, heads, head_width, generator=numbers).to("cuda", dtype).requires_grad_() for heads in (4, 2, 2))
    weights = torch.randn(17, 4, head_width, generator=numbers).to("cuda", dtype)
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for window in (None, 3):
            with torch.enable_grad():
                found = _by_kernel(q, k, v, blocks, scale, window)
                expected = _block_by_block(q, k, v, blocks, 0.0, scale, window)
                gradients = [torch.autograd.grad((output * weights).sum(), (q, k, v)) for output in (found, expected)]
            pairs += [(found, expected), *zip(*gradients, strict=True)]
    except (ImportError, RuntimeError, TypeError):
        return False
    return all(bool((a - b).abs().max() <= 0.02 * b.abs().max()) for a, b in pairs)
