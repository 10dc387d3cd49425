"""How a likelihood is measured."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.settings.checks import at_least


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The likelihood evaluator."""

    masks_per_sequence: int = 8
    """Masked versions of each row that a diffusion bound averages over (stratified mask counts)."""
    max_rows: int | None = 256
    """Rows of held-out text to score; null scores all."""
    batch_size: int = 32
    """Rows per forward."""
    seed: int = 0
    """Seed of the masks; the same seed draws the same masks for every model."""

    def __post_init__(self) -> None:
        at_least(2, masks_per_sequence=self.masks_per_sequence)
        at_least(1, max_rows=self.max_rows, batch_size=self.batch_size)
