"""What is learned: the training method and how its inputs are corrupted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask.settings.checks import at_least, in_range, is_true
from unmask.settings.model import ScheduleName

Granularity = Literal["sequence", "batch", "block"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Training method, corruption and loss weight."""

    method: Literal["autoregressive", "masked_diffusion"] = "masked_diffusion"
    """autoregressive (next token) or masked_diffusion (LLaDA, TDLM)."""
    schedule: ScheduleName = "linear"
    """Share of visible tokens alpha(t): linear, cosine (MaskGIT), cosine_squared (Zhang) or polynomial."""
    schedule_power: float = 2.0
    """Exponent k of the polynomial schedule, alpha(t) = 1 - t^k."""
    corruption: Literal["bernoulli", "count"] = "count"
    """Mask each token with probability 1 - alpha(t), or draw how many tokens are masked (lower variance)."""
    time_sampling: Literal["iid", "stratified", "systematic"] = "stratified"
    """How the times of a global batch are spread; stratified ones are permuted over its rows."""
    t_granularity: Granularity = "sequence"
    """Whether a time is drawn for each sequence, for the whole batch or for each block."""
    time_epsilon: float = 1e-3
    """Smallest masking probability of Bernoulli corruption."""
    weighting: Literal["elbo", "unweighted"] = "elbo"
    """elbo: the bound on the likelihood; unweighted: plain cross-entropy of the masked tokens (training only)."""
    normalize: Literal["tokens", "answers"] = "tokens"
    """Mean over all supervised tokens, or over rows of the mean in each (LLaDA's SFT: every answer weighs the same)."""
    random_length_probability: float = 0.0
    """Share of optimiser steps whose rows are cut to one random length (LLaDA: 0.01)."""
    block_length: int | None = None
    """Length of a diffusion block, for the block methods."""
    logit_shift: bool | None = None
    """Read the prediction for a token one place before it (adapting AR models as Dream does); default: checkpoint's."""

    def __post_init__(self) -> None:
        at_least(1, block_length=self.block_length)
        at_least(1e-6, schedule_power=self.schedule_power, time_epsilon=self.time_epsilon)
        in_range(0, 0.5, time_epsilon=self.time_epsilon)
        in_range(0, 1, random_length_probability=self.random_length_probability)
        is_true(
            not (self.t_granularity == "block" and self.method == "masked_diffusion"),
            "t_granularity `block` belongs to block diffusion: with masked_diffusion every token sees the others, and "
            "one time per block is no bound on the likelihood. Use `sequence` or `batch`.",
        )
