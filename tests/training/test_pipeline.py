"""A pipeline: stages in order, each from the best of the one before; nothing runs twice, nothing goes stale."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training import recipes
from unmask import config
from unmask.errors import CheckpointError, DataError, SettingsError
from unmask.runs import RunFolder
from unmask.settings.pipeline import PipelineRecipe
from unmask.training import pipeline as pipelines
from unmask.training.trainer import Trainer

STAGES = ("pretraining", "sft")


def tree(folder: Path, *, pretraining: dict[str, Any] | None = None, **sft: Any) -> dict[str, Any]:
    """A pipeline of seconds as plain data; the arguments are settings of the training of each stage."""
    first = recipes.tree(folder, **(pretraining or {}))
    second = recipes.tree(folder, **sft) | {"model": {"dtype": "float64"}}
    for stage in (first, second):
        del stage["name"], stage["output_dir"]
    inference = {"prompts": ["the cat"], "sampling": {"max_new_tokens": 4}}
    return {"name": "p", "output_dir": str(folder), "pretraining": first, "sft": second, "inference": inference}


def recipe(folder: Path, *overrides: str, **options: Any) -> PipelineRecipe:
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tree(folder, **options)))
    return config.load(PipelineRecipe, file=file, overrides=overrides)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def equal(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline whose stages are done."""
    folder = tmp_path_factory.mktemp("finished")
    recipes.write_text(folder)
    assert pipelines.run(pipelines.plan(recipe(folder), STAGES)) is None
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The finished pipeline, which is put back after the test has changed it."""
    kept = tmp_path / "kept"
    shutil.copytree(finished, kept, symlinks=True)
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(kept, finished, symlinks=True)


def test_fine_tuning_starts_from_the_best_checkpoint_of_pretraining(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    # So fast that the model is worse at its last step than at its third; fine-tuning then changes nothing.
    worse = {"learning_rate": 5.0, "lr_schedule": "constant", "weight_decay": 0.0, "keep_checkpoints": None}
    chosen = recipe(tmp_path, pretraining=worse, learning_rate=0.0, steps=2)
    pipelines.run(pipelines.plan(chosen, STAGES))
    first, second = (RunFolder(tmp_path / "p" / name) for name in STAGES)
    assert first.checkpoint("best") != first.checkpoint("latest")
    assert equal(second.final, first.root / "best")
    assert config.load(type(chosen.recipe("sft", start=None)), file=second.config).model.from_pretrained == str(
        first.final
    )


def test_a_finished_stage_is_not_run_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a finished stage was trained")

    monkeypatch.setattr(Trainer, "fit", fail)
    planned = pipelines.plan(recipe(finished), STAGES)
    assert [stage.is_finished for stage in planned] == [True, True]
    assert pipelines.run(planned) is None
    assert pipelines.last_finished(recipe(finished)) == finished / "p" / "sft" / "final"


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_stage_goes_on_from_its_latest_checkpoint(
    copy: Path, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = RunFolder(copy / "p" / stage)
    shutil.copytree(run.final, tmp_path / "whole")
    later = [copy / "p" / "sft"] if stage == "pretraining" else []
    for leftover in (run.final, run.checkpoints / "step-6", *later):
        shutil.rmtree(leftover)
    planned = pipelines.plan(recipe(copy), STAGES)
    assert [one.steps for one in planned if one.name == stage] == [3]
    steps: list[int] = []
    step = Trainer._step

    def counted(self: Trainer, number: int) -> Any:
        steps.append(number)
        return step(self, number)

    monkeypatch.setattr(Trainer, "_step", counted)
    pipelines.run(planned)
    assert steps[:3] == [3, 4, 5]
    assert equal(run.final, tmp_path / "whole")


def test_a_signal_stops_the_pipeline_and_the_same_command_ends_it(finished: Path, tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    log = Trainer._log

    def interrupted(self: Trainer, step: int, result: Any) -> None:
        log(self, step, result)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_log", interrupted)
        assert pipelines.run(pipelines.plan(recipe(tmp_path), STAGES)) == signal.SIGTERM
    assert not (tmp_path / "p" / "sft").exists()
    planned = pipelines.plan(recipe(tmp_path), STAGES)
    assert [stage.steps for stage in planned] == [3, None]
    assert pipelines.run(planned) is None
    assert equal(tmp_path / "p" / "sft" / "final", finished / "p" / "sft" / "final")


def test_a_changed_recipe_of_a_finished_stage_is_refused(finished: Path) -> None:
    for stage, change in (("pretraining", "pretraining.training.steps=9"), ("sft", "sft.data.context_length=20")):
        with pytest.raises(CheckpointError) as caught:
            pipelines.plan(recipe(finished, change), STAGES)
        message = str(caught.value)
        assert f"The {stage} stage in {finished / 'p' / stage} was made by another recipe" in message
        assert f"--restart {stage}" in message and "name=NEW_NAME" in message
        assert change.partition("=")[0].partition(".")[2] in message
    # What does not concern the stages that run may differ.
    pipelines.plan(recipe(finished, "pretraining.training.steps=9"), ("sft",))
    pipelines.plan(recipe(finished, "inference.sampling.max_new_tokens=9"), STAGES)


def test_an_interrupted_stage_may_change_how_it_trains_but_not_what(copy: Path) -> None:
    shutil.rmtree(copy / "p" / "sft" / "final")
    stage = pipelines.plan(recipe(copy, "sft.training.micro_batch_size=4"), STAGES)[1]
    assert stage.notes == ("changed since it was interrupted: training.micro_batch_size: None -> 4",)
    assert any("micro_batch_size" in line for line in stage.lines())
    with pytest.raises(CheckpointError, match=r"another recipe \(seed: 0 -> 1\)"):
        pipelines.plan(recipe(copy, "seed=1"), ("sft",))


def test_restarting_a_stage_removes_it_and_what_came_from_it(copy: Path) -> None:
    changed = recipe(copy, "pretraining.training.steps=2", "sft.training.steps=1")
    planned = pipelines.plan(changed, STAGES, restart="pretraining")
    assert planned[0].removed == (copy / "p" / "pretraining", copy / "p" / "sft")
    assert planned[1].removed == ()
    assert (copy / "p" / "sft" / "final").is_dir()
    pipelines.run(planned)
    assert RunFolder(copy / "p" / "pretraining").saved_steps() == [2]
    assert RunFolder(copy / "p" / "sft").saved_steps() == [1]
    only = pipelines.plan(changed, ("sft",), restart="sft")
    assert only[0].removed == (copy / "p" / "sft",)
    with pytest.raises(SettingsError, match="--restart pretraining needs a run of that stage"):
        pipelines.plan(changed, ("sft",), restart="pretraining")


def test_fine_tuning_of_a_model_that_is_gone_is_out_of_date(copy: Path) -> None:
    shutil.rmtree(copy / "p" / "pretraining")
    with pytest.raises(CheckpointError, match=r"The sft stage .* is out of date .*--restart sft"):
        pipelines.plan(recipe(copy), STAGES)
    shutil.rmtree(copy / "p" / "sft" / "final")
    pipelines.run(pipelines.plan(recipe(copy), ("pretraining",)))
    for stages in (STAGES, ("sft",)):
        with pytest.raises(CheckpointError, match="what it started from was trained again"):
            pipelines.plan(recipe(copy), stages)
    pipelines.run(pipelines.plan(recipe(copy), STAGES, restart="sft"))
    assert all(stage.is_finished for stage in pipelines.plan(recipe(copy), STAGES))


def test_fine_tuning_alone_needs_a_model(finished: Path, tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    with pytest.raises(CheckpointError, match=r"Run --stage all, or name a model: sft\.model\.from_pretrained"):
        pipelines.plan(recipe(tmp_path), ("sft",))
    with pytest.raises(CheckpointError, match="no model to ask"):
        pipelines.last_finished(recipe(tmp_path))
    own = f"sft.model.from_pretrained={finished / 'p' / 'pretraining'}"
    (stage,) = pipelines.plan(recipe(tmp_path, own), ("sft",))
    assert stage.recipe.model.from_pretrained == str(finished / "p" / "pretraining")
    with pytest.raises(SettingsError, match="would not start from what pretraining makes"):
        pipelines.plan(recipe(tmp_path, own), STAGES)
    with pytest.raises(CheckpointError, match=r"sft: There is no folder .*gone"):
        pipelines.plan(recipe(tmp_path, f"sft.model.from_pretrained={tmp_path / 'gone'}"), ("sft",))


def test_fine_tuning_may_train_an_adapter_of_what_pretraining_made(copy: Path) -> None:
    chosen = recipe(copy, "sft.adapter.rank=2", "sft.training.steps=1")
    pipelines.run(pipelines.plan(chosen, STAGES, restart="sft"))
    assert (pipelines.last_finished(chosen) / "adapter_config.json").is_file()
    assert all(stage.is_finished for stage in pipelines.plan(chosen, STAGES))
    with pytest.raises(CheckpointError, match=r"adapter\.rank: 2 -> None"):
        pipelines.plan(recipe(copy, "sft.training.steps=1"), STAGES)


def test_what_a_later_stage_lacks_is_said_before_the_first_one_runs(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    for change, message in (("sft.data.train=gone.jsonl", "there is no gone.jsonl"), ("sft.data.train=[]", "No data")):
        with pytest.raises(DataError, match=f"sft: .*{message}"):
            pipelines.plan(recipe(tmp_path, change), STAGES)
    assert not (tmp_path / "p").exists()


def test_two_processes_run_every_stage(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    recipe(tmp_path, pretraining={"steps": 2}, steps=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "unmask", "pipeline"]
    done = subprocess.run(
        [*command, str(tmp_path / "pipeline.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("the cat")
    assert done.stderr.count("sft: starts in") == 1
    (kept,) = (tmp_path / "p" / "inference.jsonl").read_text().splitlines()
    assert json.loads(kept)["prompt_text"] == "the cat"
