"""Pieces of conversations -> token ids, in which only the template's control tokens are control tokens.

A piece gets the tokenizer's own reading of its text. Where that takes something else for a control token (what a
message spells, or what a tokenizer finds after normalising), the control tokens are found here, and what lies between
them is read by the same tokenizer without any.
"""

from __future__ import annotations

import functools
import json
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from unmask.errors import DataError
from unmask.models.chat_templates import Message, Piece, PromptTemplate
from unmask.models.spelling import ESCAPE, longest_first, parts_of
from unmask.models.tokenizers import decode, encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import AddedToken, PreTrainedTokenizerBase

# What stands before a reply and merges with nothing, for tokenizers that put a space before whatever they are given.
_ANCHOR = "\ue000"


_TEXT_READERS: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[str, ...], Tokenizer]] = (
    weakref.WeakKeyDictionary()
)
_Reader = Callable[[list[str]], "list[tuple[list[int], list[tuple[int, int]]]]"]


class Tokens(NamedTuple):
    """Token ids of a text, and the character where each one stops."""

    ids: list[int]
    stops: list[int]


class PromptEncoder:
    """Turns pieces of conversations into token ids.

    Args:
        template: of the tokenizer that does it.
    """

    def __init__(self, template: PromptTemplate) -> None:
        self.template = template
        self.tokenizer = template.tokenizer
        letter = encode(self.tokenizer, "a", special=False)
        self._adds_space = decode(self.tokenizer, letter + letter) != "aa"
        # Text that a tokenizer does not know is not a control token (but GPT-2 calls its end of text unknown, too).
        others = {str(token) for name, token in self.tokenizer.special_tokens_map.items() if name != "unk_token"}
        live = [token for token in template.live_tokens if token != self.tokenizer.unk_token or token in others]
        self._ids = {token: cast(int, self.tokenizer.convert_tokens_to_ids(token)) for token in live}
        self._live = frozenset(self._ids.values())
        self._pattern = _reading(self.tokenizer.added_tokens_decoder.values(), live)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that a reply to the messages continues (or the rest of the last one, if that is the assistant's).

        Raises:
            DataError: the template refuses the messages, or leaves something of them out.
        """
        return [token for tokens in self.encoded(self.template.prompt(messages)) for token in tokens.ids]

    def read(self, text: str) -> list[int]:
        """The ids of a text that `asked_text` of the template made, perhaps with more text after it."""
        (tokens,) = self.encoded([Piece(text)])
        return tokens.ids

    def encoded(self, pieces: Sequence[Piece]) -> list[Tokens]:
        """Token ids of each piece, in one call for all that the tokenizer reads rightly by itself."""
        plain = [number for number, piece in enumerate(pieces) if ESCAPE not in piece.text]
        texts = [pieces[number].text for number in plain]
        anchored = [self._adds_space and pieces[number].joined for number in plain]
        found = {
            number: tokens
            for number, text, tokens in zip(plain, texts, self._read(texts, anchored), strict=True)
            if [token for token in tokens.ids if token in self._live] == self._expected(text)
        }
        return [found[number] if number in found else self._guarded(piece) for number, piece in enumerate(pieces)]

    def _expected(self, text: str) -> list[int]:
        return [self._id(match[0]) for match in self._pattern.finditer(text)]

    def _guarded(self, piece: Piece) -> Tokens:
        """Token ids of a piece whose control tokens are found here: those that a message spells stay text."""
        ids: list[int] = []
        stops: list[int] = []
        reached = 0
        for part in parts_of(piece.text, self._pattern):
            if self._pattern.fullmatch(part):
                tokens = Tokens([self._id(part)], [len(part)])
            else:
                part = self.template.spelling.spelled(part)
                is_joined = piece.joined if reached == 0 else not self._adds_space_after_control
                tokens = self._as_text(part, is_joined=self._adds_space and is_joined)
            ids += tokens.ids
            stops += [reached + stop for stop in tokens.stops]
            reached += len(part)
        return Tokens(ids, stops)

    def _as_text(self, text: str, *, is_joined: bool) -> Tokens:
        """Token ids of a text in which nothing is a control token.

        Raises:
            DataError: the tokenizer cannot write it as text.
        """
        (tokens,) = _aligned([text], [is_joined], self._encode_as_text)
        wrong = next((index for index, token in enumerate(tokens.ids) if token in self._live), None)
        if wrong is None:
            return tokens
        # A vocabulary of whole words or pieces can hold a control token's text as one of them.
        start = tokens.stops[wrong - 1] if wrong > 0 else 0
        middle = start + 1 + len(text[start:]) - len(text[start:].lstrip())
        if middle >= tokens.stops[wrong]:
            raise DataError(
                f"a message holds {text[start : tokens.stops[wrong]]!r}, which this tokenizer can only write as its "
                "control token. Leave it out"
            )
        first = self._as_text(text[:middle], is_joined=is_joined)
        rest = self._as_text(text[middle:], is_joined=self._adds_space)
        return Tokens(first.ids + rest.ids, first.stops + [middle + stop for stop in rest.stops])

    def _id(self, token: str) -> int:
        return self._ids[token] if token in self._ids else self._ids[token.strip()]

    @functools.cached_property
    def _adds_space_after_control(self) -> bool:
        token = next(iter(self._ids), None)
        if token is None:
            return False
        return encode(self.tokenizer, f"{token}a", special=False)[1:] == encode(self.tokenizer, "a", special=False)

    def _encode_as_text(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        encoded = _text_reader(self.tokenizer, self.template.live_tokens).encode_batch(texts, add_special_tokens=False)
        return [(one.ids, one.offsets) for one in encoded]

    def _read(self, texts: list[str], anchored: Sequence[bool]) -> list[Tokens]:
        """The tokenizer's own reading."""

        def run(texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
            encoded = self.tokenizer(
                texts,
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                verbose=False,
            )
            return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

        return _aligned(texts, anchored, run) if texts else []


def _text_reader(tokenizer: PreTrainedTokenizerBase, live: tuple[str, ...]) -> Tokenizer:
    """The tokenizer without control tokens; kept, as it takes seconds to make for a large vocabulary."""
    from tokenizers import Tokenizer

    tokens_then, reader = _TEXT_READERS.get(tokenizer, ((), None))
    if reader is not None and tokens_then == live:
        return reader
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    kept = [token for token in backend["added_tokens"] if token["content"] not in live]
    plain = {**backend, "added_tokens": kept, "truncation": None, "padding": None}
    reader = Tokenizer.from_str(json.dumps(plain))
    _TEXT_READERS[tokenizer] = live, reader
    return reader


def _reading(added: Iterable[AddedToken], live: Iterable[str]) -> re.Pattern[str]:
    """Finds the live tokens as the tokenizer does: with the space that some of them swallow."""
    flags = {str(token): token for token in added}
    forms: list[str] = []
    for token in longest_first(live):
        form = re.escape(token)
        if token in flags and flags[token].single_word:
            form = rf"(?<!\w){form}(?!\w)"
        before, after = (
            r"\s*" if token in flags and getattr(flags[token], side) else "" for side in ("lstrip", "rstrip")
        )
        forms.append(before + form + after)
    return re.compile("|".join(forms) or r"(?!)")


def _aligned(texts: list[str], anchored: Sequence[bool], run: _Reader) -> list[Tokens]:
    """Token ids of texts, read after the anchor where asked."""
    given = [_ANCHOR + text if is_after else text for text, is_after in zip(texts, anchored, strict=True)]
    found: list[Tokens] = []
    for text, is_after, (ids, offsets) in zip(texts, anchored, run(given), strict=True):
        first = sum(start < len(_ANCHOR) for start, _ in offsets) if is_after else 0
        if first and offsets[first - 1][1] > len(_ANCHOR):
            # The tokenizer knows neither the anchor nor what follows it, and made them one token.
            found += _aligned([text], [False], run)
        else:
            moved = len(_ANCHOR) if is_after else 0
            found.append(Tokens(list(ids)[first:], [stop - moved for _, stop in offsets[first:]]))
    return found
