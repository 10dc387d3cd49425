"""What evaluation asks of a language model, so that this room does not depend on the one that answers.

`unmask.lm.DiffusionLM` is the model that is meant; the tests put smaller ones in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from unmask.models.backbone import Backbone
from unmask.settings.decoding import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WrittenText(Protocol):
    """One generated text."""

    @property
    def text(self) -> str: ...

    @property
    def forwards(self) -> int: ...


class FilledText(Protocol):
    """One text with its gaps filled in."""

    @property
    def text(self) -> str: ...

    @property
    def infills(self) -> tuple[str, ...]: ...

    @property
    def forwards(self) -> int: ...


class LanguageModel(Protocol):
    """A network, its tokenizer, and generation."""

    @property
    def backbone(self) -> Backbone: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None: ...

    def end_ids(self) -> set[int]: ...

    def generate(
        self, prompts: Sequence[Any], params: Sequence[SamplingParams], *, batch_size: int
    ) -> Sequence[WrittenText]: ...


class InfillingModel(LanguageModel, Protocol):
    """A language model that fills the gaps between pieces of text."""

    def infill(self, texts: Sequence[Sequence[str]], params: SamplingParams) -> Sequence[FilledText]: ...
