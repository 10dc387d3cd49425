"""The first tier of metrics: how often masked tokens are right, at which corruption, and what the loss weights do.

In: what a model made of the masked tokens of corrupted sequences. Out: `Sums`, which add up over batches and
processes, and from them plain numbers: NaN, never 0, where nothing was measured.

`mask_accuracy` averages over masked tokens, so that with uniform mask counts a ratio r of masked tokens weighs 2 r;
`mask_accuracy_t` averages each sequence first and is uniform in r. Beside both stands the accuracy of always naming
the most frequent token, which is all that a fully masked text allows. The weights of an unbiased bound sum to the
number of tokens on average, so `loss_weight/mean` must be 1 within its standard error, whatever the model
(MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992, equation 6).
Shapes: R masked tokens, B sequences, V vocabulary, K = 3 buckets of corruption, T = 10 bins of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKETS = ("low", "medium", "high")
"""Corruption by the realised share of masked tokens: (0, 0.3], (0.3, 0.7], (0.7, 1]."""
_EDGES = (0.3, 0.7)
_BINS = 10
# Shares are float32, where 3/10 lies above 0.3.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MaskedTokens:
    """What a model made of masked tokens.

    Attributes:
        cross_entropy_R: nats of the true token.
        correct_R: bool; whether the likeliest token is the true one.
        confidence_R: probability of the likeliest token.
        target_R: int64; the true token.
        weight_R: its weight in the loss of its sequence, before any division by a number of tokens.
        ratio_R: realised share of masked tokens in its sequence.
        group_R: int64; its sequence, from 0 to B - 1.
        tokens_B: int64; the tokens of each sequence that could have been masked.
    """

    cross_entropy_R: Tensor
    correct_R: Tensor
    confidence_R: Tensor
    target_R: Tensor
    weight_R: Tensor
    ratio_R: Tensor
    group_R: Tensor
    tokens_B: Tensor


@dataclass(frozen=True)
class Sums:
    """Everything that the metrics are made of; float64 and additive.

    Attributes:
        bucket_K5: of each bucket's tokens: how many, how many right, how many the most frequent token, their nats,
            their weighted nats.
        accuracy_3: sequences with a masked token, the sums of their shares of right and of most frequent tokens.
        weight_3: sequences, sums of their weight per token and of its square.
        loss_T3: of the sequences in each bin of corruption: how many, sums of their weighted nats per token, squares.
        pair_6: tokens, sums of weight w, doubt d = 1 - confidence, w^2, d^2, w d.
    """

    bucket_K5: Tensor
    accuracy_3: Tensor
    weight_3: Tensor
    loss_T3: Tensor
    pair_6: Tensor

    def __add__(self, other: Sums) -> Sums:
        """The sums of both together."""
        return Sums(*(mine + theirs for mine, theirs in zip(_fields(self), _fields(other), strict=True)))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Sums:
        """Each of them changed: added up over processes, moved to another device."""
        return Sums(*map(change, _fields(self)))


def sums(tokens: MaskedTokens, *, most_frequent: int) -> Sums:
    """The sums over some sequences.

    Args:
        tokens: masked tokens; sequences without any, or without tokens to mask, may be among them.
        most_frequent: the most frequent token of the training text.
    """
    right_R = tokens.correct_R.double()
    usual_R = (tokens.target_R == most_frequent).double()
    nats_R, weight_R = tokens.cross_entropy_R.double(), tokens.weight_R.double()
    ones_R = torch.ones_like(right_R)
    value_R5 = torch.stack([ones_R, right_R, usual_R, nats_R, weight_R * nats_R], dim=1)
    bucket_K5 = value_R5.new_zeros(len(BUCKETS), 5).index_add(0, bucket_of(tokens.ratio_R), value_R5)

    size_B = tokens.tokens_B.double()
    per_R6 = torch.stack([ones_R, right_R, usual_R, weight_R, weight_R * nats_R, tokens.ratio_R.double()], dim=1)
    masked_B, right_B, usual_B, weight_B, loss_B, ratio_B = (
        per_R6.new_zeros(len(size_B), 6).index_add(0, tokens.group_R, per_R6).unbind(dim=1)
    )
    some_B = masked_B > 0
    share_2 = torch.stack([(part / masked_B)[some_B].sum() for part in (right_B, usual_B)])
    known_B = size_B > 0
    mean_weight_B, mean_loss_B = ((part / size_B)[known_B] for part in (weight_B, loss_B))
    # A sequence that drew no mask belongs to the lowest bin.
    mean_ratio_B = (ratio_B / masked_B.clamp(min=1))[known_B]
    bin_B = ((mean_ratio_B - _ROUNDING) * _BINS).floor().long().clamp(0, _BINS - 1)
    loss_T3 = value_R5.new_zeros(_BINS, 3).index_add(0, bin_B, _moments(mean_loss_B))
    doubt_R = 1 - tokens.confidence_R.double()
    pair_R6 = torch.stack([ones_R, weight_R, doubt_R, weight_R**2, doubt_R**2, weight_R * doubt_R], dim=1)
    return Sums(
        bucket_K5,
        torch.cat([some_B.sum(dtype=torch.float64)[None], share_2]),
        _moments(mean_weight_B).sum(dim=0),
        loss_T3,
        pair_R6.sum(dim=0),
    )


def bucket_of(ratio_R: Tensor) -> Tensor:
    """Which of `BUCKETS` a realised share of masked tokens belongs to, int64."""
    edges = torch.tensor(_EDGES, dtype=torch.float64, device=ratio_R.device) + _ROUNDING
    return torch.bucketize(ratio_R.double(), edges)


def accuracies(found: Sums) -> dict[str, float]:
    """How well masked tokens are predicted, by name; NaN where nothing was measured.

    mask_accuracy, unigram_accuracy: over masked tokens; with `_t`, over sequences, of their own averages.
    corruption/{low,medium,high}_{accuracy,ce,count}: of each bucket.
    """
    count, right, usual, _, _ = found.bucket_K5.sum(dim=0).tolist()
    sequences, right_share, usual_share = found.accuracy_3.tolist()
    made = {
        "mask_accuracy": _ratio(right, count),
        "mask_accuracy_t": _ratio(right_share, sequences),
        "unigram_accuracy": _ratio(usual, count),
        "unigram_accuracy_t": _ratio(usual_share, sequences),
    }
    for name, (own, own_right, _, own_nats, _) in zip(BUCKETS, found.bucket_K5.tolist(), strict=True):
        made[f"corruption/{name}_accuracy"] = _ratio(own_right, own)
        made[f"corruption/{name}_ce"] = _ratio(own_nats, own)
        made[f"corruption/{name}_count"] = own
    return made


def weight_effects(found: Sums) -> dict[str, float]:
    """What the loss weights do, by name; NaN where nothing was measured.

    loss_weight/mean, mean_stderr: weight of all masked tokens over all tokens, and its standard error over sequences.
    loss_weight/variance_within, variance_between: variance of a sequence's loss over its squared mean, at equal
        corruption (within ten bins of it) and between the means of the bins.
    loss_weight/{low,medium,high}_share: of the weighted loss.
    loss_weight/correlation: Pearson's, of weight and 1 - confidence: negative for 1/t, whose largest weights stand
        where little is masked. It is to be read, not to be passed.
    """
    number, total, squares = found.weight_3.tolist()
    mean = _ratio(total, number)
    spread = max(_ratio(squares, number) - mean**2, 0.0) if number > 1 else math.nan
    within, between = _split(found.loss_T3)
    weighted = float(found.bucket_K5[:, 4].sum())
    made = {
        "loss_weight/mean": mean,
        "loss_weight/mean_stderr": math.sqrt(spread / (number - 1)) if number > 1 else math.nan,
        "loss_weight/variance_within": within,
        "loss_weight/variance_between": between,
        "loss_weight/correlation": _correlation(found.pair_6),
    }
    for name, (own, _, _, _, own_weighted) in zip(BUCKETS, found.bucket_K5.tolist(), strict=True):
        made[f"loss_weight/{name}_share"] = _ratio(own_weighted, weighted) if own else math.nan
    return made


def _split(loss_T3: Tensor) -> tuple[float, float]:
    """Variances within the bins and between their means, over the squared mean; their sum is the whole variance."""
    count_T, total_T, squares_T = loss_T3[loss_T3[:, 0] > 0].unbind(dim=1)
    number = float(count_T.sum())
    mean = _ratio(float(total_T.sum()), number)
    if number < 2 or mean == 0:
        return math.nan, math.nan
    within = float((squares_T - total_T**2 / count_T).sum()) / number
    between = float((count_T * (total_T / count_T - mean) ** 2).sum()) / number
    return max(within, 0.0) / mean**2, between / mean**2


def _correlation(pair_6: Tensor) -> float:
    """Pearson's correlation; NaN where either is constant."""
    number, first, second, first_2, second_2, product = pair_6.tolist()
    if number < 2:
        return math.nan
    own = [first_2 / number - (first / number) ** 2, second_2 / number - (second / number) ** 2]
    # Of a constant only rounding is left.
    if own[0] <= 1e-12 * first_2 / number or own[1] <= 1e-12 * second_2 / number:
        return math.nan
    return (product / number - first * second / number**2) / math.sqrt(own[0] * own[1])


def _moments(values_B: Tensor) -> Tensor:
    """One, the value and its square, float64 [B, 3]."""
    return torch.stack([torch.ones_like(values_B), values_B, values_B**2], dim=1)


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def _fields(one: Sums) -> tuple[Tensor, ...]:
    return one.bucket_K5, one.accuracy_3, one.weight_3, one.loss_T3, one.pair_6
