"""Unmasking: which masked places to reveal.

A policy is a pure function of each place's confidence, the masked set and a quota; it reveals at least one place and
never more than remain. It keeps no state, so one policy serves rows at different steps.
Shapes: B rows, N places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unmask.settings.decoding import RevealSchedule


def most_confident(confidence_BN: Tensor, masked_BN: Tensor, quota: int | Tensor) -> Tensor:
    """The `quota` (int, or int64 [B]) most confident masked places of each row; the first of equals. Bool [B, N]."""
    quota_B1 = quota[:, None] if isinstance(quota, Tensor) else quota
    order_BN = confidence_BN.masked_fill(~masked_BN, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place_N = torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN)
    rank_BN = torch.empty_like(order_BN).scatter_(1, order_BN, place_N)
    return (rank_BN < quota_B1) & masked_BN


def above_threshold(confidence_BN: Tensor, masked_BN: Tensor, threshold: float) -> Tensor:
    """Every masked place at least this confident, and always the most confident one (Fast-dLLM, arXiv 2505.22618)."""
    return most_confident(confidence_BN, masked_BN, 1) | ((confidence_BN >= threshold) & masked_BN)


def reveal_counts(schedule: RevealSchedule, places: int, steps: int) -> list[int]:
    """How many places each step reveals, at least one each; they sum to `places`.

    linear spreads them evenly, the remainder over the first steps (LLaDA). cosine and cosine_squared leave
    floor(places * cos(pi/2 k/K)) or cos^2 of them masked after step k of K (MaskGIT; Zhang & Syed).
    """
    steps = min(steps, places)
    if schedule == "linear":
        return [places // steps + (step < places % steps) for step in range(steps)]
    power = 1 if schedule == "cosine" else 2
    left = [places]
    for step in range(1, steps + 1):
        kept = math.floor(places * math.cos(math.pi / 2 * step / steps) ** power + 1e-9)
        left.append(max(min(kept, left[-1] - 1), steps - step))
    return [before - after for before, after in zip(left[:-1], [*left[1:-1], 0], strict=True)]
