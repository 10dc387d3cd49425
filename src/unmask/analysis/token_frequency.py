"""Whether a model prefers frequent tokens: in what it predicts, and in what it writes.

In: how often each token stands in the training text. Out: tenths of the text by the frequency of its tokens, the
probability that predictions give each tenth against how often it was right, and the tokens of generated texts against
real ones.
Shapes: V vocabulary, C = 10 classes of tokens, R masked tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CLASSES = 10
# Added to every token's count: one that never stood in (a sample of) the training text is not impossible.
_UNSEEN = 0.5


def frequency_classes(count_V: Tensor) -> Tensor:
    """The tenth of the text that each token belongs to, from 0 for the most frequent tokens; int64 [V].

    Tokens are ordered by their counts; a token belongs to the tenth in which the middle of its own share lies. So one
    token that makes up a fifth of the text leaves another tenth empty.
    """
    order_V = count_V.argsort(descending=True, stable=True)
    share_V = count_V[order_V].double() / count_V.sum().clamp(min=1)
    middle_V = share_V.cumsum(dim=0) - share_V / 2
    return torch.empty_like(order_V).scatter(0, order_V, (middle_V * _CLASSES).long().clamp(max=_CLASSES - 1))


def bias_sums(mass_RC: Tensor, class_R: Tensor) -> Tensor:
    """Of each class: the probability it was given, the targets in it; float64 [C, 2]."""
    wide_RC = torch.zeros(len(mass_RC), _CLASSES, dtype=torch.float64, device=mass_RC.device)
    wide_RC[:, : mass_RC.shape[1]] = mass_RC.double()
    return torch.stack([wide_RC.sum(dim=0), torch.bincount(class_R, minlength=_CLASSES).double()], dim=1)


def frequency_bias(sums_C2: Tensor) -> dict[str, float]:
    """frequency_bias/tenth_N: ln(probability given / targets) of each tenth, from 1, the most frequent tokens; above 0
    where the model overrates them, NaN where there was no target."""
    return {
        f"frequency_bias/tenth_{number}": math.log(given / targets) if given and targets else math.nan
        for number, (given, targets) in enumerate(sums_C2.tolist(), start=1)
    }


def written_tokens(generated: Sequence[int], real: Sequence[int], count_V: Tensor) -> dict[str, float]:
    """How the tokens of generated texts are spread.

    generated/type_coverage: different tokens, over those in equally much real text (both cut to the shorter one).
    generated/unigram_kl: nats from the distribution of generated tokens to that of the training text, with half an
        occurrence more for every token.
    """
    size = min(len(generated), len(real))
    if size == 0:
        return {"generated/type_coverage": math.nan, "generated/unigram_kl": math.nan}
    made_V = torch.bincount(torch.tensor(list(generated)), minlength=len(count_V)).double()
    made_V, smooth_V = made_V / made_V.sum(), count_V.double() + _UNSEEN
    divergence = torch.special.xlogy(made_V, made_V) - torch.special.xlogy(made_V, smooth_V / smooth_V.sum())
    return {
        "generated/type_coverage": len(set(generated[:size])) / len(set(real[:size])),
        "generated/unigram_kl": float(divergence.sum()),
    }
