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
from unmask.settings.decoding import SamplingParams


class Candidates(NamedTuple):
    """A token for each row.

    Attributes:
        token_R: int64.
        confidence_R: its probability.
        certainty_R: what policies rank by: the probability, the margin to the runner-up, or the negative entropy.
    """

    token_R: Tensor
    confidence_R: Tensor
    certainty_R: Tensor


class Keys(NamedTuple):
    """What names a row's draw: int64 [R] each, or one int for all."""

    seed: Tensor | int
    sample: Tensor | int
    position: Tensor | int
    step: Tensor | int


def candidates(logits_RV: Tensor, params: SamplingParams, keys: Keys) -> Candidates:
    """The candidates of a canvas.

    At temperature 0 the most likely token; else LLaDA's Gumbel maximum, or with top-k or top-p the inverse of the
    filtered distribution. Confidence is read from the distribution that `params.confidence` names.
    """
    if params.temperature == 0 and params.unmasking != "margin" and params.unmasking != "entropy":
        return most_likely(logits_RV)
    temperature, top_k, top_p = params.temperature, params.top_k or 0, params.top_p or 1.0
    is_filtered = temperature > 0 and (top_k > 0 or top_p < 1)
    if temperature == 0:
        token_R = logits_RV.argmax(dim=-1)
    elif is_filtered:
        token_R = sampled(logits_RV, temperature=temperature, top_k=top_k, top_p=top_p, keys=keys).token_R
    else:
        token_R = gumbel(logits_RV, temperature=temperature, keys=keys).token_R
    seen_RV = _wide(logits_RV)
    if temperature > 0 and params.confidence != "untempered":
        seen_RV = logits_RV.double() / temperature
        if is_filtered and params.confidence == "filtered":
            seen_RV = filtered(seen_RV, top_k=top_k, top_p=top_p)
    confidence_R = _probability(seen_RV, token_R)
    return Candidates(token_R, confidence_R, _certainty(seen_RV, confidence_R, params.unmasking))


def most_likely(logits_RV: Tensor) -> Candidates:
    """The argmax and its probability."""
    logits_RV = _wide(logits_RV)
    best_R, token_R = logits_RV.max(dim=-1)
    confidence_R = (best_R - logits_RV.logsumexp(dim=-1)).exp()
    return Candidates(token_R, confidence_R, confidence_R)


def gumbel(logits_RV: Tensor, *, temperature: float, keys: Keys) -> Candidates:
    """Sample by the Gumbel maximum in float64 (LLaDA's sampler; float32 would sharpen the law, arXiv 2409.02908)."""
    vocabulary_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    columns = [key[:, None] if isinstance(key, Tensor) else key for key in keys]
    uniform_RV = noise.uniform(Purpose.GUMBEL, *columns, vocabulary_V).to(logits_RV.device)
    noisy_RV = logits_RV.double() - temperature * (-uniform_RV.log()).log()
    return _untempered(logits_RV, noisy_RV.argmax(dim=-1))


def sampled(logits_RV: Tensor, *, temperature: float, top_k: int, top_p: float, keys: Keys) -> Candidates:
    """Sample from the tempered distribution, filtered by top-k and then top-p, with one uniform per row."""
    tempered_RV = logits_RV.double() / temperature
    sorted_RV, order_RV = tempered_RV.sort(dim=-1, descending=True, stable=True)
    probability_RV = _kept(sorted_RV, top_k=top_k, top_p=top_p).softmax(dim=-1)
    cumulative_RV = probability_RV.cumsum(dim=-1)
    uniform_R = noise.uniform(Purpose.TOKEN, *keys).to(logits_RV.device).expand(logits_RV.shape[0])
    threshold_R1 = (uniform_R * cumulative_RV[:, -1])[:, None]
    place_R1 = (cumulative_RV <= threshold_R1).sum(dim=-1, keepdim=True)
    last_R1 = (probability_RV > 0).sum(dim=-1, keepdim=True) - 1
    return _untempered(logits_RV, order_RV.gather(1, torch.minimum(place_R1, last_R1))[:, 0])


def filtered(logits_RV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """The logits with everything outside top-k and then top-p at -inf."""
    sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
    return torch.empty_like(logits_RV).scatter_(1, order_RV, _kept(sorted_RV, top_k=top_k, top_p=top_p))


def _kept(sorted_RV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Descending logits with what the filters drop at -inf; the first one always stays."""
    if top_k > 0:
        sorted_RV = sorted_RV.clone()
        sorted_RV[:, top_k:] = float("-inf")
    if top_p < 1:
        probability_RV = sorted_RV.softmax(dim=-1)
        before_RV = probability_RV.cumsum(dim=-1) - probability_RV
        sorted_RV = sorted_RV.masked_fill(before_RV >= top_p, float("-inf"))
    return sorted_RV


def _certainty(seen_RV: Tensor, confidence_R: Tensor, unmasking: str | None) -> Tensor:
    if unmasking == "margin":
        first_R, second_R = seen_RV.softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
        return first_R - second_R
    if unmasking == "entropy":
        log_RV = seen_RV.log_softmax(dim=-1)
        return (log_RV.exp() * log_RV.clamp(min=torch.finfo(log_RV.dtype).min)).sum(dim=-1)
    return confidence_R


def _untempered(logits_RV: Tensor, token_R: Tensor) -> Candidates:
    confidence_R = _probability(_wide(logits_RV), token_R)
    return Candidates(token_R, confidence_R, confidence_R)


def _probability(logits_RV: Tensor, token_R: Tensor) -> Tensor:
    chosen_R = logits_RV.gather(1, token_R[:, None])[:, 0]
    return (chosen_R - logits_RV.logsumexp(dim=-1)).exp()


def _wide(logits_RV: Tensor) -> Tensor:
    """At least float32."""
    return logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
