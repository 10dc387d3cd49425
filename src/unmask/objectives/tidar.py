"""TiDAR: predict the next token on clean text and, in the same forward, blocks of masks behind it.

The clean tokens are those of an autoregressive model; a block of masks sees the clean tokens before it and itself, and
each mask predicts the token in its own place. The loss is (a AR + d diffusion) / (a + d), each term the mean over its
own tokens (TiDAR, arXiv 2511.08923, section 3.2, where d is 1). Two layouts: `doubled` is [the text | all of it in
masks], so that every block of the text is learned behind its true prefix (figure 3); `split` is a clean head and the
rest of the text in masks behind it (the first public port).
Shapes: B rows, L length, N columns of the blocks (L, or a block more), W columns of the input (N or L + N), G blocks
of a row, D documents of a row, R supervised rows, T = 2 terms.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask import attention, noise
from unmask.attention import Layout
from unmask.data.batch import Batch
from unmask.diffusion.blocks import (
    block_groups,
    block_times,
    completed,
    document_lengths,
    document_numbers,
    widened,
)
from unmask.diffusion.corruption import clipped, corrupt, times
from unmask.noise import Purpose
from unmask.objectives.example import Example, normalized
from unmask.settings.curricula import value_at
from unmask.settings.objective import ObjectiveSettings

TERMS = ("ar", "diffusion")


@dataclass(frozen=True)
class Stage:
    """What the curricula say at a step.

    Attributes:
        block_length: of the blocks of masks.
        clean_ratio: share of a document that is its clean head (split layout).
        mask_ratio: share that is masked; None: drawn, or everything.
        shares: what the two terms count for in the loss; together 1.
    """

    block_length: int
    clean_ratio: float
    mask_ratio: float | None
    shares: tuple[float, float]


def stage_at(settings: ObjectiveSettings, *, block_length: int, step: int, steps: int) -> Stage:
    """The stage of optimiser step `step` (from 0) of `steps`."""

    def at(curriculum: tuple[tuple[float, float], ...], otherwise: float) -> float:
        return value_at(curriculum, otherwise, step=step, steps=steps)

    ar = at(settings.ar_loss_weight_curriculum, settings.ar_loss_weight)
    diffusion = at(settings.diffusion_loss_weight_curriculum, settings.diffusion_loss_weight)
    return Stage(
        block_length=block_length,
        clean_ratio=at(settings.clean_ratio_curriculum, settings.clean_ratio),
        mask_ratio=at(settings.mask_ratio_curriculum, 1.0) if settings.mask_ratio_curriculum else None,
        shares=(ar / (ar + diffusion), diffusion / (ar + diffusion)),
    )


@dataclass(frozen=True)
class _Places:
    """A batch under a layout: which of its tokens are learned how. N columns: L, or a block more.

    Attributes:
        batch: what stands in the blocks, N columns: perhaps without the ends of documents, last blocks completed.
        layout: of the input's W columns.
        group_BN: number of each token's block within its row.
        next_BL: bool; tokens that the clean row before them predicts.
        noisy_BN: bool; tokens that have a place in the blocks.
        added_BN: bool; places that complete a last block and are never read.
        shift: columns from a token to its place in the blocks.
    """

    batch: Batch
    layout: Layout
    group_BN: Tensor
    next_BL: Tensor
    noisy_BN: Tensor
    added_BN: Tensor
    shift: int


@dataclass(frozen=True)
class _Masks:
    """What is masked in the blocks, and what of that is learned.

    Attributes:
        masked_BN: bool; replaced by the mask.
        learned_BN: bool; masked and supervised.
        weight_BN: float64; of a learned token.
        ratio_BN: float64; realised share of masked tokens where it stands.
    """

    masked_BN: Tensor
    learned_BN: Tensor
    weight_BN: Tensor
    ratio_BN: Tensor


def example(batch: Batch, settings: ObjectiveSettings, stage: Stage, *, mask_token_id: int, seed: int) -> Example:
    """The example of a clean batch, whose terms are `ar` and `diffusion`.

    A supervised token is learned from the clean token before it (not the first of its document, which has none) and,
    where it is masked, in its own place. The last block of a document is completed with masks that are never read
    (unless another document stands right behind it), so that the length of a block says nothing about where the text
    ends.

    Args:
        batch: clean rows of packed documents.
        settings: layout, masking and corruption.
        stage: of the step.
        mask_token_id: what a masked token is replaced by.
        seed: of every draw, with the batch's step and rows.
    """
    length = batch.ids_BL.shape[1]
    split = settings.tidar_layout == "split"
    places = _split(batch, settings, stage, seed=seed) if split else _doubled(batch, stage)
    masks = _masks(places, settings, stage, seed=seed)
    width, ids_BN = len(places.layout), places.batch.ids_BL
    noisy_BN = ids_BN.masked_fill(masks.masked_BN, mask_token_id)
    next_at, next_column = places.next_BL.nonzero(as_tuple=True)
    mask_at, mask_column = masks.learned_BN.nonzero(as_tuple=True)
    at_R, column_R = torch.cat([next_at, mask_at]), torch.cat([next_column, mask_column])
    term_R = torch.cat([torch.zeros_like(next_at), torch.ones_like(mask_at)])
    first_R = attention.document_positions(places.batch.document_BL)[at_R, column_R] == 0
    ones_R = torch.ones(len(next_at), dtype=torch.float64, device=at_R.device)
    made = Example(
        ids_BL=noisy_BN if split else torch.cat([batch.ids_BL, noisy_BN], dim=1),
        layout=places.layout,
        row_R=at_R * width + column_R + torch.where(term_R == 0, -1, places.shift),
        target_R=ids_BN[at_R, column_R],
        weight_R=torch.cat([ones_R, masks.weight_BN[mask_at, mask_column]]).float(),
        term_R=term_R,
        group_R=at_R,
        ratio_R=torch.cat([ones_R, masks.ratio_BN[mask_at, mask_column]]).float(),
        source_R=torch.where(first_R, -1, at_R * length + column_R - 1),
        terms=TERMS,
        denominator_T=torch.zeros(2, dtype=torch.float64, device=at_R.device),
        shares=stage.shares,
        starts=(0,) if split else (0, length),
    )
    counted_BN = masks.learned_BN
    if settings.weighting == "elbo":
        counted_BN = places.batch.supervised_BL & places.noisy_BN
    return normalized(made, torch.stack([places.next_BL.sum(dim=1), counted_BN.sum(dim=1)]), settings.normalize)


def _doubled(batch: Batch, stage: Stage) -> _Places:
    """[the text | the text in masks]: every token is predicted from the one before it, and in its block."""
    length = batch.ids_BL.shape[1]
    place_BL = attention.document_positions(batch.document_BL)
    whole, added_BN = with_whole_blocks(batch, stage.block_length)
    halves = [
        attention.causal(batch.document_BL),
        attention.noisy_blocks(whole.document_BL, stage.block_length),
    ]
    return _Places(
        batch=whole,
        layout=attention.joined(halves),
        group_BN=block_groups(whole.document_BL, stage.block_length),
        next_BL=batch.supervised_BL & (place_BL > 0),
        noisy_BN=whole.document_BL >= 0,
        added_BN=added_BN,
        shift=length,
    )


def _split(batch: Batch, settings: ObjectiveSettings, stage: Stage, *, seed: int) -> _Places:
    """[clean head | masks] of each document: the head predicts its tokens and the one behind it."""
    head_BL = clean_lengths(batch, settings, stage, seed=seed)
    place_BL = attention.document_positions(batch.document_BL)
    if settings.tail_blocks is not None:
        beyond_BL = place_BL >= head_BL + settings.tail_blocks * stage.block_length
        batch = dataclasses.replace(
            batch,
            document_BL=batch.document_BL.masked_fill(beyond_BL, -1),
            supervised_BL=batch.supervised_BL & ~beyond_BL,
        )
        used = int((batch.document_BL >= 0).any(dim=0).nonzero().max()) + 1
        batch, head_BL = batch.cut(used), head_BL[:, :used]
    whole, added_BN = with_whole_blocks(batch, stage.block_length, head_BL=head_BL)
    place_BN = attention.document_positions(whole.document_BL)
    first_BN = torch.arange(place_BN.shape[1], device=place_BN.device) - place_BN
    head_BN = head_BL.gather(1, first_BN.clamp(max=head_BL.shape[1] - 1))
    return _Places(
        batch=whole,
        layout=attention.tidar_split(whole.document_BL, head_BN, stage.block_length),
        group_BN=block_groups(whole.document_BL, stage.block_length, head_BL=head_BN),
        next_BL=whole.supervised_BL & (place_BN > 0) & (place_BN <= head_BN),
        noisy_BN=(whole.document_BL >= 0) & (place_BN >= head_BN),
        added_BN=added_BN,
        shift=0,
    )


def with_whole_blocks(batch: Batch, block_length: int, *, head_BL: Tensor | None = None) -> tuple[Batch, Tensor]:
    """The batch with the last block of each document completed, as far as no other document stands right behind it.

    Where a row has no room behind its last document, all rows get a block's columns more: what a row is does not hang
    on the rows beside it, nor the width on how far its last block went.

    Returns:
        The batch, and the places that were added, bool [B, N]: they belong to their document and stay unsupervised.
    """
    length = batch.ids_BL.shape[1]
    head_BN = None if head_BL is None else F.pad(head_BL, (0, block_length))
    whole, added_BN = completed(widened(batch, block_length), block_length, head_BL=head_BN)
    if bool(added_BN[:, length:].any()):
        return whole, added_BN
    return whole.cut(length), added_BN[:, :length]


def clean_lengths(batch: Batch, settings: ObjectiveSettings, stage: Stage, *, seed: int) -> Tensor:
    """How many tokens of each token's document are its clean head, int64 [B, L]: at least one, and not all of several.

    The share is of the document's own length, whatever the padding behind it.
    """
    length_BL = document_lengths(batch.document_BL)
    ratio: Tensor | float = stage.clean_ratio
    if settings.clean_ratio_range is not None:
        low, high = settings.clean_ratio_range
        number_BL = document_numbers(batch.document_BL)
        drawn_BL = noise.uniform(Purpose.CLEAN_SHARE, seed, batch.step, batch.global_row_B[:, None], number_BL)
        ratio = low + (high - low) * drawn_BL
    return (length_BL * ratio).floor().long().clamp(min=1)


def _masks(places: _Places, settings: ObjectiveSettings, stage: Stage, *, seed: int) -> _Masks:
    """What is masked: all places in the blocks, a share of the tokens, or a share of the blocks."""
    supervised_BN = places.batch.supervised_BL & places.noisy_BN
    ones_BN = torch.ones(supervised_BN.shape, dtype=torch.float64, device=supervised_BN.device)
    if settings.masking == "full":
        return _Masks(places.noisy_BN, supervised_BN, ones_BN, ones_BN)
    if settings.masking == "block":
        masked_BN, weight_BN = _masked_blocks(places, supervised_BN, settings, stage, seed=seed)
        return _Masks(masked_BN | places.added_BN, masked_BN & supervised_BN, weight_BN, ones_BN)
    learned = dataclasses.replace(places.batch, supervised_BL=supervised_BN)
    time_BG = block_times(learned, places.group_BN, settings, seed=seed)
    time_BG = time_BG if stage.mask_ratio is None else torch.full_like(time_BG, stage.mask_ratio)
    drawn = corrupt(learned, settings, seed=seed, group_BL=places.group_BN, time_BG=time_BG)
    return _Masks(drawn.masked_BL | places.added_BN, drawn.masked_BL, drawn.weight_BL, drawn.ratio_BL)


def _masked_blocks(
    places: _Places, supervised_BN: Tensor, settings: ObjectiveSettings, stage: Stage, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Whole blocks of every document, drawn among those with something to learn as tokens are drawn elsewhere.

    Returns:
        What is masked, bool [B, N], and each block's weight for its tokens, float64 [B, N].
    """
    group_BN, num_groups = places.group_BN, int(places.group_BN.max()) + 1
    number_BN = document_numbers(places.batch.document_BL)
    owner_BG = torch.zeros_like(group_BN[:, :num_groups]).scatter_(1, group_BN, number_BN)
    count_BG = torch.zeros_like(owner_BG).scatter_add_(1, group_BN, supervised_BN.long())
    blocks = dataclasses.replace(
        places.batch, ids_BL=owner_BG, document_BL=owner_BG, supervised_BL=count_BG > 0, bytes_BL=None, fill_BL=None
    )
    time_BD = clipped(times(blocks, int(owner_BG.max()) + 1, settings, seed=seed), settings)
    time_BD = time_BD if stage.mask_ratio is None else torch.full_like(time_BD, stage.mask_ratio)
    drawn = corrupt(blocks, settings, seed=seed, group_BL=owner_BG, time_BG=time_BD)
    masked_BN = drawn.masked_BL.gather(1, group_BN) & places.noisy_BN
    return masked_BN, drawn.weight_BL.gather(1, group_BN)
