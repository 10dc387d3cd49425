"""Autoregressive decoding with the cache against recomputing everything, token for token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from unmask.decoding.autoregressive import AutoregressiveRun
from unmask.decoding.candidates import Keys, sampled
from unmask.decoding.step import Generated, Row, StopRule
from unmask.models.backbone import Backbone
from unmask.settings.decoding import SamplingParams

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]


def params_of(**options: object) -> SamplingParams:
    return SamplingParams(**options).resolved({}, "autoregressive")  # type: ignore[arg-type]


def run(
    model: Backbone, prompts: list[list[int]], params: SamplingParams, stop: StopRule | None = None, sample: int = 0
) -> list[Generated]:
    rows = [Row(tuple(prompt), sample, params.seed) for prompt in prompts]
    decoding = AutoregressiveRun(model, rows, params, stop or StopRule())
    while not decoding.done:
        decoding.advance()
    return decoding.results()


def recomputed(model: Backbone, prompt: list[int], params: SamplingParams, sample: int = 0) -> list[int]:
    """Every token from a fresh forward of the stock class under its own causal attention."""
    tokens: list[int] = []
    model.network.set_attn_implementation("sdpa")
    for step in range(params.max_new_tokens):
        with torch.no_grad():
            logits = model.network(torch.tensor([prompt + tokens])).logits[:, -1]
        if params.temperature == 0:
            tokens.append(int(logits.argmax()))
        else:
            keys = Keys(params.seed, sample, len(prompt) + step, step)
            found = sampled(logits, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, keys=keys)
            tokens.append(int(found.token_R))
    model.network.set_attn_implementation("unmask")
    return tokens


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 4}]
)
def test_ragged_batches_equal_recomputing_everything(options: dict[str, object]) -> None:
    model = tiny.backbone("autoregressive")
    params = params_of(max_new_tokens=20, **options)
    for prompt, found in zip(PROMPTS, run(model, PROMPTS, params), strict=True):
        assert list(found.token_ids) == recomputed(model, prompt, params)
        assert found.forwards == 20


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, 22), min_size=1, max_size=6), min_size=2, max_size=4),
    st.integers(1, 10),
    st.frozensets(st.integers(0, 22), max_size=6),
)
def test_a_batch_with_stops_equals_its_rows(prompts: list[list[int]], length: int, stops: frozenset[int]) -> None:
    model = tiny.backbone("autoregressive")
    params = params_of(max_new_tokens=length, temperature=1.0)
    together = run(model, prompts, params, StopRule(stops))
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = run(model, [prompt], params, StopRule(stops))
        assert alone.token_ids == found.token_ids
        assert alone.forwards == found.forwards
        assert not stops & set(found.token_ids[:-1])
        assert (found.finish_reason == "stop") == (found.token_ids[-1] in stops)


def test_samples_of_one_prompt_differ_and_repeat() -> None:
    model = tiny.backbone("autoregressive")
    params = params_of(max_new_tokens=12, temperature=1.0)
    first, second = (run(model, [[1, 2]], params, sample=sample)[0].token_ids for sample in (0, 1))
    assert first != second
    assert first == run(model, [[1, 2]], params)[0].token_ids


def test_observe_grows_by_one_token_per_forward() -> None:
    model = tiny.backbone("autoregressive")
    decoding = AutoregressiveRun(model, [Row((3, 4), 0, 0)], params_of(max_new_tokens=4), StopRule())
    canvases = []
    while not decoding.done:
        decoding.advance()
        canvases.append(decoding.observe(0))
        assert decoding.observe(0) == canvases[-1]
    assert [len(step.canvas) for step in canvases] == [1, 2, 3, 4]
    assert [step.revealed for step in canvases] == [(0,), (1,), (2,), (3,)]
    assert canvases[-1].canvas == decoding.results()[0].token_ids
