"""Candidates: greedy, Gumbel and filtered sampling follow their laws and depend on nothing but their keys."""

import pytest
import torch
from torch import Tensor

from unmask.decoding.candidates import Candidates, Keys, candidates, gumbel_maximum, most_likely, sampled
from unmask.settings.decoding import SamplingParams

LOGITS = torch.tensor([2.0, 0.5, -1.0, float("-inf"), 1.5], dtype=torch.float64)
DRAWS = 40_000


def frequencies(tokens: Tensor) -> Tensor:
    return torch.bincount(tokens, minlength=len(LOGITS)) / len(tokens)


def is_close(found: Tensor, law: Tensor) -> bool:
    """Within five standard errors everywhere, and exactly zero where the law is."""
    error = (law * (1 - law) / DRAWS).sqrt()
    return bool(((found - law).abs() <= 5 * error).all())


def gumbel(logits_RV: Tensor, *, temperature: float, keys: Keys, **options: object) -> Candidates:
    """A canvas's candidates."""
    params = SamplingParams(temperature=temperature, **options).resolved({}, "canvas")  # type: ignore[arg-type]
    return candidates(logits_RV, params, keys, draw=gumbel_maximum)


def keys(count: int = DRAWS) -> Keys:
    return Keys(torch.arange(count), 0, 3, 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gumbel_and_inverse_cdf_follow_the_tempered_law(temperature: float) -> None:
    rows = LOGITS.expand(DRAWS, -1)
    law = (LOGITS / temperature).softmax(-1)
    by_gumbel = gumbel(rows, temperature=temperature, keys=keys())
    by_cdf = sampled(rows, temperature=temperature, top_k=0, top_p=1.0, keys=keys())
    assert is_close(frequencies(by_gumbel.token_R), law)
    assert is_close(frequencies(by_cdf.token_R), law)
    assert not is_close(frequencies(by_cdf.token_R), (LOGITS / (temperature * 1.2)).softmax(-1))


def test_top_k_and_top_p_keep_the_head_of_the_law() -> None:
    rows = LOGITS.expand(DRAWS, -1)
    law = LOGITS.softmax(-1)
    two = law.clone()
    two[[1, 2]] = 0
    assert is_close(frequencies(sampled(rows, temperature=1, top_k=2, top_p=1.0, keys=keys()).token_R), two / two.sum())
    assert is_close(frequencies(gumbel(rows, temperature=1, keys=keys(), top_k=2).token_R), two / two.sum())
    # The two best hold 0.85 of the probability, so 0.8 needs both and 0.5 only the first.
    nucleus = sampled(rows, temperature=1, top_k=0, top_p=0.8, keys=keys()).token_R
    assert is_close(frequencies(nucleus), two / two.sum())
    assert is_close(frequencies(gumbel(rows, temperature=1, keys=keys(), top_p=0.8).token_R), two / two.sum())
    assert sampled(rows, temperature=1, top_k=0, top_p=0.5, keys=keys()).token_R.unique().tolist() == [0]
    assert sampled(rows, temperature=1, top_k=1, top_p=1.0, keys=keys()).token_R.unique().tolist() == [0]


def test_confidence_is_the_untempered_unfiltered_probability() -> None:
    law = LOGITS.softmax(-1)
    rows = LOGITS.expand(50, -1)
    assert float(most_likely(rows[:1]).confidence_R) == pytest.approx(float(law[0]))
    for found in (
        gumbel(rows, temperature=3.0, keys=keys(50)),
        sampled(rows, temperature=0.3, top_k=1, top_p=0.5, keys=keys(50)),
    ):
        torch.testing.assert_close(found.confidence_R, law[found.token_R])


def test_a_draw_does_not_depend_on_its_batch() -> None:
    rows = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row_keys = Keys(torch.arange(6), torch.zeros(6, dtype=torch.int64), torch.arange(6) * 2, 4)
    for draw in (
        lambda logits, one: gumbel(logits, temperature=1.0, keys=one),
        lambda logits, one: sampled(logits, temperature=1.0, top_k=0, top_p=1.0, keys=one),
    ):
        together = draw(rows, row_keys).token_R
        for row in range(6):
            single = Keys(row_keys.seed[row : row + 1], 0, row_keys.position[row : row + 1], 4)
            assert draw(rows[row : row + 1], single).token_R.tolist() == [int(together[row])]
