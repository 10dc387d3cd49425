"""From decoding steps to the frames that a replay shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unmask.decoding.step import Step
from unmask.models.continuations import Continuation
from unmask.reports.replay import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def frame(
    step: Step,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    prompt: Sequence[int] = (),
    stops: Sequence[str] = (),
) -> Frame:
    """One frame: the text of each place, up to the first stop text.

    Args:
        step: of a decoder.
        tokenizer: None shows ids.
        prompt: token ids that the text continues.
        stops: texts that end it.
    """
    shown = tuple(pieces(step.canvas, tokenizer, prompt=prompt, stops=stops))
    return Frame(shown, step.confidence[: len(shown)], step.forwards, total=step.total or None)


def pieces(
    canvas: Sequence[int | None],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    prompt: Sequence[int] = (),
    stops: Sequence[str] = (),
) -> list[str | None]:
    """The text that each token adds to the ones before it; None where masked.

    A character of several tokens appears with its last one. Special tokens are shown by name.
    """
    if tokenizer is None:
        return [None if token is None else f" {token}" for token in canvas]
    return Continuation(tokenizer, prompt).pieces(canvas, stops)
