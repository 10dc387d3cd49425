"""Corruption: which tokens of a clean batch are masked, and what the mask is worth in the loss.

In: a `Batch` and the settings of the objective. Out: the masked set, one weight per masked token and the realised
share of masked tokens. The weights make the weighted sum of cross-entropies an unbiased estimate of the negative
ELBO of each group (sequence, or block), in nats; for a uniform predictor its expectation is exactly n log V.

Every draw is keyed by the row of the *global* batch, so it does not depend on how that batch is split.
Shapes: B rows, L length, G groups per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import noise
from unmask.data.batch import Batch
from unmask.diffusion.schedules import Schedule
from unmask.noise import Purpose
from unmask.settings.objective import ObjectiveSettings


@dataclass(frozen=True)
class Corruption:
    """What happened to each token.

    Attributes:
        masked_BL: bool; the tokens replaced by the mask, all of them supervised.
        weight_BL: float64; the weight of a masked token's cross-entropy.
        ratio_BL: float64; the realised share of masked tokens in the token's group.
    """

    masked_BL: Tensor
    weight_BL: Tensor
    ratio_BL: Tensor


def corrupt(
    batch: Batch,
    settings: ObjectiveSettings,
    *,
    seed: int,
    group_BL: Tensor | None = None,
    time_BG: Tensor | None = None,
) -> Corruption:
    """Mask supervised tokens, each group of a row at its own time.

    Args:
        batch: clean rows.
        settings: schedule, kind of corruption, granularity and weights.
        seed: of every draw, together with the batch's step and rows.
        group_BL: group of each token within its row, from 0 (blocks); default: the row is one group.
        time_BG: time of each group, float64 in (0, 1); default: drawn as the settings say.
    """
    if group_BL is None:
        group_BL = torch.zeros_like(batch.ids_BL)
    num_groups = int(group_BL.max()) + 1
    schedule = Schedule(settings.schedule, settings.schedule_power)
    supervised_BL = batch.supervised_BL
    size_BG = torch.zeros(group_BL.shape[0], num_groups, dtype=torch.int64, device=group_BL.device)
    size_BG.scatter_add_(1, group_BL, supervised_BL.to(torch.int64))
    if time_BG is None:
        time_BG = times(batch, num_groups, settings, seed=seed)
    column_L = torch.arange(batch.ids_BL.shape[1], device=group_BL.device)
    chance_BL = noise.uniform(Purpose.MASK, seed, batch.step, batch.global_row_B[:, None], column_L)
    if settings.corruption == "count":
        count_BG = counts(time_BG, size_BG, schedule)
        masked_BL = (_rank(chance_BL, group_BL, supervised_BL) < count_BG.gather(1, group_BL)) & supervised_BL
        weight_BG = count_weights(count_BG, size_BG, schedule)
    else:
        probability_BG = (1 - settings.time_epsilon) * schedule.masked(time_BG) + settings.time_epsilon
        masked_BL = (chance_BL < probability_BG.gather(1, group_BL)) & supervised_BL
        weight_BG = schedule.rate(time_BG) / probability_BG
    realised_BG = torch.zeros_like(size_BG).scatter_add_(1, group_BL, masked_BL.to(torch.int64))
    ratio_BG = realised_BG.double() / size_BG.clamp(min=1)
    if settings.weighting == "unweighted":
        weight_BG = torch.ones_like(weight_BG)
    return Corruption(masked_BL, weight_BG.gather(1, group_BL), ratio_BG.gather(1, group_BL))


def times(batch: Batch, num_groups: int, settings: ObjectiveSettings, *, seed: int) -> Tensor:
    """Times in (0, 1), float64 [B, G], marginally uniform in every row.

    `stratified` gives each row of the global batch its own stratum of equal width, through a permutation drawn anew at
    each step (a fixed assignment would bias single rows); `systematic` shifts an even grid by one shared draw.
    """
    rows_B = batch.global_row_B if settings.t_granularity != "batch" else torch.zeros_like(batch.global_row_B)
    group_G = torch.arange(num_groups, device=rows_B.device)
    keys = (seed, batch.step)
    own_BG = noise.uniform(Purpose.TIME, *keys, rows_B[:, None], group_G)
    total = batch.global_rows
    if settings.time_sampling == "iid" or settings.t_granularity == "batch":
        return own_BG
    if settings.time_sampling == "systematic":
        shared_G = noise.uniform(Purpose.TIME, *keys, total, group_G)
        shifted_BG = shared_G + rows_B[:, None] / total
        return (shifted_BG - shifted_BG.floor()).clamp(min=2.0**-53)
    stratum_BG = noise.permutation(Purpose.STRATUM, total, *keys, group_G).T[rows_B]
    return (stratum_BG + own_BG) / total


def clipped(time_BG: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Times squeezed into `mask_ratio_range`, since under the linear schedule they are shares of masked tokens.

    The weights stay those of the whole range: the loss has less variance and bounds nothing (clipped schedules,
    BD3-LM, arXiv 2503.09573, section 5.2), so only training may draw its times here.
    """
    low, high = settings.mask_ratio_range
    return low + (high - low) * time_BG


def counts(time_BG: Tensor, size_BG: Tensor, schedule: Schedule) -> Tensor:
    """How many of a group's n tokens are masked: m = ceil(n p(t)), so P(m) = t(m/n) - t((m-1)/n) for uniform t."""
    drawn_BG = (size_BG * schedule.masked(time_BG)).ceil().to(torch.int64)
    return torch.minimum(drawn_BG.clamp(min=1), size_BG)


def count_weights(count_BG: Tensor, size_BG: Tensor, schedule: Schedule) -> Tensor:
    """1 / (m P(m)): n/m for the linear schedule (LLaDA, arXiv 2502.09992, equation 6)."""
    count, size = count_BG.to(torch.float64).clamp(min=1), size_BG.to(torch.float64).clamp(min=1)
    probability = schedule.time(count / size) - schedule.time((count - 1) / size)
    return 1 / (count * probability)


def at_random_length(batch: Batch, settings: ObjectiveSettings, *, seed: int) -> Batch:
    """Cut the rows to a length drawn from 1..L in a share of the optimiser steps (LLaDA, section 2.2).

    The coin and the length are drawn once per step, the same for every micro-batch and process.
    """
    if settings.random_length_probability == 0:
        return batch
    coin, share = noise.uniform(Purpose.LENGTH, seed, batch.step, torch.arange(2)).tolist()
    if coin >= settings.random_length_probability:
        return batch
    return batch.cut(1 + int(share * batch.ids_BL.shape[1]))


def _rank(chance_BL: Tensor, group_BL: Tensor, supervised_BL: Tensor) -> Tensor:
    """Rank of each supervised token among those of its group, by its draw, from 0."""
    row_length = chance_BL.shape[1]
    key_BL = torch.where(supervised_BL, group_BL.to(torch.float64) + chance_BL, torch.inf)
    order_BL = key_BL.argsort(dim=1, stable=True)
    rank_BL = torch.empty_like(order_BL)
    rank_BL.scatter_(1, order_BL, torch.arange(row_length, device=order_BL.device).expand_as(order_BL))
    sizes_BG = torch.zeros(group_BL.shape[0], int(group_BL.max()) + 2, dtype=torch.int64, device=group_BL.device)
    sizes_BG.scatter_add_(1, group_BL + 1, supervised_BL.to(torch.int64))
    return rank_BL - sizes_BG.cumsum(1).gather(1, group_BL)
