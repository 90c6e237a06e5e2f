"""Model FLOPs of a training token, and what the hardware could do: for MFU (Chowdhery et al. 2022, appendix B)."""

import torch

FORMULAS = {
    "full": "6 N + 3 a: forward 2 N, gradients of activations 2 N and of weights 2 N; a is attention's forward",
    "lora": "4 N + 3 a + 6 N_adapter: the frozen weights need no gradient of their own",
}

# dense bf16 FLOP/s, by a part of the device's name; vendors' data sheets
_PEAKS = (("H200", 989e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("4090", 165e12), ("B200", 2250e12))


def flops_per_token(*, linear: int, adapter: int, attention_width: int, layers: int, length: float, full: bool) -> float:
    """FLOPs of forward and backward for one token.

    `linear` counts the weights of linear layers and the head, `adapter` the adapters'; attention is causal over documents of `length`
    tokens: 4 * length * width * layers / 2 in the forward pass.
    """
    attention = 2 * length * attention_width * layers
    return (6 if full else 4) * linear + 3 * attention + 6 * adapter


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name, None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """As peak_flops, for a device of this name."""
    return next((peak for part, peak in _PEAKS if part in name), None)
