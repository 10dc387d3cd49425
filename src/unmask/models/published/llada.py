"""LLaDA (arXiv 2502.09992): `LLaDAModelLM` with Llama blocks is `LlamaForCausalLM` under other names.

Covered: LLaDA-8B-Base, -Instruct and LLaDA-1.5, and smaller networks of the same class. Both rotate half the head, so
nothing is permuted; `ff_proj` is the gate. The class's other options (fused or parallel blocks, ALiBi, biases, layer
norms of other kinds) are other networks, and refused.
"""

from __future__ import annotations

from typing import Any

from unmask.models.published.format import PublishedFormat

_CODE = "GSAI-ML/LLaDA-8B-Instruct--"


def _complete(said: dict[str, Any]) -> dict[str, Any]:
    rows = said["embedding_size"] or said["vocab_size"]
    return {
        **said,
        "embedding_size": rows,
        "mlp_hidden_size": said["mlp_hidden_size"] or said["mlp_ratio"] * said["d_model"],
        "n_kv_heads": said["n_kv_heads"] or said["n_heads"],
    }


FORMAT = PublishedFormat(
    name="llada",
    title="LLaDA",
    model_type="llada",
    architectures=("LLaDAModelLM",),
    family="llama",
    auto_map={
        "AutoConfig": f"{_CODE}configuration_llada.LLaDAConfig",
        "AutoModel": f"{_CODE}modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": f"{_CODE}modeling_llada.LLaDAModelLM",
    },
    keys={
        "d_model": "hidden_size",
        "embedding_size": "vocab_size",
        "init_std": "initializer_range",
        "max_sequence_length": "max_position_embeddings",
        "mlp_hidden_size": "intermediate_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "rms_norm_eps": "rms_norm_eps",
        "weight_tying": "tie_word_embeddings",
    },
    # The original's class starts from GPT-2, so a file that leaves out its block type means another network.
    defaults={
        "activation_type": "swiglu",
        "block_group_size": 1,
        "block_type": "sequential",
        "d_model": 768,
        "embedding_size": 50304,
        "eos_token_id": 50256,
        "init_std": 0.02,
        "layer_norm_type": "default",
        "layer_norm_with_affine": True,
        "mask_token_id": 50256,
        "max_sequence_length": 1024,
        "mlp_hidden_size": None,
        "mlp_ratio": 4,
        "n_heads": 12,
        "n_kv_heads": None,
        "n_layers": 12,
        "pad_token_id": 50256,
        "rms_norm_eps": 1e-5,
        "rope": False,
        "rope_theta": 10000.0,
        "vocab_size": 50257,
        "weight_tying": True,
    },
    constants={
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "embedding_dropout": 0.0,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rope": True,
        "rope_full_precision": True,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
    },
    refused={
        "activation_type": "an MLP without a separate gate of that kind",
        "alibi": "positions by attention biases in place of rotations",
        "attention_layer_norm": "normalised queries and keys",
        "bias_for_layer_norm": "norms with biases",
        "block_group_size": "tensors under `block_groups`",
        "block_type": "blocks with fused projections",
        "clip_qkv": "clipped queries, keys and values",
        "include_bias": "linear layers with biases",
        "include_qkv_bias": "query, key and value projections with biases",
        "input_emb_norm": "scaled input embeddings",
        "layer_norm_type": "another kind of layer norm",
        "layer_norm_with_affine": "norms without weights",
        "multi_query_attention": "one key and value head for all queries",
        "num_experts": "a mixture of experts",
        "quantization_config": "quantised weights",
        "rope_parameters": "rotary settings in the words of transformers 5",
        "rope": "no rotary positions",
        "scale_logits": "logits divided by the root of the width",
    },
    tensors={
        "model.transformer.wte.weight": "model.embed_tokens.weight",
        "model.transformer.blocks.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
        "model.transformer.blocks.{}.q_proj.weight": "model.layers.{}.self_attn.q_proj.weight",
        "model.transformer.blocks.{}.k_proj.weight": "model.layers.{}.self_attn.k_proj.weight",
        "model.transformer.blocks.{}.v_proj.weight": "model.layers.{}.self_attn.v_proj.weight",
        "model.transformer.blocks.{}.attn_out.weight": "model.layers.{}.self_attn.o_proj.weight",
        "model.transformer.blocks.{}.ff_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
        "model.transformer.blocks.{}.ff_proj.weight": "model.layers.{}.mlp.gate_proj.weight",
        "model.transformer.blocks.{}.up_proj.weight": "model.layers.{}.mlp.up_proj.weight",
        "model.transformer.blocks.{}.ff_out.weight": "model.layers.{}.mlp.down_proj.weight",
        "model.transformer.ln_f.weight": "model.norm.weight",
        "model.transformer.ff_out.weight": "lm_head.weight",
    },
    complete=_complete,
    tokenizer_class="PreTrainedTokenizerFast",
    logit_shift=False,
    turn_ends={126081: 126348},  # <|endoftext|> -> <|eot_id|>
)
