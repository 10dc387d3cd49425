"""Unmasking: which masked places to reveal.

A policy is a pure function of each place's certainty, the masked set and a quota, a threshold or a chance; it keeps no
state, so one policy serves rows at different steps. All but `ancestral` reveal at least one place, and never more than
remain. Shapes: B rows, W places.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unmask.settings.decoding import DynamicFallback, EntropyRule, FactorRule, SamplingParams
from unmask.settings.reveal_files import is_file_name, read

DREAM_EPSILON = 1e-3


def most_confident(certainty_BW: Tensor, masked_BW: Tensor, quota: int | Tensor) -> Tensor:
    """The `quota` (int, or int64 [B]) most certain masked places of each row; the first of equals. Bool [B, W]."""
    if isinstance(quota, int) and quota == 1:
        best_B1 = _eligible(certainty_BW, masked_BW).max(dim=1, keepdim=True).indices
        return torch.zeros_like(masked_BW).scatter_(1, best_B1, True) & masked_BW
    quota_B1 = quota[:, None] if isinstance(quota, Tensor) else quota
    return (_rank(certainty_BW, masked_BW) < quota_B1) & masked_BW


def above_threshold(confidence_BW: Tensor, masked_BW: Tensor, threshold: float) -> Tensor:
    """Every masked place at least this confident, and always the most confident one (Fast-dLLM, arXiv 2505.22618)."""
    return most_confident(confidence_BW, masked_BW, 1) | ((confidence_BW >= threshold) & masked_BW)


def confident_enough(
    confidence_BW: Tensor, masked_BW: Tensor, threshold: float, quota: int | Tensor, fallback: DynamicFallback
) -> Tensor:
    """Every masked place above the threshold if they are `quota` or more, else the fallback's `quota` (SDAR)."""
    found_BW = masked_BW & (confidence_BW > threshold)
    quota_B1 = quota[:, None] if isinstance(quota, Tensor) else quota
    share_BW = most_confident(confidence_BW, masked_BW, quota) if fallback == "topk" else leftmost(masked_BW, quota)
    return torch.where(found_BW.sum(dim=1, keepdim=True) >= quota_B1, found_BW, share_BW)


def leftmost(masked_BW: Tensor, quota: int | Tensor) -> Tensor:
    """The first `quota` masked places of each row."""
    quota_B1 = quota[:, None] if isinstance(quota, Tensor) else quota
    return masked_BW & (masked_BW.cumsum(dim=1) <= quota_B1)


def by_entropy(entropy_BW: Tensor, masked_BW: Tensor, bound: float, rule: EntropyRule) -> Tensor:
    """The masked places of least entropy whose joint error is bounded, and always one (Ben-Hamu et al., 2505.24857).

    `paper`: the entropies of all but the largest sum to at most the bound. `jetengine`: all of them to less than it.
    """
    rank_BW = _rank(-entropy_BW, masked_BW)
    sorted_BW = torch.full_like(entropy_BW, torch.inf)
    sorted_BW.scatter_(1, rank_BW, torch.where(masked_BW, entropy_BW, torch.inf))
    sum_BW = sorted_BW.cumsum(dim=1)
    passes_BW = sum_BW - sorted_BW <= bound if rule == "paper" else sum_BW < bound
    return masked_BW & (rank_BW < passes_BW.sum(dim=1, keepdim=True).clamp(min=1))


def by_factor(confidence_BW: Tensor, masked_BW: Tensor, factor: float, rule: FactorRule = "paper") -> Tensor:
    """The n most confident places for the largest n whose n-th is at least 1 - factor / (n + 1), and always one.

    Fast-dLLM (arXiv 2505.22618), theorem 1: greedy parallel decoding equals one by one if (n + 1)(1 - c_n) < 1. Its
    code (`fast_dllm`) also reveals the last masked place where all others are sure enough.
    """
    number_BW = _rank(confidence_BW, masked_BW) + 1
    # A number over a tensor is a product with the reciprocal, which rounds twice; tensors are divided.
    factor_BW = torch.full_like(number_BW, factor, dtype=torch.float64)
    passes_BW = masked_BW & (confidence_BW >= 1 - factor_BW / (number_BW + 1))
    accepted_B1 = (number_BW * passes_BW).amax(dim=1, keepdim=True).clamp(min=1)
    if rule == "fast_dllm":
        accepted_B1 = accepted_B1 + (accepted_B1 == masked_BW.sum(dim=1, keepdim=True) - 1)
    return masked_BW & (number_BW <= accepted_B1)


def chosen(
    params: SamplingParams,
    certainty_BW: Tensor,
    masked_BW: Tensor,
    quota: int | Tensor,
    uniform: Callable[[], Tensor],
) -> Tensor:
    """The places that `params.unmasking` reveals, for every policy but `ancestral`; bool [B, W].

    Args:
        params: the policy and its options.
        certainty_BW: what it ranks by: probability, margin or negative entropy.
        masked_BW: the places to choose from.
        quota: a step's share of places, of each row (int64 [B]) or of all; for the policies that have a pace.
        uniform: one draw for each place, where chance decides.
    """
    policy = params.unmasking
    if policy == "threshold":
        return above_threshold(certainty_BW, masked_BW, params.confidence_threshold or 0.0)
    if policy == "low_confidence_dynamic":
        threshold, fallback = params.confidence_threshold or 0.0, params.dynamic_fallback or "topk"
        return confident_enough(certainty_BW, masked_BW, threshold, quota, fallback)
    if policy == "factor":
        return by_factor(certainty_BW, masked_BW, params.factor or 0.0, params.factor_rule or "paper")
    if policy == "entropy_bound":
        return by_entropy(-certainty_BW, masked_BW, params.entropy_bound or 0.0, params.entropy_rule or "paper")
    if policy == "sequential":
        return leftmost(masked_BW, quota)
    if policy == "random":
        return most_confident(uniform(), masked_BW, quota)
    if params.reveal_temperature:
        certainty_BW = drawn_certainty(certainty_BW, uniform(), params.reveal_temperature)
    return most_confident(certainty_BW, masked_BW, quota)


def ancestral(uniform_BW: Tensor, masked_BW: Tensor, chance: Tensor) -> Tensor:
    """Each masked place by its own coin, with a chance per row (float64 [B]); a step may reveal none."""
    return masked_BW & (uniform_BW < chance[:, None])


def drawn_certainty(certainty_BW: Tensor, uniform_BW: Tensor, temperature: float) -> Tensor:
    """Certainties whose largest n are n draws without replacement from softmax(certainty / temperature).

    The Gumbel top-n of the tempered certainties (Kool et al., arXiv 1903.06059); Dream's `alg_temp`.
    """
    return certainty_BW / temperature - (-uniform_BW.log()).log()


def visible_shares(schedule: str, steps: int) -> list[float]:
    """Share of visible places before the first step and after each of `steps` steps, from 0 to 1."""
    if schedule in ("linear", "floor"):
        return [step / steps for step in range(steps + 1)]
    if schedule == "dream":
        return [step / steps * (1 - DREAM_EPSILON) for step in range(steps)] + [1.0]
    power = 1 if schedule == "cosine" else 2
    return [1 - math.cos(math.pi / 2 * step / steps) ** power for step in range(steps)] + [1.0]


def reveal_counts(schedule: str, places: int, steps: int) -> list[int]:
    """How many places each step reveals, at least one each; they sum to `places`. Mostly there are `steps` of them.

    linear spreads them evenly, the remainder over the first steps (LLaDA). cosine and cosine_squared leave
    floor(places * cos(pi/2 k/K)) or cos^2 of them masked after step k of K (MaskGIT; Zhang & Syed). dream reveals
    floor(masked * (1 - s/t)) on its grid of times, the rest in the last step; the steps in which that is none, which
    change nothing, are left out. floor reveals floor(places / steps), one at least, until nothing is left, in more
    steps where that leaves a remainder (LMDeploy). A file's counts stand as they are.

    Raises:
        SettingsError: a file has no counts for so many places and steps.
    """
    if is_file_name(schedule):
        return list(read(schedule).of(places, steps))
    if schedule == "dream":
        return _dream_counts(visible_shares(schedule, steps), places)
    if schedule == "floor":
        each = max(places // steps, 1)
        return [each] * (places // each) + [places % each] * (places % each > 0)
    steps = min(steps, places)
    if schedule == "linear":
        return [places // steps + (step < places % steps) for step in range(steps)]
    return counts_at(visible_shares(schedule, steps), places)


def counts_at(shares: Sequence[float], places: int) -> list[int]:
    """What each step reveals to leave floor(places * (1 - share)) masked, as far as one place at least allows.

    Args:
        shares: share of visible places before the first step (0) and after each of at most `places` steps (1).
        places: to be revealed.
    """
    return _revealed([math.floor(places * (1 - share) + 1e-9) for share in shares[1:]], places)


def _dream_counts(shares: Sequence[float], places: int) -> list[int]:
    left, counts = places, []
    for before, after in itertools.pairwise(shares):
        count = math.floor(left * (1 - (1 - after) / (1 - before)) + 1e-9)
        left -= count
        counts += [count] * (count > 0)
    return counts


def _revealed(kept: Sequence[int], places: int) -> list[int]:
    """Differences of what is to stay masked after each step, one at least, with one place left for each later step."""
    left, steps = [places], len(kept)
    for step, wanted in enumerate(kept[:-1], start=1):
        left.append(max(min(wanted, left[-1] - 1), steps - step))
    return [before - after for before, after in itertools.pairwise([*left, 0])]


def _rank(certainty_BW: Tensor, masked_BW: Tensor) -> Tensor:
    """Rank of each place among its row's masked ones, most certain first, from 0; others come behind."""
    order_BW = _eligible(certainty_BW, masked_BW).argsort(dim=1, descending=True, stable=True)
    place_W = torch.arange(order_BW.shape[1], device=order_BW.device).expand_as(order_BW)
    return torch.empty_like(order_BW).scatter_(1, order_BW, place_W)


def _eligible(certainty_BW: Tensor, masked_BW: Tensor) -> Tensor:
    """-inf where not masked; a masked place may be least certain of all and still comes first."""
    return certainty_BW.clamp(min=torch.finfo(certainty_BW.dtype).min).masked_fill(~masked_BW, -torch.inf)
