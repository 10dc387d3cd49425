"""The loss of supervised fine-tuning against LLaDA's guidelines, row by row, for every filling and normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.references import sft
from unmask import noise
from unmask.data.batch import Batch
from unmask.data.chat_rows import ChatRows
from unmask.data.tokenized import TokenizedText
from unmask.diffusion.corruption import times
from unmask.models.backbone import Backbone
from unmask.noise import Purpose
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings
from unmask.training.module import TrainingModule

VOCABULARY, EOS, STEP, SEED = 23, 22, 5, 3
Row = tuple[list[int], list[int]]
FILLS: dict[str, tuple[dict[str, int], float]] = {
    "eos_supervised": ({"eos": EOS}, math.inf),
    "eos_capped": ({"eos": EOS, "eos_cap": 2}, 2),
    "ignore": ({}, 0),
}


def some_rows(seed: int, number: int = 6) -> list[Row]:
    draw = np.random.default_rng(seed)
    return [
        (draw.integers(0, 22, draw.integers(1, 6)).tolist(), draw.integers(0, 22, draw.integers(1, 9)).tolist())
        for _ in range(number)
    ]


def chat_rows(rows: list[Row], fill: dict[str, int]) -> ChatRows:
    ids = [token for prompt, answer in rows for token in prompt + answer]
    flags = [flag for prompt, answer in rows for flag in [False] * len(prompt) + [True] * len(answer)]
    starts = np.cumsum([0, *(len(prompt) + len(answer) for prompt, answer in rows)]).astype(np.int64)
    text = TokenizedText(np.array(ids, dtype=np.uint32), np.zeros(len(ids), dtype=np.uint16), starts, np.array(flags))
    return ChatRows(text, context_length=64, **fill)


def ours(model: Backbone, rows: ChatRows, chosen: ObjectiveSettings, sizes: list[int]) -> float:
    """The step's loss, from micro-batches of the given sizes."""
    make, module = objective(chosen, model.diffusion, seed=SEED), TrainingModule(model, chunk_rows=7)
    total, denominator, start, every = 0.0, 0.0, 0, np.arange(len(rows))
    for size in sizes:
        made = make(rows.batch(every, start, start + size, step=STEP))
        total += float(module(made, torch.ones(1)).sum_T)
        denominator += float(made.denominator_T)
        start += size
    assert start == len(rows)
    return total / denominator


def predictor(model: Backbone) -> sft.Predict:
    """Log-probabilities of a row alone, without any mask over it, by full logits over the allowed ids."""

    @torch.no_grad()
    def predict(ids: list[int]) -> list[list[float]]:
        layout = torch.arange(len(ids))[None]
        hidden = model(torch.tensor([ids]), layout, None)
        logits = model.network.get_output_embeddings()(hidden)[0, :, :VOCABULARY]
        return logits.log_softmax(-1).tolist()

    return predict


def causal_predictor(model: Backbone) -> sft.Predict:
    """The stock network under its own causal attention."""

    @torch.no_grad()
    def predict(ids: list[int]) -> list[list[float]]:
        model.network.set_attn_implementation("sdpa")
        logits = model.network(torch.tensor([ids])).logits[0, :, :VOCABULARY]
        model.network.set_attn_implementation("unmask")
        return logits.log_softmax(-1).tolist()

    return predict


@pytest.mark.parametrize("normalize", ["answers", "tokens"])
@pytest.mark.parametrize("corruption", ["bernoulli", "count"])
@pytest.mark.parametrize("fill", FILLS)
def test_the_diffusion_loss_is_the_one_of_the_guidelines(fill: str, corruption: Any, normalize: Any) -> None:
    model = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY)
    mask = model.diffusion.mask_token_id
    assert mask is not None
    options, most = FILLS[fill]
    rows = some_rows(seed=1)
    chosen = ObjectiveSettings(corruption=corruption, normalize=normalize, time_sampling="iid")
    full = sft.filled(rows, EOS, most)
    widest = max(len(prompt) + len(answer) for prompt, answer in full)
    # The draws are the library's, named by step, row and place; everything done with them is the reference's.
    batch = Batch.of_rows([prompt + answer for prompt, answer in full], step=STEP)
    time_B = times(batch, 1, chosen, seed=SEED)[:, 0].tolist()
    chances = noise.uniform(Purpose.MASK, SEED, STEP, torch.arange(len(rows))[:, None], torch.arange(widest)).tolist()
    corrupt = sft.bernoulli if corruption == "bernoulli" else sft.counted
    noisy = [
        corrupt(prompt, answer, chance, time, chosen.time_epsilon, mask)
        for (prompt, answer), chance, time in zip(full, chances, time_B, strict=True)
    ]
    expected = sft.diffusion_loss(full, noisy, predictor(model), mask, normalize)
    for sizes in ([6], [2, 2, 2], [1, 5], [3, 1, 1, 1]):
        # The example's weights are float32.
        assert ours(model, chat_rows(rows, options), chosen, sizes) == pytest.approx(expected, rel=1e-6), sizes


@pytest.mark.parametrize("normalize", ["answers", "tokens"])
@pytest.mark.parametrize("fill", FILLS)
def test_the_autoregressive_loss_is_the_mean_over_answers_or_tokens(fill: str, normalize: Any) -> None:
    model = tiny.backbone("autoregressive", vocabulary=VOCABULARY)
    options, most = FILLS[fill]
    rows = some_rows(seed=2)
    chosen = ObjectiveSettings(method="autoregressive", normalize=normalize)
    expected = sft.autoregressive_loss(sft.filled(rows, EOS, most), causal_predictor(model), normalize)
    for sizes in ([6], [2, 2, 2], [5, 1]):
        assert ours(model, chat_rows(rows, options), chosen, sizes) == pytest.approx(expected, rel=1e-6), sizes


def test_each_answer_weighs_the_same_and_each_token_does_not() -> None:
    """Of two answers of which one is long, per-answer weights add up to 1 for each; per-token ones to their lengths."""
    rows = chat_rows([([1, 2], [3]), ([1], [4] * 9)], {})
    batch = rows.batch(np.arange(2), 0, 2, step=0)
    model = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY)
    for normalize, share in (("answers", [0.5, 0.5]), ("tokens", [0.1, 0.9])):
        made = objective(ObjectiveSettings(normalize=normalize), model.diffusion, seed=0)(batch)  # type: ignore[arg-type]
        weight_B = torch.zeros(2).index_add(0, made.group_R, made.weight_R) / made.denominator_T
        assert weight_B.tolist() == pytest.approx(share, rel=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(["bernoulli", "count"]), st.sampled_from(["elbo", "unweighted"]))
def test_denominators_of_micro_batches_add_up_to_the_step_s(seed: int, corruption: Any, weighting: Any) -> None:
    rows = chat_rows(some_rows(seed, number=5), {})
    entry = tiny.backbone("masked_diffusion", vocabulary=VOCABULARY).diffusion
    for normalize in ("tokens", "answers"):
        chosen = ObjectiveSettings(corruption=corruption, weighting=weighting, normalize=normalize)  # type: ignore[arg-type]
        make = objective(chosen, entry, seed=seed)
        whole = make(rows.batch(np.arange(5), 0, 5, step=1))
        parts = [make(rows.batch(np.arange(5), at, at + 1, step=1)) for at in range(5)]
        assert sum(float(part.denominator_T) for part in parts) == float(whole.denominator_T)
        assert torch.cat([part.weight_R for part in parts]).tolist() == whole.weight_R.tolist()
        if normalize == "answers":
            # Without the bound's weights an answer is its masked tokens, and under coin flips it may have none.
            answers = 5 if weighting == "elbo" else len(whole.group_R.unique())
            assert float(whole.denominator_T) == answers
