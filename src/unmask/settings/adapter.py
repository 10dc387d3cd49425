"""What is trained on top of a frozen checkpoint: LoRA, also over 4-bit weights (QLoRA)."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from unmask.settings.checks import at_least, at_most, in_range, is_true
from unmask.settings.model import MOST_CHANNELS
from unmask.settings.typed import settings

Quantization = Literal["nf4"]


@settings
class AdapterSettings:
    """LoRA on a frozen checkpoint; without a rank, every weight is trained."""

    rank: int | None = None
    """Rank of the update that is learned for each target; null trains every weight and no adapter."""
    alpha: int | None = None
    """The update is multiplied by alpha / rank; default: twice the rank."""
    dropout: float = 0.0
    """Dropout on the inputs of the updates."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get an update, as q_proj; default: all of attention and MLP."""
    quantization: Quantization | None = None
    """nf4 keeps the frozen linear layers in 4 bits (QLoRA); null keeps them in `model.dtype`."""

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank, alpha=self.alpha)
        at_most(MOST_CHANNELS, rank=self.rank, alpha=self.alpha)
        is_true("" not in self.targets, f"targets must be names of layers, as q_proj, got {list(self.targets)}.")
        in_range(0, 0.99, dropout=self.dropout)
        if self.rank is None:
            given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
            is_true(
                not given,
                f"{', '.join(f'adapter.{name}' for name in given)} is set and adapter.rank is not. Set adapter.rank, "
                "for example to 16, to train an adapter; leave the others out to train every weight.",
            )

    @property
    def resolved_alpha(self) -> int:
        """Alpha with its default filled in."""
        return self.alpha or 2 * (self.rank or 0)
