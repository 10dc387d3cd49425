"""Token-frequency bias against the texts that the counts stand for, token by token."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from unmask.analysis.token_frequency import bias_sums, frequency_bias, frequency_classes, written_tokens
from unmask.objectives.loss import predictions


def zipf(vocabulary: int, seed: int = 0) -> list[int]:
    """Counts that fall with the rank, in random order of ids; the last ids never occur."""
    counts = [round(900 / (rank + 1)) for rank in range(vocabulary - 3)]
    random.Random(seed).shuffle(counts)
    return [*counts, 0, 0, 0]


def test_classes_are_tenths_of_the_text_when_its_tokens_stand_in_order() -> None:
    counts = zipf(60)
    ranked = sorted(range(60), key=lambda token: (-counts[token], token))
    text = [token for token in ranked for _ in range(counts[token])]
    found = frequency_classes(torch.tensor(counts)).tolist()
    for token in ranked:
        places = [place for place, one in enumerate(text) if one == token]
        if not places:
            assert found[token] == 9, "a token that never occurs is among the rarest"
            continue
        middle = (places[0] + places[-1] + 1) / 2
        assert found[token] == int(10 * middle / len(text)), token
    assert found[ranked[0]] < found[ranked[-1]] == 9
    assert [found[token] for token in ranked] == sorted(found)


def test_equal_counts_fill_every_tenth_alike() -> None:
    assert Counter(frequency_classes(torch.full((50,), 7)).tolist()) == dict.fromkeys(range(10), 5)


def test_a_token_of_a_fifth_leaves_a_tenth_empty() -> None:
    found = frequency_classes(torch.tensor([20, *[1] * 80])).tolist()
    assert found[0] == 1 and 0 not in found
    assert Counter(found[1:]) == dict.fromkeys(range(2, 10), 10)


def test_counts_of_nothing_are_no_error() -> None:
    assert set(frequency_classes(torch.zeros(5, dtype=torch.int64)).tolist()) <= set(range(10))


def test_bias_against_sums_over_single_probabilities() -> None:
    counts = zipf(40, seed=1)
    class_V = frequency_classes(torch.tensor(counts))
    generator = torch.Generator().manual_seed(0)
    logits_RV = 2 * torch.randn(80, 40, generator=generator, dtype=torch.float64)
    target_R = torch.multinomial(torch.tensor(counts).double(), 80, replacement=True, generator=generator)
    sums = [
        bias_sums(predictions(logits_RV[part], target_R[part], class_V).mass_RC, class_V[target_R[part]])
        for part in (slice(0, 30), slice(30, 80))
    ]
    found = frequency_bias(sums[0] + sums[1])
    classes, chances = class_V.tolist(), logits_RV.softmax(-1).tolist()
    given, targets = [0.0] * 10, [0] * 10
    for row, target in zip(chances, target_R.tolist(), strict=True):
        targets[classes[target]] += 1
        for token, chance in enumerate(row):
            given[classes[token]] += chance
    assert sum(given) == pytest.approx(80) and sum(targets) == 80
    compared = 0
    for tenth in range(10):
        value = found[f"frequency_bias/tenth_{tenth + 1}"]
        if given[tenth] and targets[tenth]:
            assert value == pytest.approx(math.log(given[tenth] / targets[tenth]), abs=1e-9)
            compared += 1
        else:
            assert math.isnan(value)
    assert len(found) == 10 and compared > 5


def test_the_unigram_law_has_no_bias_and_a_sharper_one_overrates_the_frequent() -> None:
    counts = torch.tensor([64, 32, 16, 8, 4, 2, 1, 1])
    class_V = frequency_classes(counts)
    target_R = torch.arange(8).repeat_interleave(counts)
    for power, sign in ((1, 0), (2, 1)):
        logits_RV = (power * counts.double().log()).expand(len(target_R), -1)
        found = frequency_bias(bias_sums(predictions(logits_RV, target_R, class_V).mass_RC, class_V[target_R]))
        known = [value for value in found.values() if not math.isnan(value)]
        assert known[0] == pytest.approx(0, abs=1e-9) if sign == 0 else known[0] > 0.1
        assert known[-1] == pytest.approx(0, abs=1e-9) if sign == 0 else known[-1] < -0.1


def test_written_tokens_against_loops() -> None:
    counts = torch.tensor([5, 0, 3, 9, 1])
    generated, real = [3, 3, 0, 1, 3, 2, 3], [0, 1, 2, 3, 4, 0]
    found = written_tokens(generated, real, counts)
    assert found["generated/type_coverage"] == 4 / 5, "of the first six tokens of either"
    total = sum(counts.tolist()) + 5 * 0.5
    divergence = 0.0
    for token in set(generated):
        share = generated.count(token) / len(generated)
        divergence += share * math.log(share / ((counts[token].item() + 0.5) / total))
    assert found["generated/unigram_kl"] == pytest.approx(divergence)


def test_text_like_the_training_text_covers_it_and_diverges_from_nothing() -> None:
    counts = torch.tensor([4000, 2000, 1000])
    text = [0] * 4000 + [1] * 2000 + [2] * 1000
    found = written_tokens(text, text, counts)
    assert found["generated/type_coverage"] == 1
    assert 0 <= found["generated/unigram_kl"] < 1e-6
    assert written_tokens([0] * 7000, text, counts)["generated/unigram_kl"] == pytest.approx(math.log(7 / 4), rel=1e-3)


@pytest.mark.parametrize(("generated", "real"), [([], [1, 2]), ([1, 2], [])])
def test_nothing_written_is_nan(generated: list[int], real: list[int]) -> None:
    found = written_tokens(generated, real, torch.tensor([1, 1, 1]))
    assert all(math.isnan(value) for value in found.values())
