"""What the tests of TiDAR decoding share: models whose drafts are often right, and runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from unmask.decoding.autoregressive import AutoregressiveRun
from unmask.decoding.step import Generated, Row, StopRule
from unmask.decoding.tidar import TidarRun
from unmask.models.backbone import Backbone
from unmask.models.loading import adapted, create
from unmask.settings.decoding import SamplingParams
from unmask.settings.model import ModelSettings
from unmask.settings.objective import ObjectiveSettings

BLOCK = 4
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7]]


@functools.cache
def random_model(seed: int = 0, vocabulary: int = 23, shape: ModelSettings = tiny.SHAPE) -> Backbone:
    """Random weights: drafts are seldom right."""
    made = adapted(create(shape, None, seed=seed, size=vocabulary), ObjectiveSettings(method="masked_diffusion"))
    model = made.backbone.double().eval()
    model.configure(dataclasses.replace(model.diffusion, method="tidar", block_length=BLOCK))
    return model


@functools.cache
def trained_model(vocabulary: int = 11, steps: int = 120, sureness: float = 4.0) -> Backbone:
    """Trained for a moment, as figure 3 of the paper has it, on a Markov chain: drafts are often right."""
    model = random_model(seed=7, vocabulary=vocabulary)
    mask_id = model.diffusion.mask_token_id
    assert mask_id is not None
    generator = torch.Generator().manual_seed(5)
    chain = torch.randn(vocabulary, vocabulary, generator=generator)
    chain += sureness * torch.eye(vocabulary).roll(3, dims=1)  # most tokens follow the one three ids below
    chain = chain.softmax(dim=-1)
    length = 4 * BLOCK
    visible = torch.tensor([[_sees(q, k, length) for k in range(2 * length)] for q in range(2 * length)])[None, None]
    position_ids = torch.arange(length).repeat(2)[None]
    model.network.train()
    optimiser = torch.optim.AdamW(model.network.parameters(), lr=1e-2)
    for _ in range(steps):
        text_BL = _sampled(chain, 24, length + 1, generator)
        clean_BL = text_BL[:, :-1]
        ids_BL = torch.cat([clean_BL, torch.full_like(clean_BL, mask_id)], dim=1)
        hidden_BLD = model(ids_BL, position_ids.expand_as(ids_BL), visible)
        target_BL = torch.cat([text_BL[:, 1:], clean_BL], dim=1)
        loss = F.cross_entropy(model.logits(hidden_BLD).flatten(0, 1), target_BL.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.network.eval().requires_grad_(False)
    return model


def _sees(query: int, key: int, length: int) -> bool:
    """Figure 3: a causal half, and blocks of masks that see the clean tokens before them and themselves."""
    if query < length:
        return key <= query
    block = (query - length) // BLOCK
    return key < block * BLOCK if key < length else (key - length) // BLOCK == block


def _sampled(chain: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    text = [torch.randint(0, len(chain), (rows,), generator=generator)]
    while len(text) < length:
        text.append(torch.multinomial(chain[text[-1]], 1, generator=generator)[:, 0])
    return torch.stack(text, dim=1)


def params_of(decoding: str = "tidar", **options: Any) -> SamplingParams:
    return SamplingParams(decoding=decoding, **options).resolved({"draft_length": BLOCK}, "tidar")  # type: ignore[arg-type]


def rows_of(prompts: Sequence[Sequence[int]], seed: int = 0, sample: int = 0) -> list[Row]:
    return [Row(tuple(prompt), sample, seed) for prompt in prompts]


def finished(decoding: TidarRun | AutoregressiveRun) -> list[Generated]:
    while not decoding.done:
        decoding.advance()
    return decoding.results()


def run(
    model: Backbone,
    prompts: Sequence[Sequence[int]],
    stop: StopRule | None = None,
    *,
    kind: type[TidarRun] = TidarRun,
    sample: int = 0,
    **options: Any,
) -> list[Generated]:
    """TiDAR decoding of the prompts."""
    params = params_of(**options)
    return finished(kind(model, rows_of(prompts, params.seed, sample), params, stop or StopRule()))


def autoregressive(
    model: Backbone, prompts: Sequence[Sequence[int]], stop: StopRule | None = None, *, sample: int = 0, **options: Any
) -> list[Generated]:
    """Plain autoregression of the same weights."""
    params = params_of("autoregressive", **options)
    return finished(AutoregressiveRun(model, rows_of(prompts, params.seed, sample), params, stop or StopRule()))
