"""The information profile of a masked-diffusion model: what a masked token costs when m of n tokens are masked.

In: a model and the token ids of documents. Out: a `Profile`, the mean cross-entropy of the masked tokens of every
window at every count m. f(m), its mean over windows, is the expected loss of a token when m tokens, chosen uniformly,
are masked (Lavenant & Zanella, arXiv 2510.25544); the sum of f(1) to f(n) is the bound on the nats of a window.

A window is n tokens of one document behind BOS (or end of text, where there is no BOS and the row before a token
predicts it). One random order per window is masked from its end on: the masks of a window are nested, so that
differences of f between counts carry less noise, and each mask alone is uniform.
Shapes: W windows, N places, M counts, D documents, S lead tokens and places, B rows of a forward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
from unmask.diffusion.corruption import Corruption
from unmask.errors import DataError, SettingsError
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.objectives import masked_diffusion
from unmask.objectives.loss import row_losses

FEWEST_DOCUMENTS = 4
"""Two to fit an optimum on and two to score it on; intervals ask for many more."""


@dataclass(frozen=True)
class Windows:
    """Texts of equal length.

    Attributes:
        ids_WN: int64.
        document_W: int64; the document that each comes from, 0, 1, ...
        short: documents that were too short for a window.
    """

    ids_WN: Tensor
    document_W: Tensor
    short: int


@dataclass(frozen=True)
class Profile:
    """Nats of masked tokens.

    Attributes:
        places: N.
        masked_M: int64; the counts measured, ascending from 1 to N.
        nats_WM: float64; mean cross-entropy of each window's masked tokens.
        document_W: int64; the document of each window.
    """

    places: int
    masked_M: Tensor
    nats_WM: Tensor
    document_W: Tensor

    @property
    def documents(self) -> int:
        return int(self.document_W.unique().numel())

    def of(self, documents: Tensor) -> Profile:
        """The part of the profile that these documents make up."""
        chosen_W = torch.isin(self.document_W, documents)
        return Profile(self.places, self.masked_M, self.nats_WM[chosen_W], self.document_W[chosen_W])

    def mean(self) -> Tensor:
        """f at the counts measured, float64 [M]."""
        return self.nats_WM.mean(dim=0)

    def stderr(self) -> Tensor:
        """Standard error of `mean`, float64 [M]: between documents, whose windows are not independent."""
        names, document_W = self.document_W.unique(return_inverse=True)
        residual_WM = self.nats_WM - self.mean()
        sum_DM = residual_WM.new_zeros(len(names), residual_WM.shape[1]).index_add(0, document_W, residual_WM)
        spread = len(names) / max(len(names) - 1, 1)
        return (spread * sum_DM.square().sum(dim=0)).sqrt() / len(document_W)


def windows(documents: Iterable[Sequence[int]], places: int, *, per_document: int, max_documents: int) -> Windows:
    """The first whole windows of each document, without overlap.

    Args:
        documents: token ids of each.
        places: tokens of a window.
        per_document: windows of a document, at most.
        max_documents: documents with a window, at most; the rest is not read.

    Raises:
        DataError: fewer than four documents hold a window.
    """
    rows: list[Sequence[int]] = []
    owners: list[int] = []
    found = short = 0
    for ids in documents:
        starts = range(0, len(ids) - places + 1, places)[:per_document]
        if not starts:
            short += 1
            continue
        rows += [ids[start : start + places] for start in starts]
        owners += [found] * len(starts)
        found += 1
        if found == max_documents:
            break
    if found < FEWEST_DOCUMENTS:
        raise DataError(
            f"A profile needs at least {FEWEST_DOCUMENTS} documents of {places} tokens or more, got {found} and "
            f"{short} shorter ones. Give more text, fewer --places, or the text between two documents: --separator"
        )
    return Windows(torch.tensor(rows, dtype=torch.int64), torch.tensor(owners), short)


def mask_counts(places: int, limit: int) -> Tensor:
    """At most about `limit` of the counts 1..places: all, or ones that are denser towards both ends; int64 [M].

    A profile bends where hardly anything is masked and where hardly anything is visible.
    """
    if places <= limit:
        return torch.arange(1, places + 1)
    # The ends of a geometric series fall together, so it takes more terms than it leaves.
    for terms in range(limit, 0, -1):
        low = torch.logspace(0, math.log2(places / 2), terms, base=2, dtype=torch.float64).round().long()
        found = torch.cat([low, places + 1 - low]).unique()
        if len(found) <= limit:
            return found
    return torch.tensor([1, places])


@torch.inference_mode()
def measure(
    backbone: Backbone,
    found: Windows,
    masked_M: Tensor,
    *,
    lead: Sequence[int] = (),
    batch_size: int = 64,
    seed: int = 0,
) -> Profile:
    """Evaluate every window at every count, one forward row each.

    Args:
        backbone: a masked-diffusion model in evaluation mode.
        found: the windows.
        masked_M: counts, int64, ascending from 1 to the places of a window.
        lead: visible tokens before each window.
        batch_size: rows of a forward.
        seed: of the masks.

    Raises:
        SettingsError: the model is none of masked diffusion, needs a lead, or a window does not fit into its context.
    """
    entry, places = backbone.diffusion, found.ids_WN.shape[1]
    if entry.method != "masked_diffusion" or entry.mask_token_id is None:
        raise SettingsError(
            f"A profile is measured on a masked_diffusion model, whose canvas a reveal schedule paces; this one is "
            f"{entry.method}. Train one with objective.method=masked_diffusion."
        )
    if len(lead) + places > backbone.context_length:
        raise SettingsError(
            f"{places} places and {len(lead)} tokens before them do not fit into the model's context of "
            f"{backbone.context_length}. Set --places to at most {backbone.context_length - len(lead)}."
        )
    if entry.logit_shift and not lead:
        raise SettingsError(
            "The row before a token predicts it in this model, so a window needs a token before it: give lead, BOS or "
            "end of text."
        )
    if backbone.training:
        raise SettingsError("The model is in training mode, where dropout would blur its losses. Call .eval() first.")
    order_WN = noise.permutation(Purpose.MASK, places, seed, torch.arange(len(found.ids_WN)))
    window_R = torch.arange(len(found.ids_WN)).repeat_interleave(len(masked_M))
    count_R = masked_M.repeat(len(found.ids_WN))
    nats_R = [
        _mean_losses(backbone, found.ids_WN[window_B], order_WN[window_B] < count_B[:, None], lead)
        for window_B, count_B in zip(window_R.split(batch_size), count_R.split(batch_size), strict=True)
    ]
    return Profile(places, masked_M, torch.cat(nats_R).view(-1, len(masked_M)), found.document_W)


def _mean_losses(backbone: Backbone, ids_BN: Tensor, masked_BN: Tensor, lead: Sequence[int]) -> Tensor:
    """Mean cross-entropy of the masked tokens of each row, float64 [B]."""
    entry = backbone.diffusion
    assert entry.mask_token_id is not None, "checked by the caller"
    lead_BS = torch.tensor(lead, dtype=torch.int64).expand(len(ids_BN), len(lead))
    ids_BS = torch.cat([lead_BS, ids_BN], dim=1)
    batch = Batch.of_rows(ids_BS.tolist())
    masked_BS = torch.cat([torch.zeros_like(lead_BS, dtype=torch.bool), masked_BN], dim=1)
    ones_BS = torch.ones(masked_BS.shape, dtype=torch.float64)
    example = masked_diffusion.corrupted_example(
        batch,
        Corruption(masked_BS, ones_BS, ones_BS),
        mask_token_id=entry.mask_token_id,
        logit_shift=entry.logit_shift,
    ).to(backbone.device)
    mask = backbone.render(example.layout, example.layout)
    nats_R = row_losses(backbone(example.ids_BL, example.layout.position_ids, mask), example, backbone.logits)
    sum_B = torch.zeros(len(ids_BN), dtype=torch.float64).index_add(0, example.group_R.cpu(), nats_R.double().cpu())
    return sum_B / masked_BN.sum(dim=1)
