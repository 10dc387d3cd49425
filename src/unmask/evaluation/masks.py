"""Which masked versions of an answer are evaluated, and how their cross-entropies combine to its likelihood.

In: the length n of an answer and the integers that name its draws. Out: a `Plan` of K masked versions.

The bound (negative ELBO) of an answer is the sum over its non-empty masks S of CE_S / (|S| C(n, |S|)), where CE_S sums
the cross-entropies of the masked places (LLaDA, arXiv 2502.09992, equations 6 and 14). An answer with few masks gets
that sum itself. Otherwise the mask counts m are spread evenly over 1..n behind one random offset, so that each is
uniform, the m places are uniform, and a version weighs n / m. The chain rule hides everything behind a place and reads
that place: the exact value of the order from left to right, which is not the bound.

Two answers that share a key share their draws (common random numbers): version k of each hides about the same share,
and a place of one is ranked as the same place of the other.
Shapes: K versions, N places of the answer, G groups of versions with one offset each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unmask import noise
from unmask.diffusion.corruption import counts
from unmask.diffusion.schedules import Schedule
from unmask.noise import Purpose
from unmask.settings.evaluation import AnswerSettings

_LINEAR = Schedule("linear")


class Plan(NamedTuple):
    """Masked versions of an answer; its nats are the sum of weight_K times the cross-entropy read in each.

    Attributes:
        masked_KN: bool; the places that a version hides.
        read_KN: bool; the hidden places whose cross-entropies count.
        weight_K: float64.
        groups: how many equal groups of versions have an offset of their own and ascending counts (1 also where every
            version has); 0 where the sum is exact.
    """

    masked_KN: Tensor
    read_KN: Tensor
    weight_K: Tensor
    groups: int

    def stderr(self, nats_K: Tensor) -> float:
        """Standard error of the answer's nats, given the cross-entropy read in each version; NaN where unknown."""
        if self.groups == 0:
            return 0.0
        values_GK = (nats_K * self.weight_K * len(nats_K)).view(self.groups, -1)
        return float(systematic_stderr(values_GK).square().mean().div(self.groups).sqrt())


def plan(length: int, settings: AnswerSettings, key: int) -> Plan:
    """The versions of an answer of `length` tokens whose draws `key` names."""
    if settings.likelihood == "chain_rule":
        hidden_NN = torch.ones(length, length, dtype=torch.bool).triu()
        return Plan(hidden_NN, torch.eye(length, dtype=torch.bool), torch.ones(length, dtype=torch.float64), 0)
    stratified = settings.sampler == "stratified"
    if length == 1 or (stratified and 2**length - 1 <= settings.mc_num):
        return _every_mask(length)
    count_GK = _stratified(length, settings, key) if stratified else _rounded(length, settings, key)
    masked_KN = _places(count_GK.flatten(), length, settings.seed, key)
    weight_K = length / count_GK.flatten().double() / settings.mc_num
    return Plan(masked_KN, masked_KN, weight_K, len(count_GK) if count_GK.shape[1] > 1 else 1)


def visible(length: int) -> Plan:
    """Nothing hidden and everything read, in one version: autoregression."""
    places_1N = torch.ones(1, length, dtype=torch.bool)
    return Plan(~places_1N, places_1N, torch.ones(1, dtype=torch.float64), 0)


def systematic_stderr(values_GK: Tensor) -> Tensor:
    """Standard error of each group's mean from successive differences, for systematic samples in their order
    (Wolter 2007, section 8.2); NaN for groups of one.
    """
    size = values_GK.shape[1]
    differences_G = values_GK.diff(dim=1).square().sum(dim=1)
    return (differences_G / (2 * size * (size - 1))).sqrt() if size > 1 else differences_G + torch.nan


def _every_mask(length: int) -> Plan:
    number_K1 = torch.arange(1, 2**length)[:, None]
    masked_KN = (number_K1 >> torch.arange(length)) % 2 == 1
    count_K = masked_KN.sum(dim=1).double()
    size = torch.tensor(length, dtype=torch.float64)
    choose_K = ((size + 1).lgamma() - (count_K + 1).lgamma() - (size - count_K + 1).lgamma()).exp().round()
    return Plan(masked_KN, masked_KN, 1 / (count_K * choose_K), 0)


def _stratified(length: int, settings: AnswerSettings, key: int) -> Tensor:
    """Counts ceil(n t) at evenly spaced times behind one offset: each is uniform on 1..n; no rounding prefers any."""
    offset = noise.uniform(Purpose.TIME, settings.seed, key)
    time_1K = (offset + torch.arange(settings.mc_num))[None] / settings.mc_num
    return counts(time_1K, torch.full_like(time_1K, length, dtype=torch.int64), _LINEAR)


def _rounded(length: int, settings: AnswerSettings, key: int) -> Tensor:
    """The counts of LLaDA's own harness, for comparing: biased, because halves are rounded to the even neighbour."""
    size = settings.mc_batch
    group_G = torch.arange(settings.mc_num // size)
    first_G = 1 + (length * noise.uniform(Purpose.TIME, settings.seed, key, group_G)).long()
    lines = [torch.linspace(first, first + (size - 1) * length / size, size) for first in first_G.tolist()]
    return ((torch.stack(lines).round().long() - 1) % length + 1).sort(dim=1).values


def _places(count_K: Tensor, length: int, seed: int, key: int) -> Tensor:
    """Masks with the given counts, uniform among all with that count; bool [K, N]."""
    version_K1 = torch.arange(len(count_K))[:, None]
    chance_KN = noise.uniform(Purpose.MASK, seed, key, version_K1, torch.arange(length))
    return chance_KN.argsort(dim=1).argsort(dim=1) < count_K[:, None]
