"""The Llama that peers.py and scaling.py train: 6 layers, 256 wide, random weights, a tokenizer made on the spot."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

LAYERS, WIDTH = 6, 256


def write_llama(folder: Path, texts: Iterable[str], *, vocabulary: int) -> Any:
    """Model and tokenizer to a folder; the tokenizer, which knows at most so many words of the texts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainers.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts, folder, vocabulary=vocabulary)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=688,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder)
    return tokenizer
