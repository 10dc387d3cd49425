"""Tiny checkpoints as published: the real configurations made small, random tensors under the published names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# config.json of GSAI-ML/LLaDA-8B-Base and -Instruct, key for key.
LLADA_8B: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
# config.json of Dream-org/Dream-v0-Base-7B and -Instruct-7B.
DREAM_7B: dict[str, Any] = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
# config.json of JetLM/SDAR-4B-Chat as its authors' training repository has it; the first one published lacks block_size
# and mask_token_id.
SDAR_4B: dict[str, Any] = {
    "architectures": ["SDARForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_sdar.SDARConfig",
        "AutoModel": "modeling_sdar.SDARModel",
        "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "flex_attention",
    "bos_token_id": 151643,
    "debug": False,
    "eos_token_id": 151643,
    "block_size": 4,
    "mask_token_id": 151669,
    "ep_size": 1,
    "fuse_cross_entropy": True,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 9728,
    "max_position_embeddings": 32768,
    "max_window_layers": 36,
    "micro_forward": False,
    "model_type": "sdar",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "skip_checkpoint": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.52.4",
    "use_cache": False,
    "use_deepep": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# SDAR-30B-A3B-Chat: Qwen3-30B-A3B's sizes under SDAR's names; its own config.json was not at hand.
SDAR_30B_A3B: dict[str, Any] = {
    **{key: value for key, value in SDAR_4B.items() if key != "max_window_layers"},
    "architectures": ["SDARMoeForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_sdar_moe.SDARMoeConfig",
        "AutoModel": "modeling_sdar_moe.SDARMoeModel",
        "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM",
    },
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
ROWS, MASK, END = 40, 37, 35
TINY_LLADA = {
    "d_model": 32,
    "embedding_size": ROWS,
    "eos_token_id": END,
    "mask_token_id": MASK,
    "max_sequence_length": 64,
    "mlp_hidden_size": 48,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "pad_token_id": END,
    "torch_dtype": "float64",
    "vocab_size": ROWS,
}
TINY_DREAM = {
    "bos_token_id": END,
    "eos_token_id": END,
    "hidden_size": 32,
    "intermediate_size": 48,
    "mask_token_id": MASK,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": END,
    "torch_dtype": "float64",
    "vocab_size": ROWS,
}
TINY_SDAR = {
    "bos_token_id": END,
    "eos_token_id": END,
    "head_dim": 12,
    "hidden_size": 32,
    "intermediate_size": 48,
    "mask_token_id": MASK,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "torch_dtype": "float64",
    "vocab_size": ROWS,
}
# SDAR's readers know its mask token by the id alone, so what is written for them has the real vocabulary.
SDAR_IDS = {
    **{key: SDAR_4B[key] for key in ("bos_token_id", "eos_token_id", "mask_token_id", "vocab_size")},
    "head_dim": 4,
    "hidden_size": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TINY_EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}


def llada(**changes: Any) -> dict[str, Any]:
    """The published LLaDA configuration, made tiny and changed."""
    return {**LLADA_8B, **TINY_LLADA, **changes}


def dream(**changes: Any) -> dict[str, Any]:
    """The published Dream configuration, made tiny and changed."""
    return {**DREAM_7B, **TINY_DREAM, **changes}


def sdar(**changes: Any) -> dict[str, Any]:
    """The published SDAR configuration, made tiny and changed."""
    return {**SDAR_4B, **TINY_SDAR, **changes}


def sdar_moe(**changes: Any) -> dict[str, Any]:
    """A published SDAR configuration with experts, made tiny and changed."""
    return {**SDAR_30B_A3B, **TINY_SDAR, **TINY_EXPERTS, **changes}


def random_tensors(config: dict[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Float64 tensors of a published configuration, under their published names."""
    shapes = _SHAPES[config["model_type"]](config)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 + ("norm" in name or "ln_f" in name)
        for name, shape in shapes.items()
    }


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, shards: int = 1) -> Path:
    """A checkpoint folder: one file, or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    places: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _llada_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp, rows = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    keys = width // config["n_heads"] * config["n_kv_heads"]
    shapes: dict[str, tuple[int, ...]] = {"wte": (rows, width), "ln_f": (width,)}
    if not config["weight_tying"]:
        shapes["ff_out"] = (rows, width)
    for layer in range(config["n_layers"]):
        block = {"attn_norm": (width,), "ff_norm": (width,), "ff_proj": (mlp, width), "up_proj": (mlp, width)}
        block |= {"q_proj": (width, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        block |= {"attn_out": (width, width), "ff_out": (width, mlp)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return {f"model.transformer.{name}.weight": shape for name, shape in shapes.items()}


def _dream_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (rows, width),
    }
    for layer in range(config["num_hidden_layers"]):
        block = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
        for name, out in (("q", width), ("k", keys), ("v", keys)):
            block |= {f"self_attn.{name}_proj.weight": (out, width), f"self_attn.{name}_proj.bias": (out,)}
        block |= {"self_attn.o_proj.weight": (width, width), "mlp.gate_proj.weight": (mlp, width)}
        block |= {"mlp.up_proj.weight": (mlp, width), "mlp.down_proj.weight": (width, mlp)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


def _sdar_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, head, rows = config["hidden_size"], config["head_dim"], config["vocab_size"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, width)
    for layer in range(config["num_hidden_layers"]):
        block = {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        block |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,), "self_attn.o_proj": (width, queries)}
        block |= {"self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width)}
        block |= {"self_attn.v_proj": (keys, width)} | _sdar_mlp_shapes(config)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def _sdar_mlp_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["hidden_size"]
    if "num_experts" not in config:
        wide = config["intermediate_size"]
        return {"mlp.gate_proj": (wide, width), "mlp.up_proj": (wide, width), "mlp.down_proj": (width, wide)}
    narrow = config["moe_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"mlp.gate": (config["num_experts"], width)}
    for expert in range(config["num_experts"]):
        matrices = {"gate_proj": (narrow, width), "up_proj": (narrow, width), "down_proj": (width, narrow)}
        shapes |= {f"mlp.experts.{expert}.{name}": shape for name, shape in matrices.items()}
    return shapes


_SHAPES = {"llada": _llada_shapes, "Dream": _dream_shapes, "sdar": _sdar_shapes, "sdar_moe": _sdar_shapes}
