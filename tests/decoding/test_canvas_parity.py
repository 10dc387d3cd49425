"""Canvas decoding against independent references of the published samplers: tokens, order and forwards, in batches."""

from collections.abc import Sequence

import pytest
import torch

from tests import tiny
from tests.decoding.test_canvas import PROMPTS, canvas, logits_of
from tests.references import canvas as reference
from tests.references import dream, fast_dllm, remdm, transformer
from tests.references.candidates import Rules, shifted
from tests.references.llada import Result, reveal_step_of
from unmask import noise
from unmask.decoding.canvas import CanvasRun
from unmask.decoding.step import Generated, Row, StopRule
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.settings.decoding import SamplingParams

PLACES = 11
EOS = (4, 7)


def decoded(model: Backbone, params: SamplingParams, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[Generated]:
    rows = [Row(tuple(prompt), 0, params.seed) for prompt in prompts]
    run = CanvasRun(model, rows, params, StopRule(eos_ids=EOS))
    while not run.done:
        run.advance()
    return run.results()


def rules_of(model: Backbone, params: SamplingParams) -> Rules:
    """The options in the references' words, with our draws."""
    mask = model.diffusion.mask_token_id
    assert mask is not None
    excluded = (mask, EOS[0]) if params.suppress_eos else (mask,)
    keys = (params.seed, 0)
    return Rules(
        policy={"low_confidence_static": "low_confidence", "ancestral": "low_confidence"}.get(
            params.unmasking or "", params.unmasking or ""
        ),
        tau=params.confidence_threshold or 0.0,
        factor=params.factor or 0.0,
        temperature=params.temperature,
        top_k=params.top_k or 0,
        top_p=params.top_p or 1.0,
        filters=params.filter_order or "top_k_first",
        confidence=params.confidence or "untempered",
        excluded=excluded,
        late=EOS if params.defer_eos else (),
        noise=lambda step, position, size: noise.uniform(
            Purpose.GUMBEL, *keys, position, step, torch.arange(size)
        ).tolist(),
        uniform=lambda step, position: float(noise.uniform(Purpose.REVEAL, *keys, position, step)),
    )


def check(found: Generated, expected: Result, start: int, evaluations: int = 1) -> None:
    places = len(expected.canvas) - start
    assert list(found.token_ids) == expected.canvas[start:]
    steps = reveal_step_of(expected.trace)
    assert found.revealed_at == tuple(1 + steps[start + place] for place in range(places))
    assert found.forwards == expected.forwards * evaluations


def total_steps(params: SamplingParams) -> list[int]:
    """Steps of each block."""
    length = params.block_length or PLACES
    sizes = [min(length, PLACES - start) for start in range(0, PLACES, length)]
    return [min(params.denoising_steps or size, size) for size in sizes]


@pytest.mark.parametrize(
    "options",
    [
        {"block_length": 4},
        {"block_length": 4, "denoising_steps": 2, "temperature": 0.7, "seed": 5},
        {"block_length": 3, "canvas_mode": "semi_autoregressive_origin"},
        {"block_length": 4, "canvas_mode": "semi_autoregressive_origin", "denoising_steps": 3, "temperature": 1.0},
        {"cfg_scale": 1.5, "denoising_steps": 4},
        {"cfg_scale": 0.5, "block_length": 4, "canvas_mode": "semi_autoregressive_origin", "temperature": 0.4},
        {"unmasking": "margin", "denoising_steps": 5},
        {"unmasking": "entropy", "denoising_steps": 3, "temperature": 1.0, "confidence": "filtered", "top_k": 6},
        {"unmasking": "margin", "denoising_steps": 3, "temperature": 0.5, "confidence": "unfiltered"},
        {"unmasking": "random", "block_length": 6, "denoising_steps": 2},
        {"unmasking": "threshold", "confidence_threshold": 0.3, "block_length": 4},
        {"unmasking": "factor", "factor": 1.2, "block_length": 6},
        {"unmasking": "factor", "factor": 2.0, "temperature": 1.0, "top_p": 0.8, "seed": 2},
        {"defer_eos": True, "denoising_steps": 6},
        {"defer_eos": True, "denoising_steps": 6, "temperature": 1.0, "seed": 9, "unmasking": "margin"},
        {"suppress_eos": True, "temperature": 1.3, "denoising_steps": 4},
    ],
)
def test_every_mode_and_policy_equals_the_reference(options: dict[str, object]) -> None:
    model = tiny.backbone("masked_diffusion")
    params = canvas(max_new_tokens=PLACES, **options)
    for prompt, found in zip(PROMPTS, decoded(model, params), strict=True):
        expected = reference.decode(
            logits_of(model),
            prompt,
            PLACES,
            params.block_length or PLACES,
            total_steps(params),
            model.diffusion.mask_token_id,
            rules_of(model, params),
            mode=params.canvas_mode,
            cfg_scale=params.cfg_scale,
        )
        check(found, expected, len(prompt), 2 if params.cfg_scale else 1)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("logit_shift", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"block_length": 4},
        {"block_length": 4, "denoising_steps": 3, "temperature": 0.6, "seed": 3},
        {"block_length": 5, "unmasking": "threshold", "confidence_threshold": 0.3},
        {"denoising_steps": 5},
    ],
)
def test_caches_keep_exactly_the_stale_keys_of_the_reference(
    cache: str, logit_shift: bool, options: dict[str, object]
) -> None:
    model = tiny.backbone("masked_diffusion", logit_shift=logit_shift)
    params = canvas(max_new_tokens=PLACES, cache=cache, **options)
    network = transformer.network_of(model.network)
    for prompt, found in zip(PROMPTS, decoded(model, params), strict=True):
        expected = fast_dllm.decode(
            network,
            prompt,
            PLACES,
            params.block_length or PLACES,
            sum(total_steps(params)),
            model.diffusion.mask_token_id,
            rules_of(model, params),
            cache=cache,
            logit_shift=logit_shift,
        )
        check(found, expected, len(prompt))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_guided_caches_do_not_depend_on_the_batch(cache: str) -> None:
    model = tiny.backbone("masked_diffusion")
    params = canvas(max_new_tokens=PLACES, cache=cache, block_length=4, cfg_scale=1.0, unmasking="factor", factor=1.0)
    together = decoded(model, params)
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = decoded(model, params, [prompt])
        assert (alone.token_ids, alone.revealed_at, alone.forwards) == (
            found.token_ids,
            found.revealed_at,
            found.forwards,
        )


@pytest.mark.parametrize(
    ("alg", "options"),
    [
        ("origin", {"unmasking": "ancestral", "denoising_steps": 6}),
        ("origin", {"unmasking": "ancestral", "denoising_steps": 4, "temperature": 0.8, "top_k": 5}),
        ("maskgit_plus", {"denoising_steps": 4, "temperature": 0.4, "top_p": 0.9}),
        ("maskgit_plus", {"denoising_steps": 11}),
        ("entropy", {"unmasking": "entropy", "denoising_steps": 40}),
        ("maskgit_plus", {"denoising_steps": 4, "temperature": 0.9, "top_k": 3, "top_p": 0.8}),
        ("topk_margin", {"unmasking": "margin", "denoising_steps": 5, "top_k": 4}),
        ("entropy", {"unmasking": "entropy", "denoising_steps": 7, "reveal_temperature": 0.2}),
        ("maskgit_plus", {"denoising_steps": 3, "reveal_temperature": 0.5, "temperature": 1.0}),
    ],
)
def test_dreams_algorithms_equal_the_reference(alg: str, options: dict[str, object]) -> None:
    model = tiny.backbone("masked_diffusion", logit_shift=True)
    dreams = {"reveal_schedule": "dream", "confidence": "filtered", "filter_order": "top_p_first"}
    params = canvas(max_new_tokens=PLACES, **dreams, **options)
    for prompt, found in zip(PROMPTS, decoded(model, params), strict=True):
        expected = dream.diffusion_generate(
            logits_of(model),
            prompt,
            PLACES,
            params.denoising_steps,
            model.diffusion.mask_token_id,
            rules_of(model, params),
            alg=alg,
            alg_temp=params.reveal_temperature,
        )
        revealing = [step for step in expected.trace if step or alg == "origin"]
        check(found, expected._replace(trace=revealing, forwards=len(revealing)), len(prompt))


@pytest.mark.parametrize(
    ("strategy", "eta", "temperature"),
    [("cap", 0.3, 0.0), ("rescale", 0.4, 1.0), ("conf", 1.0, 1.0), ("loop", 0.3, 0.5), ("cap", 1.0, 1.0)],
)
def test_reopening_equals_the_reference(strategy: str, eta: float, temperature: float) -> None:
    model = tiny.backbone("masked_diffusion")
    params = canvas(
        max_new_tokens=PLACES, denoising_steps=14, remask=strategy, remask_eta=eta, temperature=temperature, seed=1
    )
    reopened = 0
    for prompt, found in zip(PROMPTS, decoded(model, params), strict=True):
        expected = remdm.remdm(
            logits_of(model),
            prompt,
            PLACES,
            14,
            model.diffusion.mask_token_id,
            rules_of(model, params),
            strategy,
            eta=eta,
            eps=0.0,
        )
        assert list(found.token_ids) == expected.canvas[len(prompt) :]
        assert found.forwards == 14
        reopened += sum(map(len, expected.reopened))
    assert reopened > 3


@pytest.mark.parametrize("logit_shift", [False, True])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_gaps_are_filled_as_in_the_reference(logit_shift: bool, cfg_scale: float) -> None:
    model = tiny.backbone("masked_diffusion", logit_shift=logit_shift)
    params = canvas(infill_length=(3, 4), denoising_steps=4, cfg_scale=cfg_scale)
    texts = [([3, 1], [4, 1, 5], [9]), ([2], [6], [5, 3, 5])]
    rows = [Row(tuple(one), 0, 0, (*[None] * 3, *two, *[None] * 4, *three)) for one, two, three in texts]
    run = CanvasRun(model, rows, params, StopRule(eos_ids=EOS))
    while not run.done:
        run.advance()
    for pieces, row, found in zip(texts, rows, run.results(), strict=True):
        network = shifted(logits_of(model)) if logit_shift else logits_of(model)
        expected = reference.infill(
            network,
            [list(piece) for piece in pieces],
            [3, 4],
            4,
            model.diffusion.mask_token_id,
            rules_of(model, params),
            cfg_scale=cfg_scale,
        )
        gaps = [place for place, token in enumerate(row.template(0)) if token is None]
        assert list(found.token_ids) == [expected.canvas[place] for place in gaps]
        steps = reveal_step_of(expected.trace)
        assert found.revealed_at == tuple(1 + steps[place] for place in gaps)
