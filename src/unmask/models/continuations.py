"""What generated tokens say: one reading of them for stop texts, outputs, streams and chats.

In: the ids of a prompt and of the tokens after it. Out: the text that the tokens add to the prompt's, without special
tokens, up to the first stop text. Tokens are always read after the prompt, because some tokenizers strip the first
space of a text and some characters take several tokens. A stop may spell special tokens (`<|im_start|>user`): it is
looked for in the text as it is shown, and in the one with special tokens spelled out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from unmask.models.tokenizers import decode, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK_GLYPH = "\u2591"
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# A vocabulary of whole characters spells others with these, and reads a run of them together.
_ONE_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Tokens of a long prompt that the reading of what follows can depend on.
_CONTEXT_TOKENS = 256
# The same for a run of tokens after a mask, of which a canvas has many.
_RUN_CONTEXT_TOKENS = 16
# What `clean_up_tokenization_spaces` replaces begins with a space and has at most one more character than this.
_CLEANED_TAIL = 3


class _Reading(NamedTuple):
    """A text, and the special tokens in it: where each stands in the text, and what it is called."""

    text: str
    special: tuple[tuple[int, str], ...] = ()

    @property
    def whole(self) -> str:
        """The text with the special tokens spelled out."""
        parts, start = [], 0
        for place, name in self.special:
            parts += [self.text[start:place], name]
            start = place
        return "".join([*parts, self.text[start:]])

    def in_text(self, end: int) -> int:
        """How much of the text is in the first `end` characters of the whole."""
        for place, name in self.special:
            if end <= place:
                return end
            end = max(place, end - len(name))
        return end

    def in_whole(self, end: int) -> int:
        """How much of the whole is in the first `end` characters of the text, special tokens at its end left out."""
        return end + sum(len(name) for place, name in self.special if place < end)


class Continuation:
    """Reads the tokens after one prompt.

    Args:
        tokenizer: of the checkpoint.
        prompt: token ids that stand before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self.tokenizer, self.prompt = tokenizer, tuple(prompt)
        self._context, self._before = self._read_context(_CONTEXT_TOKENS)
        self._special = {number: one.content for number, one in tokenizer.added_tokens_decoder.items() if one.special}
        self._has_bytes = "ByteFallback" in repr(tokenizer.backend_tokenizer.decoder)  # type: ignore[attr-defined]
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))

    def _read_context(self, tokens: int) -> tuple[tuple[int, ...], str]:
        """The end of the prompt and its text; all of the prompt where the end has none."""
        context = self.prompt[-tokens:]
        before = decode(self.tokenizer, context)
        return (context, before) if before else (self.prompt, decode(self.tokenizer, self.prompt))

    def _after(self, tokens: Sequence[int]) -> Continuation:
        """Reads what follows these tokens, too."""
        if not tokens:
            return self
        later = copy.copy(self)
        later.prompt = (*self.prompt, *tokens)
        later._context, later._before = later._read_context(_RUN_CONTEXT_TOKENS)
        return later

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens add to the prompt's text, without special tokens."""
        both = decode(self.tokenizer, [*self._context, *tokens])
        # The end of a prompt may be the beginning of a character.
        for before in (self._before, self._before.rstrip(_UNKNOWN)):
            if both.startswith(before):
                return both[len(before) :]
        return decode(self.tokenizer, tokens)

    def until(self, tokens: Sequence[int], stops: Sequence[str] = ()) -> tuple[str, bool]:
        """The text up to the first stop, and whether there is one."""
        reading = self._read(tokens, stops)
        end = _first_stop(reading, stops)
        return (reading.text, False) if end is None else (reading.text[: reading.in_text(end)], True)

    def settled(self, tokens: Sequence[int], stops: Sequence[str] = ()) -> str:
        """The beginning of the text that no further tokens change; it ends in no part of a character or a stop."""
        reading = self._read(tokens, stops)
        end = _first_stop(reading, stops)
        end = self._settled_end(reading, tokens, stops) if end is None else end
        return reading.text[: reading.in_text(end)]

    def num_settled(self, tokens: Sequence[int], stops: Sequence[str], *, start: int, is_final: bool) -> int:
        """How many of the first tokens belong to the text whole; those before `start` are known to.

        Without further tokens (`is_final`) these are all before the first stop.
        """
        reading = self._read(tokens, stops)
        end = _first_stop(reading, stops)
        if end is None:
            if is_final:
                return len(tokens)
            end = self._settled_end(reading, tokens, stops)
        allowed = reading.whole[:end]
        while start < len(tokens) and allowed.startswith(self._read(tokens[: start + 1], stops).whole):
            start += 1
        return start

    def spelled(self, tokens: Sequence[int], rest: str) -> list[int]:
        """Token ids that add exactly `rest` after these tokens; none where the tokenizer has no such ids."""
        anchor = encode(self.tokenizer, "\n", special=False)
        both = encode(self.tokenizer, "\n" + rest, special=False)
        ids = both[len(anchor) :] if both[: len(anchor)] == anchor else encode(self.tokenizer, rest, special=False)
        return ids if self.text([*tokens, *ids]) == self.text(tokens) + rest else []

    def drawn(self, canvas: Sequence[int | None], stops: Sequence[str] = (), *, is_final: bool = False) -> str:
        """A canvas as text, masks as a glyph, up to the first stop in a run of known tokens.

        Unless it `is_final`, what its known beginning may still lose to a stop or a character is left out.
        """
        runs = list(_runs(canvas))
        parts: list[str] = []
        known: list[int] = []
        for number, run in enumerate(runs):
            reader = self._after(known)
            text, has_stop = reader.until(run, stops)
            if number == 0 and not has_stop and not (is_final and len(runs) == 1):
                text = reader.settled(run, stops)
            parts.append(text)
            if has_stop:
                return "".join(parts)
            if number + 1 < len(runs):
                parts.append(MASK_GLYPH)
            known += run
        return "".join(parts)

    def pieces(self, canvas: Sequence[int | None], stops: Sequence[str] = ()) -> list[str | None]:
        """The text that each token adds, None where masked, up to the first stop in a run of known tokens.

        A character of several tokens appears with its last one. Special tokens are shown by name.
        """
        found: list[str | None] = []
        known: list[int] = []
        for number, run in enumerate(_runs(canvas)):
            if number:
                found.append(None)
            reader = self._after(known)
            pieces, has_stop = reader._pieces(run, stops)
            found += pieces
            if has_stop:
                return found
            known += run
        return found

    def _pieces(self, tokens: Sequence[int], stops: Sequence[str]) -> tuple[list[str], bool]:
        reading = self._read(tokens, stops)
        stop = _first_stop(reading, stops)
        limit = len(reading.text) if stop is None else reading.in_text(stop)
        found, shown = list[str](), 0
        for number, token in enumerate(tokens, start=1):
            if stop is not None and shown >= limit:
                return found, True
            if token in self._special:
                found.append(self._special[token])
                continue
            text = self.text(tokens[:number]).rstrip(_UNKNOWN) if number < len(tokens) else reading.text
            end = min(max(shown, len(text)), limit)
            found.append(reading.text[shown:end])
            shown = end
        return found, stop is not None

    def _read(self, tokens: Sequence[int], stops: Sequence[str]) -> _Reading:
        text = self.text(tokens)
        if not stops or self._special.keys().isdisjoint(tokens):
            return _Reading(text)
        special = []
        for number, token in enumerate(tokens):
            if token in self._special:
                before = self.text(tokens[:number])
                # Later tokens may complete a character that stood unfinished before this one.
                before = before if text.startswith(before) else self._whole_characters(tokens[:number])
                special.append((min(len(before), len(text)), self._special[token]))
        return _Reading(text, tuple(special))

    def _whole_characters(self, tokens: Sequence[int]) -> str:
        """The text without an end that the next token may change."""
        length = len(tokens)
        if self._has_bytes:
            names = self.tokenizer.convert_ids_to_tokens(list(tokens))
            while length and (_ONE_BYTE.fullmatch(names[length - 1]) or tokens[length - 1] in self._special):
                length -= 1
        text = self.text(tokens[:length]).rstrip(_UNKNOWN)
        space = text.rfind(" ", max(0, len(text) - _CLEANED_TAIL)) if self._cleans else -1
        return text if space < 0 else text[:space]

    def _settled_end(self, reading: _Reading, tokens: Sequence[int], stops: Sequence[str]) -> int:
        """Where the settled part of the whole ends, if it holds no stop."""
        known = len(self._whole_characters(tokens))
        reading = _Reading(reading.text[:known], tuple((min(place, known), name) for place, name in reading.special))
        whole, begun = reading.whole, _begun(reading.text, stops)
        ends = [len(whole) - _begun(whole, stops), *([reading.in_whole(known - begun)] if begun else [])]
        return min(ends)


def _first_stop(reading: _Reading, stops: Sequence[str]) -> int | None:
    """Where the first stop begins in the whole."""
    shown = [place for stop in stops if (place := reading.text.find(stop)) >= 0]
    found = [reading.in_whole(min(shown))] if shown else []
    if reading.special:
        found += [place for stop in stops if (place := reading.whole.find(stop)) >= 0]
    return min(found, default=None)


def _begun(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop."""
    for length in range(min(max(map(len, stops), default=1) - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def _runs(canvas: Sequence[int | None]) -> Iterator[list[int]]:
    """The known tokens before, between and after the masks."""
    run: list[int] = []
    for token in canvas:
        if token is None:
            yield run
            run = []
        else:
            run.append(token)
    yield run
