"""The baseline: what a competent person writes with the stock class and nothing clever. It imports nothing of ours.

Full logits, a dense 4-D mask through the stock SDPA path (without a mask the stock class is causal), PyTorch's AdamW
and gradient clipping as they come. Training is LLaDA's loss (arXiv 2502.09992, equation 3), decoding its published
fixed-length sampler (`generate.py`) with one block, at temperature 0, in the order of its own operations.
Shapes: B rows, L length, P prompt, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class Trainer:
    """Masked-diffusion training of a stock network.

    Args:
        network: the model with its head.
        learning_rate: of AdamW, without weight decay.
        gathers: take the logits of masked tokens before the cross-entropy, as LLaDA's guidelines do, instead of
            weighting the cross-entropies of all tokens by the mask.
    """

    def __init__(self, network: PreTrainedModel, *, learning_rate: float, gathers: bool = False) -> None:
        self.network = network.train()
        self.gathers = gathers
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, clean_BL: Tensor, noisy_BL: Tensor, masked_BL: Tensor, share_B1: Tensor) -> float:
        """One optimiser step; the loss. `share_B1` is the share of masked tokens in each row."""
        logits_BLV = self.network(input_ids=noisy_BL, attention_mask=everything(noisy_BL), use_cache=False).logits
        if self.gathers:
            share_R = share_B1.expand_as(masked_BL)[masked_BL]
            loss = (F.cross_entropy(logits_BLV[masked_BL], clean_BL[masked_BL], reduction="none") / share_R).sum()
        else:
            loss_N = F.cross_entropy(logits_BLV.flatten(0, 1), clean_BL.flatten(), reduction="none")
            loss = (loss_N.view_as(clean_BL) * masked_BL / share_B1).sum()
        loss = loss / clean_BL.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


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
        masked_BL = canvas_BL == mask_token_id
        logits_BLV = network(input_ids=canvas_BL, attention_mask=attention_mask, use_cache=False).logits
        logits_BLV[:, :, mask_token_id] = -torch.inf
        token_BL = logits_BLV.argmax(dim=-1)
        probability_BLV = F.softmax(logits_BLV, dim=-1)
        confidence_BL = probability_BLV.gather(-1, token_BL.unsqueeze(-1)).squeeze(-1)
        token_BL = torch.where(masked_BL, token_BL, canvas_BL)
        confidence_BL = torch.where(masked_BL, confidence_BL, -torch.inf)
        reveal_BL = torch.zeros_like(masked_BL)
        for row in range(batch):
            reveal_BL[row, confidence_BL[row].topk(k=1).indices] = True
        canvas_BL[reveal_BL] = token_BL[reveal_BL]
    return Decoded(canvas_BL[:, prompt:], new_tokens)


def everything(ids_BL: Tensor) -> Tensor:
    """The mask under which every token sees every token of its row."""
    batch, length = ids_BL.shape
    return torch.ones(batch, 1, length, length, dtype=torch.bool)
