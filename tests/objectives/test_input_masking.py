"""Autoregression with masked input: the law of the masks, targets that stay, clean evaluation, exact resumes."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.training import recipes
from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.evaluation.likelihood import row_nats
from unmask.models import loading
from unmask.objectives import autoregressive
from unmask.objectives.methods import objective
from unmask.settings.evaluation import EvaluationSettings
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe
from unmask.training.run import train

MASK = 99
RATIO = 0.3


def long_batch(*, rows: int = 60, length: int = 80) -> Batch:
    """Rows led by BOS (id 0), whose last five places are padding and whose next three are a prompt."""
    batch = Batch.of_rows([[0] + [1 + (3 * row + place) % 20 for place in range(length - 1)] for row in range(rows)])
    supervised_BL = torch.ones_like(batch.supervised_BL)
    supervised_BL[:, :4] = supervised_BL[:, -5:] = False
    document_BL = batch.document_BL.clone()
    document_BL[:, -5:] = -1
    return dataclasses.replace(batch, supervised_BL=supervised_BL, document_BL=document_BL)


def masked(batch: Batch, *, seed: int = 0, ratio: float = RATIO) -> torch.Tensor:
    made = autoregressive.masked_example(batch, ratio=ratio, mask_token_id=MASK, seed=seed)
    return made.ids_BL == MASK


def test_each_learned_token_is_masked_by_itself_with_the_given_chance() -> None:
    batch = long_batch()
    hidden = masked(batch)
    assert not bool((hidden & ~batch.supervised_BL).any())
    each = hidden[batch.supervised_BL].view(60, -1).double()
    number = each.numel()
    spread = math.sqrt(RATIO * (1 - RATIO) / number)
    assert abs(float(each.mean()) - RATIO) < 4 * spread
    # Independent: the number in a row is binomial, and neighbours are masked together as often as chance has it.
    counts = each.sum(dim=1)
    assert 0.5 < float(counts.var()) / (each.shape[1] * RATIO * (1 - RATIO)) < 1.6
    assert abs(float((each[:, 1:] * each[:, :-1]).mean()) - RATIO**2) < 0.02


def test_targets_rows_and_weights_are_those_of_the_clean_example() -> None:
    batch = long_batch()
    clean = autoregressive.example(batch)
    made = autoregressive.masked_example(batch, ratio=RATIO, mask_token_id=MASK, seed=0)
    for field in dataclasses.fields(clean):
        mine, theirs = getattr(made, field.name), getattr(clean, field.name)
        if field.name == "ids_BL":
            assert not torch.equal(mine, theirs)
            assert torch.equal(mine[mine != MASK], theirs[mine != MASK])
        elif isinstance(mine, torch.Tensor):
            assert torch.equal(mine, theirs), field.name
    assert torch.equal(made.target_R, batch.ids_BL.flatten()[made.row_R + 1])


def test_draws_hang_on_seed_step_and_global_row_alone() -> None:
    batch = long_batch()
    whole = masked(batch)
    assert torch.equal(torch.cat([masked(batch.rows(0, 25)), masked(batch.rows(25, 60))]), whole)
    assert not torch.equal(masked(batch, seed=1), whole)
    assert not torch.equal(masked(dataclasses.replace(batch, step=7)), whole)


def test_the_option_belongs_to_autoregression_and_needs_a_mask_token() -> None:
    with pytest.raises(SettingsError, match=r"input_mask_ratio belongs to method autoregressive, got 0.2 with tidar"):
        ObjectiveSettings(method="tidar", input_mask_ratio=0.2)
    with pytest.raises(SettingsError, match=r"must lie between 0 and 0.99, got 1"):
        ObjectiveSettings(method="autoregressive", input_mask_ratio=1)
    settings = ObjectiveSettings(method="autoregressive", input_mask_ratio=RATIO)
    with pytest.raises(SettingsError, match="autoregressive needs a mask token"):
        objective(settings, tiny.backbone("autoregressive").diffusion, seed=0)
    model = tiny.backbone("autoregressive", input_mask_ratio=RATIO)
    assert model.diffusion.mask_token_id == 23
    made = objective(settings, model.diffusion, seed=0)(Batch.of_rows([[1] * 50]))
    assert set(made.ids_BL.flatten().tolist()) == {1, 23}


def test_evaluation_reads_clean_text_and_never_predicts_the_mask() -> None:
    model = tiny.backbone("autoregressive", input_mask_ratio=RATIO)
    tokens = [0, 5, 7, 1, 1, 9]
    batch = Batch.of_rows([tokens])
    with torch.no_grad():
        hidden_BLD = model(
            batch.ids_BL, torch.arange(6)[None], model.render(*[autoregressive.example(batch).layout] * 2)
        )
        logits_LV = model.network.get_output_embeddings()(hidden_BLD)[0, :, :23]
    law_LV = logits_LV.log_softmax(dim=-1)
    expected = -sum(float(law_LV[place, tokens[place + 1]]) for place in range(5))
    found = row_nats(model, batch, EvaluationSettings())
    assert float(found.nats_B) == pytest.approx(expected, rel=1e-6)
    assert float(found.stderr_B) == 0


def masked_recipe(folder: Path, name: str) -> Recipe:
    made = recipes.tree(folder, micro_batch_size=3) | {"name": name}
    made["objective"] = {"method": "autoregressive", "input_mask_ratio": 0.4}
    return recipes.config.from_tree(Recipe, made)


@pytest.mark.usefixtures("quick_runs")
def test_a_run_learns_resumes_exactly_and_keeps_its_mask_token(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    whole = train(masked_recipe(tmp_path, "whole")).run
    halves = train(masked_recipe(tmp_path, "halves")).run
    shutil.rmtree(halves.checkpoints / "step-6")
    shutil.rmtree(halves.final)
    resumed = train(masked_recipe(tmp_path, "halves"), resume="auto").run
    last = [load_file(run.checkpoints / "step-6" / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert recipes.records(resumed, "train/loss") == recipes.records(whole, "train/loss")
    plain = dataclasses.replace(masked_recipe(tmp_path, "plain"), objective=ObjectiveSettings(method="autoregressive"))
    assert recipes.records(train(plain).run, "train/loss") != recipes.records(whole, "train/loss")
    entry = loading.load(whole.final, device="cpu").backbone.diffusion
    assert (entry.method, entry.mask_token_id, entry.vocabulary_size) == ("autoregressive", 258, 259)
