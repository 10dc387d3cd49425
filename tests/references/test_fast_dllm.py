"""The approximate caches where they must be exact, and what each step recomputes."""

from functools import cache

import pytest
import torch

from tests.references import canvas, fast_dllm, toys, transformer
from tests.references.candidates import Rules, shifted
from tests.references.stock import IDS, MASK, stock
from tests.references.transformer import Context, Forward, Network

PROMPT = IDS[:3]
GREEDY = Rules(excluded=(MASK,))
RULES = [
    GREEDY,
    GREEDY._replace(policy="threshold", tau=0.5),
    GREEDY._replace(policy="factor", factor=1.2),
    GREEDY._replace(policy="margin", temperature=0.7, noise=toys.gumbel_noise),
]


@cache
def network() -> Network:
    with torch.no_grad():
        return transformer.network_of(stock("llama"))


def logits_fn(ids: list[int]) -> torch.Tensor:
    return network()(ids, list(range(len(ids))), None).logits


def decode(*arguments: object, **options: object) -> object:
    with torch.no_grad():
        return fast_dllm.decode(network(), PROMPT, *arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", RULES)
def test_without_cache_it_is_the_canvas_reference(rules: Rules) -> None:
    with torch.no_grad():
        for origin, mode in ((False, canvas.MODES[1]), (True, canvas.MODES[2])):
            expected = canvas.decode(logits_fn, PROMPT, 8, 3, 6, MASK, rules, mode=mode)
            assert decode(8, 3, 6, MASK, rules, cache="none", origin=origin) == expected
        expected = canvas.decode(shifted(logits_fn), PROMPT, 8, 3, 6, MASK, rules, mode=canvas.MODES[1])
        assert decode(8, 3, 6, MASK, rules, cache="none", logit_shift=True) == expected


@pytest.mark.parametrize("rules", RULES)
def test_where_the_caches_agree(rules: Rules) -> None:
    for shift in (False, True):
        # one step for each block: only full forwards, whatever the cache (the original raises here)
        if rules.policy in ("low_confidence", "margin"):
            runs = [decode(8, 2, 4, MASK, rules, cache=name, logit_shift=shift) for name in fast_dllm.CACHES]
            assert runs[0] == runs[1] == runs[2]
        # nothing lies behind the block: one block, or a canvas that ends at it
        for options in ({"block_length": 8}, {"block_length": 3, "origin": True}):
            runs = [
                decode(8, steps=6, mask_id=MASK, rules=rules, cache=name, logit_shift=shift, **options)
                for name in ("prefix", "dual")
            ]
            assert runs[0] == runs[1]


def test_without_prompt_one_block_has_no_prefix() -> None:
    with torch.no_grad():
        for rules in RULES:
            runs = [fast_dllm.decode(network(), [], 6, 6, 4, MASK, rules, cache=name) for name in fast_dllm.CACHES]
            assert runs[0] == runs[1] == runs[2]


def test_the_three_caches_differ_in_general() -> None:
    runs = [decode(12, 4, 12, MASK, GREEDY, cache=name) for name in fast_dllm.CACHES]
    assert runs[0] != runs[1] and runs[1] != runs[2] and runs[0] != runs[2]


@pytest.mark.parametrize(
    ("cache", "shift", "spans"),
    [
        ("prefix", False, [(0, 7), (3, 7), (0, 7), (5, 7)]),
        ("dual", False, [(0, 7), (3, 5), (0, 7), (5, 7)]),
        ("prefix", True, [(0, 7), (2, 7), (0, 7), (4, 7)]),
        ("dual", True, [(0, 7), (2, 5), (0, 7), (4, 7)]),
    ],
)
def test_what_each_step_recomputes(cache: str, shift: bool, spans: list[tuple[int, int]]) -> None:
    calls: list[tuple[list[int], int]] = []

    def spy(ids: list[int], positions: list[int], context: Context | None) -> Forward:
        calls.append((positions, 0 if context is None else len(context[0][0])))
        logits = torch.tensor([[float(position), 0.0, 0.0] for position in positions])
        return Forward(logits, [(torch.zeros(len(ids), 1, 2), torch.zeros(len(ids), 1, 2))])

    run = fast_dllm.decode(spy, [0, 0, 0], 4, 2, 4, 2, Rules(excluded=(2,)), cache=cache, logit_shift=shift)
    assert [(positions[0], positions[-1] + 1) for positions, _ in calls] == spans
    assert [len(positions) + old for positions, old in calls] == [7, 7, 7, 7]  # every key is there, once
    assert run.trace == [[4], [3], [6], [5]]  # the logits grow with the position: the full forward reveals, too


def test_the_stale_keys_are_those_of_the_block_start() -> None:
    """Step by step with the network alone: block 2 of two, dual cache, two steps a block."""
    with torch.no_grad():
        run = fast_dllm.decode(network(), PROMPT, 4, 2, 4, MASK, GREEDY, cache="dual")
        ids = PROMPT + [MASK] * 4
        everywhere = list(range(7))
        for block in ([3, 4], [5, 6]):
            start = network()(ids, everywhere, None)
            others = [i for i in everywhere if i not in block]
            context = [(key[others], value[others]) for key, value in start.layers]
            logits = start.logits[block]
            for _ in range(2):
                logits[:, MASK] = -torch.inf
                best = logits.softmax(-1).max(-1)
                hidden = [i for i in range(2) if ids[block[i]] == MASK]
                chosen = max(hidden, key=lambda i: float(best.values[i]))
                ids[block[chosen]] = int(best.indices[chosen])
                logits = network()([ids[i] for i in block], block, context).logits
    assert run.canvas == ids
