"""Counter-based noise: uniform, independent across keys, a function of its keys alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import noise
from unmask.noise import Purpose


def splitmix64(purpose: int, *keys: int) -> int:
    """The same hash in Python integers."""
    wrap = (1 << 64) - 1
    state = purpose
    for key in keys:
        state = ((state ^ (key & wrap)) + 0x9E3779B97F4A7C15) & wrap
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & wrap
        state ^= state >> 31
    return state


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4))
def test_hash_equals_the_algorithm_in_python_integers(keys: list[int]) -> None:
    found = int(noise.hashed(Purpose.MASK, *keys)) & ((1 << 64) - 1)
    assert found == splitmix64(int(Purpose.MASK), *keys)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=20), st.integers(0, 2**31))
def test_draws_of_a_tensor_equal_draws_one_by_one(positions: list[int], seed: int) -> None:
    together = noise.uniform(Purpose.TOKEN, seed, torch.tensor(positions))
    single = [float(noise.uniform(Purpose.TOKEN, seed, position)) for position in positions]
    assert together.tolist() == single


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    draws = noise.uniform(Purpose.MASK, 7, torch.arange(400)[:, None], torch.arange(500))
    # 200,000 draws: standard errors 6.5e-4 of the mean, 1.5e-4 of the variance; bounds at five of them.
    assert abs(float(draws.mean()) - 0.5) < 3.3e-3
    assert abs(float(draws.var()) - 1 / 12) < 8e-4
    neighbours = torch.corrcoef(torch.stack([draws[:, :-1].flatten(), draws[:, 1:].flatten()]))[0, 1]
    purposes = noise.uniform(Purpose.TIME, 7, torch.arange(400)[:, None], torch.arange(500))
    assert abs(float(neighbours)) < 0.012
    assert abs(float(torch.corrcoef(torch.stack([draws.flatten(), purposes.flatten()]))[0, 1])) < 0.012


def test_uniforms_never_reach_their_bounds() -> None:
    smallest, largest = torch.tensor([0]), torch.tensor([2**52 - 1])
    for bits in (smallest, largest):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise, "hashed", lambda *_, high=bits: (high << 12) | 4095)
            assert 0 < float(noise.uniform(Purpose.TOKEN, 0)) < 1


def test_permutation_is_one_and_changes_with_its_keys() -> None:
    first = noise.permutation(Purpose.DATA_ORDER, 1000, 0, 1)
    assert first.sort().values.tolist() == list(range(1000))
    assert not torch.equal(first, noise.permutation(Purpose.DATA_ORDER, 1000, 0, 2))
    rows = noise.permutation(Purpose.STRATUM, 5, 3, torch.arange(4))
    assert torch.equal(rows[2], noise.permutation(Purpose.STRATUM, 5, 3, 2))


def test_seeded_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with noise.seeded(Purpose.WEIGHTS, 5):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with noise.seeded(Purpose.WEIGHTS, 5):
        assert torch.equal(torch.rand(3), inside)
