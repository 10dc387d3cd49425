"""Tiny real networks of every family, from the stock configuration classes, with weights large enough to matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unmask.models.backbone import AttentionBackend, Backbone
from unmask.models.families import FAMILIES
from unmask.settings.model import DiffusionConfig

FAMILY_NAMES = ("llama", "qwen2", "qwen3", "qwen3_moe")
VOCABULARY = 40

# Between two computations of the same float64 numbers lie 1e-15, but the stock RMSNorm rounds through float32: about
# once in 1e9 elements such a difference crosses a rounding border and becomes 1e-7. What a wrong mask or a stale
# key changes in these networks is above 1e-4. Tests with random inputs divide the two here; fixed inputs use 1e-10.
BORDER = 1e-6

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}


def stock(family: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A stock network of two layers with random weights, in evaluation mode."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        **(_EXPERTS if family == "qwen3_moe" else {}),
        **overrides,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FAMILIES[family].model()(FAMILIES[family].config(**fields)).to(dtype).eval()
    if family == "qwen3_moe" and dtype == torch.float64:
        network.set_experts_implementation("eager")  # the stock grouped kernel takes no float64
    return network


def backbone(
    family: str = "qwen3",
    *,
    dtype: torch.dtype = torch.float64,
    attention_backend: AttentionBackend = "dense",
    mask_token_id: int | None = None,
    vocabulary_size: int = VOCABULARY,
    **overrides: Any,
) -> Backbone:
    """A tiny network under our rule; every id is predictable unless the arguments say otherwise."""
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=vocabulary_size, mask_token_id=mask_token_id)
    return Backbone(stock(family, dtype=dtype, **overrides), entry, attention_backend=attention_backend)


def random_ids(*shape: int, seed: int = 1) -> Tensor:
    """Token ids drawn uniformly."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
