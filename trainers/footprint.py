"""What a model keeps for its backward pass, counted on the model itself: its blocks run on the meta device, which has shapes and no data.

Nothing here knows a family of models. One with one block and one with two are built as the job trains them and run forth and back, while
the bytes of all tensors that live are counted; the difference of the two is a block.
"""

import contextlib
import logging
import re
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from privacy.dp_lora import UnitGradients
from trainers.attention import later_tokens, use_blocks
from trainers.by_unit import gradients_by_unit, to_float32
from trainers.config import LoraMethod, Method, TrainConfig
from trainers.cpu import SHORT
from trainers.lora import fuse_updates
from trainers.memory import PERSISTENT, Footprint
from trainers.model import add_adapters, decoder_blocks, freeze_tables, load_model_config, on_meta
from trainers.objectives import NextToken, logits_chunk

Device = Literal["cuda", "cpu"]

_WITHOUT_MASK = "without_mask"
"""A kind of attention for which transformers makes no mask, as for flash_attention_2, which need not be installed here."""
AttentionInterface.register(_WITHOUT_MASK, sdpa_attention_forward)

_NUMBER = re.compile(r"\.\d+\.")
"""Of a block, in a module's name"""
_PAIR = 24
"""Bytes for each pair of tokens of a row whose norm is taken without its gradient: three matrices of float64 (privacy.dp_full)"""
_FEW, _MANY = 2, 8
"""Rows, or chunks of logits, of the two runs through which a line is laid: what grows with them, and what does not.

A single row is a case of its own: torch spares copies where there is nothing to spread over rows.
"""


def measure(config: TrainConfig, device: Device) -> Footprint | None:
    """The footprint of a job's model, method and length (`model.dtype` and `data.max_length` resolved); no weights are needed.

    None for a model that cannot run without data, because its shapes depend on values or its kernels are its own. Raises ModelError.
    """
    try:
        return _measure(config, device)
    except _NeedsData:
        logging.getLogger(__name__).debug("counting %s failed", config.model.name, exc_info=True)
        return None


def _measure(config: TrainConfig, device: Device) -> Footprint:
    row = config.data.max_length
    assert isinstance(row, int)
    layers = load_model_config(config.model).get_text_config().num_hidden_layers
    one, two = Cut(config, 1), Cut(config, 2)
    dense = config.model.attention != "flash_attention_2" and not two.in_blocks
    plain = device == "cpu" and row <= SHORT  # where scores are kept
    options: dict[str, Any] = {"row": row, "dense": dense, "plain": plain}
    kept, kept_two = (cut.run(rows=_FEW, **options)[0] // _FEW for cut in (one, two))
    backward, backward_fixed = _line([two.run(rows=rows, **options)[1] for rows in (_FEW, _MANY)])
    chunk = logits_chunk(one.base.config.get_text_config().vocab_size)
    logits, logits_fixed = _line([one.run_head(count * chunk) for count in (_FEW, _MANY)]) if config.task != "classify" else (0.0, 0.0)
    for cut in (one, two):
        if cut.base.supports_gradient_checkpointing:
            cut.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs, inputs_two = (cut.run(rows=_FEW, **options)[0] // _FEW for cut in (one, two))
    recomputed, recomputed_fixed = _line([two.run(rows=rows, **options)[1] for rows in (_FEW, _MANY)])

    def whole(of_one: int, of_two: int) -> int:
        return of_one + (layers - 1) * (of_two - of_one)

    width, trained = one.base.dtype.itemsize, whole(one.trained, two.trained)
    pairs = _PAIR * row**2 if config.private_full else 0
    return Footprint(
        device=device,
        quantization=config.model.quantization,
        width=width,
        trained_width=4 if config.privacy is not None else width,
        parameters=whole(one.base_parameters, two.base_parameters),
        adapters=whole(one.parameters - one.base_parameters, two.parameters - two.base_parameters),
        trained=trained,
        of_unit=0 if config.private_full else trained,
        quantized=whole(sum(one.linear), sum(two.linear)),
        largest=max(one.sizes),
        largest_trained=max(one.trained_sizes),
        largest_quantized=max(one.linear, default=0),
        small=whole(one.small, two.small),
        block=two.parameters - one.parameters,
        head=one.head,
        vocabulary=one.base.config.get_text_config().vocab_size,
        layers=layers,
        row=row,
        mask=row**2 if dense else 0,
        mask_block=width * row**2 if dense and not plain else 0,
        kept_first=kept,
        kept_block=kept_two - kept,
        input_first=inputs,
        input_block=inputs_two - inputs,
        backward=backward + pairs,
        backward_fixed=backward_fixed,
        recomputed=recomputed + pairs,
        recomputed_fixed=recomputed_fixed,
        chunk=chunk,
        logits=logits,
        logits_fixed=logits_fixed,
    )


class _NeedsData(Exception):
    """A model that cannot run on the meta device."""


class Cut:
    """A model cut to `blocks` blocks, on the meta device, as the job trains it."""

    def __init__(self, config: TrainConfig, blocks: int) -> None:
        self.base = on_meta(config.model, config.task, layers=blocks)
        self.in_blocks = _may_pack(config) and config.model.attention == "auto" and use_blocks(self.base)
        if config.model.attention == "flash_attention_2":
            self.base.set_attn_implementation(_WITHOUT_MASK)
        self.linear = [m.weight.numel() for block in decoder_blocks(self.base) for m in block.modules() if isinstance(m, nn.Linear)]
        if config.task == "classify":
            self.base.new_layers = _new_head(self.base, load_model_config(config.model).architectures or [])
        self.base_parameters = sum(p.numel() for p in self.base.parameters())
        with torch.device("meta"):  # where PEFT leaves adapters in float32, as it does beside quantised weights
            self.module = add_adapters(self.base, _in_every_block(config.method, blocks), config.task, quantized=True)
        self.units: UnitGradients | None = None
        if config.private_full:
            freeze_tables(self.base)
        elif config.privacy is not None:
            to_float32(self.module)
            trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
            whole = {name: p.detach() for name, p in trained.items()}
            self.units = gradients_by_unit(self.module, self.base, trained, whole, torch.device("meta"))
        elif config.zero.stage != 3 and not config.train.compile:
            fuse_updates(self.module)
        self.module.train()
        head = self.base.get_output_embeddings()
        self.head = 0 if head is None else head.weight.numel()
        self.sizes = [p.numel() for p in self.module.parameters()]
        self.trained_sizes = [p.numel() for p in self.module.parameters() if p.requires_grad]
        self.parameters, self.trained = sum(self.sizes), sum(self.trained_sizes)
        self.small = sum(size for size in self.sizes if size <= PERSISTENT)
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)  # DeepSpeed takes each as it comes

    def run(self, *, rows: int, row: int, dense: bool, plain: bool) -> tuple[int, int]:
        """Bytes kept by the forward pass of the body, and what the height of its backward pass adds to them."""
        shape = (1, rows * row) if self.in_blocks else (rows, row)
        if self.units is not None:
            self.units.expect((), *shape)
        body = getattr(self.base, self.base.base_model_prefix)
        ids = torch.zeros(shape, dtype=torch.long, device="meta")
        mask = torch.ones(rows, 1, row, row, dtype=torch.bool, device="meta") if dense else None
        if self.in_blocks:
            mask = torch.tensor([[[(rows, row)]]], dtype=torch.int32)
        inputs = {"input_ids": ids, "attention_mask": mask} | (
            {"position_ids": ids} if self.head else {}
        )  # as trainers.objectives passes them
        with sdpa_kernel(SDPBackend.MATH) if plain else _fused_attention(), Living(self.module, later_tokens(ids.device)) as living:
            try:
                hidden = body(**inputs, use_cache=False).last_hidden_state
                kept = living.bytes
                hidden.backward(torch.empty_like(hidden))
            except RuntimeError as error:  # torch's for a value or a kernel that is not there; NotImplementedError is one
                raise _NeedsData(str(error)) from error
        return kept, living.height - kept

    def run_head(self, tokens: int) -> int:
        """Bytes at the height of head and loss, forth and back, of so many tokens that are learnt."""
        objective = NextToken(self.module, self.base)
        with torch.device("meta"), Living(self.module) as living:
            hidden = torch.empty(tokens, self.base.config.get_text_config().hidden_size, dtype=self.base.dtype).requires_grad_()
            objective.summed_loss(hidden, torch.zeros(tokens, dtype=torch.long)).backward()
        return living.height


def _may_pack(config: TrainConfig) -> bool:
    return config.task != "classify" and not config.private_full and config.data.packing is not False


class Living(TorchDispatchMode):
    """Bytes of the tensors made within the block that still live, and their height. Parameters, buffers and `lasting` do not count."""

    def __init__(self, module: nn.Module, *lasting: torch.Tensor) -> None:
        super().__init__()
        self.bytes = self.height = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in [*module.parameters(), *module.buffers(), *lasting]:
            self._watch(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._watch(storage, storage.nbytes())
        return result

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        address = storage._cdata
        self._known[address] = weakref.ref(storage, lambda _: self._forget(address, size))
        self.bytes += size
        self.height = max(self.height, self.bytes)

    def _forget(self, address: int, size: int) -> None:
        del self._known[address]
        self.bytes -= size


def _in_every_block(method: Method, blocks: int) -> Method:
    """A module that is named with the number of its block is taken to be adapted in all: more than there is, and never less."""
    if not isinstance(method, LoraMethod) or isinstance(method.targets, str):
        return method
    targets = [_NUMBER.sub(f".{block}.", f".{target}")[1:] for target in method.targets for block in range(blocks)]
    return method.model_copy(update={"targets": list(dict.fromkeys(targets))})


def _new_head(base: Any, architectures: Sequence[str]) -> list[str]:
    """The layers besides the body, which begin at random and are trained whole, unless what is loaded is a classifier already."""
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return []
    names = {name.rpartition(".")[0] for name, _ in base.named_parameters()}
    return sorted(name for name in names if not name.startswith(f"{base.base_model_prefix}."))


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as the fused kernels keep it: no scores. Models that compute attention themselves are left as they are.

    torch's function is replaced, as a mode would not hold in what a backward pass computes again.
    """

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return _Fused.apply(query, key, value)

    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


class _Fused(torch.autograd.Function):
    """Keeps query, key, value, the output and the logarithm of each row's sum (Dao et al. 2022, algorithm 1; 2023, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, heads, length, _ = query.shape
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it out
        sums = query.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _line(heights: Sequence[int]) -> tuple[float, float]:
    """Bytes for each row or chunk, and those besides, from heights at _FEW and _MANY."""
    slope = (heights[1] - heights[0]) / (_MANY - _FEW)
    return slope, heights[0] - slope * _FEW
