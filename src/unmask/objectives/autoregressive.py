"""Autoregression: each token predicts the next one of its document.

A document that starts with BOS is predicted from its first token on, so that autoregression and diffusion score the
same tokens; without BOS the first token has no predecessor and is left out.

Training may replace a share of the input by the mask token and still predict the clean text, which acts against
overfitting where text is repeated (Ni et al., arXiv 2511.03276; Gao et al., arXiv 2510.04071). Such a loss is no
likelihood; evaluation reads the clean text.
Shapes: B rows, L length, R supervised rows.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from unmask import attention, noise
from unmask.data.batch import Batch
from unmask.noise import Purpose
from unmask.objectives.example import Example, normalized


def example(batch: Batch, *, normalize: Literal["tokens", "answers"] = "tokens") -> Example:
    """The next-token example of a clean batch; it draws nothing."""
    supervised_BL = predictable(batch).supervised_BL
    target_row_R = supervised_BL.flatten().nonzero()[:, 0]
    ones_R = torch.ones(len(target_row_R), device=target_row_R.device)
    made = Example(
        ids_BL=batch.ids_BL,
        layout=attention.causal(batch.document_BL),
        row_R=target_row_R - 1,
        target_R=batch.ids_BL.flatten()[target_row_R],
        weight_R=ones_R,
        term_R=torch.zeros_like(target_row_R),
        group_R=target_row_R // batch.ids_BL.shape[1],
        ratio_R=ones_R,
        source_R=target_row_R - 1,
        terms=("autoregressive",),
        denominator_T=ones_R.sum(dtype=torch.float64)[None],
    )
    return normalized(made, supervised_BL.sum(dim=1)[None], normalize)


def masked_example(
    batch: Batch, *, ratio: float, mask_token_id: int, seed: int, normalize: Literal["tokens", "answers"] = "tokens"
) -> Example:
    """The next-token example of a clean batch whose input is masked in part, for training.

    Args:
        batch: clean rows; what is not supervised (BOS, prompts) stays as it is.
        ratio: probability of each token to be masked in the input, by itself.
        mask_token_id: what a masked token is replaced by.
        seed: of every draw, with the batch's step and rows.
        normalize: as in `example`.
    """
    column_L = torch.arange(batch.ids_BL.shape[1], device=batch.ids_BL.device)
    chance_BL = noise.uniform(Purpose.INPUT_MASK, seed, batch.step, batch.global_row_B[:, None], column_L)
    masked_BL = batch.supervised_BL & (chance_BL < ratio)
    made = example(batch, normalize=normalize)
    return dataclasses.replace(made, ids_BL=batch.ids_BL.masked_fill(masked_BL, mask_token_id))


def predictable(batch: Batch) -> Batch:
    """The batch without supervision of the first token of each document."""
    place_BL = attention.document_positions(batch.document_BL)
    return dataclasses.replace(batch, supervised_BL=batch.supervised_BL & (place_BL > 0))
