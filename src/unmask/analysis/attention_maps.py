"""What a model attends to: a text in each layout of its method, the rule there, and the weights of every head.

In: a model and the token ids of a text. Out: `AttentionMap`s, one for each layout. Clean text stands as it is; what a
method predicts in that layout is masked. Decoding layouts show the last forward of a text whose last block is being
written; the rows of the text before it, whose keys the cache holds, are left out.
Shapes: L tokens of the text, Q queries, K keys, N layers, H heads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from unmask import attention
from unmask.attention import Layout
from unmask.errors import SettingsError, nearest
from unmask.models.backbone import ATTENTION_NAME, Backbone, unmask_attention
from unmask.settings.model import DEFAULT_BLOCK_LENGTH, DiffusionConfig

_RECORDING = "unmask_recording"
_here = threading.local()  # several threads may run models
SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class AttentionMap:
    """One layout of a text.

    Attributes:
        layout: its name.
        query_ids: input token of each row, int64 [Q].
        key_ids: input token of each column, int64 [K].
        sees_QK: the rule, bool.
        weights_NHQK: float32, of each layer and head; a row sums to 1. Empty where no network was asked.
    """

    layout: str
    query_ids: Tensor
    key_ids: Tensor
    sees_QK: Tensor
    weights_NHQK: Tensor


@dataclass(frozen=True)
class _Placed:
    """Input ids [1, K] with their layout; the first `cached` rows are not shown."""

    ids_1K: Tensor
    layout: Layout
    cached: int = 0


def layouts(entry: DiffusionConfig) -> tuple[str, ...]:
    """The names of the layouts that a method has."""
    return tuple(_LAYOUTS[entry.method])


def attention_map(
    backbone: Backbone, ids: list[int], layout: str, *, block_length: int | None = None, weights: bool = True
) -> AttentionMap:
    """A text in one layout of the model's method.

    Args:
        backbone: the model; with `weights` its network is evaluated once.
        ids: the text's tokens, at least one, and more than a block for the decoding layouts of block methods.
        layout: one of `layouts`.
        block_length: tokens of a block or of a draft; default: the checkpoint's.
        weights: whether to evaluate the network, or show the rule alone.

    Raises:
        SettingsError: the method has no such layout, or the text is too short for it.
    """
    entry = backbone.diffusion
    known = _LAYOUTS[entry.method]
    if layout not in known:
        raise SettingsError(f"{entry.method} has no layout `{layout}`. {nearest(layout, known)}")
    length = block_length or entry.block_length or DEFAULT_BLOCK_LENGTH
    mask = entry.mask_token_id
    placed = known[layout](torch.tensor([ids]), length, -1 if mask is None else mask)
    shown = placed.layout.columns(placed.cached, len(placed.layout))
    sees_QK = attention.sees(shown, placed.layout)[0]
    found = _weights(backbone, placed)[:, :, placed.cached :] if weights else torch.empty(0, 0, *sees_QK.shape)
    return AttentionMap(layout, placed.ids_1K[0, placed.cached :], placed.ids_1K[0], sees_QK, found)


def shaded(weights_QK: Tensor) -> str:
    """Weights as text, one line per query: the darker the sign, the larger the weight, in tenths of the largest."""
    levels_QK = (weights_QK / weights_QK.max().clamp(min=1e-30) * len(SHADES)).long().clamp(0, len(SHADES) - 1)
    return "\n".join("".join(SHADES[level] for level in row) for row in levels_QK.tolist())


# --- layouts ----------------------------------------------------------------------------------------------------------


def _document(ids_1L: Tensor) -> Tensor:
    return torch.zeros_like(ids_1L)


def _last_block(ids_1L: Tensor, block_length: int, what: str) -> int:
    """Where the last `block_length` tokens begin; something must stand before them."""
    start = ids_1L.shape[1] - block_length
    if start < 1:
        raise SettingsError(
            f"{what} shows a text and a block of {block_length} behind it, got {ids_1L.shape[1]} tokens. Give a longer "
            "text or a smaller --block-length."
        )
    return start


def _causal(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    return _Placed(ids_1L, attention.causal(_document(ids_1L)))


def _canvas(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    return _Placed(torch.full_like(ids_1L, mask), attention.bidirectional(_document(ids_1L)))


def _blocks_training(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    noisy_1L = torch.full_like(ids_1L, mask)
    layout = attention.block_diffusion_training(_document(ids_1L), block_length)
    return _Placed(torch.cat([noisy_1L, ids_1L], dim=1), layout)


def _blocks_step(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    """The fused forward: the last clean block writes its keys, the block behind it is masked."""
    start = (ids_1L.shape[1] - 1) // block_length * block_length
    if start < block_length:
        raise SettingsError(
            f"step shows two blocks of {block_length}, got {ids_1L.shape[1]} tokens. Give a longer text or a smaller "
            "--block-length."
        )
    masks_1K = torch.full((1, block_length), mask)
    ids_1K = torch.cat([ids_1L[:, :start], masks_1K], dim=1)
    return _Placed(ids_1K, attention.block_causal(_document(ids_1K), block_length), cached=start - block_length)


def _tidar_training(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    masks_1L = torch.full_like(ids_1L, mask)
    return _Placed(torch.cat([ids_1L, masks_1L], dim=1), attention.tidar_training(_document(ids_1L), block_length))


def _tidar_split(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    start = _last_block(ids_1L, block_length, "split")
    ids_1K = ids_1L.clone()
    ids_1K[:, start:] = mask
    return _Placed(ids_1K, attention.tidar_split(_document(ids_1L), start, block_length))


def _tidar_prefill(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    length = ids_1L.shape[1]
    layout = attention.tidar_prefill(torch.tensor([length]), length, block_length)
    return _Placed(torch.cat([ids_1L, torch.full((1, block_length), mask)], dim=1), layout)


def _tidar_step(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    """The last tokens of the text are the draft; behind it a block of masks for each number of accepted tokens."""
    start = _last_block(ids_1L, block_length, "step")
    masks = torch.full((1, block_length**2), mask)
    layout = attention.joined(
        [attention.causal(_document(ids_1L[:, :start])), attention.tidar_step(torch.tensor([start]), block_length)]
    )
    return _Placed(torch.cat([ids_1L, masks], dim=1), layout, cached=start)


def _tidar_linear(ids_1L: Tensor, block_length: int, mask: int) -> _Placed:
    start = ids_1L.shape[1] - 1
    if start < 1:
        raise SettingsError("linear shows a text and the token behind it, got 1 token. Give a longer text.")
    masks = torch.full((1, block_length - 1), mask)
    layout = attention.joined(
        [attention.causal(_document(ids_1L[:, :start])), attention.tidar_linear(torch.tensor([start]), block_length)]
    )
    return _Placed(torch.cat([ids_1L, masks], dim=1), layout, cached=start)


_LAYOUTS: dict[str, dict[str, Callable[[Tensor, int, int], _Placed]]] = {
    "autoregressive": {"causal": _causal},
    "masked_diffusion": {"canvas": _canvas},
    "block_diffusion": {"training": _blocks_training, "step": _blocks_step},
    "tidar": {
        "training": _tidar_training,
        "split": _tidar_split,
        "prefill": _tidar_prefill,
        "step": _tidar_step,
        "linear": _tidar_linear,
        "causal": _causal,
    },
}


# --- weights ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _weights(backbone: Backbone, placed: _Placed) -> Tensor:
    """The attention weights [N, H, K, K] of one forward of the whole layout."""
    layout = placed.layout.to(backbone.device)
    with _recorded(backbone) as found:
        backbone(placed.ids_1K.to(backbone.device), layout.position_ids, attention.dense_mask(layout, layout))
    return torch.stack([one[0] for one in found])


@contextmanager
def _recorded(backbone: Backbone) -> Iterator[list[Tensor]]:
    """Every attention layer's weights [B, H, Q, K], in float32, of the forwards inside."""
    _here.found = []
    backbone.network.set_attn_implementation(_RECORDING)
    try:
        yield _here.found
    finally:
        backbone.network.set_attn_implementation(ATTENTION_NAME)
        del _here.found


def attention_weights(query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> Tensor:
    """The weights by their definition, in float32 (float64 for float64), [B, H, Q, K].

    Args:
        query: [B, H, Q, D].
        key: [B, Hkv, K, D], where Hkv divides H.
        mask: bool [B or 1, 1, Q, K], True where a query sees a key, or None.
        scaling: of the scores; default 1 / sqrt(D).
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    key_BHKD = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    with torch.autocast(query.device.type, enabled=False):  # it would round the scores, whatever their inputs are
        scores_BHQK = query.to(dtype) @ key_BHKD.to(dtype).transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
        if mask is not None:
            scores_BHQK = scores_BHQK.masked_fill(~mask, -torch.inf)
        return scores_BHQK.softmax(dim=-1)


def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """The attention that the model has, and beside it its weights by their definition."""
    _here.found.append(attention_weights(query, key, attention_mask, options.get("scaling")).float().cpu())
    return unmask_attention(module, query, key, value, attention_mask, **options)


AttentionInterface.register(_RECORDING, _recording_attention)
