"""Checks of what only TiDAR's training has: its layout, what is masked, the weights of its terms, and a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.settings.checks import at_least, at_most, in_range, is_true
from unmask.settings.curricula import Curriculum, check_shares
from unmask.settings.model import MOST_POSITIONS

if TYPE_CHECKING:
    from unmask.settings.objective import ObjectiveSettings

DEFAULT_CLEAN_RATIO = 0.5
_MOST_WEIGHT = 1e6
TIDAR_ONLY = (
    "tidar_layout",
    "clean_ratio",
    "clean_ratio_range",
    "clean_ratio_curriculum",
    "tail_blocks",
    "masking",
    "mask_ratio_curriculum",
    "ar_loss_weight",
    "ar_loss_weight_curriculum",
    "diffusion_loss_weight",
    "diffusion_loss_weight_curriculum",
    "teacher",
    "distillation_weight",
    "distillation_temperature",
)
"""The settings of an objective that no other method has."""


def check_tidar(settings: ObjectiveSettings) -> None:
    """Whether TiDAR's options can be used, and used together.

    Raises:
        SettingsError: they cannot.
    """
    _check_layout(settings)
    _check_masking(settings)
    _check_weights(settings)
    _check_teacher(settings)


def _check_layout(settings: ObjectiveSettings) -> None:
    """Clean shares are for the split layout, and told in one way."""
    told = {
        "clean_ratio": settings.clean_ratio != DEFAULT_CLEAN_RATIO,
        "clean_ratio_range": settings.clean_ratio_range is not None,
        "clean_ratio_curriculum": bool(settings.clean_ratio_curriculum),
    }
    named = [name for name, is_set in told.items() if is_set]
    split_only = named + ["tail_blocks"] * (settings.tail_blocks is not None)
    is_true(
        settings.tidar_layout == "split" or not split_only,
        f"{' and '.join(split_only)}: only for tidar_layout `split`, got `{settings.tidar_layout}`, where the whole "
        "text is clean once and masked once.",
    )
    is_true(len(named) < 2, f"Give one of {', '.join(told)}, got {' and '.join(named)}.")
    at_least(1, tail_blocks=settings.tail_blocks)
    at_most(MOST_POSITIONS, tail_blocks=settings.tail_blocks)
    low, high = settings.clean_ratio_range or (settings.clean_ratio, settings.clean_ratio)
    shares = [low, high, *(value for _, value in settings.clean_ratio_curriculum)]
    is_true(
        low <= high and all(0 < value < 1 for value in shares),
        f"Clean shares must lie between 0 and 1, both excluded, and a range begin with the lower one, got {shares}.",
    )
    check_shares("clean_ratio_curriculum", settings.clean_ratio_curriculum)


def _check_masking(settings: ObjectiveSettings) -> None:
    """The share of what is masked is told in one way, and where there is one to tell."""
    is_drawn, curriculum = settings.mask_ratio_range != (0.0, 1.0), settings.mask_ratio_curriculum
    is_true(
        settings.masking != "full" or not (is_drawn or curriculum),
        "mask_ratio_range and mask_ratio_curriculum need masking `random` or `block`, got `full`, which masks all.",
    )
    is_true(
        not (is_drawn and curriculum),
        "mask_ratio_range draws the share of what is masked, and mask_ratio_curriculum gives it. Set one of them.",
    )
    is_true(
        settings.schedule == "linear" or not curriculum,
        f"mask_ratio_curriculum needs the linear schedule, got {settings.schedule}.",
    )
    is_true(
        not (settings.masking == "block" and settings.t_granularity == "block"),
        "t_granularity `block` does not go with masking `block`, which draws the share of a text's blocks. Use "
        "`sequence` or `batch`.",
    )
    check_shares("mask_ratio_curriculum", curriculum)
    for _, value in curriculum:
        in_range(0, 1, mask_ratio_curriculum=value)
        is_true(value > 0, "The shares of mask_ratio_curriculum must be above 0: what is not masked is not learned.")


def _check_weights(settings: ObjectiveSettings) -> None:
    """The two terms may each be left out, but at no time both."""
    for name in ("ar_loss_weight", "diffusion_loss_weight"):
        fixed, curriculum = getattr(settings, name), getattr(settings, f"{name}_curriculum")
        is_true(fixed == 1 or not curriculum, f"Give either {name} or {name}_curriculum, got both.")
        check_shares(f"{name}_curriculum", curriculum)
        values = [value for _, value in curriculum]
        at_least(0, **{name: fixed, f"{name}_curriculum": min(values, default=None)})
        at_most(_MOST_WEIGHT, **{name: fixed, f"{name}_curriculum": max(values, default=None)})
    ar, diffusion = settings.ar_loss_weight_curriculum, settings.diffusion_loss_weight_curriculum
    for share in {0.0, *(start for start, _ in (*ar, *diffusion))}:
        is_true(
            _from(ar, settings.ar_loss_weight, share) + _from(diffusion, settings.diffusion_loss_weight, share) > 0,
            f"ar_loss_weight and diffusion_loss_weight are both 0 from share {share} of the run on. Raise one.",
        )


def _from(curriculum: Curriculum, otherwise: float, share: float) -> float:
    return ([otherwise] + [value for start, value in curriculum if start <= share])[-1]


def _check_teacher(settings: ObjectiveSettings) -> None:
    weight, temperature = settings.distillation_weight, settings.distillation_temperature
    at_least(0, distillation_weight=weight)
    at_most(_MOST_WEIGHT, distillation_weight=weight, distillation_temperature=temperature)
    is_true(settings.teacher != "", "teacher must name a folder, run or hub id, got an empty text. Leave it out.")
    is_true(
        (settings.teacher is not None) == (weight > 0),
        f"teacher and distillation_weight belong together, got teacher={settings.teacher} and "
        f"distillation_weight={weight}.",
    )
    is_true(temperature > 0, f"distillation_temperature must be above 0, got {temperature}.")
    is_true(
        settings.teacher is not None or temperature == 1,
        f"distillation_temperature needs a teacher, got {temperature} without one.",
    )
