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
    state = 0
    for key in (purpose, *keys):
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


@given(
    st.lists(st.sampled_from(Purpose), min_size=2, max_size=2, unique=True),
    st.lists(st.lists(st.integers(-64, 4096), min_size=1, max_size=3), min_size=2, max_size=2),
)
def test_purposes_share_no_draw(purposes: list[Purpose], keys: list[list[int]]) -> None:
    assert int(noise.hashed(purposes[0], *keys[0])) != int(noise.hashed(purposes[1], *keys[1]))


def test_no_two_purposes_and_small_keys_have_one_hash() -> None:
    # 19 purposes x (4,097 + 96 * 64) names in 64 bits: a chance of 1e-9 that any two meet.
    seed, sample = torch.arange(-48, 48)[:, None], torch.arange(64)
    found = [noise.hashed(one, torch.arange(-2048, 2049)) for one in Purpose]
    found += [noise.hashed(one, seed, sample).flatten() for one in Purpose]
    hashes = torch.cat(found)
    assert len(hashes.unique()) == len(hashes)


def test_purposes_and_neighbouring_seeds_are_uncorrelated() -> None:
    # 19 purposes x 16 seeds, 4,000 draws each: 46,056 correlations of standard error 1/sqrt(4000); 5.5 of them is met
    # by chance with probability 0.002, and a draw that two share gives 1.
    names = [(one, seed) for one in Purpose for seed in range(16)]
    draws = torch.stack([noise.uniform(one, seed, torch.arange(4000)) for one, seed in names])
    found = torch.corrcoef(draws) - torch.eye(len(names))
    assert float(found.abs().max()) < 5.5 / 4000**0.5
    # Each of them is uniform: 16 cells, 15 degrees of freedom, 304 tests; 60 is exceeded with chance 7e-5 in all.
    cells = torch.stack([torch.histc(one, 16, 0, 1) for one in draws])
    assert float(((cells - 250) ** 2 / 250).sum(dim=1).max()) < 60


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
