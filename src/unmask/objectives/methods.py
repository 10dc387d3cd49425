"""From settings to the objective they name: a function of a clean batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.objectives import autoregressive, block_diffusion, masked_diffusion
from unmask.objectives.example import Example
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

Objective = Callable[[Batch], Example]


def objective(
    settings: ObjectiveSettings, diffusion: DiffusionConfig, *, seed: int, steps: int | None = None
) -> Objective:
    """The objective of a checkpoint under the given settings; a curriculum needs the optimiser steps of the run.

    Raises:
        SettingsError: a diffusion objective for a checkpoint without a mask token.
    """
    if settings.method == "autoregressive":
        return functools.partial(autoregressive.example, normalize=settings.normalize)
    if diffusion.mask_token_id is None:
        raise SettingsError(
            f"{settings.method} needs a mask token, and this checkpoint has none (method {diffusion.method}). "
            "Train it with this method first, which adds one."
        )
    if settings.method == "block_diffusion":
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
    """Block diffusion, whose block length may change with the step."""
    assert steps is not None or not settings.block_curriculum, "a curriculum is in shares of the run's steps"

    def example(batch: Batch) -> Example:
        length = block_diffusion.block_length_at(settings, final, batch.step, steps or 1)
        return block_diffusion.example(batch, settings, mask_token_id=mask_token_id, block_length=length, seed=seed)

    return example
