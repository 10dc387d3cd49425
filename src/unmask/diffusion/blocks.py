"""The blocks of packed documents: which block a token is in, what fills up the last one, and the times of all blocks.

In: clean batches. A document's blocks are counted from its first token; several documents share a row. The last block
of a document may be filled up with end-of-text tokens, which are learned as the text is, or with places that are masked
in every corruption and never read: so the model meets whole blocks, as in decoding, and such a place says nothing about
where the text ends.
Shapes: B rows, L length, G groups (one for each block of a row).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask import attention
from unmask.data.batch import Batch
from unmask.diffusion.corruption import clipped, times
from unmask.settings.objective import ObjectiveSettings


def block_groups(document_BL: Tensor, block_length: int, *, head_BL: Tensor | int = 0) -> Tensor:
    """The number of each token's block within its row, int64 [B, L]; padding has numbers of its own.

    Blocks begin behind the first `head_BL` tokens of each document (TiDAR's split layout), which are a group as well.
    """
    place_BL = attention.document_positions(document_BL)
    behind_BL = place_BL - head_BL
    starts_BL = (place_BL == 0) | ((behind_BL >= 0) & (behind_BL % block_length == 0))
    return starts_BL.long().cumsum(dim=1) - 1


def document_numbers(document_BL: Tensor) -> Tensor:
    """The number of each token's document within its row, int64 [B, L], from 0; padding is counted as well."""
    return block_groups(document_BL, document_BL.shape[1])


def document_lengths(document_BL: Tensor) -> Tensor:
    """How many tokens each token's document has, int64 [B, L]."""
    number_BL = document_numbers(document_BL)
    size_BL = torch.zeros_like(number_BL).scatter_add_(1, number_BL, torch.ones_like(number_BL))
    return size_BL.gather(1, number_BL)


def block_times(batch: Batch, group_BL: Tensor, settings: ObjectiveSettings, *, seed: int) -> Tensor:
    """The time of each block, float64 [B, G]: its own, its document's (`sequence`) or one for all (`batch`).

    A `mask_ratio_range` squeezes them.
    """
    num_groups = int(group_BL.max()) + 1
    if settings.t_granularity == "batch":
        time_BG = times(batch, 1, settings, seed=seed).expand(-1, num_groups)
    elif settings.t_granularity == "sequence":
        document_BL = document_numbers(batch.document_BL)
        owner_BG = torch.zeros_like(group_BL[:, :num_groups]).scatter_(1, group_BL, document_BL)
        time_BG = times(batch, int(document_BL.max()) + 1, settings, seed=seed).gather(1, owner_BG)
    else:
        time_BG = times(batch, num_groups, settings, seed=seed)
    return clipped(time_BG, settings)


def trimmed(batch: Batch, block_length: int) -> Batch:
    """The batch without the tokens that fill up more than each document's last block of this length.

    Rows are filled for the last block length of a curriculum; at a smaller one the rest of the filling is padding.
    """
    if batch.fill_BL is None:
        return batch
    place_BL = attention.document_positions(batch.document_BL)
    length_BL = place_BL - _run(batch.fill_BL)
    extra_BL = batch.fill_BL & (place_BL >= _whole_blocks(length_BL, block_length))
    return dataclasses.replace(
        batch,
        document_BL=batch.document_BL.masked_fill(extra_BL, -1),
        supervised_BL=batch.supervised_BL & ~extra_BL,
        fill_BL=batch.fill_BL & ~extra_BL,
    )


def completed(batch: Batch, block_length: int, *, head_BL: Tensor | None = None) -> tuple[Batch, Tensor]:
    """Let the padding behind each document complete its last block, as far as there is any.

    Args:
        batch: packed documents.
        block_length: of the blocks.
        head_BL: tokens of each token's document before its first block; None: none.

    Returns:
        The batch, and the places that were added, bool [B, L]: they belong to the document and stay unsupervised.
    """
    padding_BL = batch.document_BL < 0
    index_L = torch.arange(padding_BL.shape[1], device=padding_BL.device)
    last_BL = torch.where(padding_BL, -1, index_L).cummax(dim=1).values.clamp(min=0)
    owner_BL = batch.document_BL.gather(1, last_BL)
    length_BL = attention.document_positions(batch.document_BL).gather(1, last_BL) + 1
    place_BL = length_BL + _run(padding_BL)
    before_BL = torch.zeros_like(length_BL) if head_BL is None else head_BL.gather(1, last_BL)
    end_BL = before_BL + _whole_blocks(length_BL - before_BL, block_length)
    added_BL = padding_BL & (owner_BL >= 0) & (place_BL < end_BL)
    return dataclasses.replace(batch, document_BL=torch.where(added_BL, owner_BL, batch.document_BL)), added_BL


def widened(batch: Batch, columns: int) -> Batch:
    """The batch with columns of padding behind every row."""
    fields = {
        field.name: F.pad(value, (0, columns), value=-1 if field.name == "document_BL" else 0)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor) and value.ndim == 2
    }
    return dataclasses.replace(batch, **fields)


def _run(flag_BL: Tensor) -> Tensor:
    """How many flagged tokens stand right before each flagged one."""
    index_L = torch.arange(flag_BL.shape[1], device=flag_BL.device)
    return index_L - 1 - torch.where(flag_BL, -1, index_L).cummax(dim=1).values


def _whole_blocks(length_BL: Tensor, block_length: int) -> Tensor:
    return (length_BL + block_length - 1) // block_length * block_length
