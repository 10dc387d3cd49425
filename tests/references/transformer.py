"""Llama, Qwen2 and Qwen3 by hand: a bidirectional float64 forward of one row that shows its keys and values.

Weights come from the state dict of a stock `transformers` network. Keys and values of other tokens can be passed in,
so that stale caches are emulated exactly. Nothing here shares code with the library or with transformers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Context = list[tuple[Tensor, Tensor]]
Network = Callable[[list[int], list[int], Context | None], "Forward"]


class Shape(NamedTuple):
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    eps: float
    theta: float


class Forward(NamedTuple):
    """`logits` [L, V]; for each layer keys (after the rotary embedding) and values, [L, key heads, head width]."""

    logits: Tensor
    layers: Context


def shape_of(config: Any) -> Shape:
    """The numbers of a stock configuration that the forward needs."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        head_dim,
        config.rms_norm_eps,
        config.rope_parameters["rope_theta"],
    )


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].double().T
    return y + state[f"{name}.bias"].double() if f"{name}.bias" in state else y


def rms_norm(x: Tensor, weight: Tensor, eps: float, rounding: torch.dtype) -> Tensor:
    rounded = x.to(rounding)
    scaled = rounded * torch.rsqrt(rounded.pow(2).mean(dim=-1, keepdim=True) + eps)
    return weight.double() * scaled.double()


def rotate(x: Tensor, positions: list[int], theta: float, rounding: torch.dtype) -> Tensor:
    """Rotary embedding of [L, heads, D]: coordinates j and j + D/2 turn by position * theta^(-2j/D)."""
    width = x.shape[-1]
    rates = 1.0 / theta ** (torch.arange(0, width, 2, dtype=rounding) / width)
    angles = torch.tensor(positions, dtype=rounding)[:, None] * rates
    cosine, sine = angles.cos().double()[:, None], angles.sin().double()[:, None]
    low, high = x[..., : width // 2], x[..., width // 2 :]
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Every query [L, H, D] attends to all visible keys [M, K, D]; consecutive H // K heads share a key head."""
    length, heads, width = query.shape
    group = heads // key.shape[1]
    outputs: list[Tensor] = []
    for head in range(heads):
        scores = query[:, head] @ key[:, head // group].T / width**0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        outputs.append(weights @ value[:, head // group])
    return torch.stack(outputs, dim=1).reshape(length, heads * width)


def forward(
    state: Mapping[str, Tensor],
    shape: Shape,
    ids: list[int],
    positions: list[int],
    context: Context | None = None,
    *,
    visible: list[bool] | None = None,
    rounding: torch.dtype = torch.float32,
) -> Forward:
    """Logits, keys and values of `ids` at `positions`; they see each other and, in each layer, `context`.

    `context[layer]` = (keys after the rotary embedding, values), as a former `Forward` returned them. `visible` hides
    some of `ids` from everybody (padding). `rounding`: the stock classes compute norms and rotary angles in float32
    whatever their weights; float64 gives the function without this rounding (1e-6 away).
    """
    seen = torch.tensor(visible if visible is not None else [True] * len(ids))
    x = state["model.embed_tokens.weight"].double()[ids]
    layers: Context = []
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        normed = rms_norm(x, state[f"{prefix}.input_layernorm.weight"], shape.eps, rounding)
        heads: dict[str, Tensor] = {}
        for name, count in (("q", shape.heads), ("k", shape.key_heads), ("v", shape.key_heads)):
            flat = linear(state, f"{prefix}.self_attn.{name}_proj", normed)
            heads[name] = flat.reshape(len(ids), count, shape.head_dim)
            if f"{prefix}.self_attn.{name}_norm.weight" in state:  # Qwen3
                weight = state[f"{prefix}.self_attn.{name}_norm.weight"]
                heads[name] = rms_norm(heads[name], weight, shape.eps, rounding)
        query, key = (rotate(heads[name], positions, shape.theta, rounding) for name in ("q", "k"))
        layers.append((key, heads["v"]))
        old_key, old_value = context[layer] if context is not None else (key[:0], heads["v"][:0])
        mixed = attend(
            query,
            torch.cat([old_key, key]),
            torch.cat([old_value, heads["v"]]),
            torch.cat([torch.ones(len(old_key), dtype=torch.bool), seen]),
        )
        x = x + linear(state, f"{prefix}.self_attn.o_proj", mixed)
        normed = rms_norm(x, state[f"{prefix}.post_attention_layernorm.weight"], shape.eps, rounding)
        gate = linear(state, f"{prefix}.mlp.gate_proj", normed)
        gated = gate / (1.0 + torch.exp(-gate)) * linear(state, f"{prefix}.mlp.up_proj", normed)
        x = x + linear(state, f"{prefix}.mlp.down_proj", gated)
    x = rms_norm(x, state["model.norm.weight"], shape.eps, rounding)
    return Forward(linear(state, "lm_head", x), layers)


def picked(layers: Context, positions: list[int]) -> Context:
    """Keys and values of some positions of a forward over the whole canvas."""
    return [(key[positions], value[positions]) for key, value in layers]


def network_of(model: Any, rounding: torch.dtype = torch.float32) -> Network:
    """A stock network as a function of (ids, positions, context)."""
    state, shape = model.state_dict(), shape_of(model.config)

    def network(ids: list[int], positions: list[int], context: Context | None) -> Forward:
        return forward(state, shape, ids, positions, context, rounding=rounding)

    return network
