"""Block decoding against a slow reference that recomputes the whole text, one row at a time."""

import copy
import dataclasses
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.references import blocks as reference
from unmask.decoding.blocks import BlockRun
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.step import Generated, Row, StopRule
from unmask.errors import SettingsError
from unmask.models.backbone import Backbone
from unmask.settings.decoding import SamplingParams

NEW_TOKENS = 11
PROMPTS = [[3], [3, 1, 4, 1], [5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8]]
STRATEGIES: list[dict[str, Any]] = [
    {"unmasking": "low_confidence_static"},
    {"unmasking": "low_confidence_static", "denoising_steps": 3},
    {"unmasking": "low_confidence_dynamic", "confidence_threshold": 0.3},
    {"unmasking": "low_confidence_dynamic", "confidence_threshold": 0.3, "denoising_steps": 2},
    {"unmasking": "low_confidence_dynamic", "confidence_threshold": 0.4, "dynamic_fallback": "leftmost"},
    {"unmasking": "sequential"},
    {"unmasking": "sequential", "denoising_steps": 3},
    {"unmasking": "entropy_bound", "entropy_bound": 2.0},
    {"unmasking": "entropy_bound", "entropy_bound": 2.0, "entropy_rule": "jetengine"},
    {"unmasking": "entropy_bound", "entropy_bound": 0.01, "denoising_steps": 2},
    {"unmasking": "random", "denoising_steps": 2},
    {"unmasking": "margin", "denoising_steps": 2},
    {"unmasking": "entropy"},
    {"unmasking": "threshold", "confidence_threshold": 0.25},
    {"unmasking": "threshold", "confidence_threshold": 0.9, "denoising_steps": 2},
    {"unmasking": "factor", "factor": 2.0},
]
DRAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "confidence": "untempered"},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.8, "confidence": "filtered"},
    {"temperature": 0.8, "confidence": "min"},
]


@functools.cache
def model(seed: int = 0, block_length: int = 4) -> Backbone:
    return tiny.backbone("block_diffusion", seed=seed, block_length=block_length)


@functools.cache
def stock(seed: int = 0) -> Any:
    """The same weights in the stock class with its own attention."""
    network = copy.deepcopy(model(seed).network)
    network.set_attn_implementation("sdpa")
    return network


def resolved(**options: Any) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": NEW_TOKENS, "trace": True} | options)).resolved(
        {"block_length": 4}, "blocks"
    )


def run(
    prompts: list[list[int]], params: SamplingParams, stop: StopRule | None = None, seed: int = 0
) -> list[Generated]:
    rows = [Row(tuple(prompt), number % 2, params.seed) for number, prompt in enumerate(prompts)]
    decoding = BlockRun(model(seed), rows, params, stop or StopRule())
    while not decoding.done:
        decoding.advance()
    return decoding.results()


def expected(prompt: list[int], number: int, params: SamplingParams, stops: tuple[int, ...] = (), seed: int = 0) -> Any:
    names = ("max_new_tokens", "block_length", "denoising_steps", "unmasking", "temperature", "top_k", "top_p", "seed")
    names += ("confidence", "confidence_threshold", "dynamic_fallback", "entropy_bound", "entropy_rule", "factor")
    names += ("repetition_penalty", "edit_threshold")
    options = {name: value for name in names if (value := getattr(params, name)) is not None}
    if params.edit_steps is not None:
        options["edit_steps"] = params.edit_steps
    mask = model(seed).diffusion.mask_token_id
    with torch.inference_mode():
        return reference.generate(
            stock(seed),
            prompt,
            mask_token_id=mask,
            excluded_ids=(mask,),
            sample=number % 2,
            stop_token_ids=stops,
            **options,
        )


def assert_equal(found: Generated, wanted: Any) -> None:
    assert list(found.token_ids) == wanted.token_ids
    assert found.finish_reason == wanted.finish_reason
    assert list(found.revealed_at) == wanted.revealed_at
    torch.testing.assert_close(list(found.log_probability), wanted.log_probability, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(list(found.entropy), wanted.entropy, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda one: "-".join(map(str, one.values())))
def test_every_strategy_writes_the_reference_in_batches(strategy: dict[str, Any]) -> None:
    for draw in DRAWS:
        params = resolved(**strategy, **draw, seed=5)
        together = run(PROMPTS, params)
        unfused = run(PROMPTS, dataclasses.replace(params, fused_commit=False))
        for number, (prompt, found, apart) in enumerate(zip(PROMPTS, together, unfused, strict=True)):
            wanted = expected(prompt, number, params)
            assert_equal(found, wanted)
            assert_equal(apart, wanted)
            assert (found.forwards, found.commits) == (wanted.forwards_fused, 0)
            assert apart.forwards == wanted.forwards_unfused
            assert apart.commits == wanted.forwards_unfused - wanted.forwards_fused


@pytest.mark.parametrize(
    "options",
    [
        {"edit_threshold": 0.2},
        {"edit_threshold": 0.2, "edit_steps": 1},
        {"edit_threshold": 0.15, "edit_steps": 0, "temperature": 1.0},
        {"edit_threshold": 0.25, "temperature": 0.9, "repetition_penalty": 1.4},
        {"repetition_penalty": 1.8, "temperature": 1.0},
        {"repetition_penalty": 0.6},
    ],
    ids=str,
)
def test_edits_and_the_repetition_penalty_write_the_reference(options: dict[str, Any]) -> None:
    params = resolved(**options, confidence_threshold=0.3)
    for number, (prompt, found) in enumerate(zip(PROMPTS, run(PROMPTS, params), strict=True)):
        assert_equal(found, expected(prompt, number, params))


def test_edits_change_tokens_that_were_revealed() -> None:
    plain, edited = (run(PROMPTS, resolved(unmasking="random", **one)) for one in ({}, {"edit_threshold": 0.1}))
    assert [one.token_ids for one in plain] != [one.token_ids for one in edited]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 22), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 9), st.data()
)
def test_a_row_stops_where_the_reference_stops(prompts: list[list[int]], new_tokens: int, data: st.DataObject) -> None:
    strategy = data.draw(st.sampled_from(STRATEGIES))
    temperature, stop = data.draw(st.sampled_from([0.0, 1.0])), data.draw(st.integers(0, 22))
    params = resolved(**strategy, max_new_tokens=new_tokens, temperature=temperature)
    for number, found in enumerate(run(prompts, params, StopRule(frozenset({stop})))):
        wanted = expected(prompts[number], number, params, (stop,))
        assert_equal(found, wanted)
        assert found.forwards == wanted.forwards_fused


def test_static_decoding_takes_one_forward_less_per_block_when_the_commit_is_fused() -> None:
    params = resolved(unmasking="low_confidence_static", max_new_tokens=12)
    (fused,), (apart,) = (run([[1, 2, 3, 4]], dataclasses.replace(params, fused_commit=one)) for one in (True, False))
    assert (fused.forwards, fused.commits) == (3 * 4, 0)
    # Each of three blocks has a forward for the keys before it: the prompt's, the first block's, the second's.
    assert (apart.forwards, apart.commits) == (3 * 5, 3)
    assert fused.token_ids == apart.token_ids


def test_cached_and_uncached_steps_see_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {"exact": [], "none": []}
    original = Backbone.logits
    for cache, logits in seen.items():

        def spy(self: Backbone, hidden_RD: torch.Tensor, logits: list[torch.Tensor] = logits) -> torch.Tensor:
            logits.append(original(self, hidden_RD))
            return logits[-1]

        monkeypatch.setattr(Backbone, "logits", spy)
        run(PROMPTS, resolved(cache=cache, temperature=1.0))
    assert len(seen["exact"]) == len(seen["none"]) > 4
    for one, other in zip(seen["exact"], seen["none"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_rows_at_different_blocks_equal_single_rows() -> None:
    params = resolved(confidence_threshold=0.3, temperature=1.0, max_new_tokens=20)
    together = run(PROMPTS, params, StopRule(frozenset({7})))
    assert len({one.forwards for one in together}) > 1
    for number, prompt in enumerate(PROMPTS):
        rows = [Row(tuple(prompt), number % 2, params.seed)]
        alone = BlockRun(model(), rows, params, StopRule(frozenset({7})))
        while not alone.done:
            alone.advance()
        assert alone.results()[0].token_ids == together[number].token_ids
        assert alone.results()[0].forwards == together[number].forwards


def test_blocks_of_one_token_are_decoded_token_by_token() -> None:
    network, mask = stock(), model().diffusion.mask_token_id
    assert mask is not None
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(NEW_TOKENS):
            ids = torch.tensor([[*text, mask]])
            with torch.inference_mode():
                logits = network(input_ids=ids).logits[0, -1]  # causal: the mask sees the text and itself
                logits[mask] = -math.inf
            text.append(int(logits.argmax()))
        (found,) = run([prompt], resolved(block_length=1))
        assert list(found.token_ids) == text[len(prompt) :]
        assert found.forwards == NEW_TOKENS


@pytest.mark.parametrize("options", [{}, {"denoising_steps": 5}, {"unmasking": "margin"}, {"unmasking": "entropy"}])
def test_one_block_over_everything_is_canvas_decoding(options: dict[str, Any]) -> None:
    options = {"unmasking": "low_confidence_static"} | options
    # Blocks share their steps out over the prompt's places as well, a canvas over the masked ones only.
    for prompt in [[]] if "denoising_steps" in options else PROMPTS:
        blocks = SamplingParams(
            max_new_tokens=NEW_TOKENS, block_length=len(prompt) + NEW_TOKENS, confidence="untempered", **options
        )
        canvas = SamplingParams(max_new_tokens=NEW_TOKENS, **options)
        row = [Row(tuple(prompt), 0, 0)]
        runs = [
            BlockRun(model(), row, blocks.resolved({}, "blocks"), StopRule()),
            CanvasRun(model(), row, canvas.resolved({}, "canvas"), StopRule()),
        ]
        for one in runs:
            while not one.done:
                one.advance()
        by_blocks, by_canvas = (one.results()[0] for one in runs)
        assert by_blocks.token_ids == by_canvas.token_ids
        assert by_blocks.revealed_at == by_canvas.revealed_at


def test_a_step_shows_what_is_new_and_what_is_masked() -> None:
    decoding = BlockRun(model(), [Row((1, 2, 3, 4, 5), 0, 0)], resolved(unmasking="low_confidence_static"), StopRule())
    shown = []
    while not decoding.done:
        decoding.advance()
        shown.append(decoding.observe(0))
    assert [len(one.canvas) for one in shown[:3]] == [3, 3, 3]
    assert [one.canvas.count(None) for one in shown[:3]] == [2, 1, 0]
    assert [one.forwards for one in shown] == list(range(1, len(shown) + 1))
    assert all(len(one.revealed) == 1 for one in shown)
    for before, after in itertools.pairwise(shown):
        assert set(after.revealed).isdisjoint(place for place, token in enumerate(before.canvas) if token is not None)
        assert all(math.isnan(c) == (token is None) for token, c in zip(after.canvas, after.confidence, strict=True))
    assert shown[-1].canvas == decoding.results()[0].token_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": None}, "needs block_length"),
        ({"denoising_steps": 5}, "at most the places of a block"),
        ({"unmasking": "ancestral"}, "belongs to canvas decoding"),
        ({"cache": "dual"}, "caches exact and none"),
        ({"edit_steps": 3}, "edit_steps needs edit_threshold"),
        ({"cfg_scale": 1.0}, "cfg_scale is not used by blocks"),
        ({"unmasking": "sequential", "confidence_threshold": 0.5}, "confidence_threshold is used by"),
        ({"dynamic_fallback": "topk", "unmasking": "margin"}, "dynamic_fallback is used by"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SamplingParams(**options).resolved({} if "block_length" in options else {"block_length": 4}, "blocks")
