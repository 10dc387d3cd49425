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


def llada(**changes: Any) -> dict[str, Any]:
    """The published LLaDA configuration, made tiny and changed."""
    return {**LLADA_8B, **TINY_LLADA, **changes}


def dream(**changes: Any) -> dict[str, Any]:
    """The published Dream configuration, made tiny and changed."""
    return {**DREAM_7B, **TINY_DREAM, **changes}


def random_tensors(config: dict[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Float64 tensors of a published configuration, under their published names."""
    shapes = _llada_shapes(config) if config["model_type"] == "llada" else _dream_shapes(config)
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
