"""Dream's sampler against numbers worked out by hand."""

import math

import pytest
import torch

from tests.references import dream, toys
from tests.references.candidates import Rules, shifted
from tests.references.dream import PUBLISHED
from tests.references.toys import MASK, toy_logits

RULES = PUBLISHED._replace(excluded=(MASK,), uniform=toys.uniform)


def test_time_grid_and_counts_by_hand() -> None:
    assert dream.times(4, 0.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert dream.times(2, 0.5) == [1.0, 0.75, 0.5]
    # eps = 0: 10 masks in 5 steps are 2 each, though 1 - (2/5)/(3/5) is 0.33333333333333326
    left, counts = 10, []
    grid = dream.times(5, 0.0)
    for step in range(5):
        counts.append(dream.reveal_count(left, grid[step], grid[step + 1], step == 4))
        left -= counts[-1]
    assert counts == [2, 2, 2, 2, 2]
    # eps = 1e-3: int(10 * 0.0999) = 0, then int(10 (1 - .8002/.9001)) = int(1.1099) = 1, ...
    left, counts = 10, []
    grid = dream.times(10, 1e-3)
    for step in range(10):
        counts.append(dream.reveal_count(left, grid[step], grid[step + 1], step == 9))
        left -= counts[-1]
    assert counts[:3] == [0, 1, 1] and sum(counts) == 10 and counts == [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]


def test_three_orders_by_hand() -> None:
    def row(*probabilities: float) -> list[float]:
        return [math.log(p) for p in probabilities]

    # unshifted: position i reads row i. max p: 1, 2, 0; margin: 2, 0, 1; entropy: 1, 2, 0
    logits = torch.tensor([row(0.42, 0.2, 0.19, 0.19), row(0.5, 0.48, 0.01, 0.01), row(0.45, 0.2, 0.2, 0.15)])
    orders = {"maskgit_plus": [1, 2, 0], "topk_margin": [2, 0, 1], "entropy": [1, 2, 0]}
    for alg, order in orders.items():
        run = dream.diffusion_generate(lambda _: logits, [], 3, 3, 9, alg=alg, eps=0.0, logit_shift=False)
        assert run == ([0, 0, 0], [[i] for i in order], 3)


def test_the_shift_reads_the_row_before() -> None:
    logits = torch.full((4, 5), -9.0)
    for i in range(4):
        logits[i, i] = 1.0 + i
    run = dream.diffusion_generate(lambda _: logits, [4], 3, 3, 9, alg="maskgit_plus", eps=0.0)
    assert run == ([4, 0, 1, 2], [[3], [2], [1]], 3)
    alone = dream.diffusion_generate(lambda _: logits, [], 4, 4, 9, alg="maskgit_plus", eps=0.0)
    assert alone.canvas == [0, 0, 1, 2]  # position 0 keeps row 0
    plain = dream.diffusion_generate(lambda _: logits, [4], 3, 3, 9, alg="maskgit_plus", eps=0.0, logit_shift=False)
    assert plain.canvas == [4, 1, 2, 3]
    both = [
        dream.diffusion_generate(toy_logits, [1, 2], 5, 4, MASK, RULES, alg="entropy"),
        dream.diffusion_generate(shifted(toy_logits), [1, 2], 5, 4, MASK, RULES, alg="entropy", logit_shift=False),
    ]
    assert both[0] == both[1]


def test_origin_by_hand() -> None:
    # four steps, eps 0: 1 - s/t = 1/4, 1/3, 1/2, then everything
    table = {0: [0.2, 0.3, 0.9, 0.24], 1: [0.9, 0.34, 0.32, 0.9], 2: [0.0, 0.51, 0.0, 0.0]}
    rules = Rules(uniform=lambda step, i: table[step][i])
    logits = torch.zeros(4, 2)
    run = dream.diffusion_generate(lambda _: logits, [], 4, 4, 9, rules, alg="origin", eps=0.0)
    assert run.trace == [[0, 3], [2], [], [1]]
    early = dream.diffusion_generate(lambda _: logits, [], 4, 4, 9, Rules(uniform=lambda *_: 0.01), alg="origin")
    assert early.trace == [[0, 1, 2, 3]] and early.forwards == 1


def test_origin_reveals_at_the_stated_rate() -> None:
    logits = torch.zeros(1500, 2)
    rules = RULES._replace(excluded=())
    run = dream.diffusion_generate(lambda _: logits, [], 1500, 4, 9, rules, alg="origin", eps=0.1)
    left = 1500
    for step, (t, s) in enumerate(((1.0, 0.775), (0.775, 0.55), (0.55, 0.325))):
        share = 1 - s / t
        assert abs(len(run.trace[step]) - left * share) <= 4 * math.sqrt(left * share * (1 - share))
        left -= len(run.trace[step])
    assert len(run.trace[3]) == left


def test_at_least_one() -> None:
    slow = dream.diffusion_generate(toy_logits, [1], 4, 4, MASK, RULES, alg="entropy")
    assert [len(step) for step in slow.trace] == [0, 1, 1, 2]
    sure = dream.diffusion_generate(toy_logits, [1], 4, 4, MASK, RULES, alg="entropy", at_least_one=True)
    assert [len(step) for step in sure.trace] == [1, 1, 1, 1]


def test_filters_raise_the_published_confidence() -> None:
    rows = [[math.log(p) for p in (0.5, 0.3, 0.19, 0.01)], [math.log(p) for p in (0.45, 0.28, 0.26, 0.01)]]
    # top_k 2: .5/.8 = .625 and .45/.73 = .616; top_p .46: 1 and .616; top_p .4: both 1, so left to right
    expected = {(2, 1.0): [0, 1], (0, 0.46): [0, 1], (0, 0.4): [0, 1]}
    logits = torch.tensor(rows)
    for (top_k, top_p), order in expected.items():
        rules = PUBLISHED._replace(top_k=top_k, top_p=top_p)
        run = dream.diffusion_generate(
            lambda _: logits, [], 2, 2, 9, rules, alg="maskgit_plus", eps=0.0, logit_shift=False
        )
        assert run.trace == [[i] for i in order]
    flipped = torch.tensor(rows[::-1])  # now the surer row is at position 1
    for top_p, order in ((1.0, [1, 0]), (0.4, [0, 1])):
        published = PUBLISHED._replace(top_p=top_p)
        for rules, expected_order in ((published, order), (published._replace(confidence="untempered"), [1, 0])):
            run = dream.diffusion_generate(
                lambda _: flipped, [], 2, 2, 9, rules, alg="maskgit_plus", eps=0.0, logit_shift=False
            )
            assert run.trace == [[i] for i in expected_order]


def test_alg_temp_draws_without_replacement() -> None:
    sure = {0: 0.9, 1: 0.5, 2: 0.1}
    weights = {i: math.exp(c / 0.5) for i, c in sure.items()}
    total = sum(weights.values())
    pairs: dict[tuple[int, int], int] = {}
    draws = 6000
    for step in range(draws):
        order = dream.ranked_by_draw(sure, 0.5, step, RULES)
        assert sorted(order) == [0, 1, 2]
        pairs[order[0], order[1]] = pairs.get((order[0], order[1]), 0) + 1
    for (a, b), count in pairs.items():
        p = weights[a] / total * weights[b] / (total - weights[a])  # multinomial without replacement
        assert abs(count - draws * p) <= 4 * math.sqrt(draws * p * (1 - p))
    assert dream.ranked_by_draw(sure, 1e-4, 0, RULES) == [0, 1, 2]  # cold: the best first
    cold = dream.diffusion_generate(toy_logits, [1], 6, 3, MASK, RULES, alg="entropy", alg_temp=1e-6)
    assert cold == dream.diffusion_generate(toy_logits, [1], 6, 3, MASK, RULES, alg="entropy")
    with pytest.raises(ValueError, match="uniform"):
        dream.ranked_by_draw(sure, 0.5, 0, PUBLISHED)


def test_sampling_uses_the_noise_of_step_and_position() -> None:
    rules = RULES._replace(temperature=1.0, noise=toys.gumbel_noise, top_k=4, top_p=0.9)
    run = dream.diffusion_generate(toy_logits, [1, 2], 6, 4, MASK, rules, alg="maskgit_plus")
    again = dream.diffusion_generate(toy_logits, [1, 2], 6, 4, MASK, rules, alg="maskgit_plus")
    other = rules._replace(noise=toys.inverse_noise)
    assert run == again != dream.diffusion_generate(toy_logits, [1, 2], 6, 4, MASK, other, alg="maskgit_plus")
    assert MASK not in run.canvas and sorted(i for step in run.trace for i in step) == list(range(2, 8))
