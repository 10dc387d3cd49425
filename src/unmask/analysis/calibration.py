"""Confidence and calibration of predictions of masked tokens, per bucket of corruption.

In: predictions. Out: additive sums, and the numbers that they stand for. The expected calibration error is the mean
over predictions of |accuracy - confidence| of their bin, 15 bins of equal width (Guo et al., arXiv 1706.04599).
Shapes: R masked tokens, K buckets, C bins of confidence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.analysis.metrics import BUCKETS, bucket_of
from unmask.objectives.loss import RowPredictions

_BINS = 15


def calibration_sums(found: RowPredictions, ratio_R: Tensor) -> Tensor:
    """Of each bucket and bin: predictions, sums of confidence, correctness and entropy; float64 [K, C, 4].

    A confidence on an edge belongs to the bin below.
    """
    confidence_R = found.confidence_R.double()
    bin_R = (confidence_R * _BINS).ceil().long().clamp(1, _BINS) - 1
    value_R4 = torch.stack(
        [torch.ones_like(confidence_R), confidence_R, found.correct_R.double(), found.entropy_R.double()], dim=1
    )
    cell_R = bucket_of(ratio_R) * _BINS + bin_R
    return value_R4.new_zeros(len(BUCKETS) * _BINS, 4).index_add(0, cell_R, value_R4).view(len(BUCKETS), _BINS, 4)


def confidences(sums_KC4: Tensor) -> dict[str, float]:
    """confidence/mean, entropy (nats) and ece over all predictions, and of each bucket (`confidence/low_mean`); NaN
    where nothing was predicted."""
    made = _of(sums_KC4.sum(dim=0), "")
    for name, sums_C4 in zip(BUCKETS, sums_KC4, strict=True):
        made |= _of(sums_C4, f"{name}_")
    return made


def _of(sums_C4: Tensor, prefix: str) -> dict[str, float]:
    count, confidence, _, entropy = sums_C4.sum(dim=0).tolist()
    gap = float((sums_C4[:, 2] - sums_C4[:, 1]).abs().sum())
    values = {"mean": confidence, "entropy": entropy, "ece": gap}
    return {f"confidence/{prefix}{name}": value / count if count else math.nan for name, value in values.items()}
