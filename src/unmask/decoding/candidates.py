"""From logits to candidates: a token for each row and how sure the model is of it.

Logits come in with excluded ids at -inf. A draw is a function of its keys alone, so it does not depend on the batch.
Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unmask import noise
from unmask.noise import Purpose


class Candidates(NamedTuple):
    """A token for each row.

    Attributes:
        token_R: int64.
        confidence_R: its probability under the untempered distribution.
    """

    token_R: Tensor
    confidence_R: Tensor


class Keys(NamedTuple):
    """What names a row's draw: int64 [R] each, or one int for all."""

    seed: Tensor | int
    sample: Tensor | int
    position: Tensor | int
    step: Tensor | int


def most_likely(logits_RV: Tensor) -> Candidates:
    """The argmax and its probability."""
    logits_RV = _wide(logits_RV)
    best_R, token_R = logits_RV.max(dim=-1)
    return Candidates(token_R, (best_R - logits_RV.logsumexp(dim=-1)).exp())


def gumbel(logits_RV: Tensor, *, temperature: float, keys: Keys) -> Candidates:
    """Sample by the Gumbel maximum in float64 (LLaDA's sampler; float32 would sharpen the law, arXiv 2409.02908)."""
    vocabulary_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    columns = [key[:, None] if isinstance(key, Tensor) else key for key in keys]
    uniform_RV = noise.uniform(Purpose.GUMBEL, *columns, vocabulary_V).to(logits_RV.device)
    noisy_RV = logits_RV.double() - temperature * (-uniform_RV.log()).log()
    return _with_confidence(logits_RV, noisy_RV.argmax(dim=-1))


def sampled(logits_RV: Tensor, *, temperature: float, top_k: int, top_p: float, keys: Keys) -> Candidates:
    """Sample from the tempered distribution, filtered by top-k and then top-p, with one uniform per row."""
    tempered_RV = logits_RV.double() / temperature
    sorted_RV, order_RV = tempered_RV.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        sorted_RV[:, top_k:] = float("-inf")
    probability_RV = sorted_RV.softmax(dim=-1)
    if top_p < 1:
        before_RV = probability_RV.cumsum(dim=-1) - probability_RV
        probability_RV = probability_RV.masked_fill(before_RV >= top_p, 0)
    cumulative_RV = probability_RV.cumsum(dim=-1)
    uniform_R = noise.uniform(Purpose.TOKEN, *keys).to(logits_RV.device).expand(logits_RV.shape[0])
    threshold_R1 = (uniform_R * cumulative_RV[:, -1])[:, None]
    place_R1 = (cumulative_RV <= threshold_R1).sum(dim=-1, keepdim=True)
    last_R1 = (probability_RV > 0).sum(dim=-1, keepdim=True) - 1
    return _with_confidence(logits_RV, order_RV.gather(1, torch.minimum(place_R1, last_R1))[:, 0])


def _with_confidence(logits_RV: Tensor, token_R: Tensor) -> Candidates:
    logits_RV = _wide(logits_RV)
    chosen_R = logits_RV.gather(1, token_R[:, None])[:, 0]
    return Candidates(token_R, (chosen_R - logits_RV.logsumexp(dim=-1)).exp())


def _wide(logits_RV: Tensor) -> Tensor:
    """At least float32."""
    return logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
