"""Filters, draws, confidences and reveal policies of the references against numbers worked out by hand."""

import itertools
import math

import pytest
import torch

from tests.references import candidates, llada, toys
from tests.references.candidates import Rules

ROW = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
INF = math.inf


def law(row: list[float]) -> list[float]:
    return [round(p, 12) for p in llada.softmax(row)]


def test_top_k_and_top_p_by_hand() -> None:
    assert candidates.keep_top_k([1.0, 3.0, 2.0, 2.0], 2) == [-INF, 3.0, 2.0, 2.0]  # a tie with the 2nd stays
    assert candidates.keep_top_k(ROW, 0) == ROW and candidates.keep_top_k(ROW, 9) == ROW
    assert law(candidates.keep_top_p(ROW, 0.65)) == law([math.log(4), math.log(3), -INF, -INF])
    assert [z > -INF for z in candidates.keep_top_p(ROW, 0.75)] == [True, True, True, False]
    assert [z > -INF for z in candidates.keep_top_p(ROW, 1e-9)] == [True, False, False, False]
    halves = [0.0, 0.0]
    assert candidates.keep_top_p(halves, 0.5) == [0.0, -INF]  # the mass before token 1 is 0.5, not below 0.5
    assert candidates.keep_top_p(halves, 0.51) == halves


def test_the_order_of_the_filters_matters() -> None:
    # top-k first: (.4, .3) of mass .7 renormalise to .571, .429; p = .5 keeps one, then two
    rules = Rules(temperature=1.0, top_k=3, top_p=0.72)
    assert law(candidates.processed(ROW, rules)) == law([math.log(4), math.log(3), -INF, -INF])
    dream = rules._replace(filters="top_p_first")
    assert law(candidates.processed(ROW, dream)) == law([math.log(4), math.log(3), math.log(2), -INF])


def test_temperature_sharpens_before_the_filters() -> None:
    # at T = 1/2 the law is proportional to squares: 16, 9, 4, 1 of 30
    sharp = candidates.processed(ROW, Rules(temperature=0.5))
    assert law(sharp) == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30])
    assert candidates.processed(ROW, Rules(temperature=0.0)) == ROW


def test_draws_by_hand() -> None:
    assert [candidates.drawn(ROW, [u]) for u in (0.01, 0.39, 0.41, 0.69, 0.71, 0.91, 0.999999)] == [0, 0, 1, 1, 2, 3, 3]
    assert (
        candidates.drawn([-INF, 0.0, -INF, 0.0], [0.2]) == 1 and candidates.drawn([-INF, 0.0, -INF], [1 - 1e-16]) == 1
    )
    # -log u = 2.303, .693, .105, .01: p / that = .174, .433, 1.898, 9.95
    assert candidates.drawn(ROW, [0.1, 0.5, 0.9, 0.99]) == 3
    for step, temperature in itertools.product(range(40), (0.3, 1.0, 2.5)):
        numbers = toys.gumbel_noise(step, 0, 4)
        ours = candidates.drawn([z / temperature for z in ROW], numbers)
        assert ours == llada.candidate(ROW, temperature, numbers)  # LLaDA's own form


def test_draws_follow_the_law() -> None:
    rules = Rules(temperature=1.0, top_k=3)
    for noise in (toys.gumbel_noise, toys.inverse_noise):
        rules = rules._replace(noise=noise)
        counts = [0] * 4
        for step in range(3000):
            counts[candidates.candidate(ROW, step, 3, rules)] += 1
        for count, p in zip(counts, (4 / 9, 3 / 9, 2 / 9, 0.0), strict=True):
            assert abs(count - 3000 * p) <= 4 * math.sqrt(3000 * p * (1 - p))


def test_the_three_confidence_laws() -> None:
    rules = Rules(temperature=0.5, top_k=2)
    expected = {"untempered": 0.3, "unfiltered": 9 / 30, "filtered": 9 / 25}
    for name, value in expected.items():
        assert candidates.confidence(ROW, 1, 0, 0, rules._replace(confidence=name)) == pytest.approx(value)
    assert candidates.confidence(ROW, 0, 0, 0, rules._replace(confidence="unfiltered")) == pytest.approx(16 / 30)
    greedy = rules._replace(temperature=0.0)
    for name, value in {"untempered": 0.4, "unfiltered": 0.4, "filtered": 4 / 7}.items():
        assert candidates.confidence(ROW, 0, 0, 0, greedy._replace(confidence=name)) == pytest.approx(value)


def test_margin_entropy_and_random_by_hand() -> None:
    def sure(policy: str, row: list[float]) -> float:
        return candidates.confidence(row, 0, 2, 5, Rules(policy=policy, uniform=lambda step, i: step / 10 + i / 100))

    assert sure("margin", ROW) == pytest.approx(0.1)
    assert sure("entropy", ROW) == pytest.approx(-1.2798542258336676)
    assert sure("entropy", [0.0, 0.0, -INF]) == pytest.approx(-math.log(2))
    assert sure("random", ROW) == 0.25


def test_margin_and_confidence_rank_differently() -> None:
    rows = {0: [math.log(p) for p in (0.5, 0.48, 0.02)], 1: [math.log(p) for p in (0.45, 0.28, 0.27)]}
    for policy, first in (("low_confidence", 0), ("margin", 1), ("entropy", 0)):
        rules = Rules(policy=policy)
        _, sure = candidates.proposals(rows, [0, 1], 0, rules)
        assert candidates.revealed_by(sure, 1, rules) == [first], policy


def test_late_tokens_are_revealed_last_at_every_temperature() -> None:
    # EOS = 0 (p .9) at position 0, token 1 at position 1 whose EOS share is .3
    rows = {0: [math.log(p) for p in (0.9, 0.06, 0.04)], 1: [math.log(p) for p in (0.3, 0.4, 0.3)]}
    for policy, value in (("low_confidence", 0.0), ("margin", -INF), ("entropy", -INF)):
        for temperature in (0.0, 1.0):
            # u = .5 draws EOS at position 0 and token 1 at position 1
            rules = Rules(policy=policy, late=(0,), temperature=temperature, noise=lambda *_: [0.5])
            chosen, sure = candidates.proposals(rows, [0, 1], 0, rules)
            assert chosen == {0: 0, 1: 1} and sure[0] == value
            assert candidates.revealed_by(sure, 2, rules) == [1, 0]
            assert candidates.revealed_by({0: sure[0]}, 1, rules) == [0]  # it is revealed in the end
    _, sure = candidates.proposals(rows, [0, 1], 0, Rules(late=(0,)))
    assert sure[1] == pytest.approx(4 / 7)  # renormalised without EOS
    _, sure = candidates.proposals(rows, [0, 1], 0, Rules())
    assert sure == pytest.approx({0: 0.9, 1: 0.4})


def test_threshold_and_quota() -> None:
    sure = {4: 0.5, 5: 0.9, 6: 0.7, 7: 0.9}
    assert candidates.revealed_by(sure, 2, Rules()) == [5, 7]
    assert candidates.revealed_by(sure, 9, Rules()) == [5, 7, 6, 4] and candidates.revealed_by(sure, 0, Rules()) == []
    for tau, expected in ((0.9, [5, 7]), (0.7, [5, 7, 6]), (0.95, [5]), (0.0, [5, 7, 6, 4])):
        assert candidates.revealed_by(sure, 0, Rules(policy="threshold", tau=tau)) == expected


def test_factor_by_hand() -> None:
    # f = 1: c_(2) >= 2/3, c_(3) >= 3/4, c_(4) >= 4/5
    rules = Rules(policy="factor", factor=1.0)
    assert candidates.revealed_by({0: 0.3, 1: 0.9, 2: 0.8, 3: 0.76}, 0, rules) == [1, 2, 3]
    assert candidates.revealed_by({0: 0.3, 1: 0.9, 2: 0.8, 3: 0.74}, 0, rules) == [1, 2]
    assert candidates.revealed_by({0: 0.1, 1: 0.2}, 0, rules) == [1]
    assert candidates.revealed_by({0: 0.1, 1: 0.9}, 0, rules) == [1]  # the published code reveals both
    assert candidates.revealed_by({0: 0.1, 1: 0.2, 2: 0.1}, 0, rules._replace(factor=4.0)) == [1, 0, 2]


def test_factor_is_the_largest_passing_prefix() -> None:
    for seed, size, factor in itertools.product(range(30), (1, 2, 5), (0.0, 0.5, 1.0, 1.7)):
        sure = {i: toys.hashed(seed, i) for i in range(size)}
        ranked = sorted(sure.values(), reverse=True)
        best = 1
        for n in range(1, size + 1):
            if all(ranked[m - 1] >= 1 - factor / (m + 1) for m in range(2, n + 1)):
                best = n
        revealed = candidates.revealed_by(sure, 0, Rules(policy="factor", factor=factor))
        assert [sure[i] for i in revealed] == ranked[:best]


def test_guidance_by_hand() -> None:
    seen: list[list[int]] = []

    def network(ids: list[int]) -> torch.Tensor:
        seen.append(ids)
        return torch.tensor([[1.0, float(ids[0])], [2.0, float(ids[1])]])

    assert candidates.guided(network, [0], 9, 0.0) is network
    logits = candidates.guided(network, [0], 9, 0.5)([3, 4])
    assert seen == [[3, 4], [9, 4]]
    assert logits.tolist() == [[1.0, 9 + 1.5 * (3 - 9)], [2.0, 4.0]]


def test_shift_and_left_padding() -> None:
    logits = torch.tensor([[0.0], [1.0], [2.0]])
    assert candidates.shifted(lambda _: logits)([7, 7, 7]).flatten().tolist() == [0.0, 0.0, 1.0]
    calls: list[tuple[list[int], list[bool]]] = []

    def masked(ids: list[int], visible: list[bool]) -> torch.Tensor:
        calls.append((ids, visible))
        return torch.arange(len(ids))[:, None]

    assert candidates.left_padded(masked, 2, 8)([3, 4]).flatten().tolist() == [2, 3]
    assert calls == [([8, 8, 3, 4], [False, False, True, True])]
