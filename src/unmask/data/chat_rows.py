"""One conversation in each row, filled up to the longest row of the global batch or to the end of its last block.

In: tokenised conversations. Out: rows by number. What fills a row up is EOS that counts as answer (LLaDA's SFT, arXiv
2502.09992: masked, supervised and attended like any other answer token), at most so many of them, or padding that
nothing sees.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.data.fitting import fitted
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError
from unmask.settings.data import OverLong

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
        fill: fill up to a multiple of this many tokens, not to the longest row.

    Attributes:
        dropped: conversations left out because they are too long.
        cut: conversations that lost their ends.
        description: how many rows of how many tokens there are, and what became of those that were too long.
        mean_length: tokens of a conversation on average.
        supervised_share: share of these tokens that are supervised.
        groups: the first row of each source, and the number of all rows.

    Raises:
        DataError: a conversation is too long, or none is left.
    """

    def __init__(
        self,
        text: TokenizedText,
        *,
        context_length: int,
        over_long: OverLong = "error",
        eos: int | None = None,
        eos_cap: int | None = None,
        fill: int | None = None,
    ) -> None:
        if text.starts[-1] == 0 or text.supervised is None:
            raise DataError("There is no conversation. Check the data sources.")
        self.text, self.eos, self.fill = text, eos, fill
        self.eos_cap = 0 if eos is None else _ALL if eos_cap is None else eos_cap
        kept = fitted(text, context_length=context_length, over_long=over_long)
        self.dropped, self.cut, self.description = kept.dropped, kept.cut, kept.description
        self._starts, self._lengths = kept.first, kept.lengths
        self.groups = kept.groups
        self.mean_length = float(self._lengths.mean())
        self.supervised_share = float(kept.supervised.sum() / self._lengths.sum())

    def __len__(self) -> int:
        return len(self._starts)

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
        missing = longest - lengths if self.fill is None else -lengths % self.fill
        filled = lengths + np.minimum(missing, self.eos_cap)
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
