"""Streaming: settled tokens and texts as they come, and drafts for streamers of `transformers` that take them.

In: a run of one row. Out: calls of `put` with the prompt and then with the tokens that nothing can change any more, of
`put_draft` with all that may still change (mask tokens where nothing is revealed), and of `end`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from unmask.decoding.step import Run, Step, StopRule
from unmask.errors import SettingsError
from unmask.models.continuations import MASK_GLYPH, Continuation


class Streamer(Protocol):
    """What `transformers.generation.streamers` have in common; `put_draft(value=...)` is optional."""

    def put(self, value: Tensor) -> None:
        """Take token ids, int64 [1, P] for the prompt, then [N]."""
        ...

    def end(self) -> None:
        """Know that nothing more comes."""
        ...


def feed(streamer: Streamer, run: Run, prompt: Sequence[int], *, mask_token_id: int | None, stop: StopRule) -> None:
    """Run to the end, telling the streamer: settled tokens up to a stop text, which is not given out, nor what may
    become one. If a stop text begins inside a token, what stands before it is spelled with other tokens.

    Raises:
        SettingsError: the streamer wants logits, which exist for masked places only and are not kept.
    """
    if getattr(streamer, "_takes_logits", False):
        raise SettingsError(
            f"The streamer {type(streamer).__name__} asks for logits (`_takes_logits`), which are not kept. Use one "
            "that takes tokens, or DiffusionLM.stream for confidences."
        )
    put_draft = getattr(streamer, "put_draft", None)
    reader = stop.reader(prompt) if stop.texts and stop.reader is not None else None
    streamer.put(torch.tensor([list(prompt)], dtype=torch.int64))
    told = 0
    while not run.done:
        run.advance()
        step = run.observe(0)
        known = cast("list[int]", list(step.canvas[: step.settled]))
        count = len(known)
        if reader is not None:
            count = reader.num_settled(known, stop.texts, start=told, is_final=run.done)
        new = known[told:count]
        told = count
        if reader is not None and run.done:
            text, has_stop = reader.until(known, stop.texts)
            new += reader.spelled(known[:told], text[len(reader.text(known[:told])) :]) if has_stop else []
        if new:
            streamer.put(torch.tensor(new))
        if put_draft is not None and not run.done:
            drawn = len(step.canvas) if reader is None else len(reader.pieces(step.canvas, stop.texts))
            ids = [mask_token_id if token is None else token for token in step.canvas[told:drawn]]
            if ids:
                put_draft(value=torch.tensor(ids))
    streamer.end()


def with_texts(step: Step, reader: Continuation | None, stop: Sequence[str], *, is_final: bool) -> Step:
    """A step with the texts of its canvas, up to a stop text; ids where there is no tokenizer to read them."""
    if reader is None:
        glyphs = (MASK_GLYPH if token is None else str(token) for token in step.canvas)
        return dataclasses.replace(step, text=" ".join(glyphs))
    text, known = reader.drawn(step.canvas, stop, is_final=is_final), step.canvas[: step.settled]
    settled = text if is_final else reader.settled(cast("Sequence[int]", known), stop)
    return dataclasses.replace(step, text=text, settled_text=settled)
