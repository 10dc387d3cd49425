"""Masking schedules: how many tokens are visible at time t.

In: t in [0, 1] (float64 tensors). Out: alpha(t), the probability that a token is visible (1 at t = 0, 0 at t = 1),
the rate -alpha'(t) at which tokens vanish, and the inverse of the masking probability p(t) = 1 - alpha(t).
The likelihood bound weighs masked tokens by -alpha'(t) / (1 - alpha(t)) (MDLM, arXiv 2406.07524, section 3; MD4,
arXiv 2406.04329) and has the same value for every schedule; only its variance differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from unmask.settings.model import ScheduleName

_HALF_PI = math.pi / 2


@dataclass(frozen=True)
class Schedule:
    """One of: linear 1 - t; cosine 1 - cos(pi/2 (1 - t)) (MaskGIT, arXiv 2202.04200); cosine_squared cos^2(pi t/2)
    (Zhang & Syed, arXiv 2508.04884); polynomial 1 - t^power.
    """

    name: ScheduleName = "linear"
    power: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """The probability that a token is visible."""
        return 1 - self.masked(t)

    def masked(self, t: Tensor) -> Tensor:
        """The probability p(t) that a token is masked."""
        if self.name == "linear":
            return t
        if self.name == "cosine":
            return (_HALF_PI * (1 - t)).cos()
        if self.name == "cosine_squared":
            return (_HALF_PI * t).sin() ** 2
        return t**self.power

    def rate(self, t: Tensor) -> Tensor:
        """p'(t) = -alpha'(t)."""
        if self.name == "linear":
            return t.new_ones(t.shape)
        if self.name == "cosine":
            return _HALF_PI * (_HALF_PI * (1 - t)).sin()
        if self.name == "cosine_squared":
            return _HALF_PI * (math.pi * t).sin()
        return self.power * t ** (self.power - 1)

    def weight(self, t: Tensor) -> Tensor:
        """The weight of a masked token in the bound, -alpha'(t) / (1 - alpha(t)); infinite at t = 0."""
        return self.rate(t) / self.masked(t)

    def time(self, masked: Tensor) -> Tensor:
        """The time t at which tokens are masked with the given probability."""
        if self.name == "linear":
            return masked
        if self.name == "cosine":
            return 1 - masked.acos() / _HALF_PI
        if self.name == "cosine_squared":
            return masked.sqrt().asin() / _HALF_PI
        return masked ** (1 / self.power)
