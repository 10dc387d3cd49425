"""Runs of block diffusion: resumes, splits, adapters, curricula, and what the checkpoint says afterwards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.training import recipes
from tests.training.recipes import run_of, weights
from tests.training.test_adapters import write_base
from unmask import config
from unmask.evaluation.likelihood import evaluate
from unmask.lm import DiffusionLM
from unmask.models import loading
from unmask.models.adapters import WEIGHTS_FILE
from unmask.objectives import block_diffusion
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe
from unmask.training.preparation import prepare_text

CURRICULUM = [[0.0, 2], [0.5, 4], [0.8, 8]]


def tree(folder: Path, objective: dict[str, Any], *, data: Any = None, **training: Any) -> dict[str, Any]:
    """A run of text (or, with `data`, of conversations) in blocks."""
    return recipes.tree_of(folder, {"method": "block_diffusion", **objective}, data=data, **training)


def entry_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["diffusion"]


@pytest.mark.parametrize(
    ("objective", "training"),
    [
        ({"block_curriculum": CURRICULUM}, {"micro_batch_size": 3}),
        ({"block_length": 8, "complementary_masks": True}, {"dropout": 0.1, "gradient_checkpointing": True}),
        ({"corruption": "bernoulli", "t_granularity": "sequence"}, {"ema_decay": 0.9}),
    ],
    ids=str,
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, objective: dict[str, Any], training: dict[str, Any]
) -> None:
    whole, resumed = recipes.whole_and_resumed(config.from_tree(Recipe, tree(tmp_path, objective, **training)))
    recipes.assert_same(resumed, whole, "train/loss", "train/grad_norm", "eval/bits_per_byte")
    assert [len(recipes.records(resumed, key)) for key in ("train/loss", "eval/bits_per_byte")] == [6, 2]


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        ({"block_curriculum": CURRICULUM}, None),
        ({"block_length": 8, "complementary_masks": True}, None),
        ({"block_length": 4, "normalize": "answers"}, {}),
        ({"block_length": 16, "complementary_masks": True}, {}),
        ({"block_length": 4}, {"neat_packing": True}),
    ],
    ids=str,
)
def test_micro_batches_equal_one_batch(tmp_path: Path, objective: dict[str, Any], data: Any) -> None:
    """Also where micro-batches are of different widths, or some have no clean half, and with dropout."""
    made = tree(tmp_path, objective, data=data, dropout=0.1, steps=3, eval_steps=3)
    made["model"]["num_hidden_layers"] = 2  # the second layer shows what was dropped in the clean half
    expected = weights(run_of(made, "whole"), 3)
    made["training"]["micro_batch_size"] = 1
    for name, value in weights(run_of(made, "split"), 3).items():
        # float64: only the order of sums differs.
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


def test_the_curriculum_follows_the_steps_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: dict[int, set[int]] = {}
    example = block_diffusion.example

    def watched(batch: Any, settings: Any, *, block_length: int, **options: Any) -> Any:
        lengths.setdefault(batch.step, set()).add(block_length)
        return example(batch, settings, block_length=block_length, **options)

    monkeypatch.setattr(block_diffusion, "example", watched)
    made = tree(tmp_path, {"block_curriculum": CURRICULUM}, steps=10, eval_steps=5, micro_batch_size=4, probe_rows=0)
    run = run_of(made, "curriculum")
    assert lengths == {step: {2 if step < 5 else 4 if step < 8 else 8} for step in range(10)}
    # The checkpoints carry the length that the run ends with, also the early ones, which it may be resumed from.
    for folder in (run.final, run.checkpoints / "step-5"):
        assert entry_of(folder)["block_length"] == 8


def test_held_out_text_is_scored_as_the_model_will_be_used(tmp_path: Path) -> None:
    made = tree(tmp_path, {"block_curriculum": [[0.0, 2], [0.5, 8]]})
    run = run_of(made, "scored")
    recipe = config.from_tree(Recipe, made)
    lm = DiffusionLM.from_pretrained(run.checkpoints / "step-6", device="cpu")
    assert lm.tokenizer is not None
    rows = prepare_text(recipe, lm.tokenizer, tmp_path / "cache").held_out
    assert rows is not None
    found = evaluate(lm.backbone, rows, recipe.evaluation)
    assert found.is_bound
    assert dict(recipes.records(run, "eval/bits_per_byte"))[6] == pytest.approx(found.bits_per_byte, rel=1e-6)
    assert dict(recipes.records(run, "eval/nats_per_token"))[6] == pytest.approx(found.nats_per_token, rel=1e-6)
    # Bytes are tokens here; neither BOS nor what fills the last blocks up is one.
    batch = rows.batch(np.arange(4), 0, 4, step=0)
    assert batch.fill_BL is not None
    assert batch.fill_BL.any()
    is_text = batch.supervised_BL & ~batch.fill_BL
    assert found.tokens == int(is_text.sum())
    assert found.bytes == int((batch.ids_BL[is_text] != lm.tokenizer.eos_token_id).sum())


def test_block_diffusion_learns(tmp_path: Path) -> None:
    for kind in ({}, {"complementary_masks": True}):
        run = run_of(tree(tmp_path, kind, steps=120, eval_steps=120), f"learns-{len(kind)}")
        # Bytes of this text have an entropy of about 4.2 bits without context.
        assert recipes.records(run, "eval/bits_per_byte")[-1][1] < 4.0


def test_an_adapter_learns_blocks_and_says_how_long_they_are(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    made = tree(tmp_path, {"block_length": 8, "complementary_masks": True}, micro_batch_size=3)
    made["model"] = {"from_pretrained": str(base), "dtype": "float64"}
    del made["data"]["tokenizer"]
    made["adapter"] = {"rank": 2, "dropout": 0.1}
    whole, resumed = recipes.whole_and_resumed(config.from_tree(Recipe, made))
    recipes.assert_same(resumed, whole, "train/loss", file=WEIGHTS_FILE)
    first, last = (weights(whole, step, WEIGHTS_FILE) for step in (3, 6))
    assert any(not torch.equal(last[name], first[name]) for name in first)
    entry = json.loads((whole.final / "diffusion.json").read_text())["diffusion"]
    assert (entry["method"], entry["block_length"]) == ("block_diffusion", 8)
    lm = DiffusionLM.from_pretrained(whole.final, device="cpu")
    assert lm.backbone.diffusion.block_length == 8


# --- what a checkpoint becomes ---------------------------------------------------------------------------------------


def adapted(entry: DiffusionConfig, **objective: Any) -> DiffusionConfig:
    made = tiny.checkpoint("masked_diffusion")
    made.backbone.configure(entry)
    settings = ObjectiveSettings(method="block_diffusion", **objective)
    return loading.adapted(made, settings).backbone.diffusion


def test_a_checkpoint_of_any_method_gets_a_block_length() -> None:
    masked = DiffusionConfig(method="masked_diffusion", vocabulary_size=24, mask_token_id=23)
    assert adapted(masked).method == "block_diffusion"
    assert adapted(masked).mask_token_id == 23
    assert adapted(masked).block_length == 4
    assert adapted(masked, block_length=7).block_length == 7
    assert adapted(masked, block_curriculum=((0.0, 2), (0.5, 16))).block_length == 16
    blocks = dataclasses.replace(masked, method="block_diffusion", block_length=32)
    assert adapted(blocks).block_length == 32
    assert adapted(blocks, block_length=8).block_length == 8
    plain = DiffusionConfig(method="autoregressive", vocabulary_size=23)
    assert adapted(plain).mask_token_id == 23
    assert adapted(plain).vocabulary_size == 24
    back = tiny.checkpoint("block_diffusion", block_length=8)
    for method in ("masked_diffusion", "autoregressive"):
        settings = ObjectiveSettings(method=method)  # type: ignore[arg-type]
        assert loading.adapted(back, settings).backbone.diffusion.block_length is None


def test_a_checkpoint_that_reads_one_place_before_reads_in_place_once_it_learns_blocks() -> None:
    dream = DiffusionConfig(method="masked_diffusion", vocabulary_size=24, mask_token_id=23, logit_shift=True)
    assert not adapted(dream).logit_shift


@pytest.mark.parametrize("method", ["masked_diffusion", "autoregressive"])
def test_a_run_goes_on_in_blocks_from_another_method(tmp_path: Path, method: str) -> None:
    first = tree(tmp_path, {}, steps=3)
    first["objective"] = {"method": method}
    source = run_of(first, "first").final
    made = tree(tmp_path, {}, steps=3)
    made["model"] = {"from_pretrained": str(source)}
    del made["data"]["tokenizer"]
    run = run_of(made, "second")
    entry = entry_of(run.final)
    assert (entry["method"], entry["block_length"]) == ("block_diffusion", 4)
    assert entry["mask_token_id"] is not None
    # The next stage takes the length over without naming it.
    again = tree(tmp_path, {"block_length": 8}, steps=3)
    again["model"] = {"from_pretrained": str(run.final)}
    del again["data"]["tokenizer"]
    longer = run_of(again, "third").final
    again["objective"] = {"method": "block_diffusion"}
    again["model"] = {"from_pretrained": str(longer)}
    assert entry_of(run_of(again, "fourth").final)["block_length"] == 8
