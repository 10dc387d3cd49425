"""Block diffusion: predict the masked tokens of each block from the block and the clean text before it (SDAR, BD3-LM).

The blocks of a text are predicted left to right, and the tokens inside a block by masked diffusion, so the sum over
blocks of their negative ELBOs bounds the text's negative log-likelihood (BD3-LM, arXiv 2503.09573, equation 8). All
blocks are computed in one forward over [noisy | clean] (section 3.1; SDAR, arXiv 2510.06303).
Shapes: B rows, L clean length, C noisy copies, W = (C + 1) L columns of the input, R supervised rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from unmask import attention
from unmask.data.batch import Batch
from unmask.diffusion.blocks import block_groups, block_times, completed, trimmed
from unmask.diffusion.corruption import Corruption, corrupt
from unmask.objectives.example import Example, normalized
from unmask.settings.objective import ObjectiveSettings


def example(batch: Batch, settings: ObjectiveSettings, *, mask_token_id: int, block_length: int, seed: int) -> Example:
    """The masked example of a clean batch, for training.

    Args:
        batch: clean rows of packed documents, whose last blocks may be filled up.
        settings: corruption, granularity and weights.
        mask_token_id: what a masked token is replaced by.
        block_length: of this step.
        seed: of every draw, with the batch's step and rows.
    """
    batch, added_BL = completed(trimmed(batch, block_length), block_length)
    group_BL = block_groups(batch.document_BL, block_length)
    time_BG = block_times(batch, group_BL, settings, seed=seed)
    drawn = corrupt(batch, settings, seed=seed, group_BL=group_BL, time_BG=time_BG)
    corruptions = with_complement(drawn, batch.supervised_BL, settings) if settings.complementary_masks else [drawn]
    made = corrupted_example(batch, corruptions, added_BL, mask_token_id=mask_token_id, block_length=block_length)
    size_B = batch.supervised_BL.sum(dim=1)
    if settings.weighting == "unweighted":
        size_B = torch.stack([one.masked_BL.sum(dim=1) for one in corruptions]).sum(dim=0)
    return normalized(made, size_B[None], settings.normalize)


def with_complement(drawn: Corruption, supervised_BL: Tensor, settings: ObjectiveSettings) -> list[Corruption]:
    """A corruption by mask counts and its complement, which together estimate what each would alone.

    A block of n tokens with m of them masked has n - m in its complement. Where m = n there is no complement, and the
    block's own estimate counts twice: so the second count is uniform on 1..n as the first one is.
    """
    rest_BL = supervised_BL & ~drawn.masked_BL
    if settings.weighting == "unweighted":
        return [drawn, Corruption(rest_BL, torch.ones_like(drawn.weight_BL), 1 - drawn.ratio_BL)]
    half_BL = drawn.weight_BL / 2
    whole_BL = torch.where(drawn.ratio_BL == 1, drawn.weight_BL, half_BL)
    rest_ratio_BL = 1 - drawn.ratio_BL
    rest_weight_BL = 0.5 / rest_ratio_BL.clamp(min=torch.finfo(torch.float64).tiny)
    return [dataclasses.replace(drawn, weight_BL=whole_BL), Corruption(rest_BL, rest_weight_BL, rest_ratio_BL)]


def corrupted_example(
    batch: Batch,
    corruptions: Sequence[Corruption],
    hidden_BL: Tensor,
    *,
    mask_token_id: int,
    block_length: int,
) -> Example:
    """The example of a batch whose corruptions are drawn already: one noisy copy for each.

    Args:
        batch: clean rows.
        corruptions: of the supervised tokens.
        hidden_BL: bool; places that are masked in every copy and not supervised.
        mask_token_id: what a masked token is replaced by.
        block_length: of the layout.
    """
    length, copies = batch.ids_BL.shape[1], len(corruptions)
    place_BL = attention.document_positions(batch.document_BL)
    layout = attention.block_diffusion_training(batch.document_BL, block_length, copies=copies)
    if bool((place_BL[batch.document_BL >= 0] < block_length).all()):
        layout = layout.columns(0, copies * length)  # no document has a second block, which would see the clean half
    masked_BM = torch.cat([one.masked_BL for one in corruptions], dim=1)
    noisy = [batch.ids_BL.masked_fill(one.masked_BL | hidden_BL, mask_token_id) for one in corruptions]
    ids_BW = torch.cat([*noisy, batch.ids_BL], dim=1)[:, : len(layout)]
    at_R, column_R = masked_BM.nonzero(as_tuple=True)
    clean_R = at_R * length + column_R % length
    chosen = (at_R, column_R)
    return Example(
        ids_BL=ids_BW,
        layout=layout,
        row_R=at_R * len(layout) + column_R,
        target_R=batch.ids_BL.flatten()[clean_R],
        weight_R=torch.cat([one.weight_BL for one in corruptions], dim=1)[chosen].float(),
        term_R=torch.zeros_like(at_R),
        group_R=at_R,
        ratio_R=torch.cat([one.ratio_BL for one in corruptions], dim=1)[chosen].float(),
        source_R=torch.where(place_BL.flatten()[clean_R] > 0, clean_R - 1, -1),
        terms=("diffusion",),
        starts=tuple(range(0, len(layout), length)),
        denominator_T=batch.supervised_BL.sum(dtype=torch.float64)[None],
    )
