"""What moves the weights besides gradients: decay, the average and its warm start; and what the links of a run name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import recipes
from unmask.evaluation.likelihood import Likelihood
from unmask.models.backbone import Backbone
from unmask.models.loading import create
from unmask.runs import RunFolder
from unmask.settings.model import ModelSettings
from unmask.settings.training import TrainingSettings
from unmask.training.optim import WeightAverage, optimizer
from unmask.training.run import train
from unmask.training.trainer import Trainer

SHAPE = ModelSettings(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
)


def network_of(*, family: str, tied: bool) -> Backbone:
    shape = dataclasses.replace(SHAPE, family=family, tie_word_embeddings=tied)  # type: ignore[arg-type]
    return create(shape, None, seed=0, size=23).backbone


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_decay_shrinks_matrices_and_spares_norms_biases_and_embeddings(family: str, tied: bool) -> None:
    """With gradients of zero, AdamW's step is its decay alone: w - learning rate * decay * w."""
    network = network_of(family=family, tied=tied).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)  # no zeros, which decay would not change
            parameter.grad = torch.zeros_like(parameter)
    before = {name: one.detach().clone() for name, one in network.named_parameters()}
    settings = TrainingSettings(learning_rate=0.25, weight_decay=0.5)
    optimizer(network, settings).step()
    shrunk = set()
    for name, parameter in network.named_parameters():
        if not parameter.equal(before[name]):
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.25 * 0.5))
            shrunk.add(name)
    assert "model.embed_tokens.weight" in before and any(name.endswith("norm.weight") for name in before)
    spared = {name for name, one in before.items() if one.ndim == 1} | {"model.embed_tokens.weight"}
    assert shrunk == before.keys() - spared, "an untied head is a matrix; a tied one is the embedding"
    assert ("lm_head.weight" in shrunk) == (not tied)


def test_what_is_frozen_is_not_optimised() -> None:
    network = network_of(family="qwen3", tied=True).network
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    groups = optimizer(network, TrainingSettings(weight_decay=0.5)).param_groups
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_the_average_starts_warm_and_reaches_its_decay(decay: float) -> None:
    """Step s keeps min(decay, (1 + s) / (10 + s)) of the average: a tenth at first, to forget the random start soon."""
    weight = torch.nn.Parameter(torch.tensor([4.0, -2.0], dtype=torch.float64))
    average = WeightAverage([("w", weight)], decay)
    expected = weight.detach().clone()
    for step in range(60):
        with torch.no_grad():
            weight.copy_(torch.tensor([math.sin(step), step / 7], dtype=torch.float64))
        average.update([("w", weight)], step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weight.detach()
        torch.testing.assert_close(average.weights["w"].double(), expected, rtol=1e-5, atol=1e-6)
    first = WeightAverage([("w", torch.zeros(1))], 0.999)
    first.update([("w", torch.ones(1))], 0)
    assert first.weights["w"].item() == pytest.approx(0.9)


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_name_the_latest_and_the_best_checkpoint_after_every_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each step everything of the steps before it is saved, and linked."""
    recipes.write_text(tmp_path)
    scores = iter([5.0, 3.0, 4.0, 2.0, 6.0])
    score_after = dict(zip((2, 4, 6, 8, 10), (5.0, 3.0, 4.0, 2.0, 6.0), strict=True))
    run, step_of, seen = RunFolder(tmp_path / "tiny"), Trainer._step, []

    def scored(self: Trainer, text: Any) -> Likelihood:
        return Likelihood(next(scores) * math.log(2) * 100, 0.0, 50, 100, True)

    def stepped(self: Trainer, step: int) -> Any:
        seen.append((step, run.checkpoint("latest"), run.checkpoint("best")))
        return step_of(self, step)

    monkeypatch.setattr(Trainer, "held_out_likelihood", scored)
    monkeypatch.setattr(Trainer, "_step", stepped)
    train(recipes.recipe(tmp_path, steps=10, save_steps=1, eval_steps=2))
    seen.append((10, run.checkpoint("latest"), run.checkpoint("best")))
    for done, latest, best in seen:
        assert latest == (None if done == 0 else (run.checkpoints / f"step-{done}").resolve())
        scored_steps = [step for step in score_after if step <= done]
        expected = min(scored_steps, key=score_after.__getitem__, default=None)
        assert best == (None if expected is None else (run.checkpoints / f"step-{expected}").resolve())
    assert best is not None and best.name == "step-8"
    final, chosen = (run.final / "model.safetensors").read_bytes(), best / "model.safetensors"
    assert final == chosen.read_bytes()
