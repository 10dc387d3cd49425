"""One text for several models: documents cut into pieces that every model can read whole, and their likelihoods.

In: documents, and the tokenizers and contexts of all models. Out: pieces of text, the same for every model, and the
nats of each under one of them. A piece is scored behind BOS (or end of text, where there is no BOS), so each byte has
the same context in every model, whatever its tokens are. What a tokenizer cannot give back is refused: bits per byte of
a text that it changes are those of another text.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from unmask.data.batch import Batch
from unmask.errors import DataError
from unmask.evaluation import answers
from unmask.evaluation.answers import Pair
from unmask.evaluation.likelihood import RowNats, row_nats
from unmask.evaluation.texts import changed, ids_and_stops, text_batch, text_ids
from unmask.models.prompts import PromptCodec
from unmask.models.tokenizers import end_id, start_id
from unmask.settings.evaluation import AnswerSettings, EvaluationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# No tokenizer's tokens are longer than this on average over a row.
_CHARACTERS_PER_TOKEN = 16
_LAST_WORD = re.compile(r"\s+\S*$")


@dataclass(frozen=True)
class Piece:
    """A part of a document.

    Attributes:
        document: number of the document.
        text: its characters.
    """

    document: int
    text: str

    @property
    def bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Reader:
    """How one model reads.

    Attributes:
        name: of the model.
        tokenizer: the model's.
        limit: tokens of a piece, at most, the one in front of it not counted.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    limit: int


def cut(documents: Sequence[str], readers: Sequence[Reader], *, at_most: int) -> list[Piece]:
    """The first `at_most` pieces of documents, each as long as every reader allows, cut between words where possible.

    Raises:
        DataError: a tokenizer does not give back what it is given.
    """
    found: list[Piece] = []
    for number, document in enumerate(documents):
        for text in _parts(document.strip(), readers):
            if len(found) == at_most:
                return found
            for reader in readers:
                _check_kept(text, reader)
            found.append(Piece(number, text))
    return found


def nats_of(codec: PromptCodec, pieces: Sequence[Piece], settings: EvaluationSettings, *, name: str) -> RowNats:
    """Nats of each piece under a model; masks are keyed by the piece's number, so all models draw the same.

    Raises:
        DataError: the model did not score every byte (its tokenizer has no token to put in front).
    """
    parts = [row_nats(codec.backbone, batch, settings) for batch in batches(codec, pieces, settings.batch_size)]
    rows = RowNats(*(in_order(fields, pieces) for fields in zip(*parts, strict=True)))
    for piece, scored in zip(pieces, rows.bytes_B.tolist(), strict=True):
        if scored != piece.bytes:
            raise DataError(
                f"{name} scored {scored} of the {piece.bytes} bytes of {piece.text[:40]!r}. All models must score the "
                "same bytes; a model whose tokenizer has neither BOS nor end of text cannot score the first token."
            )
    return rows


def batches(codec: PromptCodec, pieces: Sequence[Piece], batch_size: int) -> Iterator[Batch]:
    """The pieces as batches, the longest first so that equal lengths pad least; a row's uid is its piece's number."""
    order = _by_length(pieces)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = text_batch(codec, [pieces[at].text for at in chosen], or_end=True)
        yield dataclasses.replace(batch, uid_B=torch.tensor(chosen))


def in_order(values: Sequence[torch.Tensor], pieces: Sequence[Piece]) -> torch.Tensor:
    """The rows of all `batches` as one tensor, in the order of the pieces."""
    return torch.cat([*values])[torch.tensor(_by_length(pieces)).argsort()]


def chain_rule_nats(codec: PromptCodec, pieces: Sequence[Piece], settings: EvaluationSettings) -> list[float]:
    """Nats of each piece token by token from left to right, everything behind a token masked: a forward for each."""
    assert codec.tokenizer is not None, "the pieces have been cut with it"
    first = _front(codec.tokenizer)
    pairs = [Pair(first, tuple(text_ids(codec.tokenizer, piece.text))) for piece in pieces]
    options = AnswerSettings(likelihood="chain_rule", batch_size=settings.batch_size)
    return [found.nats for found in answers.score(codec.backbone, pairs, options)]


def by_document(pieces: Sequence[Piece], values_B: torch.Tensor) -> torch.Tensor:
    """The sums over the pieces of each document that has any, in order."""
    numbers, place_B = torch.tensor([piece.document for piece in pieces]).unique(return_inverse=True)
    return torch.zeros(len(numbers), dtype=values_B.dtype).index_add(0, place_B, values_B)


def _by_length(pieces: Sequence[Piece]) -> list[int]:
    return sorted(range(len(pieces)), key=lambda at: -len(pieces[at].text))


def _front(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    first = start_id(tokenizer)
    first = end_id(tokenizer) if first is None else first
    return () if first is None else (first,)


def _parts(text: str, readers: Sequence[Reader]) -> Iterator[str]:
    while text:
        size = min(_fitting(text, reader) for reader in readers)
        if size < len(text) and not text[size].isspace():
            word = _LAST_WORD.search(text[:size])
            size = word.start() if word is not None and word.start() > 0 else size
        # A cut can change the tokens in front of it.
        while size > 1 and any(
            len(ids_and_stops(reader.tokenizer, text[:size])[0]) > reader.limit for reader in readers
        ):
            size -= max(1, size // 16)
        yield text[:size]
        text = text[size:]


def _fitting(text: str, reader: Reader) -> int:
    """Characters at the beginning of a text that this reader can take; at least one."""
    head = text[: reader.limit * _CHARACTERS_PER_TOKEN]
    ids, stops = ids_and_stops(reader.tokenizer, head)
    return len(head) if len(ids) <= reader.limit else max(1, stops[reader.limit - 1])


def _check_kept(text: str, reader: Reader) -> None:
    difference = changed(reader.tokenizer, text, ids_and_stops(reader.tokenizer, text)[0])
    if difference is not None:
        raise DataError(
            f"The tokenizer of {reader.name} changes the text: {difference[0]!r} comes back as {difference[1]!r}. Its "
            "bits per byte would be those of another text. Compare on a text that it keeps: --data FILE"
        )
