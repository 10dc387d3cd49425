"""The largest sizes that may be asked for: named, so that no memory is taken before they are checked.

What a model's context bounds is checked against that; these bound the rest. They lie far above what is useful.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.errors import SettingsError
from unmask.settings.checks import at_most

if TYPE_CHECKING:
    from unmask.settings.decoding import SamplingParams

MOST_SAMPLES = 65_536
"""Samples of one prompt."""
MOST_OUTPUTS = 1_048_576
"""Texts of one call: prompts times samples."""
MOST_ROWS = 65_536
"""Rows that are evaluated together."""
MOST_STEPS = 65_536
"""Denoising steps of a block; ancestral unmasking may take more steps than there are positions."""
MOST_STOPS = 1_000
"""Texts that end an output: each is looked for after every step."""
MOST_MASKS = 65_536
"""Masked versions of one row or answer."""
MOST_VERSIONS = 4_194_304
"""Masked versions of all rows that are evaluated together."""
MOST_PARALLEL_DRAFT = 64
"""Tokens of a draft in TiDAR's parallel mode, whose forward has as many blocks of masks as tokens."""
LEAST_PENALTY = 1e-3
"""Of repetition: logits divided by less could overflow."""
LEAST_TEMPERATURE = 1e-6
"""Of what is above 0: logits divided by less could overflow."""


def check_sampling(params: SamplingParams) -> None:
    """Sizes and strengths that no model could serve.

    Raises:
        SettingsError: one is beyond its limit.
    """
    at_most(MOST_SAMPLES, n=params.n)
    at_most(MOST_STEPS, denoising_steps=params.denoising_steps, edit_steps=params.edit_steps)
    at_most(1000, cfg_scale=params.cfg_scale, repetition_penalty=params.repetition_penalty)
    if len(params.stop) > MOST_STOPS:
        raise SettingsError(f"stop must have at most {MOST_STOPS:,} texts, got {len(params.stop):,}.")
    penalty = params.repetition_penalty
    if penalty is not None and 0 < penalty < LEAST_PENALTY:
        raise SettingsError(f"repetition_penalty must be at least {LEAST_PENALTY}, got {penalty}. 1 turns it off.")
    for name in ("temperature", "reveal_temperature"):
        value = getattr(params, name)
        if value is not None and 0 < value < LEAST_TEMPERATURE:
            raise SettingsError(f"{name} must be 0 or at least {LEAST_TEMPERATURE}, got {value}. 0 takes the best.")


def check_for_model(params: SamplingParams, *, context: int, vocabulary: int) -> None:
    """What the caller asks for against the model's size.

    Raises:
        SettingsError: a length exceeds the context, or a stop token does not exist.
    """
    for name in ("block_length", "draft_length"):
        value = getattr(params, name)
        if value is not None and value > context:
            raise SettingsError(f"{name} must be at most the model's context ({context}), got {value:,}.")
    for token in params.stop_token_ids:
        if not 0 <= token < vocabulary:
            raise SettingsError(f"stop_token_ids must lie between 0 and {vocabulary - 1}, got {token}.")


def check_draft(params: SamplingParams) -> None:
    """The forward of TiDAR's parallel mode against its limit, once the parameters are resolved.

    Raises:
        SettingsError: it would have too many tokens.
    """
    if params.mode == "parallel" and (params.draft_length or 0) > MOST_PARALLEL_DRAFT:
        raise SettingsError(
            f"draft_length must be at most {MOST_PARALLEL_DRAFT} in mode `parallel`, whose forward has draft_length * "
            f"(draft_length + 1) tokens, got {params.draft_length}. Lower it, or set mode to linear."
        )
