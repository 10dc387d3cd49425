"""Conversations -> tokens: each piece of a row is tokenised by itself, so no token belongs to prompt and reply.

A prompt gets the ids that it has when the model is asked: the tokenizer's own reading of the rendered text, in which
only the template's control tokens are control tokens. A reply begins with a token of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np

from unmask.data.chat import Conversation
from unmask.data.templates import ChatTemplate, Piece
from unmask.data.tokenized import Document, byte_lengths
from unmask.errors import DataError
from unmask.models.tokenizers import decode, encode
from unmask.settings.data import Supervise

_CONVERSATIONS_AT_ONCE = 256
# What stands before a reply and merges with nothing, for tokenizers that put a space before whatever they are given.
_ANCHOR = "\ue000"


class _Tokens(NamedTuple):
    """Token ids of a text, and the character where each one stops."""

    ids: list[int]
    stops: list[int]


class ChatDocuments:
    """The tokenised rows of conversations; iterate over it as often as needed.

    Args:
        conversations: what to tokenise.
        encoder: how.
        supervise: which replies each row teaches.
        malformed: is told of each conversation that the template refuses, and stops or lets it be skipped.

    Attributes:
        refused: conversations that the last complete pass left out because the template refuses them.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation],
        encoder: ChatEncoder,
        supervise: Supervise,
        malformed: Callable[[str], None],
    ) -> None:
        self.conversations, self.encoder = conversations, encoder
        self.supervise: Supervise = supervise
        self.malformed = malformed
        self.refused = 0

    def __iter__(self) -> Iterator[Document]:
        self.refused = 0
        rows = self._rows()
        while batch := list(itertools.islice(rows, _CONVERSATIONS_AT_ONCE)):
            documents = self.encoder.documents([pieces for pieces, _ in batch])
            yield from (one._replace(where=where) for one, (_, where) in zip(documents, batch, strict=True))

    def _rows(self) -> Iterator[tuple[list[Piece], str]]:
        for one in self.conversations:
            try:
                for pieces in self.encoder.template.rows(one, self.supervise):
                    yield pieces, one.where
            except DataError as error:
                self.malformed(f"{one.where}: {error}")
                self.refused += 1


class ChatEncoder:
    """Turns pieces of conversations into token ids.

    Args:
        template: of the tokenizer that does it.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.tokenizer = template.tokenizer
        letter = encode(self.tokenizer, "a", special=False)
        self._adds_space = decode(self.tokenizer, letter + letter) != "aa"
        # A tokenizer that normalises text before it looks for control tokens may miss them behind a letter.
        self._misses_control = any(
            encode(self.tokenizer, f"a{token}", special=False)[-1] != self._id(token)
            for token in template.control_tokens[:1]
        )

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids that a reply to the messages continues.

        Raises:
            DataError: the template refuses the messages.
        """
        (tokens,) = self._encoded([self.template.prompt(messages)])
        return tokens.ids

    def documents(self, rows: Sequence[Sequence[Piece]]) -> list[Document]:
        """Rows of pieces as tokens, of which the replies are supervised and stand for their bytes."""
        encoded = iter(self._encoded([piece for row in rows for piece in row]))
        return [self._document(row, list(itertools.islice(encoded, len(row)))) for row in rows]

    def _document(self, pieces: Sequence[Piece], tokens: Sequence[_Tokens]) -> Document:
        sizes = []
        for piece, one in zip(pieces, tokens, strict=True):
            if piece.learned:
                # The end-of-turn token stands for no byte of the answer.
                answer = _spelled_out(piece)[: -len(self.template.end)]
                sizes.append(byte_lengths(answer, [min(stop, len(answer)) for stop in one.stops]))
            else:
                sizes.append(np.zeros(len(one.ids), dtype=np.int64))
        learned = [np.full(len(one.ids), piece.learned) for piece, one in zip(pieces, tokens, strict=True)]
        return Document(
            ids=np.array([token for one in tokens for token in one.ids], dtype=np.uint32),
            bytes=np.concatenate(sizes).astype(np.uint32),
            supervised=np.concatenate(learned),
        )

    def _encoded(self, pieces: Sequence[Piece]) -> list[_Tokens]:
        """Token ids of each piece, in one call for all that the tokenizer reads rightly by itself."""
        plain = [
            number
            for number, piece in enumerate(pieces)
            if not self._misses_control and not any(stand_in in piece.text for stand_in in piece.spelled)
        ]
        anchored = [self._adds_space and pieces[number].joined for number in plain]
        found = dict(zip(plain, self._tokens([pieces[number].text for number in plain], anchored), strict=True))
        return [found[number] if number in found else self._guarded(piece) for number, piece in enumerate(pieces)]

    def _guarded(self, piece: Piece) -> _Tokens:
        """Token ids of a piece whose control tokens are found here: those that a message spells stay text."""
        ids: list[int] = []
        stops: list[int] = []
        reached = 0
        for part in _parts(piece.text, self.template):
            if part in self.template.control_tokens:
                tokens = _Tokens([self._id(part)], [len(part)])
            else:
                part = _spelled_out(piece._replace(text=part))
                anchored = self._adds_space and piece.joined and reached == 0
                (tokens,) = self._tokens([part], [anchored], split=True)
            ids += tokens.ids
            stops += [reached + stop for stop in tokens.stops]
            reached += len(part)
        return _Tokens(ids, stops)

    def _id(self, token: str) -> int:
        return cast(int, self.tokenizer.convert_tokens_to_ids(token))

    def _tokens(self, texts: list[str], anchored: Sequence[bool], *, split: bool = False) -> list[_Tokens]:
        """Token ids of texts, read behind the anchor where asked; `split` reads control tokens as text."""
        if not texts:
            return []
        encoded = self.tokenizer(
            [_ANCHOR + text if behind else text for text, behind in zip(texts, anchored, strict=True)],
            add_special_tokens=False,
            split_special_tokens=split,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        found: list[_Tokens] = []
        for text, behind, ids, offsets in zip(
            texts, anchored, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            first = sum(start < len(_ANCHOR) for start, _ in offsets) if behind else 0
            if first and offsets[first - 1][1] > len(_ANCHOR):
                # The tokenizer knows neither the anchor nor what follows it, and made them one token.
                found += self._tokens([text], [False], split=split)
            else:
                moved = len(_ANCHOR) if behind else 0
                found.append(_Tokens(list(ids)[first:], [stop - moved for _, stop in offsets[first:]]))
        return found


def _parts(text: str, template: ChatTemplate) -> list[str]:
    """The control tokens in a text and what lies between them, in order."""
    bounds = sorted({0, len(text), *(at for match in template.control.finditer(text) for at in match.span())})
    return [text[start:stop] for start, stop in itertools.pairwise(bounds)]


def _spelled_out(piece: Piece) -> str:
    return piece.text.translate({ord(stand_in): token for stand_in, token in piece.spelled.items()})
