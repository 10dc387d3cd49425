"""From logits to candidates: a token for each row and how sure the model is of it.

Logits come in with excluded ids at -inf. A draw is a function of its keys alone, so it does not depend on the batch.
Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def candidates(logits_RV: Tensor, params: SamplingParams, keys: Keys, *, late: Sequence[int] = ()) -> Candidates:
    """The candidates of a canvas: the most likely token at temperature 0, else LLaDA's Gumbel maximum.

    Certainty is read from the distribution that `params.confidence` names, without the `late` ids: a late token is
    less certain than any other, whatever the temperature (LLaDA's `confidence_eos_eot_inf`).
    """
    greedy, tempered = params.temperature == 0, params.temperature not in (0, 1)
    top_k, top_p = params.top_k or 0, params.top_p or 1.0
    is_filtered = top_k > 0 or top_p < 1
    ranks_by_probability = params.unmasking not in ("margin", "entropy")
    if greedy and ranks_by_probability and not late and not (is_filtered and params.confidence == "filtered"):
        return most_likely(logits_RV)
    wide_RV = _wide(logits_RV)
    drawn_RV = wide_RV.double() / params.temperature if tempered else wide_RV
    if is_filtered:
        drawn_RV = filtered(drawn_RV, top_k=top_k, top_p=top_p)
    token_R = drawn_RV.argmax(dim=-1) if greedy else _gumbel_maximum(drawn_RV, keys)
    seen_RV = wide_RV
    if params.confidence == "filtered":
        seen_RV = drawn_RV
    elif params.confidence == "unfiltered" and tempered:
        seen_RV = wide_RV.double() / params.temperature
    confidence_R = _probability(seen_RV, token_R)
    if late and params.unmasking != "random":
        late_V = torch.tensor(late, device=logits_RV.device)
        certainty_R = _certainty(seen_RV.index_fill(-1, late_V, float("-inf")), token_R, params.unmasking)
        return Candidates(token_R, confidence_R, certainty_R.masked_fill(torch.isin(token_R, late_V), float("-inf")))
    return Candidates(token_R, confidence_R, _certainty(seen_RV, token_R, params.unmasking))


def most_likely(logits_RV: Tensor) -> Candidates:
    """The argmax and its probability."""
    logits_RV = _wide(logits_RV)
    best_R1, token_R1 = logits_RV.max(dim=-1, keepdim=True)
    token_R, confidence_R = token_R1[:, 0], (logits_RV - best_R1).exp_().sum(dim=-1).reciprocal_()
    return Candidates(token_R, confidence_R, confidence_R)


def _gumbel_maximum(logits_RV: Tensor, keys: Keys) -> Tensor:
    """Sample by the Gumbel maximum in float64 (LLaDA's sampler; float32 would sharpen the law, arXiv 2409.02908)."""
    vocabulary_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    columns = [key[:, None] if isinstance(key, Tensor) else key for key in keys]
    uniform_RV = noise.uniform(Purpose.GUMBEL, *columns, vocabulary_V).to(logits_RV.device)
    return (logits_RV.double() - (-uniform_RV.log()).log()).argmax(dim=-1)


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


def _certainty(seen_RV: Tensor, token_R: Tensor, unmasking: str | None) -> Tensor:
    if unmasking == "margin":
        first_R, second_R = seen_RV.softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
        return first_R - second_R
    if unmasking == "entropy":
        log_RV = seen_RV.log_softmax(dim=-1)
        return (log_RV.exp() * log_RV.clamp(min=torch.finfo(log_RV.dtype).min)).sum(dim=-1)
    return _probability(seen_RV, token_R)


def _untempered(logits_RV: Tensor, token_R: Tensor) -> Candidates:
    confidence_R = _probability(_wide(logits_RV), token_R)
    return Candidates(token_R, confidence_R, confidence_R)


def _probability(logits_RV: Tensor, token_R: Tensor) -> Tensor:
    chosen_R = logits_RV.gather(1, token_R[:, None])[:, 0]
    return (chosen_R - logits_RV.logsumexp(dim=-1)).exp()


def _wide(logits_RV: Tensor) -> Tensor:
    """At least float32."""
    return logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
