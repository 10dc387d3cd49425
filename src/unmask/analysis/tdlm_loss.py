"""The number that TDLM prints for a masked-diffusion model, beside the bound that it is taken for.

In: a masked-diffusion model and clean batches. Out: for each row what TDLM adds up, and the bound (negative ELBO), from
the same forwards. TDLM draws a ratio r uniformly, masks floor(r n) of n tokens, weighs their cross-entropies with
min((1 - r) / r, 5) and divides by the number of *masked* tokens. The bound's weight is n / m for m masked tokens,
divided by *all* n of them (LLaDA, arXiv 2502.09992, equation 6). So a model that gives every token the probability
1 / V is reported at nearly 5/6 log V, a model that learns at less still, as the harder the task, the smaller the weight
is: everything masked never happens.

The counts m of both are uniform, on 1..n here and on 0..n-1 there, so the forwards of the one estimate the other
without bias: m = n has no weight, m = 0 has no tokens, and a count weighs its mean over the ratios that give it.
Shapes: B rows, K masked versions of each, N + 1 counts from 0 to N.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.evaluation.likelihood import RowNats, masked_versions
from unmask.models.backbone import Backbone
from unmask.settings.evaluation import EvaluationSettings

LARGEST_WEIGHT = 5.0


class TdlmRows(NamedTuple):
    """TDLM's sums for each row, and the bound.

    Attributes:
        weighted_B: float64; expected weighted cross-entropy of a masked version, in nats.
        masked_B: float64; expected number of its masked tokens, (n - 1) / 2.
        bound: of the row, from the same forwards.
    """

    weighted_B: Tensor
    masked_B: Tensor
    bound: RowNats

    @property
    def printed(self) -> float:
        """What TDLM calls the loss, and the logarithm of what it calls perplexity: nats per masked token."""
        return float(self.weighted_B.sum() / self.masked_B.sum())


def tdlm_rows(backbone: Backbone, batch: Batch, settings: EvaluationSettings) -> TdlmRows:
    """Score a batch both ways.

    Args:
        backbone: a masked-diffusion model in evaluation mode.
        batch: clean rows; draws are keyed by their uids.
        settings: number of masks and their seed.

    Raises:
        SettingsError: the model is of another method.
    """
    if backbone.diffusion.method != "masked_diffusion":
        raise SettingsError(
            f"TDLM's loss is one of masked diffusion, and this model is of method {backbone.diffusion.method}."
        )
    versions = masked_versions(backbone, batch, settings)
    rows = zip(versions.size_B.tolist(), versions.masked_BK, strict=True)
    weight_BK = torch.stack([tdlm_weights(size)[masked_K] for size, masked_K in rows])
    weighted_B = (weight_BK * versions.nats_BK).mean(dim=1)
    return TdlmRows(weighted_B, (versions.size_B.double() - 1).clamp(min=0) / 2, versions.bound)


def tdlm_weights(size: int) -> Tensor:
    """Mean weight of a masked token where 0, 1, ..., `size` of `size` tokens are masked, float64 [N + 1].

    The mean over r from m/n to (m+1)/n, with the integral of (1 - r) / r in closed form. At m = 0 no token is masked
    and at m = n TDLM never is: both are 0.
    """
    edge_N = torch.arange(size + 1, dtype=torch.float64) / size
    weight_N = torch.zeros(size + 1, dtype=torch.float64)
    weight_N[1:size] = size * _integral(edge_N).diff()[1:]
    return weight_N


def _integral(ratio_N: Tensor) -> Tensor:
    """The integral of min((1 - r) / r, 5) from 0 to each ratio."""
    capped = 1 / (1 + LARGEST_WEIGHT)
    above_N = ratio_N.clamp(min=capped)
    smooth_N = (above_N / capped).log() - (above_N - capped)
    return LARGEST_WEIGHT * ratio_N.clamp(max=capped) + smooth_N
