"""Likelihood of text: exact for autoregression and TiDAR, a bound with its standard error for diffusion.

In: clean batches. Out: nats of each row. The diffusion bound averages LLaDA's count estimator (arXiv 2502.09992,
equation 6): m of n tokens are masked, weight n/m, m uniform; block diffusion does so in each block (see
`block_likelihood`). The counts of a row are stratified by one shared offset, so every row's estimate is unbiased, and
no rounding favours some counts. It never depends on the training weights, and is an upper bound on the negative
log-likelihood: a perplexity made of it is a bound as well.
Shapes: B rows, K masked versions of each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
from unmask.data.rows import Rows
from unmask.diffusion.corruption import corrupt
from unmask.errors import PromptError
from unmask.evaluation.block_likelihood import block_nats
from unmask.evaluation.figures import finite
from unmask.evaluation.masks import systematic_stderr
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.objectives import autoregressive, masked_diffusion
from unmask.objectives.example import Example
from unmask.objectives.loss import row_losses
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.objective import ObjectiveSettings

Losses = Callable[[Example], Tensor]
_ELBO = ObjectiveSettings(method="masked_diffusion", corruption="count", weighting="elbo", schedule="linear")


class RowNats(NamedTuple):
    """Negative log-likelihood (or its bound) of each row.

    Attributes:
        nats_B: float64.
        stderr_B: float64; standard error from the draws of the masks, 0 where exact.
        tokens_B: int64; tokens that were scored.
        bytes_B: int64; UTF-8 bytes of text that the scored tokens stand for, 0 where unknown.
    """

    nats_B: Tensor
    stderr_B: Tensor
    tokens_B: Tensor
    bytes_B: Tensor


class Versions(NamedTuple):
    """What a masked-diffusion model made of masked versions of each row; float64 unless said otherwise.

    Attributes:
        nats_BK: cross-entropy of all masked tokens of a version.
        estimate_BK: the row's nats as that version alone estimates them, n/m times the same.
        masked_BK: int64; masked tokens, uniform on 1..n.
        time_BK: which the counts were made of; those of a row are spread evenly.
        size_B: int64; tokens n that could have been masked.
        tokens_B: as in `RowNats`.
        bytes_B: as in `RowNats`.
    """

    nats_BK: Tensor
    estimate_BK: Tensor
    masked_BK: Tensor
    time_BK: Tensor
    size_B: Tensor
    tokens_B: Tensor
    bytes_B: Tensor

    @property
    def bound(self) -> RowNats:
        """The ELBO: the mean over the versions, with its standard error."""
        ordered_BK = self.estimate_BK.gather(1, self.time_BK.argsort(dim=1))
        return RowNats(self.estimate_BK.mean(dim=1), systematic_stderr(ordered_BK), self.tokens_B, self.bytes_B)


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of a text.

    Attributes:
        nats: in total, or an upper bound.
        stderr: standard error of `nats` from the draws of the masks, 0 where exact.
        tokens: tokens scored.
        bytes: UTF-8 bytes of the text that they stand for.
        is_bound: whether it is an upper bound (diffusion) or exact (autoregression, TiDAR).
    """

    nats: float
    stderr: float
    tokens: int
    bytes: int
    is_bound: bool

    @property
    def nats_per_token(self) -> float:
        return self.nats / max(self.tokens, 1)

    @property
    def bits_per_byte(self) -> float:
        """NaN where no bytes are known (token ids without text)."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def bits_per_byte_stderr(self) -> float:
        return self.stderr / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nats per token); an upper bound on the perplexity where `is_bound`."""
        return math.exp(min(self.nats_per_token, 700.0))


def evaluate(
    backbone: Backbone, text: Rows, settings: EvaluationSettings, *, losses: Losses | None = None
) -> Likelihood:
    """Likelihood of text or of answers, over the first `max_rows` rows; arguments as in `row_nats`."""
    rows = np.arange(min(len(text), settings.max_rows or len(text)))
    parts: list[RowNats] = []
    for start in range(0, len(rows), settings.batch_size):
        batch = text.batch(rows, start, start + settings.batch_size, step=0)
        parts.append(row_nats(backbone, batch, settings, losses=losses))
    return summed(RowNats(*(torch.cat(fields) for fields in zip(*parts, strict=True))), is_bound(backbone))


def summed(rows: RowNats, bound: bool) -> Likelihood:
    """The likelihood of all rows together; their masks are drawn independently."""
    return Likelihood(
        nats=float(rows.nats_B.sum()),
        stderr=float(rows.stderr_B.square().sum().sqrt()),
        tokens=int(rows.tokens_B.sum()),
        bytes=int(rows.bytes_B.sum()),
        is_bound=bound,
    )


def is_bound(backbone: Backbone) -> bool:
    """Whether this model's likelihood is only bounded; blocks of one token are predicted by the chain rule."""
    entry = backbone.diffusion
    return not entry.is_causal and not (entry.method == "block_diffusion" and entry.block_length == 1)


@torch.inference_mode()
def row_nats(
    backbone: Backbone, batch: Batch, settings: EvaluationSettings, *, losses: Losses | None = None
) -> RowNats:
    """Nats of each row of a batch under the model's own method.

    Args:
        backbone: in evaluation mode.
        batch: clean rows; draws are keyed by their uids.
        settings: number of masks and their seed.
        losses: evaluates an example's rows in place of the backbone (a wrapped or sharded one).

    Raises:
        NonFiniteError: a row's nats or their standard error are NaN or infinite.
        PromptError: the model is in training mode.
    """
    losses = losses or functools.partial(_losses, backbone)
    if backbone.training:
        raise PromptError("The model is in training mode, where dropout would blur its likelihood. Call .eval() first.")
    if backbone.diffusion.method == "block_diffusion":
        options = {"masks": settings.masks_per_sequence, "batch_size": settings.batch_size, "seed": settings.seed}
        return _finite(RowNats(*block_nats(backbone, batch, losses, **options), *_scored(batch)))
    if is_bound(backbone):
        return _finite(masked_versions(backbone, batch, settings, losses).bound)
    batch = autoregressive.predictable(batch)
    example = autoregressive.example(batch).to(backbone.device)
    nats_B = _summed(losses(example), example.group_R, batch)
    return _finite(RowNats(nats_B, torch.zeros_like(nats_B), *_scored(batch)))


def _finite(rows: RowNats) -> RowNats:
    finite(rows.nats_B, lambda row: f"row {row} of a batch")
    finite(rows.stderr_B, lambda row: f"row {row} of a batch, as its standard error,")
    return rows


@torch.inference_mode()
def masked_versions(
    backbone: Backbone, batch: Batch, settings: EvaluationSettings, losses: Losses | None = None
) -> Versions:
    """LLaDA's count estimator with K stratified counts for each row, version by version; arguments as in `row_nats`."""
    losses = losses or functools.partial(_losses, backbone)
    entry, copies = backbone.diffusion, settings.masks_per_sequence
    assert entry.mask_token_id is not None
    batch = masked_diffusion.predictable(batch, logit_shift=entry.logit_shift)
    rows = dataclasses.replace(batch, global_row_B=batch.uid_B, step=0).repeated(copies)
    offset_B1 = noise.uniform(Purpose.TIME, settings.seed, batch.uid_B)[:, None]
    time_BK = (offset_B1 + torch.arange(copies) / copies) % 1
    nats: list[Tensor] = []
    estimates: list[Tensor] = []
    masked: list[Tensor] = []
    for start in range(0, time_BK.numel(), settings.batch_size):
        stop = start + settings.batch_size
        part, time_RG = rows.rows(start, stop), time_BK.flatten()[start:stop, None]
        corruption = corrupt(part, _ELBO, seed=settings.seed, time_BG=time_RG)
        example = masked_diffusion.corrupted_example(
            part, corruption, mask_token_id=entry.mask_token_id, logit_shift=entry.logit_shift
        ).to(backbone.device)
        nats_R = losses(example)
        nats.append(_summed(nats_R, example.group_R, part))
        estimates.append(_summed(nats_R * example.weight_R, example.group_R, part))
        masked.append(corruption.masked_BL.sum(dim=1))
    nats_BK, estimate_BK, masked_BK = (torch.cat(one).view(-1, copies) for one in (nats, estimates, masked))
    tokens_B, bytes_B = _scored(batch)
    size_B = batch.supervised_BL.sum(dim=1)
    return Versions(nats_BK, estimate_BK, masked_BK, time_BK, size_B, tokens_B, bytes_B)


def _scored(batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens and bytes of each row's text that are scored; what fills a row up is no text, whether it costs nats
    (masked diffusion, where the answer's length is part of it) or not (block diffusion)."""
    text_BL = batch.supervised_BL if batch.fill_BL is None else batch.supervised_BL & ~batch.fill_BL
    tokens_B = text_BL.sum(dim=1)
    if batch.bytes_BL is None:
        return tokens_B, torch.zeros_like(tokens_B)
    return tokens_B, (batch.bytes_BL * batch.supervised_BL).sum(dim=1)


def _losses(backbone: Backbone, example: Example) -> Tensor:
    mask = backbone.render(example.layout, example.layout)
    hidden_BLD = backbone(example.ids_BL, example.layout.position_ids, mask)
    return row_losses(hidden_BLD, example, backbone.logits)


def _summed(values_R: Tensor, group_R: Tensor, batch: Batch) -> Tensor:
    """Sums per row of the batch, on the CPU in float64."""
    total_B = torch.zeros(batch.ids_BL.shape[0], dtype=torch.float64)
    return total_B.index_add(0, group_R.cpu(), values_R.cpu().double())
