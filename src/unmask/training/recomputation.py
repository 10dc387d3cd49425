"""What the backward pass recomputes instead of keeping it from the forward pass; gradients stay the same, bit for bit.

Kept are the inputs of the layers and, with `keep_products`, the results of matrix products and attention, as in
selective activation recomputation (Korthikanti et al., arXiv 2205.05198): norms, gates and rotations are cheap.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_grouped_mm")


def recompute(network: PreTrainedModel, *, keep_products: bool) -> None:
    """Make every layer keep only its input, or also its matrix products and attention."""
    options: dict[str, Any] = {"use_reentrant": False}
    if keep_products:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    # transformers renamed it; the old name warns on new versions, the new one is absent from old versions.
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable(options)


def _policy(context: object, operator: torch._ops.OpOverload, *args: object, **keywords: object) -> CheckpointPolicy:
    name = operator.name().partition(".")[0]
    kept = name in _PRODUCTS or "scaled_dot_product" in name
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
