"""The information profile of a diffusion model: what a masked token costs when m of n tokens are masked.

In: a model and the token ids of documents. Out: a `Profile`, the mean cross-entropy of the masked tokens of every
group of n tokens at every count m. f(m), its mean over groups, is the expected loss of a token when m tokens, chosen
uniformly, are masked (Lavenant & Zanella, arXiv 2510.25544); the sum of f(1) to f(n) is the bound on the nats of a
group.

A window is some tokens of one document behind BOS (or end of text, where there is no BOS and the row before a token
predicts it). In masked diffusion it is the group. In block diffusion each block is one, behind the clean text before
it; one forward over [noisy | clean] evaluates all blocks of a window, but for the one that BOS begins. One random order
per group is masked from its end on: the masks of a group are nested, so that differences of f between counts carry less
noise, and each mask alone is uniform.
Shapes: W windows, N tokens of one, G groups of all windows, K of one window, n places of a group, M counts,
D documents, S lead and window, B rows of a forward.
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
from unmask.objectives import block_diffusion, masked_diffusion
from unmask.objectives.loss import row_losses
from unmask.settings.model import DiffusionConfig

FEWEST_DOCUMENTS = 4
"""Two to fit an optimum on and two to score it on; intervals ask for many more."""
BLOCKS_TEXT = 64
"""Tokens that are evaluated, or generated, in blocks, where a block is not longer."""


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
        places: n.
        masked_M: int64; the counts measured, ascending from 1 to n.
        nats_GM: float64; mean cross-entropy of each group's masked tokens.
        document_G: int64; the document of each group.
    """

    places: int
    masked_M: Tensor
    nats_GM: Tensor
    document_G: Tensor

    @property
    def documents(self) -> int:
        return int(self.document_G.unique().numel())

    def of(self, documents: Tensor) -> Profile:
        """The part of the profile that these documents make up."""
        chosen_G = torch.isin(self.document_G, documents)
        return Profile(self.places, self.masked_M, self.nats_GM[chosen_G], self.document_G[chosen_G])

    def mean(self) -> Tensor:
        """f at the counts measured, float64 [M]."""
        return self.nats_GM.mean(dim=0)

    def stderr(self) -> Tensor:
        """Standard error of `mean`, float64 [M]: between documents, whose groups are not independent."""
        names, document_G = self.document_G.unique(return_inverse=True)
        residual_GM = self.nats_GM - self.mean()
        sum_DM = residual_GM.new_zeros(len(names), residual_GM.shape[1]).index_add(0, document_G, residual_GM)
        spread = len(names) / max(len(names) - 1, 1)
        return (spread * sum_DM.square().sum(dim=0)).sqrt() / len(document_G)


def window_length(entry: DiffusionConfig, places: int, *, lead: int, room: int) -> int:
    """Tokens of a window whose groups have `places` tokens.

    That of a block-diffusion model completes the block that the lead begins, and goes on for as many blocks as
    BLOCKS_TEXT tokens hold, one at least.

    Args:
        entry: of the checkpoint.
        places: of a group.
        lead: tokens before a window.
        room: tokens that both may have together, if it suffices for one group.
    """
    if entry.method != "block_diffusion":
        return places
    rest = -lead % places
    blocks = min(BLOCKS_TEXT // places, (room - lead - rest) // places)
    return rest + max(1, blocks) * places


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
            f"{short} shorter ones. Give more text, fewer --places (of a canvas), or the text between two documents: "
            "--separator"
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
        backbone: a model of masked or block diffusion in evaluation mode.
        found: the windows; see `window_length`.
        masked_M: counts, int64, ascending from 1 to the places of a group.
        lead: visible tokens before each window.
        batch_size: rows of a forward.
        seed: of the masks.

    Raises:
        SettingsError: the model is of another method, needs a lead, or a window does not fit into its context.
    """
    entry, tokens = backbone.diffusion, found.ids_WN.shape[1]
    check_method(entry)
    if len(lead) + tokens > backbone.context_length:
        most = backbone.context_length - len(lead)
        advice = f"Set --places to at most {most}."
        if entry.method == "block_diffusion":
            advice = f"There must be room for a block of {entry.block_length} behind the one that BOS begins."
        raise SettingsError(
            f"{tokens} tokens and {len(lead)} before them do not fit into the model's context of "
            f"{backbone.context_length}. {advice}"
        )
    if entry.logit_shift and not lead:
        raise SettingsError(
            "The row before a token predicts it in this model, so a window needs a token before it: give lead, BOS or "
            "end of text."
        )
    if backbone.training:
        raise SettingsError("The model is in training mode, where dropout would blur its losses. Call .eval() first.")
    places = group_places(entry, tokens)
    first = -len(lead) % places if entry.method == "block_diffusion" else 0
    groups, left = divmod(tokens - first, places)
    if left or groups < 1:
        raise SettingsError(
            f"A window must end with a block of {places} places, got {tokens} tokens behind {len(lead)} others."
        )
    order_Gn = noise.permutation(Purpose.MASK, places, seed, torch.arange(len(found.ids_WN) * groups))
    order_WKn = order_Gn.view(-1, groups, places)
    window_R = torch.arange(len(found.ids_WN)).repeat_interleave(len(masked_M))
    count_R = masked_M.repeat(len(found.ids_WN))
    nats_RK = []
    for window_B, count_B in zip(window_R.split(batch_size), count_R.split(batch_size), strict=True):
        masked_BN = torch.zeros(len(window_B), tokens, dtype=torch.bool)
        masked_BN[:, first:] = (order_WKn[window_B] < count_B[:, None, None]).flatten(1)
        nats_BN = _losses(backbone, found.ids_WN[window_B], masked_BN, lead)
        nats_RK.append(nats_BN[:, first:].unflatten(1, (groups, places)).sum(dim=2) / count_B[:, None])
    nats_WMK = torch.cat(nats_RK).unflatten(0, (-1, len(masked_M)))
    document_G = found.document_W.repeat_interleave(groups)
    return Profile(places, masked_M, nats_WMK.transpose(1, 2).flatten(0, 1), document_G)


def check_method(entry: DiffusionConfig) -> None:
    """Raise SettingsError for a model whose places no reveal schedule paces."""
    if entry.method not in ("masked_diffusion", "block_diffusion"):
        raise SettingsError(
            "A profile is measured on a model of masked_diffusion or block_diffusion, whose places a reveal schedule "
            f"paces; this one is {entry.method}. Train one with objective.method=masked_diffusion or block_diffusion."
        )
    if entry.mask_token_id is None:
        raise SettingsError("This checkpoint names no mask token, so nothing can be masked. Convert or train it anew.")
    if entry.method == "block_diffusion" and entry.block_length is None:
        raise SettingsError("This block-diffusion checkpoint names no block_length. Set it in its diffusion entry.")


def group_places(entry: DiffusionConfig, places: int) -> int:
    """Places that are masked together: those of a block, else the `places` of a canvas."""
    if entry.method != "block_diffusion":
        return places
    assert entry.block_length is not None, "see check_method"
    return entry.block_length


def _losses(backbone: Backbone, ids_BN: Tensor, masked_BN: Tensor, lead: Sequence[int]) -> Tensor:
    """Cross-entropy of each masked token, 0 elsewhere; float64 [B, N]."""
    entry = backbone.diffusion
    assert entry.mask_token_id is not None, "see check_method"
    lead_BS = torch.tensor(lead, dtype=torch.int64).expand(len(ids_BN), len(lead))
    ids_BS = torch.cat([lead_BS, ids_BN], dim=1)
    batch = Batch.of_rows(ids_BS.tolist())
    masked_BS = torch.cat([torch.zeros_like(lead_BS, dtype=torch.bool), masked_BN], dim=1)
    ones_BS = torch.ones(masked_BS.shape, dtype=torch.float64)
    corruption = Corruption(masked_BS, ones_BS, ones_BS)
    if entry.method == "block_diffusion":
        made = block_diffusion.corrupted_example(
            batch,
            [corruption],
            torch.zeros_like(masked_BS),
            mask_token_id=entry.mask_token_id,
            block_length=group_places(entry, masked_BN.shape[1]),
        )
    else:
        made = masked_diffusion.corrupted_example(
            batch, corruption, mask_token_id=entry.mask_token_id, logit_shift=entry.logit_shift
        )
    example = made.to(backbone.device)
    mask = backbone.render(example.layout, example.layout)
    nats_R = row_losses(backbone(example.ids_BL, example.layout.position_ids, mask), example, backbone.logits)
    nats_BN = torch.zeros(masked_BN.shape, dtype=torch.float64)
    nats_BN[masked_BN] = nats_R.double().cpu()
    return nats_BN
