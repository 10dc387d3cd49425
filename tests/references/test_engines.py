"""The rules of LMDeploy, Fast-dLLM and Dream as the library maps them, against independent ones, step by step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references import dream, engines
from unmask.decoding.candidates import filtered
from unmask.decoding.unmasking import chosen, reveal_counts
from unmask.settings.aliases import from_original
from unmask.settings.decoding import SamplingParams

BLOCK = 8


def library_steps(params: SamplingParams, confidences: list[list[float]], masked: set[int]) -> list[set[int]]:
    """What each step of one block reveals under resolved parameters; the confidences change from step to step."""
    counts = reveal_counts(params.reveal_schedule or "linear", BLOCK, params.denoising_steps or BLOCK)
    found: list[set[int]] = []
    left = set(masked)
    while left:
        certainty = torch.tensor([confidences[len(found)]], dtype=torch.float64)
        hidden = torch.tensor([[position in left for position in range(BLOCK)]])
        quota = counts[min(len(found), len(counts) - 1)]
        picked = chosen(params, certainty, hidden, quota, lambda: torch.zeros(1, BLOCK))
        found.append(set(picked[0].nonzero()[:, 0].tolist()))
        left -= found[-1]
    return found


rows = st.lists(
    st.lists(st.floats(0.01, 1, exclude_max=True), min_size=BLOCK, max_size=BLOCK, unique=True),
    min_size=BLOCK,
    max_size=BLOCK,
)


@settings(max_examples=150)
@given(
    st.sampled_from(["low_confidence_static", "sequential", "low_confidence_dynamic"]),
    st.one_of(st.none(), st.integers(1, BLOCK)),
    st.integers(0, BLOCK - 1),
    rows,
)
def test_lmdeploys_strategies_reveal_what_the_engine_reveals(
    strategy: str, steps: int | None, prompt: int, confidences: list[list[float]]
) -> None:
    params = from_original(
        "lmdeploy", dllm_unmasking_strategy=strategy, dllm_block_length=BLOCK, dllm_denoising_steps=steps
    ).resolved({}, "blocks")
    share = engines.lmdeploy_share(BLOCK, steps)
    left = set(range(prompt, BLOCK))
    expected: list[set[int]] = []
    while left:
        now = confidences[len(expected)]
        if strategy == "low_confidence_static":
            step = engines.lmdeploy_static(now, left, share)
        elif strategy == "sequential":
            step = engines.lmdeploy_sequential(BLOCK, left, share)
        else:
            step = engines.lmdeploy_dynamic(now, left, 0.85)
        expected.append(step)
        left -= step
    assert library_steps(params, confidences, set(range(prompt, BLOCK))) == expected


def test_lmdeploy_has_no_remainder() -> None:
    """8 positions in 3 steps: ours are 3, 3, 2; LMDeploy's 2, 2, 2, 2."""
    assert reveal_counts("linear", 8, 3) == [3, 3, 2]
    assert reveal_counts("floor", 8, 3) == [2, 2, 2, 2]
    assert reveal_counts("floor", 8, 5) == [1] * 8
    assert reveal_counts("floor", 7, 3) == [2, 2, 2, 1]


@settings(max_examples=300)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9, unique=True), st.floats(0.01, 3), st.data())
def test_fast_dllms_factor_reveals_what_its_loop_reveals(
    confidence: list[float], factor: float, data: st.DataObject
) -> None:
    masked = data.draw(st.sets(st.sampled_from(range(len(confidence))), min_size=1))
    params = from_original("fast_dllm", factor=factor).resolved({}, "canvas")
    hidden = torch.tensor([[position in masked for position in range(len(confidence))]])
    certainty = torch.tensor([confidence], dtype=torch.float64)
    picked = chosen(params, certainty, hidden, 1, lambda: certainty)
    assert set(picked[0].nonzero()[:, 0].tolist()) == engines.fast_dllm_factor(confidence, masked, factor)


def test_the_factor_rules_differ_where_all_but_one_position_is_sure_enough() -> None:
    certainty, hidden = torch.tensor([[0.9, 0.2]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    found = {}
    for rule in ("paper", "fast_dllm"):
        params = SamplingParams(unmasking="factor", factor=0.5, factor_rule=rule).resolved({}, "canvas")
        found[rule] = chosen(params, certainty, hidden, 1, lambda: certainty)[0].tolist()
    assert found == {"paper": [True, False], "fast_dllm": [True, True]}


@settings(max_examples=200)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True), st.integers(1, 12), st.floats(0.05, 0.99))
def test_dreams_filters_keep_what_dream_keeps(weights: list[int], top_k: int, top_p: float) -> None:
    probabilities = [weight / sum(weights) for weight in weights]
    sums = [sum(sorted(probabilities, reverse=True)[:count]) for count in range(1, len(weights))]
    if any(math.isclose(each, top_p, abs_tol=1e-9) for each in sums):
        return  # where a sum meets top_p, rounding decides
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    kept = filtered(logits, top_k=top_k, top_p=top_p, order="top_p_first").isfinite()[0]
    assert set(kept.nonzero()[:, 0].tolist()) == engines.dream_kept(probabilities, top_k, top_p)


def test_the_order_of_the_filters_matters() -> None:
    """Of .4 .3 .2 .1, top-k 3 leaves .44 .33 .22, of which top-p 0.6 keeps two; of all, 0.72 keeps three."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    assert filtered(logits, top_k=3, top_p=0.72, order="top_k_first").isfinite().sum() == 2
    assert filtered(logits, top_k=3, top_p=0.72, order="top_p_first").isfinite().sum() == 3
    assert from_original("dream", top_k=3, top_p=0.72).filter_order == "top_p_first"
    assert from_original("dream", top_k=3).filter_order is None


@settings(max_examples=200)
@given(st.integers(1, 60), st.integers(1, 140))
def test_dreams_schedule_is_its_loop_without_the_steps_that_reveal_nothing(places: int, steps: int) -> None:
    grid, left, expected = dream.times(steps, 1e-3), places, []
    for step in range(steps):
        count = dream.reveal_count(left, grid[step], grid[step + 1], step == steps - 1)
        expected += [count] * (count > 0)
        left -= count
    assert reveal_counts("dream", places, steps) == expected


@pytest.mark.parametrize("alg", ["origin", "maskgit_plus", "entropy"])
def test_dream_keeps_the_steps_that_it_is_given(alg: str) -> None:
    """512 steps over 128 tokens are its own default: a coin is tossed in each of them."""
    assert from_original("dream", alg=alg, max_new_tokens=128).resolved({}, "canvas").denoising_steps == 512
