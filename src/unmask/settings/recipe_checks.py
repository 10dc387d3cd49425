"""What the groups of a recipe ask of one another, and how large what they name may be.

In: settings of a stage or a run. Out: nothing, or a `SettingsError`; no file is looked at. Sizes have limits that no
run reaches, so that a slip of the finger is found before memory is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.settings.checks import at_most, is_true
from unmask.settings.model import MOST_POSITIONS
from unmask.settings.naming import check_name, check_output_dir

if TYPE_CHECKING:
    from unmask.settings.recipe import RunSettings, StageSettings

_MOST_ROWS, _MOST_IDS, _MOST_STEPS = 2**24, 2**20, 10**10


def check_run(settings: RunSettings) -> None:
    """The name of a run is that of a folder inside output_dir, which has a name too.

    Raises:
        SettingsError: it is not.
    """
    check_name(settings.name)
    check_output_dir(settings.output_dir)
    is_true(bool(settings.output_dir), "output_dir must name a folder, got an empty text. Example: output_dir=runs")


def check_stage(settings: StageSettings) -> None:
    """Data and training of a stage are of a size that can be, and go together.

    Raises:
        SettingsError: they are not, or do not.
    """
    data, training = settings.data, settings.training
    for name in ("epochs", "save_epochs"):
        is_true(
            not data.streaming or getattr(training, name) is None,
            f"training.{name} counts passes over the text, and of a stream (data.streaming) nobody knows the length. "
            "Set training.steps or training.save_steps.",
        )
    is_true(
        data.format == "text" or settings.objective.random_length_probability == 0,
        "objective.random_length_probability cuts rows of text; a conversation would lose its answer. Set it to 0 "
        f"with data.format={data.format}.",
    )
    limits: dict[str, tuple[int, float | None]] = {
        "data.context_length": (MOST_POSITIONS, data.context_length),
        "data.vocabulary_size": (_MOST_IDS, data.vocabulary_size),
        "training.batch_size": (_MOST_ROWS, training.batch_size),
        "training.micro_batch_size": (_MOST_ROWS, training.micro_batch_size),
        "training.loss_chunk_rows": (_MOST_ROWS, training.loss_chunk_rows),
        "training.steps": (_MOST_STEPS, training.steps),
        "training.epochs": (_MOST_STEPS, training.epochs),
        "training.warmup_steps": (_MOST_STEPS, training.warmup_steps),
    }
    for name, (most, value) in limits.items():
        at_most(most, **{name: value})
    is_true(
        training.micro_batch_size is None or training.micro_batch_size <= training.batch_size,
        f"training.micro_batch_size must be at most training.batch_size ({training.batch_size}), got "
        f"{training.micro_batch_size}.",
    )
    if data.cache_dir is not None:
        is_true(
            bool(data.cache_dir.strip()) and data.cache_dir.isprintable(),
            f"data.cache_dir must name a folder, got {data.cache_dir!r}. Leave it out for the run folder.",
        )
