"""Corruption: what is masked, how often, what it weighs, and that no split of the batch changes it."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references import likelihood as reference
from unmask.data.batch import Batch
from unmask.diffusion.corruption import at_random_length, corrupt, count_weights, counts, times
from unmask.diffusion.schedules import Schedule
from unmask.settings.objective import ObjectiveSettings

SCHEDULES = ["linear", "cosine", "cosine_squared", "polynomial"]
MODES = list(itertools.product(SCHEDULES, ["count", "bernoulli"], ["iid", "stratified", "systematic"]))


def rows(number: int, length: int, *, step: int = 0) -> Batch:
    return Batch.of_rows([[1] * length for _ in range(number)], step=step)


def blocks(number: int, length: int, block_length: int) -> torch.Tensor:
    return (torch.arange(length) // block_length).expand(number, -1).contiguous()


@pytest.mark.parametrize(("schedule", "corruption", "sampling"), MODES)
@pytest.mark.parametrize("granularity", ["sequence", "batch", "block"])
def test_a_uniform_predictor_expects_exactly_log_v(
    schedule: Any, corruption: Any, sampling: Any, granularity: Any
) -> None:
    """Integrate over the time exactly: the weighted share of masked tokens has expectation 1 for every token."""
    method = "autoregressive" if granularity == "block" else "masked_diffusion"  # block times are not a bound there
    chosen = ObjectiveSettings(
        method=method, schedule=schedule, corruption=corruption, time_sampling=sampling, t_granularity=granularity
    )
    length, points = 6, 20_000
    # The midpoint rule stands for the draw of the time; the share that is masked at a time is known exactly.
    time = (torch.arange(points, dtype=torch.float64)[:, None] + 0.5) / points
    group = blocks(points, length, 3) if granularity == "block" else None
    found = corrupt(
        rows(points, length), chosen, seed=0, group_BL=group, time_BG=time.expand(-1, 1 if group is None else 2)
    )
    if corruption == "count":
        share = found.ratio_BL[:, 0].tolist()
    else:
        eps = chosen.time_epsilon
        share = [(1 - eps) * reference.masked_share(schedule, t, 2.0) + eps for t in time.flatten().tolist()]
    expected = (found.weight_BL[:, 0] * torch.tensor(share)).mean()
    # Midpoint rule: one point for each jump of the counts, far less for smooth integrands.
    assert float(expected) == pytest.approx(1.0, abs=length**2 / points)
    group = None if group is None else blocks(4, length, 3)
    drawn_times = times(rows(4, length), 1 if group is None else 2, chosen, seed=0)
    assert bool(((drawn_times > 0) & (drawn_times < 1)).all())
    assert corrupt(rows(4, length), chosen, seed=0, group_BL=group).masked_BL.shape == (4, length)


@pytest.mark.parametrize(("schedule", "corruption", "sampling"), MODES)
def test_the_average_weight_of_real_draws_is_one(schedule: Any, corruption: Any, sampling: Any) -> None:
    chosen = ObjectiveSettings(schedule=schedule, corruption=corruption, time_sampling=sampling)
    shares = []
    for step in range(40):
        found = corrupt(rows(256, 8, step=step), chosen, seed=3)
        shares.append((found.weight_BL * found.masked_BL).mean(dim=1))
    share = torch.cat(shares)
    error = float(share.std() / len(share) ** 0.5)
    assert float(share.mean()) == pytest.approx(1.0, abs=5 * error + 1e-9)
    assert error < 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_follow_the_exact_law(schedule: Any) -> None:
    law, size, draws = Schedule(schedule, 2.0), 6, 60_000
    time = (torch.arange(draws, dtype=torch.float64)[:, None] + 0.5) / draws
    drawn = counts(time, torch.full_like(time, size, dtype=torch.int64), law)
    frequency = torch.bincount(drawn.flatten(), minlength=size + 1)[1:] / draws
    expected = reference.count_law(schedule, size, 2.0)
    # A midpoint grid misses each jump by at most one of its points.
    assert frequency.tolist() == pytest.approx(expected, abs=2 / draws)
    every = torch.arange(1, size + 1)[:, None]
    weights = count_weights(every, torch.full_like(every, size), law).flatten().tolist()
    assert weights == pytest.approx([1 / (m * p) for m, p in enumerate(expected, start=1)], rel=1e-9)


@settings(max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from(["count", "bernoulli"]),
    st.integers(0, 2**31),
    st.data(),
)
def test_only_supervised_tokens_are_masked_and_counts_are_realised(
    number: int, length: int, corruption: Any, seed: int, data: st.DataObject
) -> None:
    supervised = data.draw(
        st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=number, max_size=number)
    )
    batch = dataclasses.replace(rows(number, length), supervised_BL=torch.tensor(supervised))
    found = corrupt(batch, ObjectiveSettings(corruption=corruption), seed=seed)
    assert not bool((found.masked_BL & ~batch.supervised_BL).any())
    sizes, masked = batch.supervised_BL.sum(1), found.masked_BL.sum(1)
    if corruption == "count":
        assert bool((masked[sizes > 0] >= 1).all())
    realised = masked / sizes.clamp(min=1)
    assert torch.allclose(found.ratio_BL, realised.double()[:, None].expand_as(found.ratio_BL))


@pytest.mark.parametrize("corruption", ["count", "bernoulli"])
@pytest.mark.parametrize("sampling", ["iid", "stratified", "systematic"])
@pytest.mark.parametrize("granularity", ["sequence", "batch"])
def test_draws_do_not_depend_on_how_the_batch_is_split(corruption: Any, sampling: Any, granularity: Any) -> None:
    chosen = ObjectiveSettings(
        corruption=corruption, time_sampling=sampling, t_granularity=granularity, random_length_probability=1.0
    )
    whole = at_random_length(rows(8, 20, step=5), chosen, seed=1)
    expected = corrupt(whole, chosen, seed=1)
    for sizes in ([8], [4, 4], [2, 2, 2, 2], [1, 3, 4]):
        parts, start = [], 0
        for size in sizes:
            part = at_random_length(rows(8, 20, step=5).rows(start, start + size), chosen, seed=1)
            parts.append(corrupt(part, chosen, seed=1))
            start += size
        assert torch.equal(torch.cat([part.masked_BL for part in parts]), expected.masked_BL)
        assert torch.equal(torch.cat([part.weight_BL for part in parts]), expected.weight_BL)


def test_stratified_times_fill_every_stratum_and_change_places() -> None:
    chosen = ObjectiveSettings(time_sampling="stratified")
    drawn = torch.cat([times(rows(10, 4, step=step), 1, chosen, seed=0).T for step in range(300)])
    assert torch.equal((drawn * 10).long().sort(dim=1).values, torch.arange(10).expand(300, -1))
    # A row tied to one stratum would have a mean near it; a free one stays within 5 standard errors of a half.
    assert bool(((drawn.mean(dim=0) - 0.5).abs() < 5 * 0.29 / 300**0.5).all())


def test_blocks_have_times_and_weights_of_their_own() -> None:
    chosen = ObjectiveSettings(method="autoregressive", t_granularity="block")
    found = corrupt(rows(64, 12), chosen, seed=0, group_BL=blocks(64, 12, 4))
    per_block = found.masked_BL.view(64, 3, 4).sum(dim=2)
    assert bool((per_block >= 1).all())
    assert len(set(map(tuple, per_block.tolist()))) > 20
    expected = 4 / per_block
    assert torch.allclose(found.weight_BL.view(64, 3, 4)[:, :, 0], expected.double())


def test_random_lengths_are_rare_uniform_and_shared_by_the_step() -> None:
    chosen = ObjectiveSettings(random_length_probability=0.25)
    lengths = [at_random_length(rows(2, 16, step=step), chosen, seed=0).ids_BL.shape[1] for step in range(4000)]
    cut = [length for length in lengths if length < 16]
    # A quarter of the steps is cut, a sixteenth of those to the full length.
    assert len(cut) / len(lengths) == pytest.approx(0.25 * 15 / 16, abs=5 * (0.2 / 4000) ** 0.5)
    assert set(cut) == set(range(1, 16))
    assert at_random_length(rows(2, 16), ObjectiveSettings(), seed=0).ids_BL.shape[1] == 16


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_random_length_is_each_of_1_to_l_equally_often(length: int) -> None:
    chosen, steps = ObjectiveSettings(random_length_probability=1.0), 3000
    drawn = [at_random_length(rows(1, length, step=step), chosen, seed=3).ids_BL.shape[1] for step in range(steps)]
    share = 1 / length
    spread = (share * (1 - share) / steps) ** 0.5
    assert {*drawn} == {*range(1, length + 1)}
    for each in range(1, length + 1):
        assert drawn.count(each) / steps == pytest.approx(share, abs=5 * spread), each


def test_one_time_per_block_is_refused_for_masked_diffusion() -> None:
    with pytest.raises(ValueError, match="no bound"):
        ObjectiveSettings(t_granularity="block")
