"""The canvas modes against hand-made examples and against each other."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.references import canvas, llada, toys
from tests.references.candidates import Rules
from tests.references.toys import MASK, toy_logits

PROMPT = [1, 4, 2]
GREEDY = Rules(excluded=(MASK,))


def test_blocks_and_plans() -> None:
    assert canvas.blocks_of(3, 7, 3) == [[3, 4, 5], [6, 7, 8], [9]]
    assert canvas.blocks_of(0, 4, 4) == [[0, 1, 2, 3]] == canvas.blocks_of(0, 4, 9)
    for masks, steps in itertools.product(range(1, 20), range(1, 25)):
        plan = llada.quotas(masks, steps)
        assert sum(plan) == masks and len(plan) == steps and plan == sorted(plan, reverse=True)
        assert max(plan) - min(plan) <= 1


@pytest.mark.parametrize("policy", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_agrees_with_the_first_reference(policy: str, temperature: float) -> None:
    rules = GREEDY._replace(policy=policy, temperature=temperature, noise=toys.gumbel_noise, uniform=toys.uniform)
    for block_length, steps in ((8, 8), (8, 3), (4, 6), (2, 8), (2, 16)):
        expected = llada.fixed_length(
            toy_logits,
            PROMPT,
            8,
            steps,
            block_length,
            MASK,
            temperature,
            policy,
            [MASK],
            toys.gumbel_noise,
            toys.uniform,
        )
        mode = "fixed_length" if block_length == 8 else "semi_autoregressive_padding"
        run = canvas.decode(toy_logits, PROMPT, 8, block_length, steps, MASK, rules, mode=mode, idle_forwards=True)
        assert run == expected
    for tau in (0.2, 0.5, 0.9):
        expected = llada.threshold(toy_logits, PROMPT, 8, 4, MASK, tau, temperature, [MASK], toys.gumbel_noise)
        rules = rules._replace(policy="threshold", tau=tau)
        mode = "semi_autoregressive_padding"
        assert canvas.decode(toy_logits, PROMPT, 8, 4, 2, MASK, rules, mode=mode) == expected


def test_one_block_is_the_same_in_every_mode() -> None:
    for policy in ("low_confidence", "margin", "entropy", "threshold", "factor", "random"):
        rules = GREEDY._replace(policy=policy, tau=0.6, uniform=toys.uniform)
        runs = [canvas.decode(toy_logits, PROMPT, 6, 6, 4, MASK, rules, mode=mode) for mode in canvas.MODES]
        assert runs[0] == runs[1] == runs[2]
        assert sorted(i for step in runs[0].trace for i in step) == [3, 4, 5, 6, 7, 8]
        assert runs[0].canvas[:3] == PROMPT and MASK not in runs[0].canvas


def test_each_mode_sees_what_it_should() -> None:
    seen: list[list[int]] = []

    def network(ids: list[int]) -> Tensor:
        seen.append(ids)
        return torch.tensor([[0.0, float(i), 0.0] for i in range(len(ids))])

    rules = Rules(excluded=(2,))
    run = canvas.decode(network, [0], 3, 2, 3, 2, rules, mode="semi_autoregressive_origin")
    assert seen == [[0, 2, 2], [0, 2, 1], [0, 1, 1, 2]]  # two steps for the first block, one for the short one
    assert run == ([0, 1, 1, 1], [[2], [1], [3]], 3)
    seen.clear()
    canvas.decode(network, [0], 3, 2, 3, 2, rules, mode="semi_autoregressive_padding")
    assert seen == [[0, 2, 2, 2], [0, 2, 1, 2], [0, 1, 1, 2]]
    seen.clear()
    run = canvas.decode(network, [0], 3, 2, 3, 2, rules, mode="fixed_length")
    assert seen == [[0, 2, 2, 2], [0, 2, 2, 1], [0, 2, 1, 1]] and run.trace == [[3], [2], [1]]


def test_origin_differs_and_a_short_last_block_is_filled() -> None:
    runs = {mode: canvas.decode(toy_logits, PROMPT, 7, 3, 7, MASK, GREEDY, mode=mode) for mode in canvas.MODES[1:]}
    origin, padding = runs["semi_autoregressive_origin"], runs["semi_autoregressive_padding"]
    assert origin != padding
    for run in runs.values():
        assert [{*range(3, 6)}, {*range(6, 9)}, {9}] == [
            {i for step in run.trace[a:b] for i in step} for a, b in ((0, 3), (3, 5), (5, 7))
        ]
    assert [len(step) for step in origin.trace] == [1, 1, 1, 2, 1, 1]  # 3 + 2 + 2 steps; the last block needs one


def test_steps_are_a_total_or_one_number_for_each_block() -> None:
    whole = canvas.decode(toy_logits, PROMPT, 6, 2, 5, MASK, GREEDY, mode="semi_autoregressive_padding")
    listed = canvas.decode(toy_logits, PROMPT, 6, 2, [2, 2, 1], MASK, GREEDY, mode="semi_autoregressive_padding")
    assert whole == listed and whole.forwards == 5
    with pytest.raises(ValueError, match="a step each"):
        canvas.decode(toy_logits, PROMPT, 6, 2, 2, MASK, GREEDY, mode="semi_autoregressive_padding")


def test_idle_forwards() -> None:
    short = canvas.decode(toy_logits, PROMPT, 2, 2, 5, MASK, GREEDY)
    idle = canvas.decode(toy_logits, PROMPT, 2, 2, 5, MASK, GREEDY, idle_forwards=True)
    assert short.forwards == 2 and idle == (short.canvas, [*short.trace, [], [], []], 5)


def test_guidance() -> None:
    plain = canvas.decode(toy_logits, PROMPT, 6, 6, 6, MASK, GREEDY)
    assert canvas.decode(toy_logits, PROMPT, 6, 6, 6, MASK, GREEDY, cfg_scale=0.0) == plain
    strong = canvas.decode(toy_logits, PROMPT, 6, 6, 6, MASK, GREEDY, cfg_scale=2.0)
    assert strong.canvas != plain.canvas and strong.forwards == 6
    # scale -1 is the unconditional network: the prompt no longer matters
    runs = [canvas.decode(toy_logits, p, 6, 6, 6, MASK, GREEDY, cfg_scale=-1.0) for p in (PROMPT, [0, 0, 3])]
    assert runs[0].trace == runs[1].trace and runs[0].canvas[3:] == runs[1].canvas[3:]


def test_a_mask_in_the_prompt_is_never_written() -> None:
    run = canvas.decode(toy_logits, [1, MASK, 2], 4, 2, 4, MASK, GREEDY, mode="semi_autoregressive_padding")
    assert run.canvas[:3] == [1, MASK, 2] and MASK not in run.canvas[3:]


def test_logits_eos_inf_and_confidence_eos_eot_inf() -> None:
    def network(ids: list[int]) -> Tensor:
        return torch.tensor([[4.0, 3.0, 0.0, 9.0]] * 2 + [[0.0, 1.0, 0.5, 9.0]] * 2)  # 0 is EOS, 3 the mask

    plain = canvas.decode(network, [], 4, 4, 4, 3, Rules(excluded=(3,)))
    assert plain == ([0, 0, 1, 1], [[0], [1], [2], [3]], 4)
    never = canvas.decode(network, [], 4, 4, 4, 3, Rules(excluded=(3, 0)))
    assert never == ([1, 1, 1, 1], [[0], [1], [2], [3]], 4)
    late = canvas.decode(network, [], 4, 4, 4, 3, Rules(excluded=(3,), late=(0,)))
    assert late == ([0, 0, 1, 1], [[2], [3], [0], [1]], 4)


def test_infilling() -> None:
    run = canvas.infill(toy_logits, [[1], [2, 4], []], [2, 1], 3, MASK, GREEDY)
    assert len(run.canvas) == 6 and (run.canvas[0], run.canvas[3], run.canvas[4]) == (1, 2, 4)
    assert sorted(i for step in run.trace for i in step) == [1, 2, 5] and run.forwards == 3
    at_the_end = canvas.infill(toy_logits, [PROMPT, []], [6], 4, MASK, GREEDY, cfg_scale=1.0)
    assert at_the_end == canvas.decode(toy_logits, PROMPT, 6, 6, 4, MASK, GREEDY, cfg_scale=1.0)
    # un sees masks in both pieces
    runs = [canvas.infill(toy_logits, [[a], [b]], [3], 3, MASK, GREEDY, cfg_scale=-1.0) for a, b in ((1, 2), (4, 0))]
    assert runs[0].canvas[1:4] == runs[1].canvas[1:4]
