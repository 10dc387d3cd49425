"""From settings to the objective they name: a function of a clean batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.objectives import autoregressive, block_diffusion, masked_diffusion, tidar
from unmask.objectives.example import Example
from unmask.settings.curricula import value_at
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

Objective = Callable[[Batch], Example]


def objective(
    settings: ObjectiveSettings, diffusion: DiffusionConfig, *, seed: int, steps: int | None = None
) -> Objective:
    """The objective of a checkpoint under the given settings; a curriculum needs the optimiser steps of the run.

    Raises:
        SettingsError: an objective with masks for a checkpoint without a mask token.
    """
    if settings.method == "autoregressive" and settings.input_mask_ratio == 0:
        return functools.partial(autoregressive.example, normalize=settings.normalize)
    if diffusion.mask_token_id is None:
        raise SettingsError(
            f"{settings.method} needs a mask token, and this checkpoint has none (method {diffusion.method}). "
            "Train it with this method first, which adds one."
        )
    if settings.method == "autoregressive":
        return functools.partial(
            autoregressive.masked_example,
            ratio=settings.input_mask_ratio,
            mask_token_id=diffusion.mask_token_id,
            seed=seed,
            normalize=settings.normalize,
        )
    if settings.method in ("block_diffusion", "tidar"):
        assert diffusion.block_length is not None, "a checkpoint made ready for this method has one"
        return _blocks(settings, diffusion.mask_token_id, diffusion.block_length, seed=seed, steps=steps)
    return functools.partial(
        masked_diffusion.example,
        settings=settings,
        mask_token_id=diffusion.mask_token_id,
        logit_shift=diffusion.logit_shift,
        seed=seed,
    )


def _blocks(settings: ObjectiveSettings, mask_token_id: int, final: int, *, seed: int, steps: int | None) -> Objective:
    """Block diffusion or TiDAR, whose block length and other settings may change with the step."""
    assert steps is not None or not settings.curricula, "a curriculum is in shares of the run's steps"
    steps = steps or 1

    def example(batch: Batch) -> Example:
        length = value_at(settings.block_curriculum, final, step=batch.step, steps=steps)
        if settings.method == "tidar":
            stage = tidar.stage_at(settings, block_length=length, step=batch.step, steps=steps)
            return tidar.example(batch, settings, stage, mask_token_id=mask_token_id, seed=seed)
        return block_diffusion.example(batch, settings, mask_token_id=mask_token_id, block_length=length, seed=seed)

    return example
