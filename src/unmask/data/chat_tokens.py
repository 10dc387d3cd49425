"""Conversations -> tokens: each piece of a row is tokenised by itself, so no token belongs to prompt and reply.

A prompt gets the ids that it has when the model is asked, by the same code (`models/chat_tokens.py`). A reply begins
with a token of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from unmask.data.chat import Conversation
from unmask.data.templates import ChatTemplate
from unmask.data.tokenized import Document, byte_lengths
from unmask.errors import DataError
from unmask.models.chat_templates import Piece
from unmask.models.chat_tokens import PromptEncoder, Tokens
from unmask.settings.data import Supervise

_CONVERSATIONS_AT_ONCE = 256


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
            yield from self._documents(batch)

    def _rows(self) -> Iterator[tuple[list[Piece], str]]:
        for conversation in self.conversations:
            try:
                rows = self.encoder.template.rows(conversation, self.supervise)
            except DataError as error:
                self._refuse(conversation.where, error)
                continue
            for pieces in rows:
                yield pieces, conversation.where

    def _documents(self, batch: Sequence[tuple[list[Piece], str]]) -> Iterator[Document]:
        try:
            documents = self.encoder.documents([pieces for pieces, _ in batch])
        except DataError as error:  # of one of them, which is found by itself
            if len(batch) == 1:
                self._refuse(batch[0][1], error)
                return
            for row in batch:
                yield from self._documents([row])
            return
        yield from (document._replace(where=where) for document, (_, where) in zip(documents, batch, strict=True))

    def _refuse(self, where: str, error: DataError) -> None:
        self.malformed(f"{where}: {error}")
        self.refused += 1


class ChatEncoder(PromptEncoder):
    """Turns conversations into documents.

    Args:
        template: of the tokenizer that does it.
    """

    def __init__(self, template: ChatTemplate) -> None:
        super().__init__(template)
        self.template: ChatTemplate = template

    def documents(self, rows: Sequence[Sequence[Piece]]) -> list[Document]:
        """Rows of pieces as tokens, of which the replies are supervised and stand for their bytes.

        Raises:
            DataError: a text cannot be written without a control token.
        """
        encoded = iter(self.encoded([piece for row in rows for piece in row]))
        return [self._document(row, list(itertools.islice(encoded, len(row)))) for row in rows]

    def _document(self, pieces: Sequence[Piece], tokens: Sequence[Tokens]) -> Document:
        sizes = []
        for piece, read in zip(pieces, tokens, strict=True):
            if piece.learned:
                # The end-of-turn token stands for no byte of the answer.
                answer = self.template.spelling.spelled(piece.text)[: -len(self.template.end)]
                sizes.append(byte_lengths(answer, [min(stop, len(answer)) for stop in read.stops]))
            else:
                sizes.append(np.zeros(len(read.ids), dtype=np.int64))
        learned = [np.full(len(read.ids), piece.learned) for piece, read in zip(pieces, tokens, strict=True)]
        return Document(
            ids=np.array([token for read in tokens for token in read.ids], dtype=np.uint32),
            bytes=np.concatenate(sizes).astype(np.uint32),
            supervised=np.concatenate(learned),
        )
