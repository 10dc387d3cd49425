"""Convergence against the model run on every canvas again, place by place, under masks made by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from tests import tiny
from unmask.analysis import convergence
from unmask.analysis.convergence import Trace, agreement, traces
from unmask.decoding.step import Step
from unmask.lm import DiffusionLM
from unmask.models.loading import Checkpoint
from unmask.settings.decoding import SamplingParams

MASK = 23
Canvas = list[int | None]


def model_of(method: str, **options: Any) -> DiffusionLM:
    return DiffusionLM(Checkpoint(tiny.backbone(method, **options), None))


def traced(lm: DiffusionLM, prompt: list[int], **options: Any) -> Trace:
    """One text; the model has no tokenizer."""
    (found,) = traces(lm, [prompt], SamplingParams(**options))
    return found


@torch.no_grad()
def likeliest(lm: DiffusionLM, ids: list[int], seen: list[list[bool]]) -> list[int]:
    """The most probable token other than the mask at every row, under a mask of our own."""
    backbone = lm.backbone
    hidden = backbone(torch.tensor([ids]), torch.arange(len(ids))[None], torch.tensor(seen)[None, None])
    logits = backbone.network.get_output_embeddings()(hidden)[0]  # type: ignore[misc]
    logits[:, MASK] = -math.inf
    return logits.argmax(dim=-1).tolist()


def by_hand(
    lm: DiffusionLM, found: Trace, canvases: list[Canvas], *, block: int = 0, ends: bool = False
) -> list[float]:
    """A_k from canvases before each step: bidirectional, or block-causal by `block`; `ends`: with the current block."""
    prompt, final = list(found.prompt), list(found.tokens)
    values = []
    for canvas in canvases:
        ids = prompt + [MASK if one is None else one for one in canvas]
        size, lead = len(ids), len(prompt)
        width = block or size
        in_block = [place // width if not ends else (place - lead) // width for place in range(size)]
        open_blocks = [in_block[lead + n] for n, one in enumerate(canvas) if one is None]
        current = min(open_blocks, default=size)
        if ends:
            seen = [[in_block[k] <= current for k in range(size)] for _ in range(size)]
        else:
            seen = [[in_block[k] <= in_block[q] for k in range(size)] for q in range(size)]
        best = likeliest(lm, ids, seen)
        shift = 1 if lm.backbone.diffusion.logit_shift else 0
        agreed = 0
        for n, token in enumerate(final):
            if canvas[n] is not None:
                agreed += canvas[n] == token
            elif not (block and in_block[lead + n] > current):
                agreed += best[lead + n - shift] == token
        values.append(agreed / len(final))
    return values


def before(found: Trace, places: int) -> list[Canvas]:
    """What stood in a canvas of so many places when each step began."""
    made: list[Canvas] = [[None] * places]
    for step in found.steps[:-1]:
        made.append([*step.canvas, *[None] * (places - len(step.canvas))])
    return made


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("prompt", [[3], [5, 9, 2, 14, 7]])
def test_canvas_decoding(shift: bool, prompt: list[int]) -> None:
    lm = model_of("masked_diffusion", logit_shift=shift)
    found = traced(lm, prompt, max_new_tokens=10, denoising_steps=5)
    expected = by_hand(lm, found, before(found, 10))
    assert agreement(lm, found) == pytest.approx(expected)
    assert len(expected) == len(found.steps) == 5
    assert expected[0] < expected[-1] == 1, "the last greedy step writes what is likeliest"
    result = convergence.convergence(lm, [found])
    assert result["denoising/auc"] == pytest.approx(statistics.fmean(expected))
    assert result["denoising/steps_to_95"] == next(k for k in range(1, 6) if expected[k - 1] >= 0.95)
    assert result["denoising/forwards"] == 5 and result["denoising/tokens_per_forward"] == 2
    assert result["denoising/remasked"] == 0


def test_what_is_drawn_need_not_be_what_is_likeliest() -> None:
    lm = model_of("masked_diffusion")
    found = traced(lm, [3], max_new_tokens=8, denoising_steps=2, temperature=3.0)
    expected = by_hand(lm, found, before(found, 8))
    assert agreement(lm, found) == pytest.approx(expected) and max(expected) < 0.95
    assert convergence.convergence(lm, [found])["denoising/steps_to_95"] == 3, "never within its two steps"


def test_places_behind_an_early_end_were_in_sight() -> None:
    lm = model_of("masked_diffusion")
    whole = traced(lm, [3], max_new_tokens=12, denoising_steps=6, unmasking="sequential")
    stop = whole.tokens[4]
    found = traced(lm, [3], max_new_tokens=12, denoising_steps=6, unmasking="sequential", stop_token_ids=(stop,))
    assert len(found.tokens) <= 5 and found.tokens[-1] == stop
    expected = by_hand(lm, found, before(found, 12))
    assert agreement(lm, found) == pytest.approx(expected)
    cut = by_hand(lm, found, [one[: len(found.tokens)] for one in before(found, 12)])
    assert cut != pytest.approx(expected), "the text alone would be another canvas"


@pytest.mark.parametrize("mode", ["semi_autoregressive_padding", "semi_autoregressive_origin"])
def test_canvases_that_are_revealed_block_by_block(mode: str) -> None:
    lm = model_of("masked_diffusion")
    found = traced(lm, [5, 9], max_new_tokens=9, block_length=4, canvas_mode=mode)
    origin = mode.endswith("origin")
    expected = by_hand(lm, found, before(found, 9), block=4 if origin else 0, ends=origin)
    assert agreement(lm, found) == pytest.approx(expected)
    assert expected[0] <= 4 / 9 if origin else True


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("prompt", [[3, 8, 1, 9], [5, 9, 2, 14, 7, 0]])
def test_block_decoding(prompt: list[int], fused: bool) -> None:
    lm = model_of("block_diffusion", block_length=4)
    new = 16 - len(prompt)
    found = traced(lm, prompt, max_new_tokens=new, denoising_steps=2, fused_commit=fused)
    expected = by_hand(lm, found, before(found, new), block=4)
    assert agreement(lm, found) == pytest.approx(expected)
    first = 4 - len(prompt) % 4
    assert expected[0] <= first / new, "no more than its first block"
    result = convergence.convergence(lm, [found])
    assert result["denoising/auc"] == pytest.approx(statistics.fmean(expected))
    assert result["denoising/forwards"] == len(found.steps)
    assert result["denoising/tokens_per_forward"] == pytest.approx(new / len(found.steps))


def test_block_decoding_by_blocks_of_another_length() -> None:
    lm = model_of("block_diffusion", block_length=4)
    found = traced(lm, [3, 8], max_new_tokens=10, block_length=6, denoising_steps=3)
    assert agreement(lm, found) == pytest.approx(by_hand(lm, found, before(found, 10), block=6))


def test_the_last_block_is_whole_however_many_tokens_are_wanted() -> None:
    lm = model_of("block_diffusion", block_length=4)
    found = traced(lm, [3, 8], max_new_tokens=7, denoising_steps=1)
    # Blocks of 2, 4 and 1 wanted places, each revealed at once: the last is evaluated with three masks more.
    expected = by_hand(lm, found, before(found, 10), block=4)
    assert len(expected) == 3
    assert agreement(lm, found) == pytest.approx(expected) and expected[-1] == 1


def test_an_early_end_inside_a_block() -> None:
    lm = model_of("block_diffusion", block_length=4)
    whole = traced(lm, [3, 8, 1, 9], max_new_tokens=8, denoising_steps=4, unmasking="sequential")
    stop = whole.tokens[5]
    options: dict[str, Any] = {"denoising_steps": 4, "unmasking": "sequential", "stop_token_ids": (stop,)}
    found = traced(lm, [3, 8, 1, 9], max_new_tokens=8, **options)
    assert len(found.tokens) < 8 and found.tokens[-1] == stop
    assert agreement(lm, found) == pytest.approx(by_hand(lm, found, before(found, 8), block=4))


@pytest.mark.parametrize("strategy", ["cap", "rescale", "loop"])
def test_remasked_places_are_predicted_again(strategy: str) -> None:
    lm = model_of("masked_diffusion")
    options: dict[str, Any] = {"remask": strategy, "remask_eta": 0.5, "temperature": 1.0, "denoising_steps": 14}
    found = traced(lm, [4, 2], max_new_tokens=9, unmasking="ancestral", **options)
    canvases = before(found, 9)
    assert agreement(lm, found) == pytest.approx(by_hand(lm, found, canvases))
    later = [*canvases[1:], list(found.tokens)]
    reopened = sum(
        1
        for one, other in zip(canvases, later, strict=True)
        for place in range(9)
        if one[place] is not None and other[place] is None
    )
    assert reopened > 0 and convergence.convergence(lm, [found])["denoising/remasked"] == reopened


def test_means_are_over_texts() -> None:
    lm = model_of("masked_diffusion")
    options: dict[str, Any] = {"max_new_tokens": 6, "denoising_steps": 3}
    params = SamplingParams(temperature=1.0, seed=7, **options)
    several = traces(lm, [[3], [5, 9, 2]], params)
    assert several[0].prompt == (3,) and several[1].prompt == (5, 9, 2)
    alone = [
        traced(lm, prompt, temperature=1.0, seed=7 + number, **options)
        for number, prompt in enumerate([[3], [5, 9, 2]])
    ]
    assert [one.tokens for one in several] == [one.tokens for one in alone], "each from a seed of its own"
    each = [convergence.convergence(lm, [one]) for one in several]
    both = convergence.convergence(lm, several)
    assert both == {name: pytest.approx((each[0][name] + each[1][name]) / 2) for name in both}


def test_guidance_takes_two_forwards_a_step() -> None:
    lm = model_of("masked_diffusion")
    result = convergence.convergence(lm, [traced(lm, [3], max_new_tokens=8, denoising_steps=4, cfg_scale=1.0)])
    assert result["denoising/forwards"] == 8 and result["denoising/tokens_per_forward"] == 1
    assert result["denoising/steps_to_95"] <= 5


def test_tidar_has_forwards_and_tokens_only() -> None:
    lm = model_of("tidar", block_length=4)
    found = traced(lm, [3, 4], max_new_tokens=9)
    result = convergence.convergence(lm, [found])
    assert math.isnan(result["denoising/auc"]) and math.isnan(result["denoising/steps_to_95"])
    assert result["denoising/forwards"] == found.steps[-1].forwards
    assert result["denoising/tokens_per_forward"] == pytest.approx(9 / found.steps[-1].forwards)


def test_no_text_is_nan() -> None:
    lm = model_of("masked_diffusion")
    params = lm.resolved(SamplingParams())
    for nothing in ([], [Trace((3,), params, (Step((), (), (), 1),))]):
        assert all(math.isnan(value) for value in convergence.convergence(lm, nothing).values())
