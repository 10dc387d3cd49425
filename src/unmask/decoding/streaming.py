"""Streaming with the streamers of `transformers`: settled tokens as they come, drafts where a streamer takes them.

In: a run of one row. Out: calls of `put` with the prompt and then with the tokens that nothing can change any more, of
`put_draft` with all that may still change (mask tokens where nothing is revealed), and of `end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from unmask.decoding.step import Run
from unmask.errors import SettingsError


class Streamer(Protocol):
    """What `transformers.generation.streamers` have in common; `put_draft(value=...)` is optional."""

    def put(self, value: Tensor) -> None:
        """Take token ids, int64 [1, P] for the prompt, then [N]."""
        ...

    def end(self) -> None:
        """Know that nothing more comes."""
        ...


def feed(streamer: Streamer, run: Run, prompt: Sequence[int], *, mask_token_id: int | None) -> None:
    """Run to the end, telling the streamer.

    Raises:
        SettingsError: the streamer wants logits, which exist for masked places only and are not kept.
    """
    if getattr(streamer, "_takes_logits", False):
        raise SettingsError(
            f"The streamer {type(streamer).__name__} asks for logits (`_takes_logits`), which are not kept. Use one "
            "that takes tokens, or DiffusionLM.stream for confidences."
        )
    put_draft = getattr(streamer, "put_draft", None)
    streamer.put(torch.tensor([list(prompt)], dtype=torch.int64))
    told = 0
    while not run.done:
        run.advance()
        step = run.observe(0)
        if step.settled > told:
            streamer.put(torch.tensor(step.canvas[told : step.settled]))
            told = step.settled
        if put_draft is not None and len(step.canvas) > told:
            ids = [mask_token_id if token is None else token for token in step.canvas[told:]]
            put_draft(value=torch.tensor(ids))
    streamer.end()
