"""From settings to the objective they name: a function of a clean batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.objectives import autoregressive, masked_diffusion
from unmask.objectives.example import Example
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

Objective = Callable[[Batch], Example]


def objective(settings: ObjectiveSettings, diffusion: DiffusionConfig, *, seed: int) -> Objective:
    """The objective of a checkpoint under the given settings.

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
    return functools.partial(
        masked_diffusion.example,
        settings=settings,
        mask_token_id=diffusion.mask_token_id,
        logit_shift=diffusion.logit_shift,
        seed=seed,
    )
