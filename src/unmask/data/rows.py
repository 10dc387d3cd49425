"""Rows: what training learns from and evaluation scores, whatever they are made of; and which ones a step reads."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
from unmask.errors import DataError
from unmask.noise import Purpose


class Rows(Protocol):
    """Numbered rows of tokens, some of them supervised."""

    def __len__(self) -> int: ...

    @property
    def description(self) -> str:
        """How many rows of what there are, in words."""
        ...

    @property
    def mean_length(self) -> float:
        """Tokens of a row on average, before it is filled up."""
        ...

    @property
    def supervised_share(self) -> float:
        """Share of those tokens that are supervised."""
        ...

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        """Rows number start..stop-1 of a global batch of the given rows.

        The whole global batch decides how a row is filled up, so that a row does not depend on its micro-batch.
        """
        ...


@dataclass(frozen=True)
class Mixture:
    """Which share of the rows comes from which source.

    Attributes:
        first: the first row of each source, and the number of all rows.
        counts: how many rows of each source an epoch has; they sum to the number of all rows.
    """

    first: tuple[int, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(first: Sequence[int], weights: Sequence[float]) -> Mixture:
        """The mixture in which sources have shares in proportion to their weights, rounded to whole rows.

        Args:
            first: the first row of each source, and the number of all rows.
            weights: of each source, above 0.

        Raises:
            DataError: a source has no row, or a share of less than one.
        """
        total = first[-1]
        bounds = [round(total * part / math.fsum(weights)) for part in itertools.accumulate(weights, initial=0.0)]
        counts = tuple(stop - start for start, stop in itertools.pairwise(bounds))
        for number, (size, count) in enumerate(zip(np.diff(first).tolist(), counts, strict=True), start=1):
            if size == 0 or count == 0:
                what = "no rows" if size == 0 else f"less than one of {total:,} rows by its weight"
                raise DataError(f"Source {number} of data.train has {what}. Leave it out, or change data.weights.")
        return Mixture(tuple(first), counts)

    def rows(self, drawn: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """The rows at some places of the order; each source goes through its own epochs, in an order of its own."""
        total = self.first[-1]
        ends = np.cumsum(self.counts)
        place = _ordered(drawn, total, seed)
        source = np.searchsorted(ends, place, side="right")
        found = np.empty_like(drawn)
        for number in np.unique(source).tolist():
            here = source == number
            begin, size = self.first[number], self.first[number + 1] - self.first[number]
            reached = drawn[here] // total * self.counts[number] + place[here] - (ends[number] - self.counts[number])
            found[here] = begin + _ordered(reached, size, seed, number)
        return found


def rows_of_step(
    step: int, *, batch_size: int, num_rows: int, seed: int, mixture: Mixture | None = None
) -> NDArray[np.int64]:
    """The data rows of an optimiser step: each epoch is a permutation, and steps walk through the epochs."""
    drawn = np.arange(step * batch_size, (step + 1) * batch_size)
    return _ordered(drawn, num_rows, seed) if mixture is None else mixture.rows(drawn, seed)


def _ordered(drawn: NDArray[np.int64], num_rows: int, seed: int, *source: int) -> NDArray[np.int64]:
    """The rows at some places of a sequence of permutations."""
    epochs, places = drawn // num_rows, drawn % num_rows
    found = np.empty_like(drawn)
    for epoch in np.unique(epochs).tolist():
        found[epochs == epoch] = _orders(num_rows, seed, *source)(epoch)[places[epochs == epoch]]
    return found


@functools.lru_cache(maxsize=64)
def _orders(num_rows: int, seed: int, *source: int) -> Callable[[int], NDArray[np.int64]]:
    """The permutation of each epoch; the last two stay in memory."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        made: Tensor = noise.permutation(Purpose.DATA_ORDER, num_rows, seed, epoch, *source)
        return made.numpy()

    return order
