"""Rows of text that is read while it is learned, in the order of its sources, for more text than the disk holds.

In: sources and a tokenizer. Out: rows by number, and where the reader stands at a row, from which another process goes
on with exactly the rows that would have come. Rows come in windows: so many are read ahead and shuffled among one
another by a hash of the window's number. When the sources end, they are read again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
from unmask.data.packing import PackedText
from unmask.data.sources import Sources, word_hash
from unmask.data.tokenized import Document, TokenizedText, encoded
from unmask.errors import DataError
from unmask.noise import Purpose

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DOCUMENTS_AT_ONCE, _CHARACTERS_AT_ONCE = 256, 2**22


class Place(NamedTuple):
    """Where the reader stands.

    Attributes:
        epoch: how often the sources were read to their end.
        source: number of the file or dataset.
        row: number of its row.
        token: how many tokens of that row are in earlier rows of the training.
    """

    epoch: int = 0
    source: int = 0
    row: int = 0
    token: int = 0


class _Window(NamedTuple):
    """Some rows in the order of reading, and the order in which they are learned."""

    rows: PackedText
    order: NDArray[np.int64]


class StreamedRows:
    """Rows by number, which are asked for in rising order; going back is reading again.

    Args:
        sources: of the text.
        tokenizer: that reads it.
        context_length: places of a row.
        bos: id put in front of every piece, or None.
        fill: what ends a document is filled up to a multiple of this.
        eos: id that does it.
        window: rows that are shuffled among one another.
        seed: of the shuffling.
        barred: hashes of the documents that must not be learned.
        drops: leave those out, rather than stop.
    """

    def __init__(
        self,
        sources: Sources[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_length: int,
        bos: int | None = None,
        fill: int = 1,
        eos: int | None = None,
        window: int = 1,
        seed: int = 0,
        barred: frozenset[int] = frozenset(),
        drops: bool = False,
    ) -> None:
        self.sources, self.tokenizer = sources, tokenizer
        self.context_length, self.bos, self.fill, self.eos = context_length, bos, fill, eos
        self.window, self.seed, self.barred, self.drops = window, seed, barred, drops
        self._windows: dict[int, _Window] = {}
        self._starts: dict[int, Place] = {0: Place()}
        self._documents = self._read(Place())
        self._left: list[tuple[Place, Document]] = []
        self._next = 0

    def position(self, row: int) -> dict[str, Any]:
        """What `seek` needs to go on with a row that was read, or is the next one, as plain data."""
        number = row // self.window
        self._reach(number - 1)
        return {"window": number, "rows": self.window, "place": list(self._starts[number]), "sources": self._names()}

    def seek(self, position: dict[str, Any]) -> None:
        """Go on at a position.

        Raises:
            DataError: it is one among other sources, or in other windows.
        """
        if position["sources"] != self._names() or position["rows"] != self.window:
            raise DataError(
                "The streamed sources, or data.shuffle_rows, are not those of the run that is resumed, so the place "
                f"where it stopped cannot be found: {', '.join(position['sources'][:4])} in windows of "
                f"{position['rows']:,} rows. Put them back, or start another run from its weights: "
                "model.from_pretrained"
            )
        self._restart(int(position["window"]), Place(*position["place"]))

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        """Rows number start..stop-1 of a global batch of the given rows, which rise."""
        chosen = rows[start:stop]
        for number in [one for one in self._windows if one < int(rows[0]) // self.window]:
            del self._windows[number]
        parts = []
        for number in range(int(chosen[0]) // self.window, int(chosen[-1]) // self.window + 1):
            window = self._reached(number)
            inside = window.order[chosen[chosen // self.window == number] % self.window]
            parts.append(window.rows.batch(inside, 0, len(inside), step=step))
        return dataclasses.replace(
            _joined(parts),
            uid_B=torch.from_numpy(np.array(chosen, dtype=np.int64)),
            global_row_B=torch.arange(start, start + len(chosen)),
            global_rows=len(rows),
        )

    def sample(self) -> PackedText:
        """The first rows, which stand for all where a few are looked at."""
        return self._reached(0).rows

    # --- windows ------------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return list(self.sources.sources)

    def _reached(self, number: int) -> _Window:
        if number not in self._windows and number < self._next:
            known = max(one for one in self._starts if one <= number)
            self._restart(known, self._starts[known])
        self._reach(number)
        return self._windows[number]

    def _reach(self, number: int) -> None:
        while self._next <= number:
            self._windows[self._next] = self._made(self._next)
            self._next += 1

    def _restart(self, number: int, place: Place) -> None:
        self._windows.clear()
        self._left.clear()
        self._starts[number] = place
        self._documents, self._next = self._read(place), number

    def _made(self, number: int) -> _Window:
        """The next window, read from where the one before it ended."""
        needed, held = self.window * self.context_length, self._left
        have = sum(len(document.ids) for _, document in held)
        while have < needed:
            held.append(next(self._documents))
            have += len(held[-1][1].ids)
        starts = np.cumsum([0, *(len(document.ids) for _, document in held)])
        text = TokenizedText(
            np.concatenate([document.ids for _, document in held]),
            np.concatenate([document.bytes for _, document in held]),
            starts,
        )
        options = {"context_length": self.context_length, "bos": self.bos, "fill": self.fill, "eos": self.eos}
        packed = PackedText(text, **options)
        inside = packed.pieces.row < self.window
        last = int(packed.pieces.first[inside][-1] + packed.pieces.length[inside][-1])
        document = int(np.searchsorted(starts, last, side="right")) - 1
        self._left = self._rest(held, document, last - int(starts[document]))
        place = held[-1][0]
        after = self._left[0][0] if self._left else place._replace(row=place.row + 1, token=0)
        self._starts[number + 1] = after
        order: Tensor = noise.permutation(Purpose.DATA_ORDER, self.window, self.seed, number)
        return _Window(PackedText(text.first(last), **options), order.numpy())

    @staticmethod
    def _rest(held: list[tuple[Place, Document]], first: int, token: int) -> list[tuple[Place, Document]]:
        """What the window leaves: the rest of one document, and those after it."""
        if first >= len(held):
            return []
        place, document = held[first]
        cut = Document(document.ids[token:], document.bytes[token:])
        return [(place._replace(token=place.token + token), cut), *held[first + 1 :]]

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, start: Place) -> Iterator[tuple[Place, Document]]:
        """Documents from a place on, for ever."""
        for epoch in itertools.count(start.epoch):
            is_empty = True
            begin = start if epoch == start.epoch else Place(epoch)
            for number in range(begin.source, len(self.sources.sources)):
                first = begin if number == begin.source else Place(epoch, number)
                for place, document in self._tokenised(first):
                    is_empty = False
                    skipped = first.token if place == first._replace(token=0) else 0
                    yield place._replace(token=skipped), Document(document.ids[skipped:], document.bytes[skipped:])
            if is_empty and begin == Place(epoch):
                raise DataError(
                    f"The text is empty: no document of {', '.join(self.sources.sources)} has a token to learn. Check "
                    "the sources, data.text_field and data.separator."
                )

    def _tokenised(self, first: Place) -> Iterator[tuple[Place, Document]]:
        texts = self._texts(first)
        while batch := list(_some(texts)):
            made = encoded([text for _, text in batch], self.tokenizer)
            yield from ((place, document) for (place, _), document in zip(batch, made, strict=True))

    def _texts(self, first: Place) -> Iterator[tuple[Place, str]]:
        for position, text in self.sources.of_source(first.source, start=first.row, streamed=True):
            if self.barred and word_hash(text) in self.barred:
                if self.drops:
                    continue
                raise DataError(
                    f"{self.sources.sources[position.source]}, row {position.row + 1}, is a validation document. Name "
                    "other sources, or set data.overlap=drop to train without such documents."
                )
            yield Place(first.epoch, position.source, position.row), text


def _some(texts: Iterator[tuple[Place, str]]) -> Iterator[tuple[Place, str]]:
    """As many documents as are tokenised at once."""
    characters = 0
    for place, text in itertools.islice(texts, _DOCUMENTS_AT_ONCE):
        yield place, text
        characters += len(text)
        if characters > _CHARACTERS_AT_ONCE:
            return


def _joined(parts: list[Batch]) -> Batch:
    """Batches of rows of one length as one."""
    fields = [field.name for field in dataclasses.fields(Batch) if isinstance(getattr(parts[0], field.name), Tensor)]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    return dataclasses.replace(parts[0], **joined)
