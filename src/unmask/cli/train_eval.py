"""`unmask train RECIPE --eval-only`: the held-out text of a recipe, scored by a checkpoint of its run.

Nothing is trained and nothing is written, neither in the run folder nor elsewhere. The figure is that of `unmask
evaluate`: exact for autoregression and TiDAR, else an upper bound with its standard error, under the recipe's own
`evaluation` settings. So for a run's best checkpoint it is the best score of its metrics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmask.errors import SettingsError
from unmask.settings.recipe import Recipe


def scored(recipe: Recipe, resume: str | None) -> dict[str, Any]:
    """The record of the likelihood.

    Args:
        recipe: names the text, and the run where no checkpoint is named.
        resume: the checkpoint, as `--resume` takes it; None or `auto`: the run's best one, else its latest.

    Raises:
        CheckpointError: there is no such checkpoint.
        SettingsError: it was trained by another method than the recipe's.
        DataError: the recipe holds no text out.
    """
    from unmask.cli.evaluate_text import evaluated
    from unmask.lm import DiffusionLM
    from unmask.training.checkpoint import named

    path = str(Path(recipe.output_dir) / recipe.name) if resume in (None, "auto") else str(resume)
    checkpoint = str(named(path, default="best"))
    lm = DiffusionLM.from_pretrained(checkpoint).optimize_for_inference()
    method = lm.backbone.diffusion.method
    if method != recipe.objective.method:
        raise SettingsError(
            f"{checkpoint} was trained with {method}, and the recipe says {recipe.objective.method}. Give the recipe "
            "of its run, or score any text with: unmask evaluate CHECKPOINT --data FILE"
        )
    return evaluated(lm, recipe, recipe.evaluation, own=True, source=checkpoint)
