"""Masked diffusion: predict the masked tokens of a corrupted text from all that is visible (MDLM, LLaDA).

The weighted cross-entropy divided by the number of *all* supervised tokens, masked or not, estimates the negative
ELBO per token (MDLM, arXiv 2406.07524; LLaDA, arXiv 2502.09992, equation 3). A prompt is not supervised: it is never
masked, so it is neither noise nor loss (equation 5). With a `mask_ratio_range` the loss estimates no bound.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from unmask import attention
from unmask.data.batch import Batch
from unmask.diffusion.corruption import Corruption, at_random_length, clipped, corrupt, times
from unmask.objectives.example import Example, normalized
from unmask.settings.objective import ObjectiveSettings


def example(batch: Batch, settings: ObjectiveSettings, *, mask_token_id: int, logit_shift: bool, seed: int) -> Example:
    """The masked example of a clean batch, for training.

    Args:
        batch: clean rows; BOS is visible in every corruption because it is never supervised.
        settings: schedule, corruption and weights.
        mask_token_id: what a masked token is replaced by.
        logit_shift: the row before a token predicts it, so a document's first token is never masked.
        seed: of every draw, with the batch's step and rows.
    """
    batch = predictable(at_random_length(batch, settings, seed=seed), logit_shift=logit_shift)
    time_B1 = clipped(times(batch, 1, settings, seed=seed), settings)
    corruption = corrupt(batch, settings, seed=seed, time_BG=time_B1)
    made = corrupted_example(batch, corruption, mask_token_id=mask_token_id, logit_shift=logit_shift)
    counted_BL = batch.supervised_BL if settings.weighting == "elbo" else corruption.masked_BL
    return normalized(made, counted_BL.sum(dim=1)[None], settings.normalize)


def predictable(batch: Batch, *, logit_shift: bool) -> Batch:
    """The batch without supervision of what the model cannot predict."""
    if not logit_shift:
        return batch
    place_BL = attention.document_positions(batch.document_BL)
    return dataclasses.replace(batch, supervised_BL=batch.supervised_BL & (place_BL > 0))


def corrupted_example(batch: Batch, corruption: Corruption, *, mask_token_id: int, logit_shift: bool) -> Example:
    """The example of a batch whose corruption is drawn already."""
    masked_BL = corruption.masked_BL
    target_row_R = masked_BL.flatten().nonzero()[:, 0]
    return Example(
        ids_BL=batch.ids_BL.masked_fill(masked_BL, mask_token_id),
        layout=attention.bidirectional(batch.document_BL),
        row_R=target_row_R - int(logit_shift),
        target_R=batch.ids_BL.flatten()[target_row_R],
        weight_R=corruption.weight_BL.flatten()[target_row_R].float(),
        term_R=torch.zeros_like(target_row_R),
        group_R=target_row_R // masked_BL.shape[1],
        ratio_R=corruption.ratio_BL.flatten()[target_row_R].float(),
        source_R=_predecessor(batch.document_BL, target_row_R),
        terms=("diffusion",),
        denominator_T=batch.supervised_BL.sum(dtype=torch.float64)[None],
    )


def _predecessor(document_BL: Tensor, target_row_R: Tensor) -> Tensor:
    """The row before each token within its document, or -1 for a document's first token."""
    place_R = attention.document_positions(document_BL).flatten()[target_row_R]
    return torch.where(place_R > 0, target_row_R - 1, -1)
