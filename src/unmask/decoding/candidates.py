"""From logits to candidates: a token for each row and how sure the model is of it.

Logits come in with excluded ids at -inf. A draw is a function of its keys alone, so it does not depend on the batch.
Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unmask import noise
from unmask.noise import Purpose
from unmask.settings.decoding import FilterOrder, SamplingParams


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


Draw = Callable[[Tensor, "Keys"], Tensor]
"""How a token is drawn from (filtered, tempered) logits: `gumbel_maximum` or `inverse_cdf`."""


def candidates(
    logits_RV: Tensor, params: SamplingParams, keys: Keys, *, draw: Draw, late: Sequence[int] = ()
) -> Candidates:
    """The most likely token at temperature 0, else one that is drawn.

    Certainty is read from the distribution that `params.confidence` names, without the `late` ids: a late token is
    less certain than any other, whatever the temperature (LLaDA's `confidence_eos_eot_inf`). `min` is SGLang's: the
    likeliest token's probability without a temperature, but at most the drawn one's tempered odds against it.
    """
    greedy = params.temperature == 0
    top_k, top_p = params.top_k or 0, params.top_p or 1.0
    is_filtered = top_k > 0 or top_p < 1
    if greedy and _ranks_by_probability(params) and not late and not (is_filtered and params.confidence == "filtered"):
        return most_likely(logits_RV)
    wide_RV = _wide(logits_RV)
    drawn_RV = _tempered(wide_RV, params)
    if is_filtered:
        drawn_RV = filtered(drawn_RV, top_k=top_k, top_p=top_p, order=params.filter_order or "top_k_first")
    token_R = drawn_RV.argmax(dim=-1) if greedy else draw(drawn_RV, keys)
    seen_RV = drawn_RV if params.confidence == "filtered" else _seen(wide_RV, params)
    confidence_R = _probability(seen_RV, token_R)
    if params.confidence == "min":
        confidence_R = torch.minimum(most_likely(wide_RV).confidence_R, _odds(seen_RV, token_R))
        if _ranks_by_probability(params):
            return Candidates(token_R, confidence_R, confidence_R)
    if late and params.unmasking != "random":
        late_V = torch.tensor(late, device=logits_RV.device)
        certainty_R = _certainty(seen_RV.index_fill(-1, late_V, float("-inf")), token_R, params)
        return Candidates(token_R, confidence_R, certainty_R.masked_fill(torch.isin(token_R, late_V), float("-inf")))
    return Candidates(token_R, confidence_R, _certainty(seen_RV, token_R, params))


def likeliest(logits_RV: Tensor, params: SamplingParams) -> Candidates:
    """The most likely token of each row at any temperature, in the distribution that `params.confidence` names."""
    wide_RV = _wide(logits_RV)
    seen_RV = _seen(wide_RV, params)
    if params.confidence == "filtered":
        seen_RV = filtered(_tempered(wide_RV, params), top_k=params.top_k or 0, top_p=params.top_p or 1.0)
    if params.confidence == "min":
        return most_likely(wide_RV)
    token_R = wide_RV.argmax(dim=-1)
    confidence_R = _probability(seen_RV, token_R)
    return Candidates(token_R, confidence_R, confidence_R)


class Surprise(NamedTuple):
    """What the model's tempered distribution, before any filter, says of a token.

    Attributes:
        log_probability_R: of the token, nats.
        entropy_R: of the distribution, nats.
    """

    log_probability_R: Tensor
    entropy_R: Tensor


def surprise(logits_RV: Tensor, token_R: Tensor, temperature: float) -> Surprise:
    """Log-probability of each row's token and entropy of its distribution; temperature 0 counts as 1."""
    log_RV = (_wide(logits_RV).double() / (temperature or 1.0)).log_softmax(dim=-1)
    return Surprise(log_RV.gather(1, token_R[:, None])[:, 0], _entropy(log_RV))


def penalised(logits_RV: Tensor, seen_RV: Tensor, penalty: float) -> Tensor:
    """Logits with seen ids (bool [R, V]) made less likely, as in CTRL (arXiv 1909.05858) and `transformers`."""
    return torch.where(seen_RV, torch.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty), logits_RV)


def most_likely(logits_RV: Tensor) -> Candidates:
    """The argmax and its probability."""
    logits_RV = _wide(logits_RV)
    token_R1 = logits_RV.argmax(dim=-1, keepdim=True)
    confidence_R = logits_RV.softmax(dim=-1).gather(1, token_R1)[:, 0]
    return Candidates(token_R1[:, 0], confidence_R, confidence_R)


def gumbel_maximum(logits_RV: Tensor, keys: Keys) -> Tensor:
    """Sample by the Gumbel maximum in float64 (LLaDA's sampler; float32 would sharpen the law, arXiv 2409.02908)."""
    vocabulary_V = torch.arange(logits_RV.shape[-1], device=logits_RV.device)
    columns = [key[:, None] if isinstance(key, Tensor) else key for key in keys]
    uniform_RV = noise.uniform(Purpose.GUMBEL, *columns, vocabulary_V).to(logits_RV.device)
    return (logits_RV.double() - (-uniform_RV.log()).log()).argmax(dim=-1)


def gumbel_drawn(logits_RV: Tensor, params: SamplingParams, keys: Keys) -> Tensor:
    """Tokens of the tempered and filtered distribution by Gumbel noise that the place keys, whatever the step.

    Laws that are close mostly draw the same token at one place, and equal laws always do: so TiDAR's drafts agree with
    its autoregression, and both draw one text.
    """
    return gumbel_maximum(log_law(logits_RV, params), keys._replace(step=0))


def inverse_cdf(logits_RV: Tensor, keys: Keys, *, purpose: Purpose = Purpose.TOKEN) -> Tensor:
    """Sample with one uniform per row: the first token, by falling probability, whose cumulative share exceeds it."""
    sorted_RV, order_RV = logits_RV.double().sort(dim=-1, descending=True, stable=True)
    return _placed(sorted_RV, order_RV, keys, purpose)


def drawn(logits_RV: Tensor, *, temperature: float, top_k: int, top_p: float, keys: Keys) -> Tensor:
    """Tokens of the tempered distribution, filtered by top-k and then top-p, with one uniform per row."""
    sorted_RV, order_RV = (logits_RV.double() / temperature).sort(dim=-1, descending=True, stable=True)
    return _placed(_kept(sorted_RV, top_k=top_k, top_p=top_p), order_RV, keys, Purpose.TOKEN)


def sampled(logits_RV: Tensor, *, temperature: float, top_k: int, top_p: float, keys: Keys) -> Candidates:
    """What `drawn` draws, and how probable that is without temperature and filters."""
    return given(logits_RV, drawn(logits_RV, temperature=temperature, top_k=top_k, top_p=top_p, keys=keys))


def given(logits_RV: Tensor, token_R: Tensor) -> Candidates:
    """Tokens chosen by other means, as sure as the logits are of them."""
    confidence_R = _probability(_wide(logits_RV), token_R)
    return Candidates(token_R, confidence_R, confidence_R)


def log_law(logits_RV: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities, float64, of the tempered distribution, filtered by top-k and then top-p."""
    tempered_RV = logits_RV.double() / params.temperature
    top_k, top_p = params.top_k or 0, params.top_p or 1.0
    if top_k > 0 or top_p < 1:
        tempered_RV = filtered(tempered_RV, top_k=top_k, top_p=top_p)
    return tempered_RV.log_softmax(dim=-1)


def _placed(sorted_RV: Tensor, order_RV: Tensor, keys: Keys, purpose: Purpose) -> Tensor:
    """The drawn tokens of descending logits whose ids stand in `order_RV`."""
    probability_RV = sorted_RV.softmax(dim=-1)
    cumulative_RV = probability_RV.cumsum(dim=-1)
    uniform_R = noise.uniform(purpose, *keys).to(sorted_RV.device).expand(sorted_RV.shape[0])
    threshold_R1 = (uniform_R * cumulative_RV[:, -1])[:, None]
    place_R1 = (cumulative_RV <= threshold_R1).sum(dim=-1, keepdim=True)
    # A distribution of NaN has no last token; its confidence says so, and no index may be wrong before that is read.
    last_R1 = ((probability_RV > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    return order_RV.gather(1, torch.minimum(place_R1, last_R1))[:, 0]


def filtered(logits_RV: Tensor, *, top_k: int, top_p: float, order: FilterOrder = "top_k_first") -> Tensor:
    """The logits with everything outside top-k and top-p at -inf; the second filter sees what the first one leaves."""
    sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
    kept_RV = _kept(sorted_RV, top_k=top_k, top_p=top_p, order=order)
    return torch.empty_like(logits_RV).scatter_(1, order_RV, kept_RV)


def _kept(sorted_RV: Tensor, *, top_k: int, top_p: float, order: FilterOrder = "top_k_first") -> Tensor:
    """Descending logits with what the filters drop at -inf; the first one always stays."""
    if order == "top_p_first":
        return _kept(_kept(sorted_RV, top_k=0, top_p=top_p), top_k=top_k, top_p=1.0)
    if top_k > 0:
        sorted_RV = sorted_RV.clone()
        sorted_RV[:, top_k:] = float("-inf")
    if top_p < 1:
        probability_RV = sorted_RV.softmax(dim=-1)
        before_RV = probability_RV.cumsum(dim=-1) - probability_RV
        sorted_RV = sorted_RV.masked_fill(before_RV >= top_p, float("-inf"))
    return sorted_RV


def _ranks_by_probability(params: SamplingParams) -> bool:
    return params.unmasking not in ("margin", "entropy", "entropy_bound")


def _tempered(logits_RV: Tensor, params: SamplingParams) -> Tensor:
    """Logits over the temperature, in float64 where that is not 1; temperature 0 leaves them as they are."""
    return logits_RV if params.temperature in (0, 1) else logits_RV.double() / params.temperature


def _seen(logits_RV: Tensor, params: SamplingParams) -> Tensor:
    """The distribution, before any filter, that certainty is read from."""
    return logits_RV if params.confidence == "untempered" else _tempered(logits_RV, params)


def _odds(seen_RV: Tensor, token_R: Tensor) -> Tensor:
    """The token's probability over that of the likeliest one."""
    return (seen_RV.gather(1, token_R[:, None])[:, 0] - seen_RV.max(dim=-1).values).exp()


def _certainty(seen_RV: Tensor, token_R: Tensor, params: SamplingParams) -> Tensor:
    if params.unmasking == "margin":
        first_R, second_R = seen_RV.softmax(dim=-1).topk(2, dim=-1).values.unbind(dim=-1)
        return first_R - second_R
    if params.unmasking in ("entropy", "entropy_bound"):
        return -_entropy(seen_RV.log_softmax(dim=-1))
    return _probability(seen_RV, token_R)


def _entropy(log_RV: Tensor) -> Tensor:
    """Nats; an id that cannot occur adds nothing."""
    return -(log_RV.exp() * log_RV.clamp(min=torch.finfo(log_RV.dtype).min)).sum(dim=-1)


def _probability(logits_RV: Tensor, token_R: Tensor) -> Tensor:
    chosen_R = logits_RV.gather(1, token_R[:, None])[:, 0]
    return (chosen_R - logits_RV.logsumexp(dim=-1)).exp()


def _wide(logits_RV: Tensor) -> Tensor:
    """At least float32."""
    return logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
