"""Runs of TiDAR: resumes in mid-curriculum, splits, processes, teachers, and what is recorded of each term."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.tidar_cases import term_losses
from tests.training import recipes
from tests.training.recipes import run_of, weights
from tests.training.test_adapters import write_base
from unmask import config
from unmask.data.rows import rows_of_step
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models import loading
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer
from unmask.objectives import tidar
from unmask.objectives.methods import objective
from unmask.runs import RunFolder
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings
from unmask.settings.recipe import Recipe
from unmask.training.preparation import prepare_text, prepare_tokenizer
from unmask.training.run import dry_run, train
from unmask.training.teacher import Teacher

ROOT = Path(__file__).parents[2]
CURRICULA: dict[str, Any] = {
    "block_curriculum": [[0.0, 3], [0.4, 8]],
    "masking": "random",
    "mask_ratio_curriculum": [[0.0, 0.3], [0.3, 0.7], [0.8, 1.0]],
    "ar_loss_weight_curriculum": [[0.0, 2.0], [0.6, 0.5]],
    "diffusion_loss_weight_curriculum": [[0.0, 0.5], [0.6, 1.0]],
}
SPLIT: dict[str, Any] = {"tidar_layout": "split", "block_length": 4}
HEADS: dict[str, Any] = SPLIT | {"clean_ratio_curriculum": [[0.0, 0.8], [0.6, 0.3]], "tail_blocks": 2}


def tree(
    folder: Path, objective: dict[str, Any], *, data: Any = None, base: bool = False, **training: Any
) -> dict[str, Any]:
    """A run of text (or, with `data`, of conversations), from scratch or from an autoregressive base."""
    made = recipes.tree_of(folder, {"method": "tidar", **objective}, data=data, **training)
    if base:
        made["model"] = {"from_pretrained": str(write_base(folder)), "dtype": "float64"}
        del made["data"]["tokenizer"]
    return made


def with_teacher(folder: Path, **objective: Any) -> dict[str, Any]:
    """A distillation from the base."""
    taught = {"teacher": str(folder / "base"), "distillation_weight": 0.5, "distillation_temperature": 2.0}
    return tree(folder, taught | objective, base=True)


def metrics(run: RunFolder, *, step: int) -> dict[str, Any]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return next(line for line in lines if line["step"] == step and "train/loss" in line)


# --- the same steps, however they are taken ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "training"),
    [
        (CURRICULA, {"micro_batch_size": 3, "logging_steps": 2}),
        (HEADS, {"dropout": 0.1, "gradient_checkpointing": True}),
        (SPLIT | {"clean_ratio_range": [0.2, 0.7], "masking": "block"}, {"ema_decay": 0.9}),
        ({}, {"precision": "bf16"}),
    ],
    ids=["all curricula", "clean heads", "drawn heads", "bf16"],
)
def test_a_resume_in_mid_curriculum_is_bit_exact(
    tmp_path: Path, objective: dict[str, Any], training: dict[str, Any]
) -> None:
    """The run is taken back to its third step of six, between two records."""
    whole, resumed = recipes.whole_and_resumed(config.from_tree(Recipe, tree(tmp_path, objective, **training)))
    terms = ("train/ar_loss", "train/diffusion_tokens", "train/ar_accuracy")
    recipes.assert_same(resumed, whole, "train/loss", *terms, "eval/bits_per_byte")


def test_a_resumed_distillation_is_bit_exact(tmp_path: Path) -> None:
    whole, resumed = recipes.whole_and_resumed(config.from_tree(Recipe, with_teacher(tmp_path)))
    recipes.assert_same(resumed, whole, "train/ar_divergence", "train/diffusion_divergence", "train/loss")


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        (CURRICULA, None),
        (HEADS, None),
        ({"block_length": 5, "normalize": "answers"}, {}),
        ({"masking": "block", "weighting": "unweighted"}, {}),
        (SPLIT | {"clean_ratio_range": [0.3, 0.9]}, {"neat_packing": True}),
    ],
    ids=["all curricula", "clean heads", "answers", "blocks of answers", "packed answers"],
)
def test_micro_batches_equal_one_batch(tmp_path: Path, objective: dict[str, Any], data: Any) -> None:
    """Also where micro-batches are of different widths, and with dropout."""
    made = tree(tmp_path, objective, data=data, dropout=0.1, steps=3, eval_steps=3)
    made["model"]["num_hidden_layers"] = 2
    whole = run_of(made, "whole")
    expected = weights(whole, 3)
    made["training"]["micro_batch_size"] = 1
    split = run_of(made, "split")
    for name, value in weights(split, 3).items():
        # float64: only the order of sums differs.
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
    for key in ("train/ar_tokens", "train/diffusion_tokens", "train/ar_accuracy", "train/diffusion_accuracy"):
        assert recipes.records(split, key) == recipes.records(whole, key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_micro_batches_of_a_distillation_equal_one_batch(tmp_path: Path, precision: str) -> None:
    made = with_teacher(tmp_path)
    made["training"] |= {"steps": 2, "eval_steps": 2, "precision": precision}
    whole = run_of(made, "whole")
    made["training"]["micro_batch_size"] = 2
    split, near = run_of(made, "split"), 1e-9 if precision == "fp32" else 2e-2
    for name, value in weights(split, 2).items():
        torch.testing.assert_close(value, weights(whole, 2)[name], rtol=near, atol=near)
    for (_, one), (_, other) in zip(
        *(recipes.records(run, "train/ar_divergence") for run in (whole, split)), strict=True
    ):
        assert one == pytest.approx(
            other, rel=1e-8 if precision == "fp32" else 0.2, abs=1e-9 if precision == "fp32" else 0.05
        )


# --- records ----------------------------------------------------------------------------------------------------------


def test_each_term_is_recorded_as_it_is(tmp_path: Path) -> None:
    """The first step's record against the losses of the untrained model."""
    made = tree(
        tmp_path, {"block_length": 4, "ar_loss_weight": 0.5}, base=True, steps=1, eval_steps=1, micro_batch_size=3
    )
    recipe = config.from_tree(Recipe, made | {"name": "recorded"})
    found = metrics(train(recipe).run, step=1)
    tokenizer = prepare_tokenizer(recipe, tmp_path / "again")
    loaded = loading.load(tmp_path / "base", device="cpu", dtype="float64")
    student = loading.adapted(Checkpoint(loaded.backbone, tokenizer), recipe.objective).backbone
    text = prepare_text(recipe, tokenizer, tmp_path / "again").train
    rows = rows_of_step(0, batch_size=8, num_rows=len(text), seed=0)
    example = objective(recipe.objective, student.diffusion, seed=0, steps=1)(text.batch(rows, 0, 8, step=0))
    ar, diffusion = term_losses(student, example)
    assert found["train/ar_loss"] == pytest.approx(ar, rel=1e-9)
    assert found["train/diffusion_loss"] == pytest.approx(diffusion, rel=1e-9)
    assert found["train/loss"] == pytest.approx((0.5 * ar + diffusion) / 1.5, rel=1e-9)
    assert [found["train/ar_tokens"], found["train/diffusion_tokens"]] == torch.bincount(example.term_R).tolist()
    assert 0 <= found["train/ar_accuracy"] <= 1
    assert "train/ar_divergence" not in found


def test_records_cover_the_steps_since_the_last_one(tmp_path: Path) -> None:
    made = tree(tmp_path, {"block_length": 4}, logging_steps=3)
    seldom = metrics(run_of(made, "seldom"), step=6)
    made["training"]["logging_steps"] = 1
    often = run_of(made, "often")
    each = [metrics(often, step=step) for step in (4, 5, 6)]
    for term in ("ar", "diffusion"):
        tokens = [one[f"train/{term}_tokens"] for one in each]
        correct = [one[f"train/{term}_accuracy"] * count for one, count in zip(each, tokens, strict=True)]
        assert seldom[f"train/{term}_tokens"] == sum(tokens)
        assert seldom[f"train/{term}_accuracy"] == pytest.approx(sum(correct) / sum(tokens))
        assert seldom[f"train/{term}_loss"] == pytest.approx(sum(one[f"train/{term}_loss"] for one in each) / 3)


def test_objectives_of_one_term_are_recorded_as_before(tmp_path: Path) -> None:
    made = tree(tmp_path, {}, steps=1, eval_steps=1)
    made["objective"] = {"method": "autoregressive"}
    record = metrics(run_of(made, "plain"), step=1)
    assert [key for key in record if key.startswith("train/")] == [
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
    ]


def test_a_teacher_equal_to_the_student_says_nothing_new_at_first(tmp_path: Path) -> None:
    run = run_of(with_teacher(tmp_path), "taught")
    first, last = metrics(run, step=1), metrics(run, step=6)
    assert abs(first["train/ar_divergence"]) < 1e-9
    assert first["train/diffusion_divergence"] > 0
    assert abs(last["train/ar_divergence"]) > 1e-6
    losses = [first[f"train/{term}_{kind}"] for term in ("ar", "diffusion") for kind in ("loss", "divergence")]
    assert first["train/loss"] == pytest.approx(sum(losses) / 2, rel=1e-9)


# --- what becomes of a checkpoint -------------------------------------------------------------------------------------


def test_a_run_makes_an_autoregressive_model_a_tidar_model(tmp_path: Path) -> None:
    run = run_of(tree(tmp_path, {}, base=True, steps=40, eval_steps=20, learning_rate=0.02), "made")
    assert {value for _, value in recipes.records(run, "eval/stderr")} == {0.0}
    losses = recipes.records(run, "train/ar_loss"), recipes.records(run, "train/diffusion_loss")
    assert all(values[-1][1] < values[0][1] - 1 for values in losses)
    lm = DiffusionLM.from_pretrained(run.final, device="cpu")
    entry = lm.backbone.diffusion
    assert (entry.method, entry.block_length, entry.logit_shift) == ("tidar", 8, False)
    assert entry.mask_token_id == len(byte_tokenizer())
    (scored,) = lm.score(["the cat sat on a mat"])
    assert scored.stderr == 0


def adapted(entry: DiffusionConfig, **options: Any) -> DiffusionConfig:
    made = tiny.checkpoint("masked_diffusion")
    made.backbone.configure(entry)
    return loading.adapted(made, ObjectiveSettings(method="tidar", **options)).backbone.diffusion


def test_a_checkpoint_of_any_method_gets_a_draft_length() -> None:
    plain = DiffusionConfig(method="autoregressive", vocabulary_size=23)
    assert (adapted(plain).block_length, adapted(plain).mask_token_id) == (8, 23)
    assert adapted(plain, block_length=16).block_length == 16
    assert adapted(plain, block_curriculum=((0.0, 4), (0.5, 6))).block_length == 6
    blocks = DiffusionConfig(method="block_diffusion", vocabulary_size=24, mask_token_id=23, block_length=4)
    assert adapted(blocks).block_length == 4
    dream = DiffusionConfig(method="masked_diffusion", vocabulary_size=24, mask_token_id=23, logit_shift=True)
    assert (adapted(dream).block_length, adapted(dream).logit_shift) == (8, False)
    back = loading.adapted(tiny.checkpoint("tidar"), ObjectiveSettings(method="autoregressive")).backbone.diffusion
    assert (back.method, back.block_length) == ("autoregressive", None)


def test_rows_are_not_filled_up(tmp_path: Path) -> None:
    """A conversation ends where its next-token rows end, and its last block is completed by the objective."""
    for data in ({}, {"neat_packing": True}):
        recipe = config.from_tree(Recipe, tree(tmp_path, {}, data=data))
        tokenizer = prepare_tokenizer(recipe, tmp_path)
        text = prepare_text(recipe, tokenizer, tmp_path).train
        batch = text.batch(rows_of_step(0, batch_size=4, num_rows=len(text), seed=0), 0, 4, step=0)
        assert batch.fill_BL is None or not batch.fill_BL.any()
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, pad_mode="block"))
    with pytest.raises(SettingsError, match="pad_mode `block` fills up the last block of block diffusion"):
        prepare_text(recipe, tokenizer, tmp_path)


# --- teachers ---------------------------------------------------------------------------------------------------------


def teacher_of(folder: Path, teacher: Checkpoint, student: Checkpoint) -> Teacher:
    loading.save(teacher, folder / "teacher")
    settings = ObjectiveSettings(method="tidar", teacher=str(folder / "teacher"), distillation_weight=1.0)
    return Teacher(settings, student, device=torch.device("cpu"), attention_backend="dense")


def bytes_model(method: str) -> Checkpoint:
    made = loading.create(tiny.SHAPE, byte_tokenizer(), seed=1)
    return loading.adapted(made, ObjectiveSettings(method=method))  # type: ignore[arg-type]


def test_a_teacher_is_frozen_and_of_any_causal_method(tmp_path: Path) -> None:
    for method in ("autoregressive", "tidar"):
        made = teacher_of(tmp_path / method, bytes_model(method), bytes_model("tidar"))
        assert not made.backbone.training
        assert not any(one.requires_grad for one in made.backbone.parameters())


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    student = bytes_model("tidar")
    with pytest.raises(SettingsError, match="is a masked_diffusion model, and a teacher predicts each token"):
        teacher_of(tmp_path / "masked", bytes_model("masked_diffusion"), student)
    with pytest.raises(SettingsError, match="predicts 23 token ids and the student"):
        teacher_of(tmp_path / "small", tiny.checkpoint("autoregressive"), student)
    other = bytes_model("autoregressive")
    assert other.tokenizer is not None
    tokenizer = json.loads(other.tokenizer.backend_tokenizer.to_str())
    words = tokenizer["model"]["vocab"]
    first, second = [token for token, number in words.items() if number in (70, 71)]
    words[first], words[second] = words[second], words[first]
    loading.save(other, tmp_path / "swapped")
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = ObjectiveSettings(method="tidar", teacher=str(tmp_path / "swapped"), distillation_weight=1.0)
    with pytest.raises(SettingsError, match="is not the student's: 2 tokens have other ids"):
        Teacher(settings, student, device=torch.device("cpu"), attention_backend="dense")


def test_the_curricula_follow_the_steps_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: dict[int, set[tidar.Stage]] = {}
    example = tidar.example

    def watched(batch: Any, settings: Any, stage: tidar.Stage, **options: Any) -> Any:
        stages.setdefault(batch.step, set()).add(stage)
        return example(batch, settings, stage, **options)

    monkeypatch.setattr(tidar, "example", watched)
    run_of(tree(tmp_path, CURRICULA, steps=10, eval_steps=5, micro_batch_size=4, probe_rows=0), "curricula")
    assert all(len(found) == 1 for found in stages.values())
    found = [next(iter(stages[step])) for step in range(10)]
    assert [one.block_length for one in found] == [3] * 4 + [8] * 6
    assert [one.mask_ratio for one in found] == [0.3] * 3 + [0.7] * 5 + [1.0] * 2
    assert [one.shares for one in found] == [(0.8, 0.2)] * 6 + [(1 / 3, 2 / 3)] * 4


def test_an_adapter_learns_to_draft_under_its_own_base_as_teacher(tmp_path: Path) -> None:
    made = with_teacher(tmp_path, block_length=4)
    made["adapter"] = {"rank": 2, "dropout": 0.1}
    run = run_of(made, "adapter")
    divergence = [metrics(run, step=step)["train/ar_divergence"] for step in (1, 6)]
    assert abs(divergence[0]) < 1e-9  # the adapter begins as nothing
    assert divergence[1] > 1e-9
    entry = json.loads((run.final / "diffusion.json").read_text())["diffusion"]
    assert (entry["method"], entry["block_length"]) == ("tidar", 4)
    made["training"]["micro_batch_size"] = 3
    split = load_file(run_of(made, "split").final / "adapter_model.safetensors")
    for name, value in load_file(run.final / "adapter_model.safetensors").items():
        torch.testing.assert_close(split[name], value, rtol=1e-9, atol=1e-9)


def test_a_dry_run_shows_clean_text_and_masks(tmp_path: Path) -> None:
    recipe = config.from_tree(Recipe, tree(tmp_path, {"block_length": 4}))
    *_, shown = dry_run(recipe)
    assert shown.startswith("as trained: ")
    assert shown.count("<|mask|>") == 24
    assert shown.index("<|mask|>") > shown.index("<|bos|>")
