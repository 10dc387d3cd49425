"""The loop: resumes are bit-exact, splits and processes do not matter, nothing saved is ever lost."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from tests.training import recipes
from tests.training.recipes import weights
from unmask.errors import CheckpointError, NonFiniteError, SettingsError
from unmask.lm import DiffusionLM
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training import checkpoint as checkpoints
from unmask.training.records import truncate_metrics
from unmask.training.run import train
from unmask.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipes.write_text(tmp_path)
    return tmp_path


def named(recipe: Recipe, name: str, **training: Any) -> Recipe:
    return dataclasses.replace(recipe, name=name, training=dataclasses.replace(recipe.training, **training))


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch_size": 3, "lr_schedule": "wsd"},
        {"dropout": 0.2, "gradient_checkpointing": True},
        {"ema_decay": 0.9, "lr_schedule": "linear"},
        {"precision": "bf16"},
    ],
)
def test_n_and_n_steps_resumed_equal_2n_steps_bit_for_bit(folder: Path, options: dict[str, Any]) -> None:
    whole, resumed = recipes.whole_and_resumed(recipes.recipe(folder, **options))
    keys = ("train/loss", "train/grad_norm", "train/learning_rate", "eval/bits_per_byte")
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        recipes.assert_same(resumed, whole, *keys, file=file)


_KILLED = """
import os, signal, sys
from pathlib import Path
from unmask import config, runs
from unmask.settings.recipe import Recipe
from unmask.training import checkpoint
from unmask.training.run import train

write = checkpoint.write_state
def killed(folder, progress, tensors):
    if progress.step == 4:
        (folder / "half-written").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, progress, tensors)
checkpoint.write_state = killed
train(config.load(Recipe, file=sys.argv[1]), resume="auto")
"""


def test_a_kill_in_mid_save_and_a_resume_give_the_uninterrupted_losses(folder: Path) -> None:
    whole = train(recipes.recipe(folder, save_steps=2, steps=8)).run
    tree = recipes.tree(folder, save_steps=2, steps=8) | {"name": "killed"}
    (folder / "killed.yaml").write_text(yaml.safe_dump(tree))
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder / "killed.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    run = RunFolder(folder / "killed")
    assert run.saved_steps() == [2, 3]
    assert list(run.checkpoints.glob(".partial-*"))
    loaded = DiffusionLM.from_pretrained(run.root / "latest", device="cpu")
    assert loaded.backbone.diffusion.method == "masked_diffusion"
    resumed = train(named(recipes.recipe(folder, save_steps=2, steps=8), "killed"), resume="auto").run
    assert not list(run.checkpoints.glob(".partial-*"))
    for key in ("train/loss", "train/grad_norm", "eval/bits_per_byte"):
        assert recipes.records(resumed, key) == recipes.records(whole, key)
    assert equal(weights(resumed, 8), weights(whole, 8))


@pytest.mark.parametrize("method", ["masked_diffusion", "autoregressive"])
def test_four_micro_batches_of_two_equal_one_batch_of_eight(folder: Path, method: str) -> None:
    base = recipes.recipe(folder, dropout=0.1)
    objective = dataclasses.replace(base.objective, method=method, random_length_probability=0.3)  # type: ignore[arg-type]
    base = dataclasses.replace(base, objective=objective)
    whole = weights(train(named(base, "whole")).run, 6)
    split = weights(train(named(base, "split", micro_batch_size=2)).run, 6)
    for name in whole:
        # float64: only the order of sums differs.
        torch.testing.assert_close(split[name], whole[name], rtol=1e-9, atol=1e-9)


def test_a_non_finite_loss_stops_before_the_update_and_keeps_what_is_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = Trainer._backward

    def poisoned(self: Trainer, batch: Any, example: Any, scale_T: Tensor, *, last: bool) -> Tensor:
        sums = step_of(self, batch, example, scale_T, last=last)
        return sums * math.nan if batch.step == 4 else sums

    monkeypatch.setattr(Trainer, "_backward", poisoned)
    with pytest.raises(NonFiniteError, match=r"Step 5 has loss nan.*--resume auto"):
        train(recipes.recipe(folder))
    run = RunFolder(folder / "tiny")
    assert run.saved_steps() == [3]
    monkeypatch.undo()
    train(recipes.recipe(folder), resume="auto")
    assert run.saved_steps() == [3, 6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(folder: Path, number: signal.Signals) -> None:
    tree = recipes.tree(folder, steps=4000, eval_steps=4000) | {"name": "stopped"}
    (folder / "stopped.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "unmask", "train", str(folder / "stopped.yaml")]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    run = RunFolder(folder / "stopped")
    deadline = time.monotonic() + 120
    while not run.metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert f"unmask train --resume {run.root}" in errors
    (step,) = run.saved_steps()
    assert checkpoints.read_progress(run.checkpoints / f"step-{step}").step == step
    assert len(recipes.records(run, "train/loss")) == step


def test_an_existing_run_is_not_overwritten(folder: Path) -> None:
    train(recipes.recipe(folder))
    with pytest.raises(CheckpointError, match=r"exists already.*--resume auto.*name="):
        train(recipes.recipe(folder))


def test_old_checkpoints_go_and_best_and_latest_stay(folder: Path) -> None:
    run = train(recipes.recipe(folder, steps=10, save_steps=1, eval_steps=4, keep_checkpoints=2)).run
    best = run.checkpoint("best")
    latest = run.checkpoint("latest")
    assert best is not None
    assert latest == (run.checkpoints / "step-10").resolve()
    assert set(run.saved_steps()) == {9, 10, int(best.name.removeprefix("step-"))}
    scores = dict(recipes.records(run, "eval/bits_per_byte"))
    assert scores[int(best.name.removeprefix("step-"))] == min(scores.values())


def test_epochs_are_counted_in_rows_and_saved_by_epoch(folder: Path) -> None:
    run = train(recipes.recipe(folder, steps=None, epochs=2, save_epochs=1, eval_steps=1000)).run
    from unmask.data.packing import PackedText
    from unmask.data.tokenized import TokenizedText

    texts = [TokenizedText.open(path.parent) for path in (folder / "cache").glob("*/starts.npy")]
    rows = max(len(PackedText(text, context_length=24, bos=0)) for text in texts)
    assert run.saved_steps() == sorted({math.ceil(rows / 8), math.ceil(2 * rows / 8)})


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_resumes(folder: Path) -> None:
    run = train(recipes.recipe(folder)).run
    state = run.checkpoints / "step-6" / "training"
    (state / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"progress\.json is damaged.*another checkpoint"):
        train(recipes.recipe(folder, steps=8), resume="auto")
    outcome = train(recipes.recipe(folder, steps=8), resume=str(run.checkpoints / "step-3"))
    assert outcome.run.saved_steps()[-1] == 8
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        train(recipes.recipe(folder), resume=str(run.checkpoints / "step-77"))


def test_the_run_folder_holds_everything_that_is_promised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    run = train(recipes.recipe(folder)).run
    assert yaml.safe_load(run.config.read_text())["training"]["steps"] == 6
    assert "torch" in json.loads((run.root / "environment.json").read_text())["packages"]
    assert (run.plots / "loss.png").stat().st_size > 1000
    assert (run.plots / "loss.csv").is_file()
    assert "## Sample 0" in (run.samples / "final.md").read_text()
    assert "bits per byte" in (run.final / "README.md").read_text()
    assert not (run.final / "training").exists()
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(run.final).config.diffusion["method"] == "masked_diffusion"


def test_training_learns(folder: Path) -> None:
    for method, bound in (("autoregressive", 3.4), ("masked_diffusion", 4.0)):
        base = recipes.recipe(folder, steps=120, eval_steps=120)
        base = dataclasses.replace(base, objective=dataclasses.replace(base.objective, method=method))
        scores = recipes.records(train(named(base, method)).run, "eval/bits_per_byte")
        # Bytes of this text have an entropy of about 4.2 bits without context.
        assert scores[-1][1] < bound, method


def test_settings_that_cannot_work_here_are_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        train(recipes.recipe(folder, precision="fp16"))
    with pytest.raises(SettingsError, match="`flex` needs a GPU"):
        train(recipes.recipe(folder, attention_backend="flex"))


def test_trackers_get_every_record(folder: Path) -> None:
    run = train(recipes.recipe(folder, report_to=("tensorboard",))).run
    assert list(run.root.rglob("events.out.tfevents*"))


def test_metrics_after_the_resumed_step_are_forgotten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    truncate_metrics(run, 2)
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
