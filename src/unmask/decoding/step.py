"""The records of decoding: what goes in, what one forward did, what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

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
        revealed: the places that this step revealed, as indices into the canvas.
        confidence: probability of each token when it was revealed; NaN where still masked.
        forwards: network evaluations so far.
        settled: how many of the first places nothing can change any more.
        text: the canvas as text, masks as a glyph; filled in where a tokenizer is at hand.
    """

    canvas: tuple[int | None, ...]
    revealed: tuple[int, ...]
    confidence: tuple[float, ...]
    forwards: int
    settled: int = 0
    text: str = ""


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
        texts: texts that end it; they need `decode`.
        eos_ids: the model's end-of-text tokens, the tokenizer's own first, whether they end this output or not.
        decode: token ids to text.
    """

    token_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    eos_ids: tuple[int, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = field(default=None, compare=False)

    @property
    def is_active(self) -> bool:
        """Whether anything can end an output early."""
        return bool(self.token_ids or self.texts)

    def end(self, tokens: Sequence[int], *, start: int = 0) -> int | None:
        """How many tokens belong to the output if it ends within them, the stop itself included; None if it goes on.

        The tokens before `start` are known to hold no stop token.
        """
        ends = [place + 1 for place in range(start, len(tokens)) if tokens[place] in self.token_ids][:1]
        if self.texts and self.decode is not None:
            text_end = self._text_end(tokens, self.decode)
            ends += [] if text_end is None else [text_end]
        return min(ends, default=None)

    def _text_end(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int | None:
        if not any(text in decode(tokens) for text in self.texts):
            return None
        low, high = 1, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if any(text in decode(tokens[:middle]) for text in self.texts):
                high = middle
            else:
                low = middle + 1
        return low


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
