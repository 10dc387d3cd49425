"""The seam between Unmask and `transformers`: token ids in, hidden states out, logits only where somebody asks.

The network is a stock class driven with our masks through one registered attention function (`"unmask"`): no mask is
full attention, a 4-D bool mask goes to SDPA, a `BlockMask` to FlexAttention, and everything else is refused, because
the stock routes drop or misread it silently.
Shapes: B batch, L length, R chosen rows, D width, V vocabulary, X excluded ids, H heads, Q queries, K keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.modeling_utils import AttentionInterface

from unmask.attention import Layout, bidirectional, block_causal, block_mask, causal, dense_mask
from unmask.models.cache import KVCache
from unmask.models.reading import KEYWORD, hook_last_mlp
from unmask.settings.model import DiffusionConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

ATTENTION_NAME = "unmask"
CACHE_KEYWORD = "unmask_cache"
"""How the cache reaches `unmask_attention`: stock layers hand unknown keywords down, and rename their own for it."""
Mask = Tensor | BlockMask | None
AttentionBackend = Literal["dense", "flex"]


class Backbone(nn.Module):
    """A stock causal language model under our attention rule.

    Attributes:
        network: the `transformers` model, with its head.
        diffusion: what the checkpoint says about method, mask token and vocabulary.
        adapter: the configuration of the adapter on the network, or None; see `unmask.models.adapters`.
        attention_backend: how `render` draws masks: `dense` for SDPA, `flex` for FlexAttention (GPU only for training).
    """

    def __init__(
        self, network: PreTrainedModel, diffusion: DiffusionConfig, *, attention_backend: AttentionBackend = "dense"
    ) -> None:
        super().__init__()
        self.network = network
        self.adapter: LoraConfig | None = None
        self.attention_backend: AttentionBackend = attention_backend
        network.set_attn_implementation(ATTENTION_NAME)
        # A stock embedding never trains its padding row, which is often the end-of-text token as well.
        network.get_input_embeddings().padding_idx = None  # type: ignore[union-attr]
        hook_last_mlp(self.decoder)
        self._last_rotation: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        self.configure(diffusion)

    def configure(self, diffusion: DiffusionConfig) -> None:
        """Adopt a (changed) diffusion entry: it decides which ids are ever predicted."""
        self.diffusion = diffusion
        num_rows = self.network.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
        excluded = torch.arange(num_rows) >= diffusion.vocabulary_size
        if diffusion.mask_token_id is not None:
            excluded[diffusion.mask_token_id] = True
        self.register_buffer("excluded_X", excluded.nonzero()[:, 0].to(self.device), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.network.get_input_embeddings().weight.device  # type: ignore[union-attr]

    @property
    def context_length(self) -> int:
        """The longest sequence that the checkpoint was built for."""
        return int(self.network.config.max_position_embeddings)

    @property
    def decoder(self) -> nn.Module:
        """The network without its head."""
        return self.network.model  # type: ignore[return-value]

    @property
    def head_weight(self) -> Tensor:
        """The output embedding, [V, D], without an adapter's update: for its shape; `logits` applies the head."""
        return self.network.get_output_embeddings().weight  # type: ignore[union-attr,return-value]

    @property
    def num_predictable(self) -> int:
        """How many ids the model may predict: the V of "log V"."""
        return self.diffusion.vocabulary_size - (self.diffusion.mask_token_id is not None)

    def clean_layout(self, document_BL: Tensor) -> Layout:
        """How the method sees packed documents without noise: causally, block-causally or in both directions."""
        entry = self.diffusion
        if entry.method == "block_diffusion":
            assert entry.block_length is not None, "a block-diffusion checkpoint has a block length"
            return block_causal(document_BL, entry.block_length)
        return causal(document_BL) if entry.is_causal else bidirectional(document_BL)

    def render(self, query: Layout, key: Layout) -> Mask:
        """Draw the attention rule for the active back end.

        A dense mask that hides nothing becomes None, the fast path. Asking costs a read from the device, so on an
        accelerator this is for layouts that serve many forwards.
        """
        if self.attention_backend == "flex":
            return block_mask(query, key)
        return dense_mask(query, key)

    def forward(
        self,
        ids_BL: Tensor,
        position_ids_BL: Tensor,
        mask: Mask,
        *,
        cache: KVCache | None = None,
        read_R: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] after the final norm, under a rendered mask.

        With `read_R`, distinct indices into the flattened [B * L], only these rows are right, and the last MLP skips
        the others.
        """
        _check_mask(mask)
        extra: dict[str, Any] = {} if read_R is None else {KEYWORD: read_R}
        if cache is not None:
            extra[CACHE_KEYWORD] = cache
        hidden_BLD = self.decoder.embed_tokens(ids_BL)  # type: ignore[operator]
        rotation = self._rotation(hidden_BLD, position_ids_BL)
        return self._through_layers(
            hidden_BLD,
            attention_mask=mask,
            position_ids=position_ids_BL,
            position_embeddings=rotation,
            **extra,
        )

    def _through_layers(self, hidden_BLD: Tensor, **inputs: Any) -> Tensor:
        """Layer by layer: the stock loop draws masks of its own first, up to 8 % of the time of a small forward."""
        decoder: Any = self.decoder
        for layer in decoder.layers:
            hidden_BLD = layer(hidden_BLD, **inputs)
        return decoder.norm(hidden_BLD)

    def _rotation(self, hidden_BLD: Tensor, position_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions; in decoding, steps that pass the same tensor share them."""
        if not torch.is_inference_mode_enabled():
            return self.decoder.rotary_emb(hidden_BLD, position_ids_BL)  # type: ignore[operator]
        known = self._last_rotation
        if known is None or known[0] is not position_ids_BL or known[1][0].dtype != hidden_BLD.dtype:
            rotation = self.decoder.rotary_emb(hidden_BLD, position_ids_BL)  # type: ignore[operator]
            self._last_rotation = known = (position_ids_BL, rotation)
        return known[1]

    def extend(self, ids_BQ: Tensor, layout: Layout, cache: KVCache, *, keep: int | Tensor | None = None) -> Tensor:
        """Hidden states of new tokens behind a cache, of which the first `keep` of each row are stored (None: all)."""
        mask = self.render(layout, cache.begin(layout))
        hidden_BQD = self(ids_BQ, layout.position_ids.expand_as(ids_BQ), mask, cache=cache)
        cache.keep(keep)
        return hidden_BQD

    def compile_network(self) -> None:
        """Compile what lies between embedding and head with `torch.compile`."""
        self._through_layers = torch.compile(self._through_layers)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Logits [R, V] of chosen hidden states; the mask token and unused ids are -inf."""
        logits_RV = self.network.get_output_embeddings()(hidden_RD)  # type: ignore[misc]
        return logits_RV.index_fill_(-1, self.excluded_X, float("-inf"))

    def new_cache(self, batch: int, **options: Any) -> KVCache:
        """An empty cache for `batch` rows; options as in `KVCache`."""
        return KVCache(int(self.network.config.num_hidden_layers), batch, device=self.device, **options)


def _check_mask(mask: object) -> None:
    if mask is None or isinstance(mask, BlockMask):
        return
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.dtype != torch.bool:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"A mask is None, a 4-D bool tensor or a BlockMask, got {given}. Draw it from a Layout with render()."
        )


def unmask_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask,
    scaling: float | None = None,
    dropout: float = 0.0,
    unmask_cache: KVCache | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention under our rule, with the signature that `transformers` expects.

    Args:
        module: the attention module, which knows the number of its layer.
        query: [B, H, Q, D].
        key: [B, Hkv, K, D], where Hkv divides H; with a cache, the new tokens' only.
        value: [B, Hkv, K, D].
        attention_mask: None, bool [B or 1, 1, Q, K] or a BlockMask.
        scaling: factor on the scores.
        dropout: probability of dropping an attention weight.
        unmask_cache: takes the new keys and values, and returns them among the stored ones.

    Returns:
        [B, Q, H, D] and no weights.
    """
    _check_mask(attention_mask)
    if unmask_cache is not None:
        key, value = unmask_cache.update(key, value, cast(int, module.layer_idx))
    if isinstance(attention_mask, BlockMask):
        # Under autocast the norms of queries and keys return float32, which FlexAttention does not cast.
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = _flex(query.device.type)(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        # Queries that share a key head are laid end to end: grouped attention without copying keys, on every kernel.
        query = query.reshape(batch, key.shape[1], groups * length, width)
        attention_mask = None if attention_mask is None else attention_mask.repeat(1, 1, groups, 1)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, is_causal=False
    )
    return out.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None


@functools.cache
def _flex(device_type: str) -> Callable[..., Tensor]:
    """FlexAttention: compiled on accelerators, where it must not fall back to dynamic shapes; eager on the CPU."""
    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=False)


AttentionInterface.register(ATTENTION_NAME, unmask_attention)
