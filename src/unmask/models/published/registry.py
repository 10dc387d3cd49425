"""The formats that Unmask reads and writes besides its own, and those that it names but does not cover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.errors import CheckpointError
from unmask.models.published import dream, llada, sdar, tidar
from unmask.models.published.format import PublishedFormat

TARGETS: dict[str, tuple[PublishedFormat, ...]] = {
    "llada": (llada.FORMAT,),
    "dream": (dream.FORMAT,),
    "sdar": (sdar.FORMAT, sdar.MIXTURE),
}
"""What `unmask convert --to` writes, by the network: one format for each family."""
FORMATS: dict[str, PublishedFormat] = {
    one.name: one for formats in (*TARGETS.values(), (tidar.FORMAT,)) for one in formats
}
"""What opens: what is written, and the first TiDAR port's form, whose successor is our own (`--to tidar`)."""

# Formats whose network or decoding the tables do not cover, by model_type.
_NOT_COVERED = {
    "llada_moe": "LLaDA-MoE mixes experts, and no stock class has its tensors",
    "llada2_moe": "LLaDA2 is block diffusion on a mixture of experts, and no stock class has its tensors",
}


def published_format(raw: Mapping[str, Any], source: str) -> PublishedFormat | None:
    """The published format of a config.json, or None for a stock one.

    Raises:
        CheckpointError: it is of a published format that is known and not covered.
    """
    model_type = raw.get("model_type")
    if model_type in _NOT_COVERED:
        raise CheckpointError(
            f"{source} is a `{model_type}` model, which is not supported: {_NOT_COVERED[model_type]}. Published "
            f"formats that are: {', '.join(one.title for one in FORMATS.values())}."
        )
    return next((one for one in FORMATS.values() if one.model_type == model_type), None)


def target_format(target: str, family: str) -> PublishedFormat:
    """The format that `target` (a key of `TARGETS`) means for a network of a family.

    Raises:
        CheckpointError: it has none for that network.
    """
    formats = TARGETS[target]
    for one in formats:
        if one.family == family:
            return one
    raise CheckpointError(
        f"{formats[0].title}'s format holds {' and '.join(one.family for one in formats)} networks, and this one is a "
        f"{family}. Write it with --to unmask."
    )
