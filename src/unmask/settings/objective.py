"""What is learned: the training method and how its inputs are corrupted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from unmask.settings.checks import at_least, in_range, is_true
from unmask.settings.model import ScheduleName

Granularity = Literal["sequence", "batch", "block"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Training method, corruption and loss weight."""

    method: Literal["autoregressive", "masked_diffusion", "block_diffusion"] = "masked_diffusion"
    """autoregressive (next token), masked_diffusion (LLaDA, TDLM) or block_diffusion (SDAR, BD3-LM)."""
    schedule: ScheduleName = "linear"
    """Share of visible tokens alpha(t): linear, cosine (MaskGIT), cosine_squared (Zhang) or polynomial."""
    schedule_power: float = 2.0
    """Exponent k of the polynomial schedule, alpha(t) = 1 - t^k."""
    corruption: Literal["bernoulli", "count"] = "count"
    """Mask each token with probability 1 - alpha(t), or draw how many tokens are masked (lower variance)."""
    time_sampling: Literal["iid", "stratified", "systematic"] = "stratified"
    """How the times of a global batch are spread; stratified ones are permuted over its rows."""
    t_granularity: Granularity | None = None
    """Whether a time is drawn for each sequence, for the whole batch or for each block; default: block for block
    diffusion (where a sequence is a packed document), else sequence."""
    time_epsilon: float = 1e-3
    """Smallest masking probability of Bernoulli corruption."""
    weighting: Literal["elbo", "unweighted"] = "elbo"
    """elbo: the bound on the likelihood; unweighted: plain cross-entropy of the masked tokens (training only)."""
    normalize: Literal["tokens", "answers"] = "tokens"
    """Mean over all supervised tokens, or over rows of the mean in each (LLaDA's SFT: every answer weighs the same)."""
    random_length_probability: float = 0.0
    """Share of optimiser steps whose rows are cut to one random length (LLaDA: 0.01)."""
    block_length: int | None = None
    """Tokens of a diffusion block, in data, training, checkpoint and decoding alike; default: the last one of the
    curriculum, else the checkpoint's, else 4. (block_diffusion)"""
    block_curriculum: tuple[tuple[float, int], ...] = ()
    """Pairs of a share of the run and the block length that begins there: [[0, 4], [0.5, 8]]; each divides the largest
    one. Held-out text is scored at the last one. (block_diffusion)"""
    mask_ratio_range: tuple[float, float] = (0.0, 1.0)
    """Clipped schedule: training draws the share of masked tokens from this range only, which is no bound on the
    likelihood; evaluation never does. (block_diffusion)"""
    complementary_masks: bool = False
    """Also learn from the complement of every mask, so that each token is predicted once. (block_diffusion)"""
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
        self._check_blocks()

    @property
    def block_lengths(self) -> tuple[int, ...]:
        """Every block length that the settings name, in the order of training."""
        named = [length for _, length in self.block_curriculum]
        return tuple(named or ([] if self.block_length is None else [self.block_length]))

    @property
    def copies(self) -> int:
        """How often a text stands in the network's input: block diffusion reads it noisy and clean."""
        return 2 + self.complementary_masks if self.method == "block_diffusion" else 1

    def _check_blocks(self) -> None:
        """What belongs to block diffusion alone, and a curriculum that begins at 0 and goes on."""
        if self.method != "block_diffusion":
            for name, unset in (
                ("block_length", None),
                ("block_curriculum", ()),
                ("mask_ratio_range", (0.0, 1.0)),
                ("complementary_masks", False),
            ):
                value = getattr(self, name)
                is_true(value == unset, f"{name} belongs to method block_diffusion, got {value} with {self.method}.")
            return
        is_true(
            not self.logit_shift,
            "logit_shift does not go with block_diffusion: the row before a block's first token stands in another "
            "block, which does not see this one's noise. Leave it out.",
        )
        is_true(
            self.random_length_probability == 0,
            "random_length_probability belongs to masked_diffusion, whose text has one length; blocks have any.",
        )
        self._check_curriculum()
        low, high = self.mask_ratio_range
        is_true(
            0 <= low < high <= 1,
            f"mask_ratio_range must be two shares between 0 and 1, the lower first, got {self.mask_ratio_range}.",
        )
        is_true(
            self.schedule == "linear" or (not self.complementary_masks and (low, high) == (0, 1)),
            f"complementary_masks and mask_ratio_range need the linear schedule, got {self.schedule}.",
        )
        is_true(
            not self.complementary_masks or self.corruption == "count",
            f"complementary_masks need corruption `count`, got {self.corruption}: the complement of a Bernoulli mask "
            "has no bounded weight.",
        )

    def _check_curriculum(self) -> None:
        if not self.block_curriculum:
            return
        starts, lengths = zip(*self.block_curriculum, strict=True)
        is_true(
            starts[0] == 0 and all(one < other for one, other in itertools.pairwise(starts)) and starts[-1] < 1,
            f"block_curriculum must begin at 0 and rise below 1, got starts {list(starts)}.",
        )
        at_least(1, block_curriculum=min(lengths))
        is_true(
            all(max(lengths) % length == 0 for length in lengths),
            f"Every length of block_curriculum must divide the largest ({max(lengths)}), so that its blocks lie "
            f"inside those of the largest, got {list(lengths)}.",
        )
        is_true(
            self.block_length in (None, lengths[-1]),
            f"block_length must be the curriculum's last one ({lengths[-1]}), got {self.block_length}. Leave it out.",
        )
