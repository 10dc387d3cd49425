"""How widely a model attends, and how much to itself: entropy and self-attention, from the weights of every head.

In: examples. Out: additive sums per layer, and the numbers that they stand for. The weights of a head are recomputed
from queries and keys over the keys that the query may see, and are gone again before the next layer. Queries that hold
the mask and queries that see text are told apart; padding is left out.
Shapes: B rows, H heads, Q queries, K keys, N layers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from unmask import attention
from unmask.analysis.attention_maps import attention_weights
from unmask.models.backbone import ATTENTION_NAME, Backbone, unmask_attention
from unmask.objectives.example import Example

_MEASURING = "unmask_measuring"
_KINDS = ("masked", "visible")
_here = threading.local()  # several threads may run models


@torch.no_grad()
def attention_sums(backbone: Backbone, example: Example) -> Tensor:
    """The sums of one example, float64 [2 kinds of queries, N layers, 5].

    Of each layer's heads and queries: how many, entropy in nats, how many see more than one key, entropy over the log
    of their number, own weight times that number.
    """
    layout = example.layout
    sees_BQK = attention.sees(layout, layout)
    valid_BQ = (layout.document >= 0).expand(len(example.ids_BL), -1)
    masked_BQ = example.ids_BL == backbone.diffusion.mask_token_id
    with _measured(backbone, sees_BQK, torch.stack([valid_BQ & masked_BQ, valid_BQ & ~masked_BQ])) as found:
        backbone(example.ids_BL, layout.position_ids, attention.dense_mask(layout, layout))
    return torch.stack(found, dim=1)


def attention_figures(sums_2N5: Tensor) -> dict[str, float]:
    """The numbers that the sums stand for, by name; NaN where there were no such queries.

    attention/entropy: nats, over layers, heads and queries; attention/{masked,visible}_entropy of either kind.
    attention/entropy_share, attention/{masked,visible}_entropy_share: of ln(number of keys seen), which a uniform
        head has: 1; over queries that see more than one key.
    attention/self: weight on the query's own place times the number of keys seen, 1 for a uniform head; also for
        either kind of query, and for each layer: attention/layer_N_self.
    """
    made = _of(sums_2N5.sum(dim=(0, 1)), "attention/")
    for kind, sums_N5 in zip(_KINDS, sums_2N5, strict=True):
        made |= _of(sums_N5.sum(dim=0), f"attention/{kind}_")
    for layer, sums_5 in enumerate(sums_2N5.sum(dim=0)):
        made[f"attention/layer_{layer}_self"] = _of(sums_5, "")["self"]
    return made


def _of(sums_5: Tensor, prefix: str) -> dict[str, float]:
    count, entropy, several, share, own = sums_5.tolist()
    return {
        f"{prefix}entropy": entropy / count if count else math.nan,
        f"{prefix}entropy_share": share / several if several else math.nan,
        f"{prefix}self": own / count if count else math.nan,
    }


@contextmanager
def _measured(backbone: Backbone, sees_BQK: Tensor, kind_2BQ: Tensor) -> Iterator[list[Tensor]]:
    """The sums [2, 5] of every layer that the forwards inside go through."""
    _here.found, _here.seen_BQ, _here.kind_2BQ = [], sees_BQK.sum(dim=-1).double(), kind_2BQ
    backbone.network.set_attn_implementation(_MEASURING)
    try:
        with torch.compiler.set_stance(
            "force_eager"
        ):  # a compiled network would keep the function that it was built on
            yield _here.found
    finally:
        backbone.network.set_attn_implementation(ATTENTION_NAME)
        del _here.found, _here.seen_BQ, _here.kind_2BQ


def _measuring_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """The attention that the model has; its weights are summed up on the way."""
    weight_BHQK = attention_weights(query, key, attention_mask, options.get("scaling"))
    entropy_BQ = torch.special.entr(weight_BHQK).sum(dim=-1).double().sum(dim=1)
    own_BQ = weight_BHQK.diagonal(dim1=-2, dim2=-1).double().sum(dim=1)
    seen_BQ, heads = _here.seen_BQ, query.shape[1]
    several_BQ = seen_BQ > 1
    share_BQ = torch.where(several_BQ, entropy_BQ / seen_BQ.clamp(min=2).log(), 0.0)
    value_5BQ = torch.stack(
        [torch.full_like(own_BQ, heads), entropy_BQ, heads * several_BQ.double(), share_BQ, own_BQ * seen_BQ]
    )
    _here.found.append(torch.einsum("vbq,kbq->kv", value_5BQ, _here.kind_2BQ.double()))
    return unmask_attention(module, query, key, value, attention_mask, **options)


AttentionInterface.register(_MEASURING, _measuring_attention)
