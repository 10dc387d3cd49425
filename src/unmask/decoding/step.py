"""The records of decoding: what goes in, what one forward did, what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from unmask.errors import NonFiniteError
from unmask.models.continuations import Continuation

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Row:
    """One text to generate.

    Attributes:
        prompt: its token ids.
        sample: which of a prompt's samples it is; with the seed, the key of every draw.
        seed: of the draws.
        rest: for infilling, what follows the prompt: token ids, and None for each place to fill.
    """

    prompt: tuple[int, ...]
    sample: int
    seed: int
    rest: tuple[int | None, ...] = ()

    def template(self, max_new_tokens: int) -> tuple[int | None, ...]:
        """The whole text, None for each place to fill."""
        return (*self.prompt, *(self.rest or (None,) * max_new_tokens))


@dataclass(frozen=True)
class Step:
    """One row after a forward.

    Attributes:
        canvas: the generated places, None where masked.
        revealed: the places that the last forward revealed, as indices into the canvas; none if it only wrote keys or
            the row took no part in it.
        confidence: probability of each token when it was revealed; NaN where still masked.
        forwards: network evaluations so far.
        settled: how many of the first places nothing can change any more.
        total: places that the text can have at most.
        text: the canvas as text, masks as a glyph, up to the first stop text; in the last step, what `generate`
            returns. Before it, what the known beginning may still lose to a stop text is left out. Filled in where a
            tokenizer is at hand.
        settled_text: the beginning of the text that nothing can change any more, so that what it grows by can be given
            out; in the last step the whole text. Filled in like `text`.
    """

    canvas: tuple[int | None, ...]
    revealed: tuple[int, ...]
    confidence: tuple[float, ...]
    forwards: int
    settled: int = 0
    total: int = 0
    text: str = ""
    settled_text: str = ""


@dataclass(frozen=True)
class Generated:
    """One row when it is finished.

    Attributes:
        token_ids: generated tokens, up to and including the first stop token.
        finish_reason: `stop` or `length`.
        forwards: network evaluations for this row.
        commits: forwards among them whose only use was to fill the cache.
        revealed_at: number of the step that revealed each token, from 1.
        confidence: probability of each token when it was revealed.
        log_probability: with `trace`, nats of each token then, in the tempered distribution before any filter.
        entropy: with `trace`, nats of that distribution.
        acceptance: TiDAR's histogram; entry n-1 counts the steps behind the prefill that gave n of the tokens. A step
            is one forward, or in the linear mode a draft and what verifies it.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    forwards: int
    commits: int
    revealed_at: tuple[int, ...]
    confidence: tuple[float, ...]
    log_probability: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    acceptance: tuple[int, ...] = ()


@dataclass(frozen=True)
class StopRule:
    """When an output ends.

    Attributes:
        token_ids: ids that end it.
        texts: texts that end it; they need a `reader`.
        eos_ids: the model's end-of-text tokens, the tokenizer's own first, whether they end this output or not.
        reader: of the tokens after a prompt.
    """

    token_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    reader: Callable[[Sequence[int]], Continuation] | None = field(default=None, compare=False)

    @property
    def is_active(self) -> bool:
        """Whether anything can end an output early."""
        return bool(self.token_ids or self.texts)

    def of(self, row: Row) -> Ending:
        """The end of one row's output."""
        return Ending(self, row)


def finite(confidence: Iterable[float]) -> tuple[float, ...]:
    """The confidences of revealed tokens, which the host has read anyway.

    Raises:
        NonFiniteError: one is no number, so the model's distribution at its place was none.
    """
    found = tuple(confidence)
    for place, value in enumerate(found):
        if not math.isfinite(value):
            raise NonFiniteError(
                f"The model's distribution for generated token {place} is not finite (confidence {value}): weights are "
                "damaged, or numbers overflow. Try another dtype (float32), or check the checkpoint: unmask evaluate"
            )
    return found


class Ending:
    """Finds the end of a row's output in its tokens as they become known for good."""

    def __init__(self, rule: StopRule, row: Row) -> None:
        self.rule = rule
        self._reader = rule.reader(row.prompt) if rule.texts and rule.reader is not None else None
        self._checked = 0

    def end(self, tokens: Sequence[int]) -> int | None:
        """How many tokens belong to the output if it ends within them, the stop itself included; None if it goes on.

        It ends with the first token that completes a stop, so it does not matter how many become known at a time.

        Args:
            tokens: all that are known for good; those of the call before are a beginning of them.
        """
        for count in range(self._checked + 1, len(tokens) + 1):
            if tokens[count - 1] in self.rule.token_ids:
                return count
            if self._reader is not None and self._reader.until(tokens[:count], self.rule.texts)[1]:
                return count
        self._checked = len(tokens)
        return None


class Run(Protocol):
    """Rows being decoded together: advance until done, look at a row in between, collect the results."""

    @property
    def done(self) -> bool:
        """Whether every row is finished."""
        ...

    def advance(self) -> None:
        """Evaluate the network once for every unfinished row."""
        ...

    def observe(self, row: int) -> Step:
        """A row after the last forward."""
        ...

    def results(self) -> list[Generated]:
        """The finished rows, in the order in which they were given."""
        ...
