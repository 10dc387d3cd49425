"""Which documents fit into a row, and what becomes of those that do not.

In: tokenised text or conversations. Out: the documents to learn from, cut where that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError
from unmask.settings.data import OverLong


@dataclass(frozen=True)
class Fitted:
    """The documents that have something to learn and fit into a row; the arrays are int64 [D].

    Attributes:
        first: the first token of each in the text.
        lengths: how many of its tokens are kept.
        supervised: how many of those are supervised.
        dropped: documents left out because they are too long.
        cut: documents that lost their ends.
        empty: documents without a supervised token, which are left out.
        groups: the first document of each source, and the number of all.
        noun: what such a document is called.
    """

    first: NDArray[np.int64]
    lengths: NDArray[np.int64]
    supervised: NDArray[np.int64]
    dropped: int
    cut: int
    empty: int
    groups: tuple[int, ...]
    noun: str

    @property
    def description(self) -> str:
        """How many documents of how many tokens there are, and what became of those that were too long."""
        dropped = f", {self.dropped:,} over-long ones dropped" if self.dropped else ""
        cut = f", {self.cut:,} over-long ones cut" if self.cut else ""
        empty = f", {self.empty:,} without a supervised token left out" if self.empty else ""
        share = self.supervised.sum() / self.lengths.sum()
        return (
            f"{len(self.first):,} {self.noun} of {self.lengths.min()} to {self.lengths.max()} tokens (mean "
            f"{self.lengths.mean():.1f}, {share:.0%} supervised){dropped}{cut}{empty}"
        )


def fitted(text: TokenizedText, *, context_length: int, over_long: OverLong, lead: int = 0) -> Fitted:
    """The documents that fit into `context_length` places, `lead` of which BOS takes.

    Args:
        text: the documents.
        context_length: places of a row.
        over_long: stop at longer documents, leave them out, or keep their first tokens if one of them is supervised.
        lead: places before a document's own tokens.

    Raises:
        DataError: a document is too long, or none is left.
    """
    noun = "documents" if text.supervised is None else "conversations"
    lengths, room = np.diff(text.starts), context_length - lead
    is_long = lengths > room
    if over_long == "error" and is_long.any():
        raise DataError(
            f"{is_long.sum():,} of {len(lengths):,} {noun} are longer than data.context_length ({context_length} "
            f"tokens). The longest, {text.place(int(lengths.argmax()))}, has {lengths.max() + lead:,}. Raise "
            "data.context_length, or set data.over_long=drop (leave them out) or cut (keep their beginnings)."
        )
    supervised = _supervised(text, lengths, room)
    if over_long == "drop":
        supervised = np.where(is_long, 0, supervised)
    kept = supervised > 0
    if not kept.any():
        raise DataError(
            f"No {noun[:-1]} fits into data.context_length ({context_length} tokens) with a supervised token. Raise it."
        )
    return Fitted(
        first=text.starts[:-1][kept],
        lengths=np.minimum(lengths, room)[kept],
        supervised=supervised[kept],
        dropped=int((is_long & ~kept).sum()),
        cut=int((is_long & kept).sum()),
        empty=int((~is_long & ~kept & (lengths > 0)).sum()),
        groups=(0, *np.append(0, np.cumsum(kept))[list(text.groups)].tolist()) if text.groups else (0, int(kept.sum())),
        noun=noun,
    )


def _supervised(text: TokenizedText, lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """Supervised tokens among the first `room` of each document; of text, all of them are."""
    if text.supervised is None:
        return np.minimum(lengths, room)
    found = np.add.reduceat(text.supervised, text.starts[:-1], dtype=np.int64)
    for number in np.flatnonzero(lengths > room):
        start = text.starts[number]
        found[number] = text.supervised[start : start + room].sum()
    return found
