"""Steps say what a forward did: which positions are new, one distribution behind every figure, what is settled."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from tests import tiny
from unmask import DiffusionLM, SamplingParams
from unmask.decoding import unmasking
from unmask.decoding.blocks import BlockRun
from unmask.decoding.candidates import Keys, candidates, drawn, filtered, inverse_cdf
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.step import Ending, Row, Run, StopRule
from unmask.errors import NonFiniteError
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer
from unmask.reports.replay import Frame
from unmask.reports.traces import frame
from unmask.settings.objective import ObjectiveSettings

PROMPT = [3, 1, 4, 1, 5]
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("autoregressive", {}),
    ("autoregressive", {"repetition_penalty": 1.7}),
    ("masked_diffusion", {}),
    ("masked_diffusion", {"cfg_scale": 0.7}),
    ("masked_diffusion", {"suppress_eos": True}),
    ("masked_diffusion", {"defer_eos": True}),
    ("masked_diffusion", {"unmasking": "margin"}),
    ("masked_diffusion", {"unmasking": "entropy", "suppress_eos": True}),
    ("masked_diffusion", {"unmasking": "ancestral", "remask": "cap"}),
    ("block_diffusion", {"repetition_penalty": 1.7}),
    ("block_diffusion", {"edit_threshold": 0.1}),
    ("block_diffusion", {"fused_commit": False}),
    ("tidar", {"repetition_penalty": 1.7}),
    ("tidar", {"mode": "linear"}),
    ("tidar", {"trust": 0.4}),
]
STEP_WAYS = [
    ("autoregressive", {}),
    ("masked_diffusion", {}),
    ("masked_diffusion", {"block_length": 4, "denoising_steps": 2}),
    ("block_diffusion", {}),
    ("block_diffusion", {"fused_commit": False}),
    ("block_diffusion", {"fused_commit": False, "denoising_steps": 2}),
    ("block_diffusion", {"cache": "none"}),
    ("tidar", {}),
    ("tidar", {"mode": "linear"}),
]


def lm_of(method: str, *, with_text: bool = False) -> DiffusionLM:
    blocks = {"block_length": 4} if method in ("block_diffusion", "tidar") else {}
    if not with_text:
        return DiffusionLM(tiny.checkpoint(method, **blocks))
    made = adapted(create(tiny.SHAPE, byte_tokenizer(), seed=0), ObjectiveSettings(method=method, **blocks))  # type: ignore[arg-type]
    return DiffusionLM(Checkpoint(made.backbone.double().eval(), made.tokenizer))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.6}], ids=str)
@pytest.mark.parametrize(("method", "options"), WAYS, ids=str)
def test_confidence_and_log_probability_are_of_one_distribution(
    method: str, options: dict[str, Any], filters: dict[str, Any], temperature: float
) -> None:
    lm = lm_of(method, with_text=True)
    params = SamplingParams(
        max_new_tokens=12, temperature=temperature, seed=3, ignore_eos=True, trace=True, **options, **filters
    )
    (output,) = lm.generate("abc", params)
    assert output.log_probability is not None and output.confidence is not None and output.entropy is not None
    assert [math.exp(value) for value in output.log_probability] == pytest.approx(output.confidence, abs=1e-9)
    assert all(0 <= value <= math.log(lm.backbone.diffusion.vocabulary_size) for value in output.entropy)


@pytest.mark.parametrize(
    ("method", "options"), [way for way in WAYS if way[0] in ("masked_diffusion", "block_diffusion")]
)
def test_an_unfiltered_confidence_is_the_log_probability_at_any_temperature(
    method: str, options: dict[str, Any]
) -> None:
    lm = lm_of(method, with_text=True)
    params = SamplingParams(
        max_new_tokens=12, temperature=0.6, seed=3, ignore_eos=True, trace=True, confidence="unfiltered", **options
    )
    (output,) = lm.generate("abc", params)
    assert output.log_probability is not None
    assert [math.exp(value) for value in output.log_probability] == pytest.approx(output.confidence, abs=1e-9)


@pytest.mark.parametrize(("method", "options"), STEP_WAYS, ids=str)
def test_every_position_is_new_once(method: str, options: dict[str, Any]) -> None:
    lm = lm_of(method)
    steps = list(lm.stream(PROMPT, SamplingParams(max_new_tokens=13, **options)))
    new = [place for step in steps for place in step.revealed if place < len(steps[-1].canvas)]
    assert sorted(new) == list(range(13))
    for before, after in itertools.pairwise(steps):
        fresh = {at for at, token in enumerate(after.canvas) if token is not None}
        fresh -= {at for at, token in enumerate(before.canvas) if token is not None}
        assert set(after.revealed) == fresh


def test_a_row_that_took_no_part_has_nothing_new() -> None:
    rows = [Row(tuple(PROMPT), 0, 0), Row((7,), 0, 0)]
    blocks = SamplingParams(max_new_tokens=8, denoising_steps=2).resolved({"block_length": 4}, "blocks")
    canvas = SamplingParams(max_new_tokens=8).resolved({}, "canvas")
    for kind, method, params in ((BlockRun, "block_diffusion", blocks), (CanvasRun, "masked_diffusion", canvas)):
        model = lm_of(method).backbone
        first = finished(kind(model, rows, params, StopRule()))[0]  # type: ignore[arg-type]
        stop = StopRule(frozenset({first.token_ids[0]}))
        run: Run = kind(model, rows, params, stop)  # type: ignore[assignment]
        seen = []
        while not run.done:
            run.advance()
            seen.append(run.observe(0).revealed)
        lengths = [index for index, new in enumerate(seen) if new]
        result = run.results()[0]
        assert len(lengths) <= result.forwards and len(seen) >= result.forwards
        assert all(new == () for new in seen[result.forwards :])


def finished(run: Run) -> list[Any]:
    while not run.done:
        run.advance()
    return run.results()


def test_nothing_is_settled_while_it_may_be_masked_again() -> None:
    """Under remasking no text is known for good before the last step, and no stop ends it early."""
    lm = lm_of("masked_diffusion")
    params = SamplingParams(max_new_tokens=12, unmasking="ancestral", remask="rescale", remask_eta=0.9, seed=2)
    steps = list(lm.stream(PROMPT, params))
    assert [step.settled for step in steps[:-1]] == [0] * (len(steps) - 1)
    assert steps[-1].settled == 12
    taken_back = [
        at
        for before, after in itertools.pairwise(steps)
        for at, token in enumerate(before.canvas)
        if token is not None and after.canvas[at] != token
    ]
    assert taken_back, "this seed masks positions again"
    first = steps[-1].canvas[0]
    assert first is not None
    early = dataclasses.replace(
        params, stop_token_ids=tuple(sorted({token for s in steps for token in s.canvas[:1] if token}))
    )
    (output,) = lm.generate([PROMPT], early)
    assert output.forwards == len(steps)
    assert output.token_ids == (first,)


def test_a_threshold_that_is_met_exactly() -> None:
    """low_confidence_dynamic reveals what is more confident (SDAR), threshold what is at least as confident."""
    confidence, masked = torch.tensor([[0.5, 0.75, 0.25, 0.75]]), torch.ones(1, 4, dtype=torch.bool)
    found = unmasking.confident_enough(confidence, masked, 0.75, 1, "leftmost")
    assert found.tolist() == [[True, False, False, False]], "none is above, so the fallback decides"
    assert unmasking.confident_enough(confidence, masked, 0.5, 2, "leftmost").tolist() == [[False, True, False, True]]
    assert unmasking.confident_enough(confidence, masked, 0.5, 3, "leftmost").tolist() == [[True, True, True, False]]
    assert unmasking.above_threshold(confidence, masked, 0.75).tolist() == [[False, True, False, True]]
    assert unmasking.above_threshold(confidence, masked, 0.5).tolist() == [[True, True, False, True]]


def test_top_p_keeps_no_token_once_the_share_is_reached() -> None:
    """0.5 + 0.25 is the share: the tokens before reach it exactly, so the next one is dropped."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    assert filtered(logits, top_k=0, top_p=0.75).isfinite().tolist() == [[True, True, False, False]]
    assert filtered(logits, top_k=0, top_p=0.5).isfinite().tolist() == [[True, False, False, False]]
    assert filtered(logits, top_k=0, top_p=0.51).isfinite().tolist() == [[True, True, False, False]]
    rows = 200
    keys = Keys(0, 0, torch.arange(rows), 0)
    tokens = drawn(logits.expand(rows, -1), temperature=1.0, top_k=0, top_p=0.75, keys=keys)
    assert set(tokens.tolist()) == {0, 1}
    params = SamplingParams(temperature=1.0, top_p=0.5, decoding="blocks").resolved({"block_length": 4}, "blocks")
    assert set(candidates(logits.expand(rows, -1), params, keys, draw=inverse_cdf).token_R.tolist()) == {0}


def test_the_earliest_of_several_stops_ends_the_output() -> None:
    row = Row((1,), 0, 0)
    rule = StopRule(frozenset({7, 9}))
    assert Ending(rule, row).end([1, 2, 9, 7]) == 3
    assert Ending(rule, row).end([7, 9]) == 1
    ending = Ending(rule, row)
    assert ending.end([1, 2]) is None
    assert ending.end([1, 2, 3, 7, 9]) == 4
    lm = lm_of("autoregressive", with_text=True)
    ids = lm.codec.encode("x")
    text = lm.tokenizer("abcdef", add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    for texts, token_ids, end in (
        (("ef", "cd"), (), 4),
        (("cd", "ef"), (), 4),
        (("f",), (text[2],), 3),
        (("b",), (text[4],), 2),
        (("zz",), (), None),
    ):
        rule = StopRule(frozenset(token_ids), texts, (), lm.codec.reader)
        assert Ending(rule, Row(tuple(ids), 0, 0)).end(text) == end
        by_one = Ending(rule, Row(tuple(ids), 0, 0))
        ends = [by_one.end(text[:count]) for count in range(1, len(text) + 1)]
        assert next((one for one in ends if one is not None), None) == end


@pytest.mark.parametrize(("method", "options"), STEP_WAYS, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_distribution_that_is_none_gives_no_tokens(
    method: str, options: dict[str, Any], value: float, temperature: float
) -> None:
    lm = lm_of(method)
    with torch.no_grad():
        lm.backbone.network.get_input_embeddings().weight[4, 0] = value  # type: ignore[operator,index]
    params = SamplingParams(max_new_tokens=8, temperature=temperature, **options)
    with pytest.raises(NonFiniteError, match="distribution for generated token 0 is not finite"):
        lm.generate(PROMPT, params)
    told: list[object] = []
    steps = lm.stream(PROMPT, params)
    with pytest.raises(NonFiniteError):
        told.extend(token for step in steps for token in step.canvas if token is not None)
    assert told == []


@pytest.mark.parametrize("method", ["autoregressive", "tidar", "block_diffusion", "masked_diffusion"])
def test_progress_counts_what_can_be_generated(method: str) -> None:
    lm = lm_of(method)
    frames: list[Frame] = [frame(step, None) for step in lm.stream(PROMPT, SamplingParams(max_new_tokens=16))]
    shares = [one.num_revealed / one.length for one in frames]
    assert {one.length for one in frames} == {16}
    assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] == 1


def test_results_do_not_depend_on_the_batch_in_float32_and_float64() -> None:
    """In bfloat16 matrix products of other shapes round differently, so nothing is promised there."""
    prompts = [PROMPT, [7], [2, 9, 4, 4], [11, 3]]
    for dtype in (torch.float32, torch.float64):
        for method, options in STEP_WAYS:
            lm = lm_of(method)
            lm.backbone.network.to(dtype)  # type: ignore[arg-type]
            for temperature in (0.0, 1.0):
                params = SamplingParams(max_new_tokens=7, temperature=temperature, seed=5, **options)
                together = [one.token_ids for one in lm.generate(prompts, params)]
                assert together == [one.token_ids for one in lm.generate(prompts, params, batch_size=1)]
