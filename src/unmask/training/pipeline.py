"""A pipeline's stages: which are to run, from what, and running them in order.

A trained stage is finished when its run folder has `final/`, the best checkpoint's model; the next stage starts there.
Everything that could stop a later stage and can be known beforehand is checked before the first one runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.sources import Sources
from unmask.data.text import Corpus
from unmask.errors import CheckpointError, DataError, SettingsError
from unmask.models.headers import read_json
from unmask.runs import RunFolder, locate
from unmask.settings.data import DataSettings
from unmask.settings.pipeline import PipelineRecipe, StageName, TrainedStage
from unmask.settings.recipe import Recipe
from unmask.training import lineage

_START = "start.json"
"""File of a stage's run folder: which run its first model came from."""
TRAINED: tuple[TrainedStage, ...] = ("pretraining", "sft")


@dataclass(frozen=True)
class Stage:
    """One stage of training, as it stands before the pipeline runs.

    Attributes:
        name: of the stage.
        recipe: what `unmask train` would run.
        run: its folder.
        steps: of its latest checkpoint; None if it has none.
        is_finished: whether it is done and will not run.
        removed: run folders that are removed before it runs.
        notes: what is worth knowing before it runs.
    """

    name: TrainedStage
    recipe: Recipe
    run: RunFolder
    steps: int | None = None
    is_finished: bool = False
    removed: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What will happen, for a person to read."""
        if self.is_finished:
            return [f"{self.name}: finished, {self.run.final} stays as it is"]
        begins = "starts" if self.steps is None else f"was interrupted, goes on at step {self.steps}"
        source = self.recipe.model.from_pretrained or "random weights"
        first = f"{self.name}: {begins} in {self.run.root}, {_length(self.recipe)} from {source}"
        return [first, *(f"  {note}" for note in (*self.notes, *(f"removes {one}" for one in self.removed)))]


def plan(pipeline: PipelineRecipe, stages: Sequence[StageName], *, restart: TrainedStage | None = None) -> list[Stage]:
    """The trained ones among `stages`, in order, each checked against what is there.

    Args:
        pipeline: the recipe.
        stages: names of the stages to run.
        restart: the stage to train again, with those after it, whose models came from it.

    Raises:
        SettingsError: the recipe or the choice of stages contradicts itself.
        CheckpointError: a stage has no model to start from, or its folder holds the work of another recipe.
        DataError: a source of a stage's text is missing.
    """
    if restart is not None and restart not in stages:
        raise SettingsError(f"--restart {restart} needs a run of that stage. Add --stage all or --stage {restart}.")
    planned: list[Stage] = []
    again = () if restart is None else TRAINED[TRAINED.index(restart) :]
    for name in TRAINED:
        if name not in stages:
            continue
        recipe = pipeline.recipe(name, start=_start(pipeline, name, planned))
        run = run_folder(pipeline, name)
        stage = Stage(name, recipe, run) if name in again else _resumed(name, recipe, run, planned)
        if name == restart:
            there = [run_folder(pipeline, one).root for one in again]
            stage = dataclasses.replace(stage, removed=tuple(folder for folder in there if folder.exists()))
        if not stage.is_finished:
            _check_sources(pipeline, stage)
        planned.append(stage)
    return planned


def run(stages: Sequence[Stage]) -> int | None:
    """Train the stages that are not finished; the signal that ended one of them (after saving), or None."""
    from unmask.training.opening import worked_on

    if all(stage.is_finished for stage in stages) or not is_main():
        return _run(stages)
    with worked_on(stages[0].run.root.parent):
        return _run(stages)


def _run(stages: Sequence[Stage]) -> int | None:
    from unmask.training.lock import held
    from unmask.training.run import train

    for stage in stages:
        if is_main():
            print("\n".join(stage.lines()), file=sys.stderr)
        if stage.is_finished:
            continue
        for folder in stage.removed if is_main() else ():
            with held(folder):
                shutil.rmtree(folder)
        start = json.dumps({"trained_by": _trace(_source(stage.recipe))}) + "\n"
        outcome = train(stage.recipe, resume="auto", is_last=stage is stages[-1], files={_START: start})
        if outcome.signal is not None:
            return outcome.signal
    return None


def last_finished(pipeline: PipelineRecipe) -> Path:
    """The model of the last finished stage.

    Raises:
        CheckpointError: none is finished.
    """
    for name in reversed(TRAINED):
        final = run_folder(pipeline, name).final
        if final.is_dir():
            return final
    raise CheckpointError(
        f"No stage of {pipeline.output_dir}/{pipeline.name} is finished, so there is no model to ask. "
        "Run --stage all, or --stage pretraining, first."
    )


def run_folder(pipeline: PipelineRecipe, stage: str) -> RunFolder:
    """Where a stage's run lies."""
    return RunFolder(Path(pipeline.output_dir) / pipeline.name / stage)


def _start(pipeline: PipelineRecipe, name: TrainedStage, before: Sequence[Stage]) -> str | None:
    """The model that a stage starts from: its own if it names one, else the result of the stage before."""
    own = pipeline.stage(name).model.from_pretrained
    if name == "pretraining":
        return own
    if own is not None and before:
        raise SettingsError(
            f"sft.model.from_pretrained is {own}, so fine-tuning would not start from what pretraining makes. Leave "
            "it out, or run the stages that you want alone: --stage sft, then --stage inference."
        )
    final = run_folder(pipeline, "pretraining").final
    if own is None and not before and not final.is_dir():
        raise CheckpointError(
            f"Fine-tuning starts from the result of pretraining, and {final} does not exist. Run --stage all, or name "
            "a model: sft.model.from_pretrained=RUN_OR_MODEL"
        )
    return own or str(final)


def _resumed(name: TrainedStage, recipe: Recipe, run: RunFolder, before: Sequence[Stage]) -> Stage:
    """A stage as its run folder shows it, if that is this recipe's work."""
    steps = run.saved_steps()
    is_finished = run.final.is_dir()
    if not is_finished and not steps:
        return Stage(name, recipe, run)
    found = lineage.changes(lineage.recipe_of(run), recipe)
    changed = [*found.free, *found.fork, *found.new]
    if is_finished or found.fork or found.new:
        _refuse(changed, name, run, "was made by another recipe")
    if any(not stage.is_finished for stage in before) or _recorded(run) != _trace(_source(recipe)):
        _refuse(["what it started from was trained again"], name, run, "is out of date")
    notes = tuple(f"changed since it was interrupted: {one}" for one in changed)
    return Stage(name, recipe, run, steps[-1] if steps else None, is_finished, notes=notes)


def _refuse(reasons: Sequence[str], name: str, run: RunFolder, fault: str) -> None:
    if reasons:
        raise CheckpointError(
            f"The {name} stage in {run.root} {fault} ({'; '.join(reasons)}). Train it again: --restart {name}. Keep "
            "it and start another pipeline: name=NEW_NAME. Or put the recipe back."
        )


def _sources_of(data: DataSettings) -> type[Sources[Any]]:
    """The reader of a format; the one of token files needs PyTorch, which others are checked without."""
    if data.format == "ckpt":
        from unmask.data.token_files import TokenFiles

        return TokenFiles
    return Corpus


def _check_sources(pipeline: PipelineRecipe, stage: Stage) -> None:
    """The text and, unless an earlier stage makes it, the model of a stage are there."""
    data, own = stage.recipe.data, pipeline.stage(stage.name).model.from_pretrained
    try:
        _sources_of(data).found((*data.train, *data.validation) if data.train else ())
        if own is not None:
            locate(own)
    except (DataError, CheckpointError) as error:
        raise type(error)(f"{stage.name}: {error}") from None


def _source(recipe: Recipe) -> RunFolder | None:
    """The run whose final model a recipe starts from, or None for models from elsewhere."""
    start = recipe.model.from_pretrained
    return RunFolder(Path(start).parent) if start is not None and Path(start).name == "final" else None


def _trace(run: RunFolder | None) -> str | None:
    """What tells a run from another one at the same place: its records, with their times."""
    if run is None or not run.metrics.is_file():
        return None
    return hashlib.blake2b(run.metrics.read_bytes(), digest_size=8).hexdigest()


def _recorded(run: RunFolder) -> str | None:
    """What `_trace` was when a stage began; None where nobody says."""
    record = read_json(run.root, _START) or {}
    return record.get("trained_by")


def _length(recipe: Recipe) -> str:
    if recipe.training.epochs is not None:
        return f"{recipe.training.epochs:g} epochs"
    return f"{recipe.training.steps or 1000} steps"


def is_main() -> bool:
    """Whether this process speaks for all; the launchers number them before there is an `Accelerator` to ask."""
    return os.environ.get("RANK", "0") == "0"
