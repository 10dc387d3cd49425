"""LLaDA's and Dream's networks under their published names, written out head by head in plain tensors.

A checkpoint is a dict of tensors and a dict of configuration keys, both as published. Everything is float64, but for
two places where the originals (and the stock classes) go through float32: the square mean of RMSNorm and the angles of
the rotary positions. Nothing here shares code with the library.
Shapes: L length, D width, E head width, F MLP width, V rows of the head.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Config = Mapping[str, Any]


def rms_norm(x_LD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    single = x_LD.float()
    scale = torch.rsqrt(single.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return weight_D * (single * scale).to(x_LD.dtype)


def rotated(x_LE: Tensor, theta: float) -> Tensor:
    """Channel i turns with channel i + E/2, by position * theta^(-2i/E)."""
    length, width = x_LE.shape
    half = width // 2
    speeds = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * speeds
    cosines, sines = torch.cos(angles).to(x_LE.dtype), torch.sin(angles).to(x_LE.dtype)
    turned = torch.empty_like(x_LE)
    for channel in range(half):
        cosine, sine = cosines[:, channel], sines[:, channel]
        turned[:, channel] = x_LE[:, channel] * cosine - x_LE[:, channel + half] * sine
        turned[:, channel + half] = x_LE[:, channel + half] * cosine + x_LE[:, channel] * sine
    return turned


def attention(q_LD: Tensor, k_LK: Tensor, v_LK: Tensor, heads: int, kv_heads: int, theta: float) -> Tensor:
    """Every place sees every place; `heads / kv_heads` query heads share one key head."""
    width = q_LD.shape[1] // heads
    outputs = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        q_LE = rotated(q_LD[:, head * width : (head + 1) * width], theta)
        k_LE = rotated(k_LK[:, shared * width : (shared + 1) * width], theta)
        v_LE = v_LK[:, shared * width : (shared + 1) * width]
        scores_LL = q_LE @ k_LE.T / math.sqrt(width)
        powers_LL = torch.exp(scores_LL - scores_LL.max(dim=1, keepdim=True).values)
        outputs.append(powers_LL / powers_LL.sum(dim=1, keepdim=True) @ v_LE)
    return torch.cat(outputs, dim=1)


def gated(x_LD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """SwiGLU: the sigmoid-weighted gate times the other projection."""
    gate_LF = x_LD @ gate_FD.T
    return (gate_LF * torch.sigmoid(gate_LF) * (x_LD @ up_FD.T)) @ down_DF.T


def llada_logits(tensors: Tensors, config: Config, ids: list[int]) -> Tensor:
    """Logits [L, V]; row i predicts token i."""
    at = "model.transformer."
    x_LD = tensors[at + "wte.weight"][ids]
    for layer in range(config["n_layers"]):
        block = f"{at}blocks.{layer}."
        normed = rms_norm(x_LD, tensors[block + "attn_norm.weight"], config["rms_norm_eps"])
        q, k, v = (normed @ tensors[f"{block}{name}_proj.weight"].T for name in "qkv")
        mixed = attention(q, k, v, config["n_heads"], config["n_kv_heads"], config["rope_theta"])
        x_LD = x_LD + mixed @ tensors[block + "attn_out.weight"].T
        normed = rms_norm(x_LD, tensors[block + "ff_norm.weight"], config["rms_norm_eps"])
        weights = (tensors[f"{block}{name}.weight"] for name in ("ff_proj", "up_proj", "ff_out"))
        x_LD = x_LD + gated(normed, *weights)
    x_LD = rms_norm(x_LD, tensors[at + "ln_f.weight"], config["rms_norm_eps"])
    return x_LD @ tensors[at + ("wte.weight" if config["weight_tying"] else "ff_out.weight")].T


def dream_logits(tensors: Tensors, config: Config, ids: list[int]) -> Tensor:
    """Logits [L, V] before Dream's shift; row i - 1 predicts token i."""
    x_LD = tensors["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        normed = rms_norm(x_LD, tensors[block + "input_layernorm.weight"], config["rms_norm_eps"])
        own = block + "self_attn."
        q, k, v = (normed @ tensors[f"{own}{n}_proj.weight"].T + tensors[f"{own}{n}_proj.bias"] for n in "qkv")
        heads = (config["num_attention_heads"], config["num_key_value_heads"])
        x_LD = x_LD + attention(q, k, v, *heads, config["rope_theta"]) @ tensors[own + "o_proj.weight"].T
        normed = rms_norm(x_LD, tensors[block + "post_attention_layernorm.weight"], config["rms_norm_eps"])
        x_LD = x_LD + gated(normed, *(tensors[f"{block}mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))
    x_LD = rms_norm(x_LD, tensors["model.norm.weight"], config["rms_norm_eps"])
    return x_LD @ tensors["lm_head.weight"].T
