"""What evaluation asks of a language model, so that this room does not depend on the one that answers.

`unmask.lm.DiffusionLM` is the model that is meant; the tests put smaller ones in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from unmask.models.backbone import Backbone
from unmask.models.prompts import Prompt, PromptCodec
from unmask.settings.decoding import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class WrittenText(Protocol):
    """One generated text, or one with its gaps filled in."""

    @property
    def text(self) -> str: ...

    @property
    def infills(self) -> tuple[str, ...]: ...

    @property
    def forwards(self) -> int: ...


class LanguageModel(Protocol):
    """A network, its tokenizer, generation and infilling."""

    codec: PromptCodec

    @property
    def backbone(self) -> Backbone: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None: ...

    def generate(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], *, batch_size: int
    ) -> Sequence[WrittenText]: ...

    def infill(self, texts: Sequence[Sequence[str]], params: Sequence[SamplingParams]) -> Sequence[WrittenText]: ...
