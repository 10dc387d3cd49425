"""Autoregression: each token predicts the next one of its document.

A document that starts with BOS is predicted from its first token on, so that autoregression and diffusion score the
same tokens; without BOS the first token has no predecessor and is left out.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from unmask import attention
from unmask.data.batch import Batch
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


def predictable(batch: Batch) -> Batch:
    """The batch without supervision of the first token of each document."""
    place_BL = attention.document_positions(batch.document_BL)
    return dataclasses.replace(batch, supervised_BL=batch.supervised_BL & (place_BL > 0))
