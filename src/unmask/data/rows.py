"""Rows: what training learns from and evaluation scores, whatever they are made of; and which ones a step reads."""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
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


def rows_of_step(step: int, *, batch_size: int, num_rows: int, seed: int) -> NDArray[np.int64]:
    """The data rows of an optimiser step: each epoch is a permutation, and steps walk through the epochs."""
    drawn = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = drawn // num_rows, drawn % num_rows
    return np.concatenate([_order(seed, int(epoch), num_rows)[places[epochs == epoch]] for epoch in np.unique(epochs)])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    order: Tensor = noise.permutation(Purpose.DATA_ORDER, num_rows, seed, epoch)
    return order.numpy()
