"""Canvas decoding against the published fixed-length sampler, token for token, and its promises."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import tiny
from tests.references import llada
from unmask import noise
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.step import Generated, Row, StopRule
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.settings.decoding import SamplingParams

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]


def canvas(**options: object) -> SamplingParams:
    return SamplingParams(decoding="canvas", **options).resolved({}, "canvas")  # type: ignore[arg-type]


def run(
    model: Backbone, prompts: list[list[int]], params: SamplingParams, stop: StopRule | None = None
) -> list[Generated]:
    rows = [Row(tuple(prompt), 0, params.seed) for prompt in prompts]
    decoding = CanvasRun(model, rows, params, stop or StopRule())
    while not decoding.done:
        decoding.advance()
    return decoding.results()


def logits_of(model: Backbone) -> Callable[[list[int]], Tensor]:
    """Raw logits of the stock network with every token visible, mask included."""

    @torch.no_grad()
    def logits(ids: list[int]) -> Tensor:
        hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None], None)
        return model.network.get_output_embeddings()(hidden)[0]

    return logits


def published(model: Backbone, prompt: list[int], params: SamplingParams) -> llada.Result:
    mask = model.diffusion.mask_token_id
    seed = params.seed

    def uniforms(step: int, position: int, size: int) -> list[float]:
        return noise.uniform(Purpose.GUMBEL, seed, 0, position, step, torch.arange(size)).tolist()

    if params.unmasking == "threshold":
        return llada.threshold(
            logits_of(model),
            prompt,
            params.max_new_tokens,
            params.max_new_tokens,
            mask,
            params.confidence_threshold,
            params.temperature,
            excluded=[mask],
            noise=uniforms,
        )
    return llada.fixed_length(
        logits_of(model),
        prompt,
        params.max_new_tokens,
        params.denoising_steps or params.max_new_tokens,
        params.max_new_tokens,
        mask,
        params.temperature,
        "random" if params.unmasking == "random" else "low_confidence",
        excluded=[mask],
        noise=uniforms,
        uniform=lambda step, position: float(noise.uniform(Purpose.REVEAL, seed, 0, position, step)),
    )


def without_confidence(found: Generated) -> Generated:
    """All but the probabilities, whose last digits depend on the shapes of the matrices."""
    return dataclasses.replace(found, confidence=())


@pytest.mark.parametrize(
    "options",
    [
        {"denoising_steps": 12},
        {"denoising_steps": 5},
        {"denoising_steps": 1},
        {"denoising_steps": 4, "temperature": 1.0, "seed": 3},
        {"denoising_steps": 7, "unmasking": "random"},
        {"denoising_steps": 4, "unmasking": "random", "temperature": 0.7, "seed": 11},
        {"unmasking": "threshold", "confidence_threshold": 0.3},
        {"unmasking": "threshold", "confidence_threshold": 0.9, "temperature": 1.0, "seed": 2},
    ],
)
def test_tokens_order_and_forwards_equal_the_published_sampler(options: dict[str, object]) -> None:
    model = tiny.backbone("masked_diffusion")
    params = canvas(max_new_tokens=12, **options)
    together = run(model, PROMPTS, params)
    for prompt, found in zip(PROMPTS, together, strict=True):
        expected = published(model, prompt, params)
        assert list(found.token_ids) == expected.canvas[len(prompt) :]
        steps = llada.reveal_step_of(expected.trace)
        assert found.revealed_at == tuple(1 + steps[len(prompt) + place] for place in range(12))
        assert found.forwards == expected.forwards


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 22), min_size=1, max_size=6), min_size=2, max_size=4),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from(["low_confidence", "random", "threshold"]),
    st.sampled_from([0.0, 1.0]),
)
def test_a_batch_equals_its_rows(
    prompts: list[list[int]], places: int, steps: int, unmasking: str, temperature: float
) -> None:
    model = tiny.backbone("masked_diffusion")
    extra: dict[str, object] = {"denoising_steps": min(steps, places)}
    if unmasking == "threshold":
        extra = {"confidence_threshold": 0.4}
    params = canvas(max_new_tokens=places, unmasking=unmasking, temperature=temperature, **extra)
    together = run(model, prompts, params)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = run(model, [prompt], params)
        assert alone.token_ids == found.token_ids
        assert alone.revealed_at == found.revealed_at
        assert alone.forwards == found.forwards


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_squared"])
def test_no_mask_is_returned_and_the_quota_is_met(schedule: str) -> None:
    model = tiny.backbone("masked_diffusion")
    # A model in love with its mask token must still not emit it.
    with torch.no_grad():
        model.head_weight[model.diffusion.mask_token_id] = 50 * model.head_weight[3]
    params = canvas(max_new_tokens=16, denoising_steps=6, reveal_schedule=schedule)
    (found,) = run(model, [[1, 2]], params)
    assert found.forwards == 6
    assert model.diffusion.mask_token_id not in found.token_ids
    assert sorted(set(found.revealed_at)) == list(range(1, 7))


def test_prompt_places_are_never_written() -> None:
    model = tiny.backbone("masked_diffusion")
    decoding = CanvasRun(model, [Row((3, 4, 5), 0, 0), Row((7,), 0, 0)], canvas(max_new_tokens=6), StopRule())
    while not decoding.done:
        decoding.advance()
        assert decoding._canvas_BW[0, :3].tolist() == [3, 4, 5]
        assert decoding._canvas_BW[1, :3].tolist() == [0, 0, 7]


def test_a_row_ends_as_soon_as_all_up_to_its_stop_token_is_revealed() -> None:
    model = tiny.backbone("masked_diffusion")
    params = canvas(max_new_tokens=10)
    free = run(model, PROMPTS, params)
    # Stop at a token that really occurs, and at one that never does.
    for number, stop in itertools.product(range(3), [free[0].token_ids[4], 22]):
        (found,) = run(model, [PROMPTS[number]], params, StopRule(frozenset({stop})))
        tokens, revealed_at = free[number].token_ids, free[number].revealed_at
        ends = [place for place, token in enumerate(tokens) if token == stop]
        moments = [max(revealed_at[: place + 1]) for place in ends]
        if not ends:
            assert without_confidence(found) == without_confidence(free[number])
            continue
        first = min(zip(moments, ends, strict=True))
        assert found.finish_reason == "stop"
        assert found.forwards == first[0]
        assert found.token_ids[-1] == stop
        assert found.token_ids == tokens[: len(found.token_ids)]


def test_finished_rows_leave_and_the_others_go_on_unchanged() -> None:
    model = tiny.backbone("masked_diffusion")
    params = canvas(max_new_tokens=8)
    free = run(model, PROMPTS, params)
    stop = StopRule(frozenset({free[1].token_ids[0]}))
    together = run(model, PROMPTS, params, stop)
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert without_confidence(found) == without_confidence(run(model, [prompt], params, stop)[0])
    assert len({found.forwards for found in together}) > 1


def test_shifted_logits_are_read_one_place_before() -> None:
    model = tiny.backbone("masked_diffusion", logit_shift=True)
    (found,) = run(model, [[1, 2, 3]], canvas(max_new_tokens=5, denoising_steps=1))
    mask = model.diffusion.mask_token_id
    logits = logits_of(model)([1, 2, 3] + [mask] * 5)
    logits[:, mask] = float("-inf")
    assert list(found.token_ids) == logits[2:7].argmax(-1).tolist()


def test_observe_shows_what_each_forward_revealed() -> None:
    model = tiny.backbone("masked_diffusion")
    decoding = CanvasRun(model, [Row((3, 4), 0, 0)], canvas(max_new_tokens=6, denoising_steps=3), StopRule())
    seen: list[int] = []
    for forward in range(1, 4):
        decoding.advance()
        step = decoding.observe(0)
        assert step.forwards == forward
        seen += step.revealed
        assert {place for place, token in enumerate(step.canvas) if token is not None} == set(seen)
        assert all(
            (value != value) == (token is None) for value, token in zip(step.confidence, step.canvas, strict=True)
        )
    assert decoding.done and sorted(seen) == list(range(6))
    result = decoding.results()[0]
    assert step.canvas == result.token_ids
    assert dataclasses.asdict(result)["commits"] == 0
