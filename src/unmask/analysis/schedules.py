"""Reveal schedules under a measured information profile: what each costs, which is best, and how sure that is.

In: a `Profile` and names of schedules. Out: `Analysis`. A schedule that has m_0 = n > m_1 > ... > m_K = 0 places masked
reveals m_k - m_(k+1) of them from one prediction, as if they were independent. Over uniformly random orders its bound
on the nats of a text exceeds that of one place at a time by

    excess = sum over k of (m_k - m_(k+1)) f(m_k)  -  sum over m of f(m),

which for a model that predicts exactly is the expected divergence of the K-step sampler (Lavenant & Zanella, arXiv
2510.25544; Chen, Cong & Li, arXiv 2511.04647). It says nothing about orders by confidence. The best schedule of K steps
follows by dynamic programming from a non-decreasing f. It is fitted on one half of the documents, and everything is
scored on the other.
Shapes: N places, M counts measured, G groups, D documents, S schedules, B resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import noise
from unmask.analysis.information_profile import Profile
from unmask.decoding.unmasking import counts_at, reveal_counts, visible_shares
from unmask.errors import SettingsError, nearest
from unmask.noise import Purpose
from unmask.settings.reveal_files import SUFFIX, is_file_name, read

OPTIMUM = "optimum"
NAMES = ("linear", "cosine", "cosine_squared", "dream")
_POLYNOMIAL = "polynomial"
_LEVEL = 0.95


@dataclass(frozen=True)
class Scored:
    """One schedule at one number of steps.

    Attributes:
        schedule: its name.
        counts: places that each step reveals.
        excess: nats per token above one place at a time, on the scoring half.
        low, high: 95 % bootstrap interval of `excess` over documents.
        optimality: excess of the optimum over this one; NaN where either is not positive.
        first, last: the ranks that it may have: behind all that are better, and before all that are worse, where the
            95 % interval of the paired difference excludes 0.
    """

    schedule: str
    counts: tuple[int, ...]
    excess: float
    low: float
    high: float
    optimality: float
    first: int
    last: int

    @property
    def steps(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class Conformance:
    """How a schedule's counts keep to its grid.

    Attributes:
        schedule: its name.
        steps: how many were asked for.
        faults: what is wrong with the counts, in words; empty where nothing is.
        rounding: most places between the counts and the schedule's own curve; NaN for a list of counts.
        angle: largest relative difference of an increment of arcsin sqrt(visible share) from the mean one: 0 for
            cos^2 before rounding, whose increments are equal (Zhang & Syed, arXiv 2508.04884).
    """

    schedule: str
    steps: int
    faults: tuple[str, ...]
    rounding: float
    angle: float


@dataclass(frozen=True)
class Analysis:
    """What a profile says about schedules.

    Attributes:
        optimum: best counts for each number of steps, fitted on the fitting half.
        scored: for each number of steps the schedules by their excess, the least first.
        fit_documents, score_documents: int64 [D]; the halves.
    """

    optimum: Mapping[int, tuple[int, ...]]
    scored: Mapping[int, tuple[Scored, ...]]
    fit_documents: Tensor
    score_documents: Tensor


# --- schedules --------------------------------------------------------------------------------------------------------


def counts_of(schedule: str, places: int, steps: int) -> tuple[int, ...]:
    """The counts of a schedule: a name, polynomial:POWER, a .json file, or counts joined by `+`.

    Raises:
        SettingsError: there is no such schedule, or it has no counts for so many places and steps.
    """
    if "+" in schedule:
        return tuple(int(part) if part.strip().isdecimal() else 0 for part in schedule.split("+"))
    if is_file_name(schedule) or schedule in NAMES:
        return tuple(reveal_counts(schedule, places, steps))
    return tuple(counts_at(_shares(schedule, steps), places))


def steps_of(schedule: str, steps: Sequence[int]) -> tuple[int, ...]:
    """The numbers of steps, of those asked for, that a schedule has; a list has its own."""
    if "+" in schedule:
        return (schedule.count("+") + 1,)
    if not is_file_name(schedule):
        return tuple(steps)
    own = read(schedule).counts
    found = tuple(one for one in steps if one in own)
    if not found:
        raise SettingsError(f"{schedule} has counts for {sorted(own)} steps, got {sorted(steps)}. Ask for one of them.")
    return found


def check_schedule(schedule: str, places: int | None) -> None:
    """Raise SettingsError unless `counts_of` knows the schedule and it is for so many places, where that is known."""
    if is_file_name(schedule):
        found = read(schedule)
        if places is not None:
            found.of(places, next(iter(found.counts)))
    elif "+" in schedule:
        places = sum(counts_of(schedule, 0, 0)) if places is None else places
        faults = _faults(counts_of(schedule, places, 0), places, schedule.count("+") + 1)
        if faults:
            raise SettingsError(f"The counts {schedule} must reveal {places} places: {'; '.join(faults)}.")
    elif schedule not in NAMES:
        _shares(schedule, 1)


def conformance(schedule: str, counts: Sequence[int], places: int, steps: int) -> Conformance:
    """Check the counts that a schedule has for `steps` steps against what they are to be."""
    left = [places - sum(counts[:step]) for step in range(len(counts) + 1)]
    shares = None if is_file_name(schedule) or "+" in schedule or schedule == OPTIMUM else _shares(schedule, steps)
    rounding = angle = math.nan
    faults = _faults(counts, places, steps)
    if not faults:
        angles = [math.asin(math.sqrt(1 - masked / places)) for masked in left]
        increments = [after - before for before, after in itertools.pairwise(angles)]
        angle = max(abs(one / (math.pi / 2 / steps) - 1) for one in increments)
        if shares is not None:
            rounding = max(abs(masked - places * (1 - share)) for masked, share in zip(left, shares, strict=True))
    return Conformance(schedule, steps, faults, rounding, angle)


def _faults(counts: Sequence[int], places: int, steps: int) -> tuple[str, ...]:
    checks = (
        (len(counts) == steps, f"{len(counts)} steps instead of {steps}"),
        (sum(counts) == places, f"{sum(counts)} places revealed instead of {places}"),
        (min(counts, default=1) >= 1, "a step that reveals nothing, or no whole number of places"),
    )
    return tuple(text for holds, text in checks if not holds)


def _shares(schedule: str, steps: int) -> list[float]:
    """Visible shares before the first step and after each."""
    if schedule in NAMES:
        return visible_shares(schedule, steps)
    name, _, text = schedule.partition(":")
    try:
        power = float(text) if name == _POLYNOMIAL else math.nan
    except ValueError:
        power = math.nan
    if not 0 < power < math.inf:
        known = [*NAMES, f"{_POLYNOMIAL}:2"]
        raise SettingsError(
            f"There is no schedule `{schedule}`. {nearest(schedule, known)} polynomial takes a power above 0; a "
            f"{SUFFIX} file or counts such as 32+16+16 are schedules as well."
        )
    return [1 - (1 - step / steps) ** power for step in range(steps + 1)]


# --- excess and optimum -----------------------------------------------------------------------------------------------


def interpolation(masked_M: Tensor) -> Tensor:
    """float64 [N, M]: f at 1..N from f at the counts measured, linear between neighbours."""
    place_N = torch.arange(1, int(masked_M[-1]) + 1)
    above_N = torch.searchsorted(masked_M, place_N)
    below_N = (above_N - 1).clamp(min=0)
    width_N = (masked_M[above_N] - masked_M[below_N]).clamp(min=1).double()
    share_N = (masked_M[above_N] - place_N).double() / width_N
    found_NM = torch.zeros(len(place_N), len(masked_M), dtype=torch.float64)
    row_N = place_N - 1
    found_NM[row_N, above_N] += 1 - share_N
    found_NM[row_N, below_N] += share_N
    return found_NM


def excess_weights(counts: Sequence[int], masked_M: Tensor) -> Tensor:
    """float64 [M]: the excess in nats per token is these weights times f at the counts measured."""
    places = sum(counts)
    weight_N = torch.full((places,), -1.0, dtype=torch.float64)
    left = places
    for count in counts:
        weight_N[left - 1] += count
        left -= count
    return weight_N @ interpolation(masked_M) / places


def isotonic(values_M: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to the values in squares (pool adjacent violators), float64."""
    sums: list[float] = []
    sizes: list[int] = []
    for value in values_M.double().tolist():
        sums.append(value)
        sizes.append(1)
        while len(sums) > 1 and sums[-2] / sizes[-2] > sums[-1] / sizes[-1]:
            last, size = sums.pop(), sizes.pop()
            sums[-1] += last
            sizes[-1] += size
    levels = [total / size for total, size in zip(sums, sizes, strict=True)]
    return torch.tensor(levels, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))


def optimal_counts(profile_N: Tensor, steps: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The counts of least excess for each number of steps, by dynamic programming in O(K N^2).

    Args:
        profile_N: f(1..N), float64.
        steps: numbers of steps, each between 1 and N.
    """
    places = len(profile_N)
    masked_N = torch.arange(1, places + 1)
    # What it costs to go from m masked places to r of them in one step; never from m to m or more.
    jump_NN = (masked_N[:, None] - masked_N).double() * profile_N[:, None]
    jump_NN = jump_NN.masked_fill(masked_N[:, None] <= masked_N, math.inf)
    cost_N = masked_N * profile_N
    choices = [torch.zeros(places, dtype=torch.int64)]
    for _ in range(1, max(steps)):
        cost_N, next_N = (jump_NN + cost_N).min(dim=1)
        choices.append(next_N + 1)
    found = {}
    for total in steps:
        left, counts = places, []
        for step in range(total - 1, -1, -1):
            after = int(choices[step][left - 1])
            counts.append(left - after)
            left = after
        found[total] = tuple(counts)
    return found


def fitted_optimum(fit: Profile, steps: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The best counts under the isotonic mean of a profile."""
    return optimal_counts(interpolation(fit.masked_M) @ isotonic(fit.mean()), steps)


# --- scores -----------------------------------------------------------------------------------------------------------


def halves(documents: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two random halves of the documents, the first for fitting; int64."""
    order_D = noise.permutation(Purpose.SPLIT, len(documents), seed)
    middle = len(documents) // 2
    return documents[order_D[:middle]], documents[order_D[middle:]]


def analysed(
    profile: Profile, schedules: Sequence[str], steps: Sequence[int], *, resamples: int = 2000, seed: int = 0
) -> Analysis:
    """Fit the optimum on one half of the documents; score it and the schedules on the other.

    Args:
        profile: measured on every document.
        schedules: see `counts_of`; each is scored at the numbers of steps that it has.
        steps: numbers of steps; those of lists of counts come on top.
        resamples: of the documents, for the intervals.
        seed: of the halves and the resamples.

    Raises:
        SettingsError: a schedule is unknown or not for this many places, or takes more steps than there are places.
    """
    for schedule in schedules:
        check_schedule(schedule, profile.places)
    lists = [number for schedule in schedules if "+" in schedule for number in steps_of(schedule, ())]
    steps = sorted({*steps, *lists})
    if not steps or steps[0] < 1 or steps[-1] > profile.places:
        raise SettingsError(f"The steps must lie between 1 and the {profile.places} places, got {steps}.")
    known = {one: steps_of(one, steps) for one in dict.fromkeys(schedules)}
    fit, score = halves(profile.document_G.unique(), seed)
    optimum = fitted_optimum(profile.of(fit), steps)
    scored = {}
    for number in steps:
        rows = {one: counts_of(one, profile.places, number) for one, own in known.items() if number in own}
        scored[number] = scores(profile.of(score), {**rows, OPTIMUM: optimum[number]}, resamples=resamples, seed=seed)
    return Analysis(optimum, scored, fit, score)


def scores(
    profile: Profile, schedules: Mapping[str, tuple[int, ...]], *, resamples: int, seed: int
) -> tuple[Scored, ...]:
    """The excess of schedules of equally many steps on the same documents, the least first.

    Args:
        profile: of the documents to score on.
        schedules: counts by name, `OPTIMUM` among them.
        resamples, seed: of the documents; all schedules share them, so that differences are paired.
    """
    weight_MS = torch.stack([excess_weights(counts, profile.masked_M) for counts in schedules.values()], dim=1)
    value_S, value_BS = _resampled(profile.nats_GM @ weight_MS, profile.document_G, resamples, seed)
    low_S, high_S = _interval(value_BS)
    low_SS, high_SS = _interval(value_BS[:, :, None] - value_BS[:, None, :])
    best = value_S[list(schedules).index(OPTIMUM)].item()
    rows = [
        Scored(
            schedule=name,
            counts=counts,
            excess=value_S[place].item(),
            low=low_S[place].item(),
            high=high_S[place].item(),
            optimality=best / value_S[place].item() if min(best, value_S[place].item()) > 0 else math.nan,
            first=1 + int((low_SS[place] > 0).sum()),
            last=len(schedules) - int((high_SS[place] < 0).sum()),
        )
        for place, (name, counts) in enumerate(schedules.items())
    ]
    return tuple(sorted(rows, key=lambda row: row.excess))


def _resampled(value_GS: Tensor, document_G: Tensor, resamples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means over groups, [S], and in resamples of whole documents, [B, S]."""
    names, document_G = document_G.unique(return_inverse=True)
    sum_DS = value_GS.new_zeros(len(names), value_GS.shape[1]).index_add(0, document_G, value_GS)
    size_D = document_G.bincount().double()
    row_B1 = torch.arange(resamples)[:, None]
    drawn_BD = noise.uniform(Purpose.RESAMPLE, seed, row_B1, torch.arange(len(names))).mul(len(names)).long()
    times_BD = torch.zeros(drawn_BD.shape, dtype=torch.float64).scatter_add_(
        1, drawn_BD, torch.ones(drawn_BD.shape, dtype=torch.float64)
    )
    return value_GS.mean(dim=0), times_BD @ sum_DS / (times_BD @ size_D)[:, None]


def _interval(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The percentile interval over the first dimension."""
    tail = (1 - _LEVEL) / 2
    return samples.quantile(tail, dim=0), samples.quantile(1 - tail, dim=0)
