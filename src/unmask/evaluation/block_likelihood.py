"""The likelihood bound of block diffusion: the sum over blocks of each one's ELBO behind the clean text before it.

In: clean batches. Out: nats of each row. A block is predicted in a whole one, as in decoding: where a text ends inside
its last block, the places behind it stay masked and are never read, so they cost nothing and tell nothing about the
end. The mask counts of each block are stratified by themselves, so that every block's estimate is unbiased (BD3-LM,
arXiv 2503.09573, equation 8; the counts: LLaDA, arXiv 2502.09992, equation 6). At block length 1 the sum is the exact
likelihood, the chain rule.
Shapes: B rows, L length, G blocks of a row, K masked versions of each row, R supervised rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
from unmask.diffusion.blocks import block_groups, completed, widened
from unmask.diffusion.corruption import corrupt
from unmask.evaluation.masks import systematic_stderr
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.objectives.block_diffusion import corrupted_example
from unmask.objectives.example import Example
from unmask.settings.objective import ObjectiveSettings

_ELBO = ObjectiveSettings(method="block_diffusion", corruption="count", weighting="elbo", schedule="linear")


def block_nats(
    backbone: Backbone, batch: Batch, losses: Callable[[Example], Tensor], *, masks: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Nats of each row and their standard error, float64 [B] each.

    Args:
        backbone: a block-diffusion model, in evaluation mode.
        batch: clean rows; draws are keyed by their uids.
        losses: evaluates an example's rows.
        masks: masked versions of each row; one is enough at block length 1, where nothing is drawn.
        batch_size: rows per forward.
        seed: of the masks.
    """
    block_length, mask_token_id = backbone.diffusion.block_length, backbone.diffusion.mask_token_id
    assert block_length is not None and mask_token_id is not None
    copies = masks if block_length > 1 else 1
    batch, hidden_BL = _with_whole_blocks(batch, block_length)
    group_BL = block_groups(batch.document_BL, block_length)
    time_BKG = _times(batch, int(group_BL.max()) + 1, copies, seed)
    rows = dataclasses.replace(batch, global_row_B=batch.uid_B, step=0).repeated(copies)
    hidden_RL, group_RL = (one.repeat_interleave(copies, dim=0) for one in (hidden_BL, group_BL))
    estimates: list[Tensor] = []
    for start in range(0, len(rows.ids_BL), batch_size):
        chunk = slice(start, start + batch_size)
        part, group = rows.rows(start, start + batch_size), group_RL[chunk]
        drawn = corrupt(part, _ELBO, seed=seed, group_BL=group, time_BG=time_BKG.flatten(0, 1)[chunk])
        example = corrupted_example(
            part, [drawn], hidden_RL[chunk], mask_token_id=mask_token_id, block_length=block_length
        )
        nats_R = (losses(example.to(backbone.device)).cpu() * example.weight_R).double()
        row_R, column_R = example.row_R // len(example.layout), example.row_R % len(example.layout)
        sums_BG = torch.zeros(len(group), time_BKG.shape[2], dtype=torch.float64)
        estimates.append(sums_BG.index_put_((row_R, group[row_R, column_R]), nats_R, accumulate=True))
    nats_BKG = torch.cat(estimates).view_as(time_BKG)
    if copies == 1:
        return nats_BKG.sum(dim=(1, 2)), torch.zeros(len(nats_BKG), dtype=torch.float64)
    ordered_BKG = nats_BKG.gather(1, time_BKG.argsort(dim=1))
    stderr_N = systematic_stderr(ordered_BKG.transpose(1, 2).flatten(0, 1))
    variance_B = stderr_N.square().view(len(nats_BKG), -1).sum(dim=1)
    return nats_BKG.mean(dim=1).sum(dim=1), variance_B.sqrt()


def _with_whole_blocks(batch: Batch, block_length: int) -> tuple[Batch, Tensor]:
    """The batch with whole blocks, and the places in it that stay masked: everything that fills a last block up."""
    if batch.fill_BL is not None:
        batch = dataclasses.replace(batch, supervised_BL=batch.supervised_BL & ~batch.fill_BL)
    batch, added_BL = completed(widened(batch, block_length - 1), block_length)
    hidden_BL = added_BL if batch.fill_BL is None else added_BL | batch.fill_BL
    used = int((batch.document_BL >= 0).any(dim=0).nonzero().max()) + 1
    return batch.cut(used), hidden_BL[:, :used]


def _times(batch: Batch, num_groups: int, copies: int, seed: int) -> Tensor:
    """A time for every block of every version, float64 [B, K, G]: evenly spaced over the versions of a block, in an
    order of its own."""
    uid_B1, group_G = batch.uid_B[:, None], torch.arange(num_groups)
    offset_BG = noise.uniform(Purpose.TIME, seed, uid_B1, group_G)
    stratum_BGK = noise.permutation(Purpose.STRATUM, copies, seed, uid_B1, group_G)
    return (((stratum_BGK + offset_BG[..., None]) / copies) % 1).transpose(1, 2)
