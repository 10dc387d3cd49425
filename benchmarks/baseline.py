"""The baseline: what a competent person writes with the stock class and nothing clever. It imports nothing of ours.

Full logits, a dense 4-D mask through the stock SDPA path (without a mask the stock class is causal), PyTorch's AdamW
and gradient clipping as they come. Training is LLaDA's loss (arXiv 2502.09992, equation 3), decoding its published
fixed-length sampler (`generate.py`) with one block, at temperature 0, in the order of its own operations; with a cache,
Fast-dLLM's samplers (arXiv 2505.22618) over blocks, on the stock cache. Block diffusion is trained on [noisy | clean]
(BD3-LM, arXiv 2503.09573) and decoded with SDAR's sampler (arXiv 2510.06303). The cache is passed by its position among
the arguments, because its name differs between the versions of `transformers`.
Shapes: B rows, L length, P prompt, Q window, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class Trainer:
    """Diffusion training of a stock network.

    Args:
        network: the model with its head.
        learning_rate: of AdamW, without weight decay.
        gathers: take the logits of masked tokens before the cross-entropy, as LLaDA's guidelines do, instead of
            weighting the cross-entropies of all tokens by the mask.
        block_length: of block diffusion on [noisy | clean]; None: masked diffusion.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        learning_rate: float,
        gathers: bool = False,
        block_length: int | None = None,
    ) -> None:
        self.network = network.train()
        self.gathers, self.block_length = gathers, block_length
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, clean_BL: Tensor, noisy_BL: Tensor, masked_BL: Tensor, share_BL: Tensor) -> float:
        """One optimiser step; the loss. `share_BL` is the share of masked tokens in each one's row or block."""
        logits_BLV = self._logits(clean_BL, noisy_BL)
        if self.gathers:
            loss_M = F.cross_entropy(logits_BLV[masked_BL], clean_BL[masked_BL], reduction="none")
            loss = (loss_M / share_BL[masked_BL]).sum()
        else:
            loss_N = F.cross_entropy(logits_BLV.flatten(0, 1), clean_BL.flatten(), reduction="none")
            # A block without masks has share 0 and no weight.
            loss = (loss_N.view_as(clean_BL) * masked_BL / share_BL.clamp(min=1e-6)).sum()
        loss = loss / clean_BL.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _logits(self, clean_BL: Tensor, noisy_BL: Tensor) -> Tensor:
        if self.block_length is None:
            return self.network(input_ids=noisy_BL, attention_mask=everything(noisy_BL), use_cache=False).logits
        length = clean_BL.shape[1]
        mask = doubled_mask(length, self.block_length).expand(len(clean_BL), 1, -1, -1)
        positions_BW = torch.arange(length).repeat(2).expand(len(clean_BL), -1)
        ids_BW = torch.cat([noisy_BL, clean_BL], dim=1)
        logits_BWV = self.network(
            input_ids=ids_BW, attention_mask=mask, position_ids=positions_BW, use_cache=False
        ).logits
        return logits_BWV[:, :length]


def doubled_mask(length: int, block_length: int) -> Tensor:
    """BD3-LM's mask over [noisy | clean], bool [2L, 2L]."""
    block_W = (torch.arange(length) // block_length).repeat(2)
    clean_W = torch.arange(2 * length) >= length
    query, key = block_W[:, None], block_W[None]
    own = (query == key) & ~clean_W[:, None] & ~clean_W
    before = (query > key) & ~clean_W[:, None] & clean_W
    among_clean = (query >= key) & clean_W[:, None] & clean_W
    return own | before | among_clean


class Decoded(NamedTuple):
    """What decoding returned: new tokens [B, N], and the forwards that it took."""

    tokens_BN: Tensor
    forwards: int


@torch.no_grad()
def decode(network: PreTrainedModel, prompt_BP: Tensor, *, new_tokens: int, mask_token_id: int) -> Decoded:
    """LLaDA's sampler: every forward reveals the most confident masked place of each row."""
    batch, prompt = prompt_BP.shape
    canvas_BL = torch.full((batch, prompt + new_tokens), mask_token_id)
    canvas_BL[:, :prompt] = prompt_BP
    attention_mask = everything(canvas_BL)
    for _step in range(new_tokens):
        logits_BLV = network(input_ids=canvas_BL, attention_mask=attention_mask, use_cache=False).logits
        reveal_best(canvas_BL, logits_BLV, slice(0, canvas_BL.shape[1]), mask_token_id)
    return Decoded(canvas_BL[:, prompt:], new_tokens)


@torch.no_grad()
def decode_cached(
    network: PreTrainedModel, prompt_BP: Tensor, *, new_tokens: int, mask_token_id: int, block_length: int, cache: str
) -> Decoded:
    """Fast-dLLM's sampler: the first forward of a block sees everything, the others a window behind cached keys.

    `prefix` evaluates the block and all behind it; `dual` the block alone, whose keys replace the ones of before.
    """
    batch, prompt = prompt_BP.shape
    canvas_BL = torch.full((batch, prompt + new_tokens), mask_token_id)
    canvas_BL[:, :prompt] = prompt_BP
    for start in range(prompt, prompt + new_tokens, block_length):
        stop = start + block_length
        kept = DynamicCache() if cache == "prefix" else ReplacingCache(network.config.num_hidden_layers)
        full = network(canvas_BL, everything(canvas_BL), None, kept, use_cache=True)
        reveal_best(canvas_BL, full.logits, slice(start, stop), mask_token_id)
        window = slice(start, stop if cache == "dual" else canvas_BL.shape[1])
        if isinstance(kept, ReplacingCache):
            kept.replace(window)
        else:
            kept.crop(start - canvas_BL.shape[1])
        positions_BQ = torch.arange(window.start, window.stop).expand(batch, -1)
        mask = torch.ones(batch, 1, positions_BQ.shape[1], canvas_BL.shape[1], dtype=torch.bool)
        for _step in range(block_length - 1):
            logits_BQV = network(canvas_BL[:, window], mask, positions_BQ, kept, use_cache=True).logits
            if cache == "prefix":
                kept.crop(start - canvas_BL.shape[1])
            block = logits_BQV[:, :block_length]
            reveal_best(canvas_BL[:, start:stop], block, slice(0, block_length), mask_token_id)
    return Decoded(canvas_BL[:, prompt:], new_tokens)


@torch.no_grad()
def decode_blocks(
    network: PreTrainedModel, prompt_BP: Tensor, *, new_tokens: int, mask_token_id: int, block_length: int
) -> Decoded:
    """SDAR's sampler, one place per forward: blocks behind the stock cache, each written by a forward of its own."""
    batch, prompt = prompt_BP.shape
    text_BL = torch.full((batch, prompt + new_tokens), mask_token_id)
    text_BL[:, :prompt] = prompt_BP
    kept, forwards = DynamicCache(), 0
    number_L = torch.arange(prompt + new_tokens) // block_length

    def evaluate(start: int, stop: int) -> Tensor:
        mask = (number_L[None, :stop] <= number_L[start:stop, None]).expand(batch, 1, -1, -1)
        positions_BQ = torch.arange(start, stop).expand(batch, -1)
        return network(text_BL[:, start:stop], mask, positions_BQ, kept, use_cache=True).logits

    evaluate(0, prompt)
    for start in range(prompt, prompt + new_tokens, block_length):
        stop = start + block_length
        for _step in range(block_length):
            logits_BQV = evaluate(start, stop)
            kept.crop(-block_length)
            reveal_best(text_BL[:, start:stop], logits_BQV, slice(0, block_length), mask_token_id)
            forwards += 1
        if stop < prompt + new_tokens:
            evaluate(start, stop)
            forwards += 1
    return Decoded(text_BL[:, prompt:], forwards + 1)


def reveal_best(canvas_BL: Tensor, logits_BLV: Tensor, block: slice, mask_token_id: int) -> None:
    """Write the most confident masked place of each row's block into the canvas."""
    masked_BL = canvas_BL == mask_token_id
    logits_BLV[:, :, mask_token_id] = -torch.inf
    token_BL = logits_BLV.argmax(dim=-1)
    probability_BLV = F.softmax(logits_BLV, dim=-1)
    confidence_BL = probability_BLV.gather(-1, token_BL.unsqueeze(-1)).squeeze(-1)
    confidence_BL[:, block.stop :] = -torch.inf
    token_BL = torch.where(masked_BL, token_BL, canvas_BL)
    confidence_BL = torch.where(masked_BL, confidence_BL, -torch.inf)
    reveal_BL = torch.zeros_like(masked_BL)
    for row in range(canvas_BL.shape[0]):
        reveal_BL[row, confidence_BL[row].topk(k=1).indices] = True
    canvas_BL[reveal_BL] = token_BL[reveal_BL]


class ReplacingLayer(DynamicLayer):
    """Keys and values of a canvas, of which a window is replaced by each later forward."""

    window: slice | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.window is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys[:, :, self.window] = key_states
        self.values[:, :, self.window] = value_states
        return self.keys, self.values


class ReplacingCache(DynamicCache):
    """A cache of replacing layers."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.layers = [ReplacingLayer() for _ in range(num_layers)]

    def replace(self, window: slice) -> None:
        for layer in self.layers:
            layer.window = window


def everything(ids_BL: Tensor) -> Tensor:
    """The mask under which every token sees every token of its row."""
    batch, length = ids_BL.shape
    return torch.ones(batch, 1, length, length, dtype=torch.bool)
