"""The greedy knapsack against LLaMA-Factory's rows and its own rule."""

import random

import pytest

from tests.references.knapsack import greedy_knapsack


def test_the_published_rows() -> None:
    assert greedy_knapsack([12, 12, 20, 8, 28, 4, 16, 31], 32) == [[31], [28, 4], [20, 12], [16, 12], [8]]
    assert greedy_knapsack([], 32) == [] and greedy_knapsack([32, 32], 32) == [[32], [32]]


def test_nothing_left_behind_would_have_fitted_better() -> None:
    for seed in range(20):
        lengths = [random.Random(f"{seed} {i}").randint(1, 40) for i in range(25)]
        rows = greedy_knapsack(list(lengths), 40)
        left = sorted(length for row in rows for length in row)
        assert left == sorted(lengths)
        for row in rows:
            for place, length in enumerate(row):
                fitting = [other for other in left if other <= 40 - sum(row[:place])]
                assert length == max(fitting)
                left.remove(length)
            assert sum(row) <= 40 and not any(other <= 40 - sum(row) for other in left)


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="33 tokens does not fit into a row of 32"):
        greedy_knapsack([5, 33], 32)
