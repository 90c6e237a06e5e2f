"""The Llama that benchmarks train: 6 layers, 256 wide, random weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_llama(folder: Path, texts: Iterable[str], *, vocabulary: int, **others: Any) -> Any:
    """Model and tokenizer to a folder; the tokenizer, which is made on the spot and knows at most so many words of the texts."""
    from trainers.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts, folder, vocabulary=vocabulary)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_weights(folder, vocabulary=len(tokenizer), **tokens, **others)
    return tokenizer


def write_weights(folder: Path, *, vocabulary: int, **others: Any) -> None:
    """The model alone. `others` are as LlamaConfig has them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4,
                             "num_key_value_heads": 2, "max_position_embeddings": 1024}  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape | others)).save_pretrained(folder)
