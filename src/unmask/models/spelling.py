"""Text that spells control tokens, kept apart from the control tokens while a template runs.

Stand-ins take its place: an escape and a character that says what stands there, both from the private planes of
Unicode, where no text has a character; a text that has the escape all the same holds it twice. So a rendered text says
by itself which of its control tokens are the template's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

ESCAPE = chr(0xF0000)
MARK = ESCAPE + chr(0xFFFFD)
"""A place in a message, to be found again in the rendered text."""
_TOKENS, _CHARACTERS = 0xF0001, 0x100000
# Of what a template could make a token by writing something on both sides; single letters may mean something to it.
_SHORTEST_INSIDE = 3
_STAND_IN = re.compile(f"{ESCAPE}(.)", re.DOTALL)


class Spelling:
    """Puts stand-ins into texts, and takes them out.

    Args:
        special: control tokens that no message can write.
        others: control tokens that the assistant writes itself, in its messages (`<think>`), and nobody else can.
    """

    def __init__(self, special: Collection[str], others: Collection[str]) -> None:
        self._all = longest_first({*special, *others})
        self._number = {token: number for number, token in enumerate(self._all)}
        self._patterns = {False: pattern_of(self._all), True: pattern_of(longest_first(special))}
        self._beginnings = {token[:size] for token in self._all for size in range(1, len(token))}
        self._ends = {token[-size:] for token in self._all for size in range(1, len(token))}
        self._longest = max(map(len, self._all), default=0)

    def guarded(self, text: str, *, by_assistant: bool = False) -> str:
        """A message's text in which nothing can be taken for a control token, whatever the template puts around it."""
        return self._replaced(self._open_ended(text.replace(ESCAPE, ESCAPE + ESCAPE)), by_assistant)

    def guarded_value(self, value: Any, *, by_assistant: bool) -> Any:
        """A value of JSON with all its texts guarded; names of fields, which templates look for, only from tokens."""
        if isinstance(value, str):
            return self.guarded(value, by_assistant=by_assistant)
        if isinstance(value, list):
            return [self.guarded_value(item, by_assistant=by_assistant) for item in value]
        if isinstance(value, Mapping):
            return {
                self._replaced(name, by_assistant): self.guarded_value(item, by_assistant=by_assistant)
                for name, item in value.items()
            }
        return value

    def spelled(self, text: str) -> str:
        """The text with what its stand-ins stand for."""
        return _STAND_IN.sub(self._original, text)

    def _replaced(self, text: str, by_assistant: bool) -> str:
        tokens = self._patterns[by_assistant]
        return tokens.sub(lambda found: ESCAPE + chr(_TOKENS + self._number[found[0]]), text)

    def _original(self, found: re.Match[str]) -> str:
        code = ord(found[1])
        if found[1] == ESCAPE:
            return ESCAPE
        if _TOKENS <= code < _TOKENS + len(self._all):
            return self._all[code - _TOKENS]
        return chr(code - _CHARACTERS) if code >= _CHARACTERS else found[0]

    def _open_ended(self, text: str) -> str:
        """Stand-ins for one character of what could become a control token together with the template's own text."""
        inner = text.strip()
        if not inner:
            return text
        first, last = text.index(inner[0]), len(text.rstrip())
        sizes = range(1, min(self._longest, len(inner) + 1))
        chosen = {last - size for size in sizes if inner[-size:] in self._beginnings}
        chosen |= {first + size - 1 for size in sizes if inner[:size] in self._ends}
        if _SHORTEST_INSIDE <= len(inner) < self._longest and any(
            inner != token and inner in token for token in self._all
        ):
            chosen.add(first)
        for place in sorted(chosen, reverse=True):
            if ord(text[place]) < 0xFFF0:
                text = f"{text[:place]}{ESCAPE}{chr(_CHARACTERS + ord(text[place]))}{text[place + 1 :]}"
        return text


def longest_first(tokens: Iterable[str]) -> tuple[str, ...]:
    """Tokens in the order in which a tokenizer looks for them."""
    return tuple(sorted(tokens, key=lambda token: (-len(token), token)))


def pattern_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds any of the tokens, and nothing where there is none."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def parts_of(text: str, pattern: re.Pattern[str]) -> list[str]:
    """What a pattern finds in a text and what lies between, in order."""
    bounds = sorted({0, len(text), *(at for match in pattern.finditer(text) for at in match.span())})
    return [text[start:stop] for start, stop in itertools.pairwise(bounds)]
