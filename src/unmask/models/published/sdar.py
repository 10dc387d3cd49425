"""SDAR (arXiv 2510.06303): `SDARForCausalLM` is `Qwen3ForCausalLM` seen in blocks, `SDARMoeForCausalLM` Qwen3-MoE.

Covered: SDAR-1.7B, -4B and -8B-Chat, SDAR-30B-A3B-Chat and -Sci, in every block length. They continue Qwen3, whose
tensors, names and tokenizer they keep; the prediction for a token stands in its own place. The first published
configurations name neither block length nor mask token: 4 and 151669, `<|MASK|>`, the first id behind Qwen3's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from unmask.models.published.format import QWEN_KEYS, PublishedFormat

_CODE, _MOE_CODE = "JetLM/SDAR-4B-Chat--", "JetLM/SDAR-30B-A3B-Chat--"
_MASK = 151669


def _complete(said: dict[str, Any]) -> dict[str, Any]:
    heads = said["num_attention_heads"]
    return {
        **said,
        "head_dim": said["head_dim"] or said["hidden_size"] // heads,
        "num_key_value_heads": said["num_key_value_heads"] or heads,
    }


_SAME_NAME = (*QWEN_KEYS, "head_dim")
_MIXTURE = (
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
)
_DEFAULTS = {
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mask_token_id": _MASK,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}
_CONSTANTS = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "flex_attention",
    "debug": False,
    "ep_size": 1,
    "fuse_cross_entropy": True,
    "hidden_act": "silu",
    "micro_forward": False,
    "rope_scaling": None,
    "skip_checkpoint": False,
    "sliding_window": None,
    "transformers_version": "4.52.4",
    "use_cache": False,
    "use_deepep": False,
    "use_sliding_window": False,
}
_REFUSED = {
    "attention_bias": "query, key, value and output projections with biases",
    "hidden_act": "another activation in the MLP",
    "quantization_config": "quantised weights",
    "rope_parameters": "rotary settings in the words of transformers 5",
    "rope_scaling": "stretched rotary positions",
    "use_sliding_window": "attention within a window",
}

FORMAT = PublishedFormat(
    name="sdar",
    title="SDAR",
    model_type="sdar",
    architectures=("SDARForCausalLM",),
    family="qwen3",
    auto_map={
        "AutoConfig": f"{_CODE}configuration_sdar.SDARConfig",
        "AutoModel": f"{_CODE}modeling_sdar.SDARModel",
        "AutoModelForCausalLM": f"{_CODE}modeling_sdar.SDARForCausalLM",
    },
    keys={name: name for name in (*_SAME_NAME, "max_window_layers")},
    defaults={
        **_DEFAULTS,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "max_window_layers": 28,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
    },
    constants=_CONSTANTS,
    refused={**_REFUSED, "num_experts": "a mixture of experts, which has the model type sdar_moe"},
    complete=_complete,
    tokenizer_class="Qwen2Tokenizer",
    logit_shift=False,
    turn_ends={151643: 151645},  # <|endoftext|> -> <|im_end|>
    method="block_diffusion",
    block_length=4,
    mask_token_id=_MASK,
)

MIXTURE = dataclasses.replace(
    FORMAT,
    name="sdar_moe",
    title="SDAR-MoE",
    model_type="sdar_moe",
    architectures=("SDARMoeForCausalLM",),
    family="qwen3_moe",
    auto_map={
        "AutoConfig": f"{_MOE_CODE}configuration_sdar_moe.SDARMoeConfig",
        "AutoModel": f"{_MOE_CODE}modeling_sdar_moe.SDARMoeModel",
        "AutoModelForCausalLM": f"{_MOE_CODE}modeling_sdar_moe.SDARMoeForCausalLM",
    },
    keys={name: name for name in (*_SAME_NAME, *_MIXTURE)},
    defaults={
        **_DEFAULTS,
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
    constants={**_CONSTANTS, "decoder_sparse_step": 1, "mlp_only_layers": []},
    refused={
        **_REFUSED,
        "decoder_sparse_step": "layers without experts, which SGLang's network does not have",
        "mlp_only_layers": "layers without experts, which SGLang's network does not have",
    },
)
