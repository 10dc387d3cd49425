"""LLaDA's, Dream's and SDAR's networks under their published names, written out head by head in plain tensors.

A checkpoint is a dict of tensors and a dict of configuration keys, both as published. Everything is float64, but for
three places where the originals (and the stock classes) go through float32: the square mean of RMSNorm, the angles of
the rotary positions and the probabilities of experts. Nothing here shares code with the library.
Shapes: L length, D width, E head width, F MLP width, V rows of the head, X experts.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.masks import Mask

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


def attention(
    q_LD: Tensor, k_LK: Tensor, v_LK: Tensor, heads: int, kv_heads: int, theta: float, sees: Mask | None = None
) -> Tensor:
    """Place q sees place k where `sees[q][k]`, by default all; `heads / kv_heads` query heads share a key head."""
    hidden_LL = torch.zeros(len(q_LD), len(q_LD), dtype=torch.bool) if sees is None else ~torch.tensor(sees)
    width = q_LD.shape[1] // heads
    outputs = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        q_LE = rotated(q_LD[:, head * width : (head + 1) * width], theta)
        k_LE = rotated(k_LK[:, shared * width : (shared + 1) * width], theta)
        v_LE = v_LK[:, shared * width : (shared + 1) * width]
        scores_LL = (q_LE @ k_LE.T / math.sqrt(width)).masked_fill(hidden_LL, -math.inf)
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


def normed_heads(x_LD: Tensor, weight_E: Tensor, epsilon: float) -> Tensor:
    """Every head of every place normalised by itself, with one weight for all heads."""
    x_LHE = x_LD.reshape(len(x_LD), -1, len(weight_E))
    return rms_norm(x_LHE, weight_E, epsilon).reshape(x_LD.shape)


def mixture(tensors: Tensors, block: str, x_LD: Tensor, config: Config) -> Tensor:
    """Each place by itself: its most likely experts, each times its probability (of those chosen, if so configured)."""
    outputs = []
    for x_D in x_LD:
        odds_X = tensors[block + "mlp.gate.weight"] @ x_D
        share_X = torch.softmax(odds_X.float(), dim=0)
        chosen = sorted(range(len(odds_X)), key=lambda expert: -float(share_X[expert]))[: config["num_experts_per_tok"]]
        whole = share_X[chosen].sum() if config["norm_topk_prob"] else 1.0
        total_D = torch.zeros_like(x_D)
        for expert in chosen:
            weights = (tensors[f"{block}mlp.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down"))
            total_D += gated(x_D[None], *weights)[0] * (share_X[expert] / whole).to(x_D.dtype)
        outputs.append(total_D)
    return torch.stack(outputs)


def sdar_logits(tensors: Tensors, config: Config, ids: list[int], sees: Mask) -> Tensor:
    """Logits [L, V] of SDAR, dense or with experts, under a mask; row i predicts token i."""
    epsilon, heads = config["rms_norm_eps"], (config["num_attention_heads"], config["num_key_value_heads"])
    x_LD = tensors["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        own = block + "self_attn."
        normed = rms_norm(x_LD, tensors[block + "input_layernorm.weight"], epsilon)
        q, k, v = (normed @ tensors[f"{own}{name}_proj.weight"].T for name in "qkv")
        q, k = (normed_heads(x, tensors[f"{own}{name}_norm.weight"], epsilon) for x, name in ((q, "q"), (k, "k")))
        x_LD = x_LD + attention(q, k, v, *heads, config["rope_theta"], sees) @ tensors[own + "o_proj.weight"].T
        normed = rms_norm(x_LD, tensors[block + "post_attention_layernorm.weight"], epsilon)
        if "num_experts" in config:
            x_LD = x_LD + mixture(tensors, block, normed, config)
        else:
            x_LD = x_LD + gated(normed, *(tensors[f"{block}mlp.{name}_proj.weight"] for name in ("gate", "up", "down")))
    x_LD = rms_norm(x_LD, tensors["model.norm.weight"], epsilon)
    return x_LD @ tensors["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T
