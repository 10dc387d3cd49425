"""What `DiffusionLM` returns: generated texts and scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unmask.decoding.step import FinishReason
from unmask.errors import NonFiniteError


@dataclass(frozen=True)
class Output:
    """One generated text.

    Attributes:
        text: what the tokens add to the prompt's text, without special tokens, up to the first stop text; empty
            without a tokenizer.
        token_ids: generated tokens, up to and including the stop token.
        finish_reason: `stop` or `length`.
        forwards: network evaluations that the text took.
        commits: forwards among them whose only use was to fill the cache.
        prompt: number of the prompt, from 0.
        sample: number of the sample of that prompt, from 0.
        revealed_at: with `trace`, the step that revealed each token, from 1.
        confidence: with `trace`, the probability of each token when it was revealed: by the distribution that the
            option `confidence` names (canvas, blocks), else without temperature and filters.
        log_probability: with `trace`, its nats then, in the tempered distribution before any filter.
        entropy: with `trace`, the nats of that distribution.
        infills: the text of each gap, for `infill`.
        acceptance: for TiDAR, how often a step behind the prefill gave 1, 2, ... of the tokens; else empty.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    forwards: int
    commits: int
    prompt: int
    sample: int
    revealed_at: tuple[int, ...] | None = None
    confidence: tuple[float, ...] | None = None
    log_probability: tuple[float, ...] | None = None
    entropy: tuple[float, ...] | None = None
    infills: tuple[str, ...] = ()
    acceptance: tuple[int, ...] = ()

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens for each network evaluation."""
        return len(self.token_ids) / self.forwards

    @property
    def tokens_per_forward_after_prefill(self) -> float:
        """The same without TiDAR's prefill and the token that it gives; 0 where the prefill gave everything.

        Not the tokens of a step, which may be two forwards (`mode="linear"`): those are what `acceptance` counts.
        """
        if not self.acceptance:
            return self.tokens_per_forward
        return (len(self.token_ids) - 1) / max(self.forwards - 1, 1)


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one text.

    Attributes:
        log_likelihood: nats; a lower bound where `is_bound`.
        stderr: standard error of it from the draws of the masks; 0 where exact.
        tokens: tokens scored.
        bytes: UTF-8 bytes that they stand for; 0 for token ids.
        is_bound: False for autoregression and TiDAR (and blocks of one token), True for diffusion.
    """

    log_likelihood: float
    stderr: float
    tokens: int
    bytes: int
    is_bound: bool

    def __post_init__(self) -> None:
        if not math.isfinite(self.log_likelihood):
            raise NonFiniteError(
                f"The log-likelihood of a text is {self.log_likelihood}: its weights are not finite, or the text "
                "has a token that it never predicts. Check the checkpoint with `unmask info`, and the token ids."
            )
