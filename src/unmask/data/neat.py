"""Neat packing: whole documents or conversations, side by side in rows of one length.

In: tokenised text or conversations. Out: rows by number, in the order of packing. No document is cut by the end of a
row; what remains of a row is padding. The packing is the greedy knapsack of LLaMA-Factory, with which SDAR was trained.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from unmask.data.fitting import fitted
from unmask.data.packing import PackedRows, Pieces, joined, ranges
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError
from unmask.settings.data import OverLong


class NeatRows(PackedRows):
    """Rows of `context_length` places, each with as many whole documents as the knapsack put there.

    Args:
        text: tokenised documents or conversations.
        context_length: places of a row, a multiple of `fill`.
        over_long: what to do with documents longer than a row: stop, leave them out, or keep their first tokens if one
            of them is supervised.
        bos: id put in front of every document, or None.
        fill: documents are filled up to a multiple of this many places.
        eos: id that does it.
        by_source: pack the documents of each source by themselves.

    Attributes:
        dropped: documents left out because they are too long.
        cut: documents that lost their ends.
        description: how many documents of how many tokens in how many rows there are.

    Raises:
        DataError: a document is too long, or none is left.
    """

    def __init__(
        self,
        text: TokenizedText,
        *,
        context_length: int,
        over_long: OverLong = "error",
        bos: int | None = None,
        fill: int = 1,
        eos: int | None = None,
        by_source: bool = False,
    ) -> None:
        if text.starts[-1] == 0:
            raise DataError("There is no document or conversation with a token. Check the data sources.")
        lead = 0 if bos is None else 1
        kept = fitted(text, context_length=context_length, over_long=over_long, lead=lead)
        sizes = kept.lengths + lead
        sizes += -sizes % fill
        bounds = kept.groups if by_source else (0, len(sizes))
        parts = [
            _packed(sizes[begin:end], kept.first[begin:end], kept.lengths[begin:end], context_length)
            for begin, end in itertools.pairwise(bounds)
        ]
        pieces, groups = joined(parts)
        supervised = int(kept.supervised.sum())
        super().__init__(text, pieces, supervised=supervised, context_length=context_length, bos=bos, eos=eos)
        self.groups, self.dropped, self.cut = groups, kept.dropped, kept.cut
        full = pieces.size.sum() / (len(self) * context_length)
        self.description = (
            f"{kept.description} in {len(self):,} rows of {context_length} places, {full:.1%} of them taken"
        )

    def prompt(self, row: int) -> list[int]:
        """The tokens before the first reply of a row's first conversation."""
        assert self.text.supervised is not None, "text has no replies"
        piece = self._first[row]
        first = int(self.pieces.first[piece])
        place = slice(first, first + int(self.pieces.length[piece]))
        return self.text.tokens[place][: int(self.text.supervised[place].argmax())].tolist()


def _packed(
    sizes: NDArray[np.int64], first: NDArray[np.int64], lengths: NDArray[np.int64], context_length: int
) -> Pieces:
    """Documents of some sizes in rows of their own."""
    if len(sizes) == 0:
        return Pieces(*(np.zeros(0, dtype=np.int64) for _ in range(5)))
    order, row = greedy_knapsack(sizes, context_length)
    size = sizes[order]
    before = np.cumsum(size) - size
    column = before - before[np.searchsorted(row, row)]
    return Pieces(row, column, first[order], lengths[order], size)


def greedy_knapsack(sizes: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack items into rows, one row after the other: always the largest item left that still fits.

    Of items of one size the first goes first. The largest size that fits is found in a union-find over the sizes, as
    sizes only ever run out, and as many items of it as fit are taken at once; so the time grows with the items, not
    with their square.

    Args:
        sizes: int64 [N], each from 1 to `capacity`.
        capacity: places of a row.

    Returns:
        The items in the order of packing and the row of each of them, int64 [N] both.
    """
    by_size, counts = np.argsort(sizes, kind="stable"), np.bincount(sizes, minlength=capacity + 1)
    left, reached = counts.tolist(), (np.cumsum(counts) - counts).tolist()
    # At or below each size, the largest one of which an item is left is found by following these down; 0 is none.
    below = np.maximum.accumulate(np.where(counts > 0, np.arange(capacity + 1), 0)).tolist()
    taken: list[tuple[int, int, int]] = []
    row, waiting = 0, len(sizes)
    while waiting:
        room = capacity
        while size := _found(below, room):
            number = min(left[size], room // size)
            taken.append((reached[size], number, row))
            reached[size] += number
            left[size] -= number
            if left[size] == 0:
                below[size] = size - 1
            room -= number * size
            waiting -= number
        row += 1
    first, numbers, rows = np.array(taken, dtype=np.int64).T
    return by_size[ranges(first, numbers)], np.repeat(rows, numbers)


def _found(below: list[int], size: int) -> int:
    """Where following `below` ends; what was followed is shortened for the next time."""
    while below[size] != size:
        below[size] = below[below[size]]
        size = below[size]
    return size
