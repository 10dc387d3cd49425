"""The likelihood and sampler references against numbers worked out by hand."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.references import likelihood, llada

torch.set_num_threads(1)


def some_cross_entropy(masked: tuple[bool, ...]) -> list[float]:
    """An arbitrary denoiser: costs that depend on the position and on the whole pattern."""
    code = sum(2**i for i, hidden in enumerate(masked) if hidden)
    return [1.0 + math.sin(3.0 * code + i) if hidden else 1e9 for i, hidden in enumerate(masked)]


def test_elbo_of_two_tokens_by_hand() -> None:
    table: dict[tuple[bool, ...], list[float]] = {
        (True, False): [3.0, 99.0],
        (False, True): [99.0, 5.0],
        (True, True): [7.0, 11.0],
    }
    # S={0}: 3/(1*2); S={1}: 5/(1*2); S={0,1}: 18/(2*1)
    assert likelihood.exact_elbo([0, 0], lambda masked: table[masked]) == 1.5 + 2.5 + 9.0


def test_the_four_forms_of_the_elbo_agree() -> None:
    tokens = [0, 0, 0, 0]
    exact = likelihood.exact_elbo(tokens, some_cross_entropy)
    assert likelihood.any_order_nll(tokens, some_cross_entropy) == pytest.approx(exact, abs=1e-12)
    for name, power in (("linear", 1.0), ("cosine", 1.0), ("cosine_squared", 1.0), ("polynomial", 2.5)):
        by_count = 4 * likelihood.count_elbo(name, tokens, some_cross_entropy, power)
        assert by_count == pytest.approx(exact, abs=1e-12), name
        by_time = likelihood.continuous_elbo(name, tokens, some_cross_entropy, power)
        assert by_time == pytest.approx(exact, abs=1e-6), name


def test_perfect_denoiser_has_the_exact_likelihood() -> None:
    likelihood.main()
    joint = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64)
    posterior = likelihood.bayes_predictor(joint)([1, 0], (True, False)).exp()
    assert posterior[0].tolist() == pytest.approx([0.25, 0.75]) and posterior[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "power"), [("linear", 1.0), ("cosine", 1.0), ("cosine_squared", 1.0), ("polynomial", 3.0)]
)
def test_schedules(name: str, power: float) -> None:
    assert likelihood.alpha(name, 0.0, power) == pytest.approx(1.0, abs=1e-15)
    assert likelihood.alpha(name, 1.0, power) == pytest.approx(0.0, abs=1e-15)
    for t in (0.05, 0.3, 0.5, 0.77, 0.95):
        h = 1e-5
        slope = (likelihood.alpha(name, t + h, power) - likelihood.alpha(name, t - h, power)) / (2 * h)
        p = likelihood.masked_share(name, t, power)
        assert p == pytest.approx(1.0 - likelihood.alpha(name, t, power), abs=1e-15)
        assert likelihood.weight(name, t, power) == pytest.approx(-slope / p, rel=1e-5)
        assert likelihood.inverse_masked_share(name, p, power) == pytest.approx(t, abs=1e-12)
    for n in (1, 2, 7, 64):
        law = likelihood.count_law(name, n, power)
        assert len(law) == n and min(law) > 0 and math.fsum(law) == pytest.approx(1.0, abs=1e-14)
        assert likelihood.uniform_count_elbo(name, n, power) == pytest.approx(1.0, abs=1e-14)


def test_count_laws_by_hand() -> None:
    assert likelihood.count_law("linear", 4) == pytest.approx([0.25] * 4)
    # cos(pi/2 (1-t)) = 1/2 at t = 1/3
    assert likelihood.count_law("cosine", 2) == pytest.approx([1 / 3, 2 / 3])
    assert likelihood.count_law("cosine_squared", 4) == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3])
    assert likelihood.count_law("polynomial", 4, 2.0)[0] == pytest.approx(0.5)


# Position:  0 (prompt)    1               2               3               4;  ids 0 1 2, mask 3
TABLE = [[0.0] * 4, [2.0, 0, 0, 9], [0, 5.0, 0, 9], [0, 0, 1.0, 9], [3.0, 0, 0, 9]]


def table_logits(canvas: list[int]) -> Tensor:
    assert len(canvas) == 5 and canvas[0] == 2
    return torch.tensor(TABLE)


def test_fixed_length_by_hand() -> None:
    one_block = llada.fixed_length(table_logits, [2], 4, 3, 4, 3, excluded=[3])
    assert one_block == ([2, 0, 1, 2, 0], [[2, 4], [1], [3]], 3)
    two_blocks = llada.fixed_length(table_logits, [2], 4, 4, 2, 3, excluded=[3])
    assert two_blocks == ([2, 0, 1, 2, 0], [[2], [1], [4], [3]], 4)
    slow = llada.fixed_length(table_logits, [2], 4, 6, 4, 3, excluded=[3])
    assert slow.trace == [[2], [4], [1], [3], [], []] and slow.forwards == 6
    order = {1: 0.3, 2: 0.1, 3: 0.9, 4: 0.5}
    at_random = llada.fixed_length(
        table_logits, [2], 4, 2, 4, 3, remasking="random", excluded=[3], uniform=lambda _, i: order[i]
    )
    assert at_random == ([2, 0, 1, 2, 0], [[3, 4], [1, 2]], 2)
    assert llada.reveal_step_of(at_random.trace) == {3: 0, 4: 0, 1: 1, 2: 1}


def test_gumbel_form_and_untempered_confidence() -> None:
    row = [math.log(0.5), math.log(0.3), math.log(0.2)]
    # scores at T=1: 0.5/-log(.1) = .217, 0.3/-log(.5) = .433, 0.2/-log(.9) = 1.898
    assert llada.candidate(row, 1.0, [0.1, 0.5, 0.9]) == 2
    assert llada.candidate(row, 0.0, None) == 0
    calls: list[tuple[int, int, int]] = []

    def noise(step: int, position: int, size: int) -> list[float]:
        calls.append((step, position, size))
        return [0.1, 0.5, 0.9] if position == 0 else [0.5, 0.5, 0.5]

    # x0 = 2 (confidence 0.2) at position 0, x0 = 0 (confidence 0.5) at position 1: position 1 goes first
    logits = torch.tensor([row, row], dtype=torch.float64)
    result = llada.fixed_length(lambda _: logits, [], 2, 2, 2, 9, temperature=1.0, noise=noise)
    assert result == ([2, 0], [[1], [0]], 2)
    assert calls == [(0, 0, 3), (0, 1, 3), (1, 0, 3)]


def test_threshold_by_hand() -> None:
    # confidences: position 1 e^2/(e^2+2) = .787, 2 .987, 3 e/(e+2) = .576, 4 .909
    run = [llada.threshold(table_logits, [2], 4, 4, 3, tau, excluded=[3]) for tau in (0.0, 0.7, 0.95, 1.1)]
    assert [result.trace for result in run] == [
        [[2, 4, 1, 3]],
        [[2, 4, 1], [3]],
        [[2], [4], [1], [3]],
        [[2], [4], [1], [3]],
    ]
    assert all(result.canvas == [2, 0, 1, 2, 0] for result in run)
    two_blocks = llada.threshold(table_logits, [2], 4, 2, 3, 0.7, excluded=[3])
    assert two_blocks == ([2, 0, 1, 2, 0], [[2, 1], [4], [3]], 3)


def test_reveal_counts() -> None:
    assert llada.quotas(7, 3) == [3, 2, 2] and llada.quotas(2, 4) == [1, 1, 0, 0]
    assert llada.quotas(8, 5) == [2, 2, 2, 1, 1] and llada.reveal_counts("linear", 8, 5) == [2, 2, 1, 2, 1]
    assert llada.reveal_counts("linear", 20, 10) == [2] * 10
    assert llada.reveal_counts("cosine", 8, 4) == [1, 2, 2, 3]  # 8 cos: 7.39 5.66 3.06 0 -> 7 5 3 0
    assert llada.reveal_counts("cosine_squared", 8, 4) == [2, 2, 3, 1]  # 8 cos^2: 6.83 4 1.17 0 -> 6 4 1 0
    assert llada.reveal_counts("cosine", 3, 9) == [1, 1, 1] and llada.reveal_counts("linear", 0, 4) == []
    schedules = ("linear", "cosine", "cosine_squared")
    for schedule, length, steps in itertools.product(schedules, range(1, 40), range(1, 45)):
        counts = llada.reveal_counts(schedule, length, steps)
        assert len(counts) == min(length, steps) and sum(counts) == length and min(counts) >= 1
