"""A model that leaves the gradients of what is trained unit by unit (privacy.dp_lora), for a private run and for counting its memory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from privacy.dp_lora import UnitGradients, capture
from privacy.errors import PlanError


def to_float32(module: nn.Module) -> None:
    """What is trained, beside a base in another precision: a private gradient is summed and stepped in float32."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def gradients_by_unit(
    module: nn.Module, base: Any, trained: Mapping[str, nn.Parameter], whole: Mapping[str, torch.Tensor], device: torch.device
) -> UnitGradients:
    """Where the passes of `module` leave the gradients of `trained` parameters from now on; `whole` is what they compute with.

    `base` is the Hugging Face model within. Raises PlanError where the model mixes examples, or trains what is not seen by unit.
    """
    head = base.get_output_embeddings()
    if head is not None and any(parameter.requires_grad for parameter in head.parameters()):
        raise PlanError("the head is trained, which sees some of the tokens only: whose is unknown", "leave it out of method.targets")
    gradients = UnitGradients({name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in trained.items()}, device)
    capture(module, trained, gradients, whole)
    base.get_input_embeddings().register_forward_hook(_require_gradient)
    return gradients


def _require_gradient(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """The backward pass needs a beginning: no weight below the adapters is trained."""
    return output.requires_grad_() if torch.is_grad_enabled() and output.is_leaf else output
