"""Packing: pieces of documents laid side by side into rows of one length.

In: tokenised text. Out: rows by number, so that a step's rows are a function of the step alone. Every piece in a row is
a packed document of its own: BOS if there is one, which is visible and never supervised, then tokens of one document,
then EOS to learn where block diffusion wants the document's last block full. `PackedText` lays documents end to end and
cuts them at the ends of rows: a document that does not fit goes on in the next row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError


@dataclass(frozen=True)
class Pieces:
    """Where pieces of documents lie, by row and column; all int64 [P].

    Attributes:
        row: which row each is in; none is skipped.
        column: its first place there.
        first: its first token in the text.
        length: how many of the text's tokens it has.
        size: its places in the row, BOS and what fills it up included.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    size: NDArray[np.int64]


class PackedRows:
    """Rows of pieces; whatever no piece takes is padding.

    Args:
        text: the documents.
        pieces: where they lie.
        supervised: how many of the pieces' tokens are supervised.
        context_length: places of a row.
        bos: id put in front of every piece, or None.
        eos: id that fills pieces up, or None if none is filled up.

    Attributes:
        mean_length: tokens of a row with BOS, on average; what fills it up is not counted.
        supervised_share: share of these that are supervised.
        groups: the first row of each source, and the number of all rows.
    """

    groups: tuple[int, ...]

    def __init__(
        self,
        text: TokenizedText,
        pieces: Pieces,
        *,
        supervised: int,
        context_length: int,
        bos: int | None,
        eos: int | None,
    ) -> None:
        self.text, self.pieces, self.bos, self.eos = text, pieces, bos, eos
        self.context_length = context_length
        self._first = np.searchsorted(pieces.row, np.arange(int(pieces.row[-1]) + 2))
        tokens = int(pieces.length.sum()) + (0 if bos is None else len(pieces.length))
        self.mean_length = tokens / len(self)
        self.supervised_share = supervised / tokens
        self.groups = (0, len(self))

    def __len__(self) -> int:
        return len(self._first) - 1

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        """Rows number start..stop-1 of a global batch of the given rows."""
        chosen = rows[start:stop]
        shape = (len(chosen), self.context_length)
        number = len(chosen) * self.context_length
        ids, sizes = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
        document = np.full(number, -1, dtype=np.int64)
        supervised, fill = np.zeros(number, dtype=bool), np.zeros(number, dtype=bool)
        counts = self._first[chosen + 1] - self._first[chosen]
        piece_P = ranges(self._first[chosen], counts)
        start_P = np.repeat(np.arange(len(chosen)) * self.context_length, counts) + self.pieces.column[piece_P]
        length_P, size_P = self.pieces.length[piece_P], self.pieces.size[piece_P]
        document[ranges(start_P, size_P)] = np.repeat(ranges(np.zeros_like(counts), counts), size_P)
        if self.bos is not None:
            ids[start_P] = self.bos
        lead = 0 if self.bos is None else 1
        place_N, token_N = ranges(start_P + lead, length_P), ranges(self.pieces.first[piece_P], length_P)
        ids[place_N] = self.text.tokens[token_N]
        sizes[place_N] = self.text.bytes[token_N]
        supervised[place_N] = True if self.text.supervised is None else self.text.supervised[token_N]
        end_N = ranges(start_P + lead + length_P, size_P - lead - length_P)
        ids[end_N] = self.eos or 0
        supervised[end_N] = fill[end_N] = True
        return Batch(
            ids_BL=torch.from_numpy(ids.reshape(shape)),
            document_BL=torch.from_numpy(document.reshape(shape)),
            supervised_BL=torch.from_numpy(supervised.reshape(shape)),
            uid_B=torch.from_numpy(np.asarray(chosen, dtype=np.int64)),
            global_row_B=torch.arange(start, start + len(chosen)),
            global_rows=len(rows),
            step=step,
            bytes_BL=torch.from_numpy(sizes.reshape(shape)),
            fill_BL=torch.from_numpy(fill.reshape(shape)),
        )


class PackedText(PackedRows):
    """Documents end to end, cut into rows of `context_length` tokens.

    At most one place of a row, and the end of the last row, is padding.

    Args:
        text: the documents.
        context_length: tokens per row.
        bos: id put in front of every piece, or None.
        fill: what ends a document is filled up to a multiple of this, as far as its row has room.
        eos: id that does it.
        by_source: begin each source with a row of its own.
    """

    def __init__(
        self,
        text: TokenizedText,
        *,
        context_length: int,
        bos: int | None,
        fill: int = 1,
        eos: int | None = None,
        by_source: bool = False,
    ) -> None:
        if text.starts[-1] == 0:
            raise DataError("The text is empty: no document has a token. Check the data sources and text_field.")
        bounds = (0, *text.groups) if by_source else (0, len(text.starts) - 1)
        lead = 0 if bos is None else 1
        parts = [
            _cut(text.starts[begin : end + 1], context_length, lead=lead, fill=fill)
            for begin, end in itertools.pairwise(bounds)
        ]
        pieces, groups = joined(parts)
        supervised = int(text.starts[-1])
        super().__init__(text, pieces, supervised=supervised, context_length=context_length, bos=bos, eos=eos)
        self.groups = groups

    @property
    def description(self) -> str:
        """How many rows there are."""
        return f"{len(self):,} rows of {self.context_length} tokens"


def _cut(starts: NDArray[np.int64], context_length: int, *, lead: int, fill: int) -> Pieces:
    """Pieces of documents laid end to end; each takes `lead` places for BOS before its tokens."""
    pieces: list[tuple[int, int, int, int, int]] = []
    row, column = 0, 0
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        while start < stop:
            if context_length - column <= lead:
                row, column = row + 1, 0
            room = context_length - column
            length = min(stop - start, room - lead)
            size = lead + length
            if start + length == stop:
                size = min(size + -size % fill, room)
            pieces.append((row, column, start, length, size))
            column += size
            start += length
    return Pieces(*np.array(pieces, dtype=np.int64).reshape(-1, 5).T.copy())


def joined(parts: Sequence[Pieces]) -> tuple[Pieces, tuple[int, ...]]:
    """The rows of several sources, one source after the other; and the first row of each, and the number of all."""
    numbers = [int(part.row[-1]) + 1 if len(part.row) else 0 for part in parts]
    first = tuple(itertools.accumulate(numbers, initial=0))
    row = np.concatenate([part.row + begin for part, begin in zip(parts, first, strict=False)])
    others = [np.concatenate([getattr(part, name) for part in parts]) for name in ("column", "first", "length", "size")]
    return Pieces(row, *others), first


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers start, start + 1, ... of each range, `length` of them, one range behind the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
