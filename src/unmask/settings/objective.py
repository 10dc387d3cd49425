"""What is learned: the training method and how its inputs are corrupted."""

from __future__ import annotations

import dataclasses
from typing import Literal

from unmask.settings.checks import at_least, at_most, in_range, is_true
from unmask.settings.curricula import Curriculum, check_shares
from unmask.settings.model import MOST_POSITIONS, ScheduleName
from unmask.settings.tidar import DEFAULT_CLEAN_RATIO, TIDAR_ONLY, check_tidar
from unmask.settings.typed import settings

Granularity = Literal["sequence", "batch", "block"]
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("block_length", "block_curriculum"), ("block_diffusion", "tidar")),
    "mask_ratio_range": ("masked_diffusion", "block_diffusion", "tidar"),
    "complementary_masks": ("block_diffusion",),
    "input_mask_ratio": ("autoregressive",),
    **dict.fromkeys(TIDAR_ONLY, ("tidar",)),
}
"""The methods of each option that some methods do not have."""


@settings
class ObjectiveSettings:
    """Training method, corruption and loss weight."""

    method: Literal["autoregressive", "masked_diffusion", "block_diffusion", "tidar"] = "masked_diffusion"
    """autoregressive (next token), masked_diffusion (LLaDA, TDLM), block_diffusion (SDAR, BD3-LM) or tidar (next token
    and blocks of masks at once)."""
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
    diffusion and tidar (where a sequence is a packed document), else sequence."""
    time_epsilon: float = 1e-3
    """Smallest masking probability of Bernoulli corruption."""
    weighting: Literal["elbo", "unweighted"] = "elbo"
    """elbo: the bound on the likelihood; unweighted: plain cross-entropy of the masked tokens (training only)."""
    normalize: Literal["tokens", "answers"] = "tokens"
    """Mean over all supervised tokens, or over rows of the mean in each (LLaDA's SFT: every answer weighs the same)."""
    input_mask_ratio: float = 0.0
    """Share of the input tokens that training replaces by the mask token, targets unchanged; evaluation never does.
    (autoregressive)"""
    random_length_probability: float = 0.0
    """Share of optimiser steps whose rows are cut to one random length (LLaDA: 0.01)."""
    block_length: int | None = None
    """Tokens of a diffusion block, in data, training, checkpoint and decoding alike; default: the last one of the
    curriculum, else the checkpoint's, else 4, for tidar 8. (block_diffusion, tidar)"""
    block_curriculum: tuple[tuple[float, int], ...] = ()
    """Pairs of a share of the run and the block length that begins there: [[0, 4], [0.5, 8]]; in block diffusion each
    divides the largest one, and held-out text is scored at the last one. (block_diffusion, tidar)"""
    mask_ratio_range: tuple[float, float] = (0.0, 1.0)
    """Clipped schedule: training draws the share of masked tokens (tidar with masking `block`: of masked blocks) from
    this range only, which is no bound on the likelihood; evaluation never does. (masked_diffusion, block_diffusion,
    tidar)"""
    complementary_masks: bool = False
    """Also learn from the complement of every mask, so that each token is predicted once. (block_diffusion)"""
    tidar_layout: Literal["doubled", "split"] = "doubled"
    """doubled: the text, then all of it as masks (TiDAR's paper); split: a clean head, then the rest of the text as
    masks (its first public port, `clean_ratio`). (tidar)"""
    clean_ratio: float = DEFAULT_CLEAN_RATIO
    """Share of a document that is its clean head. (tidar, split)"""
    clean_ratio_range: tuple[float, float] | None = None
    """Draw that share for every document from this range. (tidar, split)"""
    clean_ratio_curriculum: Curriculum = ()
    """Pairs of a share of the run and the clean share that begins there: [[0, 0.9], [0.5, 0.5]]. (tidar, split)"""
    tail_blocks: int | None = None
    """How many blocks behind the clean head are learned; only the first one stands where drafting stands. Default: all.
    (tidar, split)"""
    masking: Literal["full", "random", "block"] = "full"
    """What is masked in the blocks: everything (the paper), a random share of the tokens (`corruption`, `weighting` and
    times as in block diffusion), or a share of the blocks, each of them as a whole. (tidar)"""
    mask_ratio_curriculum: Curriculum = ()
    """Pairs of a share of the run and the share that is masked from there on. (tidar, masking random or block)"""
    ar_loss_weight: float = 1.0
    """Weight of the next-token term; the loss is (ar_loss_weight * AR + diffusion_loss_weight * diffusion) / (their
    sum), each term the mean over its own tokens. (tidar)"""
    ar_loss_weight_curriculum: Curriculum = ()
    """Pairs of a share of the run and the weight of the next-token term from there on. (tidar)"""
    diffusion_loss_weight: float = 1.0
    """Weight of the diffusion term. (tidar)"""
    diffusion_loss_weight_curriculum: Curriculum = ()
    """Pairs of a share of the run and the weight of the diffusion term from there on. (tidar)"""
    teacher: str | None = None
    """Folder, run or hub id of an autoregressive (or TiDAR) model with the same vocabulary, to learn from. (tidar)"""
    distillation_weight: float = 0.0
    """Weight of the divergence from the teacher's predictions beside each row's cross-entropy; 0 only without a
    teacher. (tidar)"""
    distillation_temperature: float = 1.0
    """Temperature T at which teacher and student are compared; the divergence is scaled by T^2. (tidar)"""
    logit_shift: bool | None = None
    """Read the prediction for a token one place before it (adapting AR models as Dream does); default: checkpoint's."""

    def __post_init__(self) -> None:
        at_least(1, block_length=self.block_length)
        at_most(MOST_POSITIONS, block_length=self.block_length)
        at_least(1e-6, schedule_power=self.schedule_power, time_epsilon=self.time_epsilon)
        at_most(1e6, schedule_power=self.schedule_power)
        in_range(0, 0.5, time_epsilon=self.time_epsilon)
        in_range(0, 1, random_length_probability=self.random_length_probability)
        in_range(0, 0.99, input_mask_ratio=self.input_mask_ratio)
        is_true(
            not (self.t_granularity == "block" and self.method == "masked_diffusion"),
            "t_granularity `block` belongs to block diffusion: with masked_diffusion every token sees the others, and "
            "one time per block is no bound on the likelihood. Use `sequence` or `batch`.",
        )
        self._check_owners()
        self._check_range()
        if self.method in ("block_diffusion", "tidar"):
            self._check_blocks()
        if self.method == "block_diffusion":
            self._check_lengths()
        if self.method == "tidar":
            check_tidar(self)

    @property
    def block_lengths(self) -> tuple[int, ...]:
        """Every block length that the settings name, in the order of training."""
        named = [length for _, length in self.block_curriculum]
        return tuple(named or ([] if self.block_length is None else [self.block_length]))

    @property
    def copies(self) -> int:
        """How often a text stands in the network's input: doubled layouts read it noisy and clean."""
        if self.method == "tidar":
            return 2 if self.tidar_layout == "doubled" else 1
        return 2 + self.complementary_masks if self.method == "block_diffusion" else 1

    @property
    def curricula(self) -> dict[str, Curriculum]:
        """The curricula that are set, by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in named.items() if name.endswith("_curriculum") and value}

    def _check_owners(self) -> None:
        """An option that the method does not use is an error, so that none is ignored silently."""
        for field in dataclasses.fields(self):
            methods, value = _ONLY_FOR.get(field.name, (self.method,)), getattr(self, field.name)
            is_true(
                self.method in methods or value == field.default,
                f"{field.name} belongs to method {' and '.join(methods)}, got {value} with {self.method}.",
            )

    def _check_blocks(self) -> None:
        """What block diffusion and TiDAR share."""
        is_true(
            not self.logit_shift,
            f"logit_shift does not go with {self.method}: the row before a block's first token stands in another "
            "block, which does not see this one's noise. Leave it out.",
        )
        is_true(
            self.random_length_probability == 0,
            "random_length_probability belongs to masked_diffusion, whose text has one length; blocks have any.",
        )
        check_shares("block_curriculum", self.block_curriculum)
        lengths = [length for _, length in self.block_curriculum]
        at_least(1, block_curriculum=min(lengths, default=None))
        at_most(MOST_POSITIONS, block_curriculum=max(lengths, default=None))
        is_true(
            self.block_length is None or not lengths or self.block_length == lengths[-1],
            f"block_length must be the curriculum's last one ({lengths[-1:]}), got {self.block_length}. Leave it out.",
        )

    def _check_range(self) -> None:
        """A clipped schedule is one of shares, which are times under the linear schedule only."""
        low, high = self.mask_ratio_range
        is_true(
            0 <= low < high <= 1,
            f"mask_ratio_range must be two shares between 0 and 1, the lower first, got {self.mask_ratio_range}.",
        )
        is_true(
            self.schedule == "linear" or (low, high) == (0, 1),
            f"mask_ratio_range needs the linear schedule, got {self.schedule}.",
        )

    def _check_lengths(self) -> None:
        """What block diffusion asks of a curriculum, whose filled rows serve every length, and of complements."""
        lengths = [length for _, length in self.block_curriculum]
        is_true(
            all(max(lengths) % length == 0 for length in lengths),
            f"Every length of block_curriculum must divide the largest ({max(lengths, default=0)}), so that its blocks "
            f"lie inside those of the largest, got {lengths}.",
        )
        is_true(
            not self.complementary_masks or (self.schedule == "linear" and self.corruption == "count"),
            f"complementary_masks need corruption `count` (the complement of a Bernoulli mask has no bounded weight) "
            f"and the linear schedule, got {self.corruption} and {self.schedule}.",
        )
