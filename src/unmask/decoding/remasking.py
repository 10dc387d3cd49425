"""Reopening: which revealed places are masked again, with chances that keep the law of the process (ReMDM).

Wang et al., "Remasking discrete diffusion models with inference-time scaling" (arXiv 2503.00307), section 4.
With a share a of visible tokens before a step and b after it, a visible token is masked again with probability sigma,
at most min(1, (1 - b) / a), and a masked one is revealed with probability (b - (1 - sigma) a) / (1 - a).
Shapes: B rows, W places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.decoding.unmasking import visible_shares
from unmask.settings.decoding import SamplingParams


class Chances(NamedTuple):
    """Of one step: of a masked place to be revealed, and sigma, of a revealed one to be masked again."""

    reveal: float
    remask: float


def chances(params: SamplingParams, steps: int) -> list[Chances]:
    """The chances of each step of a block under ancestral unmasking; the last step reveals all and reopens nothing."""
    times = [1 - step / steps for step in range(steps)] + [0.0]
    shares = visible_shares(params.reveal_schedule or "linear", steps)
    if params.remask == "loop":
        shares = [_looped_share(time, params) for time in times]
    return [
        _chances(before, after, time, params)
        for before, after, time in zip(shares[:-1], shares[1:], times[:-1], strict=True)
    ]


def _chances(before: float, after: float, time: float, params: SamplingParams) -> Chances:
    sigma, eta = 0.0, params.remask_eta or 0.0
    largest = min(1.0, (1 - after) / before) if before > 0 else 1.0
    if params.remask == "cap" or (params.remask == "loop" and _in_loop(time, params)):
        sigma = min(eta, largest)
    elif params.remask in ("rescale", "conf"):
        sigma = eta * largest
    # `conf` shares sigma out over the visible places; masked ones keep the plain chance.
    mine = 0.0 if params.remask == "conf" else sigma
    return Chances(reveal=(after - (1 - mine) * before) / (1 - before), remask=sigma)


def _in_loop(time: float, params: SamplingParams) -> bool:
    begin, end, _ = params.remask_loop or (0.0, 0.0, 1.0)
    return end < time <= begin


def _looped_share(time: float, params: SamplingParams) -> float:
    """Share of visible tokens: linear to the loop's level, still during the loop, then linear to 1."""
    assert params.remask_loop is not None
    begin, end, level = params.remask_loop
    if time > begin:
        return level * (1 - time) / (1 - begin)
    return level if time > end else 1 - (1 - level) * (time / end if end > 0 else 0.0)


def by_confidence(confidence_BW: Tensor, visible_BW: Tensor) -> Tensor:
    """`conf`: each visible place's share of sigma, the softmax of minus the confidence that it was revealed with."""
    scores_BW = (-confidence_BW).masked_fill(~visible_BW, -math.inf)
    return torch.where(visible_BW, scores_BW.softmax(dim=1), 0.0)
