"""The probe: some rows of text, masked once, on which a model is measured again and again while it learns.

In: rows and what is learned. Out: examples, the same ones every time, so that what changes is the model and not the
draws. Their mask counts are uniform and their weights those of the bound, whatever the training does: only then are the
metrics of different runs about the same question. What is measured of the loss weights needs the training's own draws;
where they differ, the probe has a second set of examples.
Shapes: P rows of the probe, R supervised rows of an example, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask import noise
from unmask.analysis.metrics import MaskedTokens
from unmask.data.batch import Batch
from unmask.data.rows import Rows
from unmask.noise import Purpose
from unmask.objectives.example import Example
from unmask.objectives.loss import RowPredictions
from unmask.objectives.methods import Objective, objective
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

_STEP = 1 << 40
"""The step of the probe's draws: no run gets there, and every curriculum has come to its end."""
_COUNTED_ROWS, _COUNTED_AT_ONCE = 2048, 64
_TERM = "diffusion"


class Part(NamedTuple):
    """Some rows of the probe.

    Attributes:
        example: their example.
        tokens_B: int64; the tokens of each row that could have been masked.
    """

    example: Example
    tokens_B: Tensor


class Probe:
    """Rows that are masked once.

    Args:
        rows: to choose from.
        number: how many, at most.
        settings: of the training.
        entry: of the checkpoint.
        seed: of the choice and the masks.
    """

    def __init__(
        self, rows: Rows, number: int, settings: ObjectiveSettings, entry: DiffusionConfig, *, seed: int
    ) -> None:
        self.text, self.seed = rows, seed
        order = noise.permutation(Purpose.PROBE, len(rows), seed)[:number]
        self.rows: NDArray[np.int64] = order.numpy()
        steps = None if not settings.curricula else _STEP
        uniform, own = uniform_counts(settings), training_draws(settings)
        self._uniform = objective(uniform, entry, seed=seed, steps=steps)
        self._own = None if own == uniform else objective(own, entry, seed=seed, steps=steps)
        self._sizes = [_size(part) for part in self._examples(self._uniform, 0, len(self), 1)]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens that could have been masked."""
        return sum(self._sizes)

    @property
    def weights_differ(self) -> bool:
        """Whether the training draws other masks, or weighs them otherwise, than the bound."""
        return self._own is not None

    def parts(self, start: int, stop: int, size: int, *, as_trained: bool = False) -> Iterator[Part]:
        """Rows start..stop-1, `size` at a time; `as_trained` with the masks and weights of the training."""
        made = self._own if as_trained and self._own is not None else self._uniform
        begins = range(start, stop, size)
        for begin, example in zip(begins, self._examples(made, start, stop, size), strict=True):
            yield Part(example, torch.tensor(self._sizes[begin : min(begin + size, stop)]))

    def _examples(self, made: Objective, start: int, stop: int, size: int) -> Iterator[Example]:
        for begin in range(start, stop, size):
            batch = self.text.batch(self.rows, begin, min(begin + size, stop), step=_STEP)
            yield masked_part(made(batch))


def uniform_counts(settings: ObjectiveSettings) -> ObjectiveSettings:
    """The objective with uniform mask counts and the weights of the bound."""
    return dataclasses.replace(
        training_draws(settings),
        schedule="linear",
        corruption="count",
        weighting="elbo",
        mask_ratio_range=(0.0, 1.0),
        mask_ratio_curriculum=(),
        complementary_masks=False,
    )


def training_draws(settings: ObjectiveSettings) -> ObjectiveSettings:
    """The objective on whole rows at its last block length, where each token weighs the same and each row or block has
    a time of its own."""
    return dataclasses.replace(
        settings,
        random_length_probability=0.0,
        normalize="tokens",
        block_curriculum=(),
        time_sampling="stratified",
        t_granularity=None,
    )


def masked_part(example: Example) -> Example:
    """The example without the rows of other terms than the diffusion's (TiDAR's next tokens)."""
    if example.terms == (_TERM,):
        return example
    return example.only(example.term_R == example.terms.index(_TERM))


def masked_tokens(part: Part, found: RowPredictions) -> MaskedTokens:
    """What a model made of the masked tokens of some rows."""
    example, device = part.example, found.correct_R.device
    return MaskedTokens(
        cross_entropy_R=found.cross_entropy_R,
        correct_R=found.correct_R,
        confidence_R=found.confidence_R,
        target_R=example.target_R.to(device),
        weight_R=example.weight_R.to(device),
        ratio_R=example.ratio_R.to(device),
        group_R=example.group_R.to(device),
        tokens_B=part.tokens_B.to(device),
    )


def token_counts(rows: Rows, size: int, *, seed: int) -> Tensor:
    """How often each token is supervised in (a sample of) the rows: in text, and where it fills rows up; int64 [2, V].

    How much fills a row up hangs on the rows beside it, and is more than the text itself where their lengths differ.
    """
    chosen = noise.permutation(Purpose.PROBE, len(rows), seed, 1)[:_COUNTED_ROWS].numpy()
    count_2V = torch.zeros(2, size, dtype=torch.int64)
    for start in range(0, len(chosen), _COUNTED_AT_ONCE):
        part = chosen[start : start + _COUNTED_AT_ONCE]
        batch = rows.batch(part, 0, len(part), step=0)
        text_BL = _text(batch)
        for count_V, counted_BL in zip(count_2V, (text_BL, batch.supervised_BL & ~text_BL), strict=True):
            count_V += torch.bincount(batch.ids_BL[counted_BL], minlength=size)
    return count_2V


def token_runs(rows: Rows) -> Iterator[list[int]]:
    """The supervised tokens of each row's longest document."""
    for number in range(len(rows)):
        batch = rows.batch(np.array([number]), 0, 1, step=0)
        text_BL = _text(batch)
        documents = [batch.ids_BL[(batch.document_BL == one) & text_BL] for one in batch.document_BL.unique()]
        yield max(documents, key=len).tolist()


def _text(batch: Batch) -> Tensor:
    """Where text is supervised, bool [B, L]."""
    return batch.supervised_BL if batch.fill_BL is None else batch.supervised_BL & ~batch.fill_BL


def _size(example: Example) -> int:
    return int(example.denominator_T[example.terms.index(_TERM)])
