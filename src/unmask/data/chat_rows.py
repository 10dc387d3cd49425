"""One conversation in each row, filled up to the longest row of the global batch.

In: tokenised conversations. Out: rows by number. What fills a row up is EOS that counts as answer (LLaDA's SFT, arXiv
2502.09992: masked, supervised and attended like any other answer token), at most so many of them, or padding that
nothing sees.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError

_ALL = np.iinfo(np.int64).max


class ChatRows:
    """Rows of one conversation each.

    Args:
        text: tokenised conversations, with their supervision.
        context_length: the most tokens of a row.
        over_long: what to do with longer conversations: stop, leave them out, or keep their first tokens if one of
            them is supervised.
        eos: id that fills rows up, or None to fill with padding only.
        eos_cap: the most EOS that a row gets; None: as many as make it the longest.

    Attributes:
        dropped: conversations left out because they are too long.
        cut: conversations that lost their ends.
        mean_length: tokens of a conversation on average.
        supervised_share: share of these tokens that are supervised.

    Raises:
        DataError: a conversation is too long, or none is left.
    """

    def __init__(
        self,
        text: TokenizedText,
        *,
        context_length: int,
        over_long: Literal["error", "drop", "cut"] = "error",
        eos: int | None = None,
        eos_cap: int | None = None,
    ) -> None:
        if text.starts[-1] == 0 or text.supervised is None:
            raise DataError("There is no conversation. Check the data sources.")
        self.text, self.eos = text, eos
        self.eos_cap = 0 if eos is None else _ALL if eos_cap is None else eos_cap
        lengths = np.diff(text.starts)
        is_long = lengths > context_length
        if over_long == "error" and is_long.any():
            raise DataError(
                f"{is_long.sum():,} of {len(lengths):,} conversations are longer than data.context_length "
                f"({context_length} tokens). The longest, {text.place(int(lengths.argmax()))}, has {lengths.max():,}. "
                "Raise data.context_length, or set data.over_long=drop (leave them out) or cut (keep their beginnings)."
            )
        supervised = np.add.reduceat(text.supervised, text.starts[:-1], dtype=np.int64)
        for row in np.flatnonzero(is_long):
            start = text.starts[row]
            supervised[row] = text.supervised[start : start + context_length].sum() if over_long == "cut" else 0
        kept = supervised > 0
        self.dropped, self.cut = int((~kept).sum()), int((kept & is_long).sum())
        if not kept.any():
            raise DataError(f"No conversation fits into data.context_length ({context_length} tokens). Raise it.")
        self._starts, self._lengths = text.starts[:-1][kept], np.minimum(lengths, context_length)[kept]
        self.mean_length = float(self._lengths.mean())
        self.supervised_share = float(supervised[kept].sum() / self._lengths.sum())

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def description(self) -> str:
        """How many rows of how many tokens there are, and what became of those that were too long."""
        dropped = f", {self.dropped:,} over-long ones dropped" if self.dropped else ""
        cut = f", {self.cut:,} over-long ones cut" if self.cut else ""
        return (
            f"{len(self):,} conversations of {self._lengths.min()} to {self._lengths.max()} tokens (mean "
            f"{self.mean_length:.1f}, {self.supervised_share:.0%} supervised){dropped}{cut}"
        )

    def prompt(self, row: int) -> list[int]:
        """The tokens before a row's first reply."""
        place = self._place(row)
        assert self.text.supervised is not None
        return self.text.tokens[place][: int(self.text.supervised[place].argmax())].tolist()

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        """Rows number start..stop-1 of a global batch of the given rows; the longest of them all is not filled up."""
        assert self.text.supervised is not None
        chosen, longest = rows[start:stop], int(self._lengths[rows].max())
        lengths = self._lengths[chosen]
        filled = lengths + np.minimum(longest - lengths, self.eos_cap)
        shape = (len(chosen), int(filled.max()))
        ids, sizes = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        document = np.full(shape, -1, dtype=np.int64)
        supervised, fill = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        for line, row in enumerate(chosen):
            place, length, end = self._place(int(row)), lengths[line], filled[line]
            ids[line, :length] = self.text.tokens[place]
            sizes[line, :length] = self.text.bytes[place]
            supervised[line, :length] = self.text.supervised[place]
            ids[line, length:end] = self.eos or 0
            supervised[line, length:end] = fill[line, length:end] = True
            document[line, :end] = 0
        return Batch(
            ids_BL=torch.from_numpy(ids),
            document_BL=torch.from_numpy(document),
            supervised_BL=torch.from_numpy(supervised),
            uid_B=torch.from_numpy(np.asarray(chosen, dtype=np.int64)),
            global_row_B=torch.arange(start, start + len(chosen)),
            global_rows=len(rows),
            step=step,
            bytes_BL=torch.from_numpy(sizes),
            fill_BL=torch.from_numpy(fill),
        )

    def _place(self, row: int) -> slice:
        start = int(self._starts[row])
        return slice(start, start + int(self._lengths[row]))
