"""What only TiDAR's training has: its layout, what is masked, the weights of its two terms, and a teacher."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from unmask.settings.checks import at_least, in_range, is_true
from unmask.settings.curricula import Curriculum, check_shares, value_at

_DEFAULT_CLEAN_RATIO = 0.5


@dataclass(frozen=True, kw_only=True)
class TidarSettings:
    """The options of method `tidar` beside those that it shares with block diffusion."""

    tidar_layout: Literal["doubled", "split"] = "doubled"
    """doubled: the text, then all of it as masks (TiDAR's paper); split: a clean head, then the rest of the text as
    masks (its first public port, `clean_ratio`). (tidar)"""
    clean_ratio: float = _DEFAULT_CLEAN_RATIO
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

    def check_layout(self) -> None:
        """Shares of clean text, for the split layout only and told in one way.

        Raises:
            SettingsError: they are not.
        """
        told = {
            "clean_ratio": self.clean_ratio != _DEFAULT_CLEAN_RATIO,
            "clean_ratio_range": self.clean_ratio_range is not None,
            "clean_ratio_curriculum": bool(self.clean_ratio_curriculum),
        }
        named = [name for name, is_set in told.items() if is_set]
        split_only = named + ["tail_blocks"] * (self.tail_blocks is not None)
        is_true(
            self.tidar_layout == "split" or not split_only,
            f"{' and '.join(split_only)} belong to tidar_layout `split`, got `{self.tidar_layout}`.",
        )
        is_true(len(named) < 2, f"Give one of {', '.join(told)}, got {' and '.join(named)}.")
        at_least(1, tail_blocks=self.tail_blocks)
        low, high = self.clean_ratio_range or (self.clean_ratio, self.clean_ratio)
        given = [low, high, *(value for _, value in self.clean_ratio_curriculum)]
        is_true(
            low <= high and all(0 < value < 1 for value in given),
            f"Clean shares must lie between 0 and 1, both excluded, the lower bound first, got {given}.",
        )
        check_shares("clean_ratio_curriculum", self.clean_ratio_curriculum)

    def check_weights(self) -> None:
        """Weights of the terms and of the teacher, and the shares that may be masked.

        Raises:
            SettingsError: they cannot be used.
        """
        for name in ("mask_ratio_curriculum", "ar_loss_weight_curriculum", "diffusion_loss_weight_curriculum"):
            curriculum: Curriculum = getattr(self, name)
            check_shares(name, curriculum)
            at_least(0, **{name: min((value for _, value in curriculum), default=None)})
        in_range(0, 1, mask_ratio_curriculum=max((value for _, value in self.mask_ratio_curriculum), default=None))
        is_true(
            all(value > 0 for _, value in self.mask_ratio_curriculum),
            "mask_ratio_curriculum must mask something: its shares must be above 0.",
        )
        at_least(0, ar_loss_weight=self.ar_loss_weight, diffusion_loss_weight=self.diffusion_loss_weight)
        for weight in ("ar_loss_weight", "diffusion_loss_weight"):
            is_true(
                getattr(self, weight) == 1 or not getattr(self, f"{weight}_curriculum"),
                f"Give either {weight} or {weight}_curriculum, got both.",
            )
        is_true(
            all(sum(self._weights_from(share)) > 0 for share in self._changes()),
            "ar_loss_weight and diffusion_loss_weight must not both be 0 at any time.",
        )
        at_least(0, distillation_weight=self.distillation_weight)
        is_true(
            (self.teacher is not None) == (self.distillation_weight > 0),
            f"teacher and distillation_weight belong together, got teacher={self.teacher} and "
            f"distillation_weight={self.distillation_weight}.",
        )
        is_true(
            self.distillation_temperature > 0 and (self.teacher is not None or self.distillation_temperature == 1),
            f"distillation_temperature must be positive and needs a teacher, got {self.distillation_temperature}.",
        )

    def term_shares(self, step: int, steps: int) -> tuple[float, float]:
        """What the next-token and the diffusion term count for in the loss of a step; together 1."""
        ar = value_at(self.ar_loss_weight_curriculum, self.ar_loss_weight, step=step, steps=steps)
        diffusion = value_at(
            self.diffusion_loss_weight_curriculum, self.diffusion_loss_weight, step=step, steps=steps
        )
        return ar / (ar + diffusion), diffusion / (ar + diffusion)

    def _changes(self) -> list[float]:
        curricula = itertools.chain(self.ar_loss_weight_curriculum, self.diffusion_loss_weight_curriculum)
        return [0.0, *(share for share, _ in curricula)]

    def _weights_from(self, share: float) -> tuple[float, float]:
        def from_there(curriculum: Curriculum, otherwise: float) -> float:
            return ([otherwise] + [value for start, value in curriculum if start <= share])[-1]

        return (
            from_there(self.ar_loss_weight_curriculum, self.ar_loss_weight),
            from_there(self.diffusion_loss_weight_curriculum, self.diffusion_loss_weight),
        )
