"""The two ladders of mask counts, and their exact expectation on a toy."""

import itertools
import math

import pytest

from tests.references import likelihood, llada_likelihood, toys
from tests.references.llada import rows_of, softmax
from tests.references.toys import MASK, toy_logits

PROMPT, ANSWER = [2, 0], [1, 4, 3]


def cross_entropy(masked: tuple[bool, ...]) -> list[float]:
    ids = PROMPT + [MASK if hidden else token for token, hidden in zip(ANSWER, masked, strict=True)]
    rows = rows_of(toy_logits(ids), [MASK])
    return [-math.log(softmax(rows[2 + i])[token]) for i, token in enumerate(ANSWER)]


def expectation(law: list[float]) -> float:
    """Exact mean of `estimate` over the subsets, when m has this law."""
    n = len(ANSWER)
    terms = []
    for m in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), m))
        for subset in subsets:
            value = llada_likelihood.estimate(toy_logits, PROMPT, ANSWER, subset, MASK, [MASK])
            terms.append(law[m - 1] / len(subsets) * value)
    return math.fsum(terms)


def test_counts_by_hand() -> None:
    # n = 4, b = 8: k, k + 1/2, k + 1, ...; halves go to the even neighbour: 1 2 2 2 3 4 4 4, and so on, wrapped
    assert llada_likelihood.rounded_counts(1, 4, 8) == [1, 2, 2, 2, 3, 4, 4, 4]
    assert llada_likelihood.rounded_counts(3, 4, 8) == [3, 4, 4, 4, 1, 2, 2, 2]
    assert llada_likelihood.rounded_counts(2, 3, 3) == [2, 3, 1]
    assert llada_likelihood.stratified_counts(0.0, 4, 8) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert llada_likelihood.stratified_counts(0.9, 4, 2) == [4, 2]
    assert llada_likelihood.rounded_law(4, 8) == [0.125, 0.375, 0.125, 0.375]


def test_the_rounding_bias_that_objectives_lists() -> None:
    lengths = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
    listed = {
        8: (0.25, 0.13, 0.50, 0.12, 0.25, 0, 0.25, 0.50, 0, 0.50, 0),
        32: (0.06, 0.03, 0.12, 0.03, 0.06, 0.25, 0.06, 0.13, 0.50, 0.13, 0.25),
    }
    for b, errors in listed.items():
        for n, error in zip(lengths, errors, strict=True):
            law = llada_likelihood.rounded_law(n, b)
            assert math.fsum(law) == pytest.approx(1.0)
            assert max(abs(n * p - 1) for p in law) == pytest.approx(error, abs=0.0051), (n, b)


def test_the_stratified_ladder_is_unbiased() -> None:
    for n, b in ((2, 8), (4, 8), (5, 3), (3, 1), (12, 8)):
        points = [(j + 0.5) / (n * b) for j in range(n * b)]  # constant in between
        for row in range(b):
            drawn = [llada_likelihood.stratified_counts(u, n, b)[row] for u in points]
            assert [drawn.count(m) for m in range(1, n + 1)] == [b] * n


def test_expectations_against_the_enumerated_bound() -> None:
    exact = -likelihood.exact_elbo(ANSWER, cross_entropy)
    assert expectation([1 / 3] * 3) == pytest.approx(exact, abs=1e-12)
    assert expectation(llada_likelihood.rounded_law(3, 4)) != pytest.approx(exact, abs=1e-3)


def test_the_estimator_averages_rows_and_batches() -> None:
    def order(batch: int, row: int) -> list[int]:
        return sorted(range(3), key=lambda i: toys.hashed(batch, row, i))

    counts = [llada_likelihood.rounded_counts(k, 3, 2) for k in (1, 3)]
    value = llada_likelihood.log_likelihood(toy_logits, PROMPT, ANSWER, counts, order, MASK, [MASK])
    total = 0.0
    for batch in range(2):
        loss = 0.0
        for row in range(2):
            masked = order(batch, row)[: counts[batch][row]]
            costs = cross_entropy(tuple(i in masked for i in range(3)))
            loss += sum(costs[i] / (counts[batch][row] / 3) for i in masked)
        total += loss / 2
    assert value == pytest.approx(-total / 2, abs=1e-12)


def test_guidance_hides_the_prompt_only() -> None:
    plain = llada_likelihood.estimate(toy_logits, PROMPT, ANSWER, [1], MASK, [MASK])
    strong = llada_likelihood.estimate(toy_logits, PROMPT, ANSWER, [1], MASK, [MASK], cfg_scale=1.0)
    nothing = [
        llada_likelihood.estimate(toy_logits, prompt, ANSWER, [1], MASK, [MASK], cfg_scale=-1.0)
        for prompt in (PROMPT, [4, 4])
    ]
    assert plain != strong and nothing[0] == nothing[1] != plain
