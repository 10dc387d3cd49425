"""Tiny stock networks with random float64 weights, straight from transformers."""

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # biases on q, k and v
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),  # norms on q and k
}
IDS = [3, 11, 0, 7, 7, 12, 5, 1, 9]
MASK = 12


def stock(family: str) -> Any:
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=13,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-5,
        initializer_range=0.4,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = model_class(config).double().eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model
