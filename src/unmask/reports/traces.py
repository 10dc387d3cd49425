"""From decoding steps to the frames that a replay shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from unmask.decoding.step import Step
from unmask.reports.replay import Frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def frame(step: Step, tokenizer: PreTrainedTokenizerBase | None) -> Frame:
    """One frame: the text of each place."""
    return Frame(tuple(pieces(step.canvas, tokenizer)), step.confidence, step.forwards)


def pieces(canvas: Sequence[int | None], tokenizer: PreTrainedTokenizerBase | None) -> list[str | None]:
    """The text that each token adds to the ones before it; None where masked.

    A character of several tokens appears with its last one. Special tokens are shown by name.
    """
    if tokenizer is None:
        return [None if token is None else f" {token}" for token in canvas]
    found: list[str | None] = []
    known: list[int] = []
    before = ""
    for token in canvas:
        if token is None:
            found.append(None)
            known, before = [], ""
            continue
        if token in tokenizer.all_special_ids:
            found.append(cast(str, tokenizer.convert_ids_to_tokens(token)))
            known, before = [], ""
            continue
        known.append(token)
        text = cast(str, tokenizer.decode(known))
        complete = not text.endswith("\N{REPLACEMENT CHARACTER}")
        found.append(text[len(before) :] if complete else "")
        before = text if complete else before
    return found
