"""The block reference against numbers worked out by hand, and against the canvas and the causal loop."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.references import blocks, llada
from tests.references.blocks import Generated, Law, Policy, Reading
from tests.references.masks import block_decode
from tests.references.stock import IDS, MASK, stock
from unmask.noise import Purpose, uniform

VOCABULARY, MASK_ID = 4, 3
BEST = (0.5, 0.9, 0.7, 0.6)  # confidence of token place % 3, for the places of a block of 4


def network_of(row_of: Callable[[list[int], int], list[float]], seen: list[list[int]] | None = None) -> Any:
    """A network whose logits of place i are `row_of(ids, i)`; `seen` collects the ids of each forward."""

    def forward(input_ids: torch.Tensor, **_: Any) -> Any:
        ids = input_ids[0].tolist()
        if seen is not None:
            seen.append(ids)
        return SimpleNamespace(logits=torch.tensor([[row_of(ids, i) for i in range(len(ids))]], dtype=torch.float64))

    return forward


def peaked(token: int, probability: float, rest: float = 0.0) -> list[float]:
    """Logits of one token, the other two evenly; the mask has `rest` (as a logit), which must not matter."""
    row = [math.log((1 - probability) / 2)] * 3
    row[token] = math.log(probability)
    return [*row, rest]


def steady(ids: list[int], i: int) -> list[float]:
    """The same whatever stands in the text; the mask would be the favourite everywhere."""
    return peaked(i % 3, BEST[i % 4], rest=9.0)


def run(network: Any, prompt: list[int], **options: Any) -> Generated:
    settings = {"max_new_tokens": 4, "block_length": 4, "mask_token_id": MASK_ID, "unmasking": "low_confidence_static"}
    return blocks.generate(network, prompt, **(settings | options))


def test_quotas_and_reports_by_hand() -> None:
    seen: list[list[int]] = []
    out = run(network_of(steady, seen), [], denoising_steps=2)
    assert seen == [[3, 3, 3, 3], [3, 1, 2, 3]]
    assert (out.token_ids, out.revealed_at, out.finish_reason) == ([0, 1, 2, 0], [2, 1, 1, 2], "length")
    assert out.log_probability == pytest.approx([math.log(p) for p in BEST])
    assert out.entropy[1] == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.05)))
    # three steps reveal 2, 1, 1; the default is one place a step
    assert run(network_of(steady), [], denoising_steps=3).revealed_at == [3, 1, 1, 2]
    assert run(network_of(steady), []).revealed_at == [4, 1, 2, 3]
    # more steps than places: still one a step
    assert run(network_of(steady), [], denoising_steps=9).revealed_at == [4, 1, 2, 3]


def test_the_tail_of_the_prompt_is_never_written() -> None:
    seen: list[list[int]] = []
    out = run(network_of(steady, seen), [2, 2, 2, 2, 3], denoising_steps=2, max_new_tokens=6)
    # places 5, 6, 7: two, then one; then 8..11, of which 11 is cut; the prompt's own mask id stays
    assert seen[:2] == [[2, 2, 2, 2, 3, 3, 3, 3], [2, 2, 2, 2, 3, 2, 0, 3]]
    assert out.token_ids == [2, 0, 1, 2, 0, 1] and out.revealed_at == [1, 1, 2, 4, 3, 3]
    assert (out.forwards_fused, out.commits_unfused, out.forwards_unfused) == (4, 1, 6)
    assert run(network_of(steady), [2, 2, 2], max_new_tokens=1).forwards_unfused == 1  # no full block: no prefill


def test_forwards_of_one_full_block_each() -> None:
    out = run(network_of(steady), [1, 1, 1, 1], max_new_tokens=12, denoising_steps=4)
    assert (out.forwards_fused, out.commits_unfused, out.forwards_unfused) == (12, 2, 15)
    assert sorted(out.revealed_at) == list(range(1, 13))


def test_masks_and_excluded_ids_are_never_sampled() -> None:
    # the mask has the logit 9 everywhere; token 1 is excluded besides
    out = run(network_of(steady), [], excluded_ids=(1,))
    assert out.token_ids == [0, 0, 2, 0] and MASK_ID not in out.token_ids
    assert out.log_probability[1] == pytest.approx(math.log(0.5))  # .05 against .05
    for step in range(20):
        warm = run(network_of(steady), [], temperature=1.5, seed=step, excluded_ids=(0,))
        assert set(warm.token_ids) <= {1, 2}


def test_dynamic_and_its_fallbacks() -> None:
    def revealed_at(tau: float, fallback: str, steps: int) -> list[int]:
        options = {"confidence_threshold": tau, "dynamic_fallback": fallback, "denoising_steps": steps}
        return run(network_of(steady), [], unmasking="low_confidence_dynamic", **options).revealed_at

    assert revealed_at(0.55, "topk", 4) == [2, 1, 1, 1]
    assert revealed_at(0.4, "topk", 4) == [1, 1, 1, 1]
    assert revealed_at(0.95, "topk", 4) == [4, 1, 2, 3]
    assert revealed_at(0.95, "leftmost", 4) == [1, 2, 3, 4]
    # one above .8 is fewer than the quota of 2: the two best, or the two leftmost
    assert revealed_at(0.8, "topk", 2) == [2, 1, 1, 2]
    assert revealed_at(0.8, "leftmost", 2) == [1, 1, 2, 2]
    # as many as the quota is enough, and they need not be the leftmost
    assert revealed_at(0.65, "leftmost", 2) == [2, 1, 1, 2]


def test_dynamic_needs_more_than_the_threshold_and_threshold_as_much() -> None:
    sure = {i: Reading(0, (0.5, 0.25, 0.5, 0.125)[i], 0, 0, 0, 0, 0) for i in range(4)}
    policy = Policy("low_confidence_dynamic", 0.5, "topk", None, "paper", None)
    assert blocks.revealed_by(sure, 1, policy) == [0]
    assert blocks.revealed_by(sure, 1, policy._replace(unmasking="threshold")) == [0, 2]
    assert blocks.revealed_by(sure, 1, policy._replace(unmasking="factor", factor=1.4)) == [0]  # .5 < 1 - 1.4 / 3
    assert blocks.revealed_by(sure, 1, policy._replace(unmasking="factor", factor=1.5)) == [0, 2]
    assert blocks.revealed_by(sure, 9, policy._replace(unmasking="sequential")) == [0, 1, 2, 3]


def test_each_policy_ranks_by_its_own_number() -> None:
    # (token, confidence, margin, uncertainty, draw, ...) of three places
    news = {
        5: Reading(0, 0.2, 0.3, 0.9, 0.1, 0, 0),
        6: Reading(0, 0.9, 0.2, 0.8, 0.7, 0, 0),
        7: Reading(0, 0.5, 0.2, 0.1, 0.7, 0, 0),
    }
    orders = {
        "low_confidence_static": [6, 7, 5],
        "sequential": [5, 6, 7],
        "margin": [5, 6, 7],
        "entropy": [7, 6, 5],
        "random": [6, 7, 5],
    }
    for name, order in orders.items():
        policy = Policy(name, None, "topk", None, "paper", None)
        for quota in (0, 1, 2, 3, 8):
            assert blocks.revealed_by(news, quota, policy) == order[:quota], name


def test_both_entropy_rules_by_hand() -> None:
    # sorted: place 4 (.1), 2 (.2), 1 (.3), 3 (.3); the sums before each are 0, .1, .3, .6, those after .1, .3, .6, .9
    entropies = {1: 0.3, 2: 0.2, 3: 0.3, 4: 0.1}
    for bound, paper, jetengine in ((0.0, 1, 1), (0.05, 1, 1), (0.15, 2, 1), (0.35, 3, 2), (0.65, 4, 3), (1.0, 4, 4)):
        assert blocks.within_bound(entropies, bound, "paper") == [4, 2, 1, 3][:paper], bound
        assert blocks.within_bound(entropies, bound, "jetengine") == [4, 2, 1, 3][:jetengine], bound
    # at equality: the paper's sum may reach the bound, JetEngine's may not
    assert len(blocks.within_bound({0: 0.25, 1: 0.5}, 0.25, "paper")) == 2
    assert len(blocks.within_bound({0: 0.25, 1: 0.5}, 0.75, "jetengine")) == 1


@pytest.mark.parametrize("policy", [{"unmasking": "entropy_bound", "entropy_bound": 0.0}, {"unmasking": "threshold"}])
def test_the_last_step_reveals_whatever_is_left(policy: dict[str, Any]) -> None:
    out = run(network_of(steady), [], denoising_steps=2, confidence_threshold=1.0, **policy)
    assert out.revealed_at == [2, 1, 2, 2]
    assert run(network_of(steady), [], confidence_threshold=1.0, **policy).revealed_at == [4, 1, 2, 3]


LOGS = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
LAW = Law(0.5, 2, 1.0, "unfiltered", 0, 0)


def test_confidences_by_hand() -> None:
    # squared: 16, 9, 4, 1 of 30; after top-2: 16, 9 of 25
    for name, expected in {"untempered": 0.3, "unfiltered": 0.3, "filtered": 9 / 25, "min": 0.4}.items():
        assert blocks.confidence_of(LOGS, 1, LAW._replace(confidence=name)) == pytest.approx(expected), name
    for name, expected in {"untempered": 0.4, "unfiltered": 16 / 30, "filtered": 16 / 25, "min": 0.4}.items():
        assert blocks.confidence_of(LOGS, 0, LAW._replace(confidence=name)) == pytest.approx(expected), name
    assert blocks.confidence_of(LOGS, 3, LAW._replace(confidence="min")) == pytest.approx(1 / 16)
    cold = LAW._replace(temperature=0.0, top_k=1)
    for name, expected in {"untempered": 0.4, "unfiltered": 0.4, "filtered": 1.0, "min": 0.4}.items():
        assert blocks.confidence_of(LOGS, 0, cold._replace(confidence=name)) == pytest.approx(expected), name


def test_margin_entropy_and_reports_by_hand() -> None:
    hot, laws = (16, 9, 4, 1), {"filtered": (16, 9), "untempered": (4, 3, 2, 1)}
    for name in blocks.CONFIDENCES:
        law = laws.get(name, hot)
        shares = [part / sum(law) for part in law]
        found = blocks.reading(LOGS, 0, 0, LAW._replace(confidence=name), greedy=True)
        assert found.margin == pytest.approx(shares[0] - shares[1]), name
        assert found.uncertainty == pytest.approx(-sum(p * math.log(p) for p in shares)), name
        assert found.log_probability == pytest.approx(math.log(16 / 30)), name
        assert found.entropy == pytest.approx(-sum(p / 30 * math.log(p / 30) for p in hot)), name


def test_draws_go_down_from_the_most_likely_token() -> None:
    row = [LOGS[3], LOGS[0], LOGS[2], LOGS[1]]  # .1, .4, .2, .3
    law = LAW._replace(temperature=1.0, top_k=0)
    edges = {0.0: 1, 0.39: 1, 0.41: 3, 0.69: 3, 0.71: 2, 0.89: 2, 0.91: 0, 1 - 1e-16: 0}
    assert {u: blocks.drawn(row, u, law) for u in edges} == edges
    # top-3 keeps .4, .3, .2 of .9; top-p .6 keeps .4 and .3; T = 1/2 squares
    assert [blocks.drawn(row, u, law._replace(top_k=3)) for u in (0.44, 0.45, 0.77, 0.78, 0.999)] == [1, 3, 3, 2, 2]
    assert [blocks.drawn(row, u, law._replace(top_p=0.6)) for u in (0.57, 0.58, 0.999)] == [1, 3, 3]
    assert [blocks.drawn(row, u, law._replace(temperature=0.5)) for u in (0.53, 0.54)] == [1, 3]
    assert [blocks.drawn([0.0, 0.0, -math.inf], u, law) for u in (0.4, 0.5, 0.6)] == [0, 1, 1]


def test_each_place_and_step_has_a_draw_of_its_own() -> None:
    # two equally likely tokens: u < 1/2 is token 0; one place a step, from the left, in the second block too
    even = network_of(lambda _, i: [0.0, 0.0, -50.0, 0.0])
    options = {"temperature": 1.0, "seed": 5, "max_new_tokens": 7, "unmasking": "sequential"}
    for sample in range(4):
        out = run(even, [2], sample=sample, **options)
        draws = [float(uniform(Purpose.TOKEN, 5, sample, place, place - 1)) for place in range(1, 8)]
        assert out.token_ids == [0 if u < 0.5 else 1 for u in draws]
    assert run(even, [2], **options) == run(even, [2], **options)
    assert run(even, [2], **options).token_ids != run(even, [2], sample=1, **options).token_ids
    # random reveals the largest draws first
    out = run(even, [], unmasking="random", denoising_steps=4, seed=5, sample=1)
    left = [0, 1, 2, 3]
    for step in range(4):
        best = max(left, key=lambda place: float(uniform(Purpose.REVEAL, 5, 1, place, step)))
        assert out.revealed_at[best] == step + 1
        left.remove(best)


def test_stopping() -> None:
    order = network_of(steady)
    # tokens 0 1 2 0 1 2 0 1, revealed sequentially: the row ends with its stop token
    out = run(order, [], unmasking="sequential", max_new_tokens=8, stop_token_ids=(2,))
    assert (out.token_ids, out.finish_reason, out.forwards_fused) == ([0, 1, 2], "stop", 3)
    # by confidence place 2 comes second, place 0 last: the stop token waits for the places before it
    out = run(order, [], max_new_tokens=8, stop_token_ids=(2,))
    assert (out.token_ids, out.revealed_at, out.forwards_fused) == ([0, 1, 2], [4, 1, 2], 4)
    # the prompt's stop tokens do not count, the one behind the last token neither
    out = run(order, [2, 2], unmasking="sequential", max_new_tokens=3, stop_token_ids=(2,))
    assert (out.token_ids, out.finish_reason) == ([2], "stop")
    out = run(order, [], unmasking="sequential", max_new_tokens=2, stop_token_ids=(2,))
    assert (out.token_ids, out.finish_reason, out.forwards_fused) == ([0, 1], "length", 2)
    # the last token may be the stop token; places beyond the length are denoised with their block and cut
    assert run(order, [], max_new_tokens=3, stop_token_ids=(2,)).finish_reason == "stop"
    assert run(order, [], max_new_tokens=1, unmasking="low_confidence_static").revealed_at == [4]


def test_the_penalty_by_hand() -> None:
    assert blocks.processed([2.0, -2.0, 4.0, 1.0], {0, 1, 3}, [3], 2.0) == [1.0, -4.0, 4.0, -math.inf]
    # token 0 (2) before token 1 (1.5) before token 2 (1.2): each is penalised once it stands in the row
    row = network_of(lambda _, i: [2.0, 1.5, 1.2, 9.0])
    options = {"repetition_penalty": 2.0, "unmasking": "sequential"}
    assert run(row, [], **options).token_ids == [0, 1, 2, 0]
    assert run(row, [0], **(options | {"max_new_tokens": 3})).token_ids == [1, 2, 0]
    assert run(row, [], **(options | {"denoising_steps": 2})).token_ids == [0, 0, 1, 1]
    out = run(row, [0], **(options | {"max_new_tokens": 1}))
    assert out.log_probability[0] == pytest.approx(1.5 - math.log(sum(math.exp(z) for z in (1.0, 1.5, 1.2))))


def test_edits_by_hand() -> None:
    def changing(ids: list[int], i: int) -> list[float]:
        # place 0 is sure of token 0 until place 3 is visible, then .8 for token 1
        return peaked(0, 0.99) if i or ids[3] == MASK_ID else peaked(1, 0.8)

    options = {"unmasking": "sequential", "denoising_steps": 4}
    seen: list[list[int]] = []
    out = run(network_of(changing, seen), [], edit_threshold=0.7, **options)
    # steps 1-4 reveal, step 5 edits, step 6 edits nothing
    assert (out.token_ids, out.revealed_at, out.forwards_fused) == ([1, 0, 0, 0], [5, 2, 3, 4], 6)
    assert out.log_probability[0] == pytest.approx(math.log(0.8)) and seen[4:] == [[0, 0, 0, 0], [1, 0, 0, 0]]
    for tau, steps in ((0.85, 5), (None, 4)):
        out = run(network_of(changing), [], edit_threshold=tau, **options)
        assert (out.token_ids[0], out.revealed_at[0], out.forwards_fused) == (0, 1, steps)
    assert run(network_of(changing), [], edit_threshold=0.7, edit_steps=0, **options).forwards_fused == 4
    # a prompt token is never edited
    assert run(network_of(changing), [0], edit_threshold=0.7, max_new_tokens=3, **options).forwards_fused == 4


def test_edits_happen_while_masks_remain_and_end_the_row_with_a_block() -> None:
    def late(ids: list[int], i: int) -> list[float]:
        # place 0 proposes the stop token 2, and takes it back once place 1 is visible
        return peaked(2 if i == 0 and ids[1] == MASK_ID else 0, 0.9)

    out = run(network_of(late), [], unmasking="sequential", stop_token_ids=(2,), edit_threshold=0.5)
    assert (out.token_ids, out.revealed_at, out.forwards_fused) == ([0, 0, 0, 0], [3, 2, 3, 4], 5)
    assert run(network_of(late), [], unmasking="sequential", stop_token_ids=(2,)).token_ids == [2]


def test_endless_edits_are_cut_off() -> None:
    restless = network_of(lambda ids, i: peaked(1 if ids[i] == 0 else 0, 0.9))
    for limit in (1, 2, 5):
        out = run(restless, [], denoising_steps=1, edit_threshold=0.5, edit_steps=limit)
        assert out.forwards_fused == 1 + limit and out.revealed_at == [1 + limit] * 4
        assert out.token_ids == [limit % 2] * 4


def test_edits_take_the_argmax_at_every_temperature() -> None:
    # the first step draws other tokens, too; the second puts them right
    steady_row = network_of(lambda _, i: peaked(1, 0.7))
    for seed in range(8):
        out = run(steady_row, [], temperature=1.0, seed=seed, edit_threshold=0.5, denoising_steps=1)
        drawn = run(steady_row, [], temperature=1.0, seed=seed, denoising_steps=1).token_ids
        assert out.token_ids == [1, 1, 1, 1]
        assert out.revealed_at == [1 if token == 1 else 2 for token in drawn]
        assert out.forwards_fused == (2 if drawn == [1, 1, 1, 1] else 3)


def published(model: Any, prompt: list[int], count: int, block_length: int, steps: int) -> tuple[list[int], int]:
    """SDAR's loop with a cache, greedy and static: a prefill, then each block and a commit; (tokens, forwards)."""
    cache, full = DynamicCache(config=model.config), len(prompt) // block_length * block_length
    forwards = 0

    def forward(ids: list[int], start: int, sees: Any) -> torch.Tensor:
        nonlocal forwards
        forwards += 1
        positions = torch.arange(start, start + len(ids))[None]
        return model(torch.tensor([ids]), sees, positions, cache, use_cache=True).logits[0]

    if full:
        mask = block_decode(list(range(full)), list(range(full)), block_length)
        forward(prompt[:full], 0, torch.tensor([[mask]]))
    text = list(prompt)
    while len(text) < len(prompt) + count:
        start = len(text) // block_length * block_length
        text += [MASK] * (start + block_length - len(text))
        everything = torch.ones(1, 1, block_length, start + block_length, dtype=torch.bool)
        for quota in llada.quotas(block_length, steps):
            masked = [i for i in range(block_length) if text[start + i] == MASK]
            if masked:
                logits = forward(text[start:], start, everything)
                cache.crop(-block_length)  # the keys of a block that is not finished are not kept
                logits[:, MASK] = -math.inf
                sure, tokens = logits.softmax(-1).max(-1)
                for i in sorted(masked, key=lambda i: -float(sure[i]))[:quota]:
                    text[start + i] = int(tokens[i])
        forward(text[start:], start, everything)
    return text[len(prompt) : len(prompt) + count], forwards


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("length", [2, 4, 7])
def test_the_published_loop_with_a_cache_writes_the_same(family: str, length: int) -> None:
    model, prompt = stock(family), [token for token in IDS if token != MASK][:length]
    for steps in (1, 2, 3, 4):
        out = run(model, prompt, max_new_tokens=9, denoising_steps=steps, mask_token_id=MASK)
        # the loop goes on behind the last token, and commits the last block, too
        whole = run(model, prompt, max_new_tokens=12 - length % 4, denoising_steps=steps, mask_token_id=MASK)
        tokens, forwards = published(model, prompt, 12 - length % 4, 4, steps)
        assert out.token_ids == tokens[:9] and whole.token_ids == tokens
        assert whole.forwards_unfused == forwards - 1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_one_block_over_everything_is_the_canvas(family: str) -> None:
    model, prompt = stock(family), IDS[:3]

    def whole(ids: list[int]) -> torch.Tensor:
        everything = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
        with torch.no_grad():
            return model(torch.tensor([ids]), attention_mask=everything, use_cache=False).logits[0]

    for tau in (0.3, 0.6, 0.95):
        options = {"unmasking": "threshold", "confidence_threshold": tau, "mask_token_id": MASK}
        out = run(model, prompt, max_new_tokens=8, block_length=11, **options)
        expected = llada.threshold(whole, prompt, 8, 8, MASK, tau, excluded=[MASK])
        assert prompt + out.token_ids == expected.canvas and out.forwards_fused == expected.forwards
        steps = llada.reveal_step_of(expected.trace)
        assert out.revealed_at == [steps[place] + 1 for place in range(3, 11)]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_block_length_one_is_the_causal_loop(family: str) -> None:
    model, text = stock(family), IDS[:3]
    totals: list[float] = []
    for _ in range(8):
        with torch.no_grad():
            logits = model(torch.tensor([[*text, MASK]]), use_cache=False).logits[0, -1]
        logits[MASK] = -math.inf
        totals.append(float(logits.log_softmax(-1).max()))
        text = [*text, int(logits.argmax())]
    out = run(model, IDS[:3], max_new_tokens=8, block_length=1, mask_token_id=MASK)
    assert out.token_ids == text[3:] and out.log_probability == pytest.approx(totals, abs=1e-9)
    assert (out.forwards_fused, out.commits_unfused, out.forwards_unfused) == (8, 7, 16)


def test_later_blocks_never_change_earlier_ones() -> None:
    model = stock("qwen3")
    short = run(model, IDS[:5], max_new_tokens=7, mask_token_id=MASK, temperature=0.8)
    long = run(model, IDS[:5], max_new_tokens=15, mask_token_id=MASK, temperature=0.8)
    for field in ("token_ids", "revealed_at", "log_probability", "entropy"):
        assert getattr(long, field)[:7] == pytest.approx(getattr(short, field), abs=1e-9)
    assert (short.forwards_fused, long.forwards_fused) == (7, 15)


def test_wrong_names_are_refused() -> None:
    for wrong in ({"unmasking": "best"}, {"confidence": "sure"}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            run(network_of(steady), [], **wrong)
