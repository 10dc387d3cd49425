"""Packing: documents are laid end to end and cut into rows of one length.

In: tokenised text. Out: rows by number, so that a step's rows are a function of the step alone. Every piece of a
document in a row is a packed document of its own and starts with BOS, which is visible and never supervised; a document
that does not fit goes on in the next row. At most one place per row, and the end of the last row, is padding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError


class PackedText:
    """Rows of `context_length` tokens.

    Args:
        text: the documents.
        context_length: tokens per row.
        bos: id put in front of every piece, or None.

    Attributes:
        mean_length: tokens of a row; all but the last one are full.
        supervised_share: 1: all but each piece's BOS.
    """

    supervised_share = 1.0

    def __init__(self, text: TokenizedText, *, context_length: int, bos: int | None) -> None:
        if text.starts[-1] == 0:
            raise DataError("The text is empty: no document has a token. Check the data sources and text_field.")
        self.text = text
        self.context_length = context_length
        self.mean_length = float(context_length)
        self.bos = bos
        self._pieces = _cut(text.starts, context_length, lead=0 if bos is None else 1)
        self._first = np.searchsorted(self._pieces[:, 0], np.arange(len(self) + 1))

    def __len__(self) -> int:
        return int(self._pieces[-1, 0]) + 1

    @property
    def description(self) -> str:
        """How many rows there are."""
        return f"{len(self):,} rows of {self.context_length} tokens"

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        """Rows number start..stop-1 of a global batch of the given rows."""
        chosen = rows[start:stop]
        shape = (len(chosen), self.context_length)
        ids, sizes = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        document, supervised = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=bool)
        for line, row in enumerate(chosen):
            for number, piece in enumerate(self._pieces[self._first[row] : self._first[row + 1]]):
                _, column, first, length = (int(value) for value in piece)
                if self.bos is not None:
                    ids[line, column] = self.bos
                    document[line, column] = number
                    column += 1
                place, source = slice(column, column + length), slice(first, first + length)
                ids[line, place] = self.text.tokens[source]
                sizes[line, place] = self.text.bytes[source]
                document[line, place] = number
                supervised[line, place] = True
        return Batch(
            ids_BL=torch.from_numpy(ids),
            document_BL=torch.from_numpy(document),
            supervised_BL=torch.from_numpy(supervised),
            uid_B=torch.from_numpy(np.asarray(chosen, dtype=np.int64)),
            global_row_B=torch.arange(start, start + len(chosen)),
            global_rows=len(rows),
            step=step,
            bytes_BL=torch.from_numpy(sizes),
        )


def _cut(starts: NDArray[np.int64], context_length: int, *, lead: int) -> NDArray[np.int64]:
    """Pieces [row, first column, first token, tokens], in order; each also takes `lead` places for BOS."""
    pieces: list[tuple[int, int, int, int]] = []
    row, column = 0, 0
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        while start < stop:
            if context_length - column <= lead:
                row, column = row + 1, 0
            length = min(stop - start, context_length - column - lead)
            pieces.append((row, column, start, length))
            column += lead + length
            start += length
    return np.array(pieces, dtype=np.int64)
