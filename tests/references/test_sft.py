"""The reference of the fine-tuning loss against numbers worked out by hand."""

import math

import pytest

from tests.references import sft

MASK, EOS = 9, 0
ROWS = [([5, 6], [1]), ([7], [2, 3, 4])]


def halves(ids: list[int]) -> list[list[float]]:
    """Every token costs log 2, wherever it stands."""
    return [[-math.log(2)] * 10 for _ in ids]


def test_rows_are_filled_up_with_eos_to_the_longest() -> None:
    assert sft.filled(ROWS, EOS, math.inf) == [([5, 6], [1, EOS]), ([7], [2, 3, 4])]
    assert sft.filled([([5], [1]), ([7], [2, 3, 4, 1])], EOS, 2)[0] == ([5], [1, EOS, EOS])
    assert sft.filled(ROWS, EOS, 0) == ROWS


def test_prompts_are_restored_and_the_rest_is_masked_below_the_probability() -> None:
    # p = 0.9 * 0.5 + 0.1 = 0.55
    noisy, weight = sft.bernoulli([5, 6], [1, 2], [0.0, 0.6, 0.5, 0.6], 0.5, 0.1, MASK)
    assert noisy == [5, 6, MASK, 2]
    assert weight == pytest.approx(1 / 0.55)
    # ceil(3 * 0.5) = 2 of three tokens: those of the chances 0.1 and 0.2.
    assert sft.counted([5], [1, 2, 3], [0.0, 0.2, 0.7, 0.1], 0.5, 0.1, MASK) == ([5, MASK, 2, MASK], 1.5)


def test_answers_and_tokens_are_divided_as_they_should_be() -> None:
    noisy = [([5, 6, MASK], 2.0), ([7, MASK, 3, MASK], 4.0)]
    # Row losses 2 log 2 over one token and 8 log 2 over three.
    assert sft.diffusion_loss(ROWS, noisy, halves, MASK, "answers") == pytest.approx(math.log(2) * (2 + 8 / 3) / 2)
    assert sft.diffusion_loss(ROWS, noisy, halves, MASK, "tokens") == pytest.approx(math.log(2) * (2 + 8) / 4)
    assert sft.autoregressive_loss(ROWS, halves, "answers") == pytest.approx(math.log(2))
    assert sft.autoregressive_loss(ROWS, halves, "tokens") == pytest.approx(math.log(2))
