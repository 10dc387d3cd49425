"""What generated texts cost and how varied they are, against slower computations."""

import math
import random
import statistics
from collections import Counter

import pytest

from unmask.evaluation.written import entropy, nats_per_byte


def test_the_standard_error_is_the_spread_of_what_each_text_moves() -> None:
    nats, sizes = [12.0, 30.0, 9.0, 41.0], [10, 22, 11, 35]
    ratio, stderr = nats_per_byte(nats, sizes)
    assert ratio == pytest.approx(92 / 78)
    moves = [(own - 92 / 78 * size) / (78 / 4) for own, size in zip(nats, sizes, strict=True)]
    assert stderr == pytest.approx(statistics.stdev(moves) / 2)


def test_the_standard_error_is_how_far_the_ratio_strays() -> None:
    draw = random.Random(0)
    found = []
    for _ in range(400):
        sizes = [draw.randint(20, 200) for _ in range(60)]
        nats = [size * draw.gauss(1.5, 0.4) for size in sizes]
        found.append(nats_per_byte(nats, sizes))
    ratios, errors = zip(*found, strict=True)
    # The spread of 400 draws is known to 3.5 %.
    assert statistics.mean(errors) == pytest.approx(statistics.stdev(ratios), rel=0.12)


def test_no_texts_and_empty_ones_cost_nothing() -> None:
    assert nats_per_byte([], []) == nats_per_byte([0.0], [0]) == (0, 0)
    assert nats_per_byte([3.0], [2]) == (1.5, 0)


def test_entropy_is_that_of_the_frequencies() -> None:
    words = list("abracadabra")
    shares = [words.count(word) / len(words) for word in set(words)]
    assert entropy(Counter(words)) == pytest.approx(math.fsum(share * math.log2(1 / share) for share in shares))
    assert entropy(Counter("aaaa")) == entropy(Counter()) == 0
