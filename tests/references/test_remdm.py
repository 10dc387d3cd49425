"""ReMDM: sigma = 0 is the ancestral sampler, and the marginals are those of alpha."""

import itertools
import math

import pytest
import torch

from tests.references import remdm, toys
from tests.references.candidates import Rules, proposals
from tests.references.llada import rows_of
from tests.references.remdm import Loop
from tests.references.toys import MASK, toy_logits

RULES = Rules(temperature=1.0, excluded=(MASK,), noise=toys.gumbel_noise, uniform=toys.uniform)
SETTINGS = [("cap", 0.3), ("rescale", 0.7), ("rescale", 1.0), ("cap", 1.0), ("none", 0.0)]


def ancestral(prompt: list[int], length: int, steps: int, eps: float) -> list[list[int]]:
    """MDLM on its own: masked tokens are revealed with probability (alpha_s - alpha_t) / (1 - alpha_t)."""
    canvas = prompt + [MASK] * length
    trace: list[list[int]] = []
    for step in range(steps):
        t = 1 - step * (1 - eps) / steps
        s = 1 - (step + 1) * (1 - eps) / steps
        rows = rows_of(toy_logits(list(canvas)), [MASK])
        masked = [i for i in range(len(canvas)) if canvas[i] == MASK]
        chosen, _ = proposals(dict(enumerate(rows)), masked, step, RULES)
        trace.append([i for i in masked if toys.uniform(step, i) < (t - s) / t])
        for i in trace[-1]:
            canvas[i] = chosen[i]
    return [canvas, *trace]


def test_sigma_zero_is_the_ancestral_sampler() -> None:
    for strategy in ("none", "cap", "rescale"):
        run = remdm.remdm(toy_logits, [1, 2], 9, 5, MASK, RULES, strategy, eta=0.0, eps=0.1)
        canvas, *trace = ancestral([1, 2], 9, 5, 0.1)
        assert run.revealed[:5] == trace and not any(run.reopened)
        assert [a for a, b in zip(run.canvas, canvas, strict=True) if b != MASK] == [b for b in canvas if b != MASK]


def test_one_step_by_hand() -> None:
    # two steps, eps 0: t = 1, 1/2, 0. Step 0: sigma_max 1, reveal with 1/2. Step 1: alpha_t = 1/2, alpha_s = 1
    assert remdm.times(2, 0.0) == [1.0, 0.5, 0.0]
    assert remdm.sigma_max(0.0, 0.5) == 1.0 and remdm.sigma_max(0.5, 1.0) == 0.0
    assert remdm.sigma_max(0.6, 0.7) == pytest.approx(0.5) and remdm.sigma_max(0.2, 0.3) == 1.0
    assert remdm.sigma("cap", 0.3, 0.5, 0.6, 0.7, Loop()) == 0.3
    assert remdm.sigma("cap", 0.8, 0.5, 0.6, 0.7, Loop()) == pytest.approx(0.5)
    assert remdm.sigma("rescale", 0.8, 0.5, 0.6, 0.7, Loop()) == pytest.approx(0.4)
    assert remdm.reveal_probability(0.6, 0.7, 0.5) == pytest.approx(1.0)  # at sigma_max everything masked is revealed
    assert remdm.reveal_probability(0.6, 0.7, 0.0) == pytest.approx(0.25)
    assert remdm.reveal_probability(0.6, 0.7, 0.25) == pytest.approx(0.625)
    # three steps at eps 0, rescale 1: sigma = 1, 1, 0 (t = 1, 2/3, 1/3: sigma_max = min(1, (1/3)/(1/3)) = 1)
    table = {0: [0.3, 0.4], 1: [0.999, 0.499], 2: [0.5, 0.5]}
    rules = Rules(uniform=lambda step, i: table[step][i])
    run = remdm.remdm(lambda _: torch.zeros(2, 3), [], 2, 3, 2, rules, "rescale", eta=1.0, eps=0.0)
    # step 0 reveals with 1/3: only 0. Step 1: 0 goes back, 1 is revealed with (2/3)/(2/3) ... step 2 reveals the rest
    assert run == ([0, 0], [[0], [1], [0]], [[], [0], []], 3)


@pytest.mark.parametrize(("strategy", "eta"), [*SETTINGS, ("loop", 0.05), ("loop", 0.9)])
def test_marginals_are_exact(strategy: str, eta: float) -> None:
    """The chain of one position: P(visible) follows alpha at every time of the grid, for a curved alpha, too."""
    loop = Loop()
    for steps, eps, alpha in ((7, 0.0, remdm.linear_alpha), (16, 1e-3, lambda t: math.cos(math.pi / 2 * t) ** 2)):
        law = (lambda t: remdm.loop_alpha(t, loop)) if strategy == "loop" else alpha
        visible = 0.0
        grid = remdm.times(steps, eps)
        for t, s in itertools.pairwise(grid):
            sigma = remdm.sigma(strategy, eta, t, law(t), law(s), loop)
            chance = remdm.reveal_probability(law(t), law(s), sigma)
            assert 0 <= sigma <= 1 and -1e-12 <= chance <= 1 + 1e-12
            visible = visible * (1 - sigma) + (1 - visible) * chance
            assert visible == pytest.approx(law(s), abs=1e-12)


def visible_counts(run: remdm.Reopened, steps: int) -> list[int]:
    counts, now = [], 0
    for step in range(steps):
        now += len(run.revealed[step]) - len(run.reopened[step])
        counts.append(now)
    return counts


@pytest.mark.parametrize(("strategy", "eta"), [("cap", 0.3), ("rescale", 0.7), ("loop", 0.05)])
def test_marginals_of_the_sampler(strategy: str, eta: float) -> None:
    length, steps, loop = 1200, 10, Loop(0.63, 0.17, 0.8)  # no step ends at t_on or t_off
    logits = torch.zeros(length, 3)
    rules = RULES._replace(temperature=0.0, excluded=(2,))
    run = remdm.remdm(lambda _: logits, [], length, steps, 2, rules, strategy, eta=eta, eps=0.0, loop=loop)
    law = (lambda t: remdm.loop_alpha(t, loop)) if strategy == "loop" else remdm.linear_alpha
    for s, count in zip(remdm.times(steps, 0.0)[1:], visible_counts(run, steps), strict=True):
        assert abs(count - length * law(s)) <= 4 * math.sqrt(length * law(s) * (1 - law(s))) + 1e-6
    assert sum(len(step) for step in run.reopened) > 100 and 2 not in run.canvas and run.forwards == steps


def test_loop_schedule_by_hand() -> None:
    loop = Loop(0.5, 0.25, 0.8)
    times = (1.0, 0.75, 0.5, 0.3, 0.25, 0.125, 0.0)
    assert [remdm.loop_alpha(t, loop) for t in times] == pytest.approx([0.0, 0.4, 0.8, 0.8, 0.8, 0.9, 1.0])
    assert [remdm.sigma("loop", 0.1, t, 0.8, 0.8, loop) for t in times] == [0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.0]
    assert remdm.sigma("loop", 0.9, 0.4, 0.8, 0.8, loop) == pytest.approx(0.25)  # never above (1 - .8) / .8
    # a grid that hits t_on and t_off: the published code agrees; one that does not: it overshoots alpha_on
    for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
        ours = (remdm.loop_alpha(t, loop), remdm.loop_alpha(s, loop))
        assert remdm.published_loop_alphas(t, s, loop) == pytest.approx(ours)
    assert remdm.published_loop_alphas(0.6, 0.4, loop) == pytest.approx((0.64, 0.96))


def test_published_loop_runs_the_same_on_an_aligned_grid() -> None:
    loop = Loop(0.5, 0.25, 0.8)
    for steps, equal in ((8, True), (7, False)):
        runs = [
            remdm.remdm(
                toy_logits, [1], 30, steps, MASK, RULES, "loop", eta=0.1, eps=0.0, loop=loop, published_loop=published
            )
            for published in (False, True)
        ]
        assert (runs[0] == runs[1]) is equal and any(runs[0].reopened)


def test_conf_reopens_the_unsure() -> None:
    sigmas = remdm.conf_sigmas({3: 0.9, 5: 0.1, 6: 0.5}, 0.6, 0.7)
    assert math.fsum(sigmas.values()) == pytest.approx(0.5) and sigmas[5] > sigmas[6] > sigmas[3]
    assert sigmas[5] / sigmas[3] == pytest.approx(math.exp(0.8))
    assert remdm.conf_sigmas({}, 0.6, 0.7) == {}
    run = remdm.remdm(toy_logits, [1, 2], 12, 12, MASK, RULES, "conf", eps=0.0)
    assert any(run.reopened) and MASK not in run.canvas[2:] and run.canvas[:2] == [1, 2]


def test_psi_is_the_probability_at_the_last_reveal() -> None:
    """One visible token: sigma is sigma_max whatever psi is; two: they share it by their old probabilities."""
    rows = [[math.log(0.9), math.log(0.1)], [math.log(0.6), math.log(0.4)]]
    logits = torch.tensor([[*row, 0.0] for row in rows], dtype=torch.float64)
    weights = [math.exp(-0.9), math.exp(-0.6)]
    border = weights[0] / sum(weights) * 0.5  # eps 0, t = 3/4 -> 1/2, alpha_t .25, alpha_s .5: sigma_max 1; next .5

    for shift, expected in ((-1e-9, [0]), (1e-9, [])):
        # both are revealed at step 0, kept at step 1 (u = .99 beats half of sigma_max 1), tested at step 2
        table = {0: [0.1, 0.1], 1: [0.99, 0.99], 2: [border + shift, 0.99], 3: [0.5, 0.5]}
        rules = Rules(excluded=(2,), uniform=lambda step, i, table=table: table[step][i])
        run = remdm.remdm(lambda _: logits, [], 2, 4, 2, rules, "conf", eps=0.0)
        assert run.revealed[0] == [0, 1] and run.reopened[1] == [] and run.reopened[2] == expected


def test_left_over_masks_take_the_argmax() -> None:
    rules = RULES._replace(uniform=lambda *_: 0.999999)  # nothing is ever revealed
    run = remdm.remdm(toy_logits, [1], 4, 3, MASK, rules, "none", eps=0.01)
    logits = toy_logits([1] + [MASK] * 4)
    logits[:, MASK] = -torch.inf
    assert run.canvas[1:] == logits.argmax(-1).tolist()[1:]
    assert run.revealed == [[], [], [], [1, 2, 3, 4]] and run.forwards == 4
