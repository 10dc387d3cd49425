"""Opening a run folder: locked, cleaned of what a kill left, checked, and put back if the run never begins.

In: a recipe and what it is to go on from. Out: an `Opening`. Nothing of a run that is there changes before `begin`,
which is called right before the first step; a start that fails before that leaves no new run behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from unmask.errors import CheckpointError
from unmask.runs import RunFolder, environment
from unmask.settings.recipe import Recipe
from unmask.training import branches, lineage
from unmask.training import checkpoint as checkpoints
from unmask.training.lock import LOCK, held
from unmask.training.records import truncate_metrics
from unmask.training.status import Status
from unmask.writing import remove_leftovers, write_text


@dataclass
class Opening:
    """A run folder that this process works on.

    Attributes:
        recipe: of the run.
        run: the folder.
        source: the checkpoint to go on from, or None.
        files: texts to write into the folder, by name.
        notes: what is worth knowing, for a person to read.
        has_begun: whether the run is past its start.
    """

    recipe: Recipe
    run: RunFolder
    source: Path | None
    files: Mapping[str, str]
    notes: list[str]
    has_begun: bool = False

    @property
    def goes_back(self) -> bool:
        """Whether the run has saved checkpoints after the one that it goes on from."""
        return self.source is not None and self.source.resolve().name != f"step-{self.run.saved_steps()[-1]}"

    def begin(self) -> Iterator[str]:
        """Make the folder what it is at the step to go on from; what is worth knowing of that, for a person to read."""
        done = checkpoints.Progress() if self.source is None else checkpoints.read_progress(self.source)
        step, keep = done.step, self.recipe.training.keep_checkpoints
        closed = None if self.source is None else branches.go_back(self.run, step)
        truncate_metrics(self.run, step)
        # A kill after a save may have left what it was to take the place of.
        checkpoints.remove_old(self.run, keep=keep, best=done.best_step, written=step)
        self.describe()
        self.has_begun = True
        if closed is not None:
            yield f"went back to step {step}: what the run had done after it lies in {closed} now"

    def describe(self) -> None:
        """Write what the run is: its recipe, and where it runs."""
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self.run.config, lineage.to_yaml(self.recipe))
        write_text(self.run.root / "environment.json", json.dumps(environment(), indent=2))
        for name, content in self.files.items():
            write_text(self.run.root / name, content)


@contextlib.contextmanager
def worked_on(folder: Path) -> Iterator[bool]:
    """Make a folder, if need be, and hold its lock while the block runs; whether it was made.

    On an error a folder that was made and is empty by then is removed again.

    Raises:
        CheckpointError: another process holds it, or it cannot be made.
    """
    with _made(folder) as made, held(folder):
        yield folder in made


@contextlib.contextmanager
def opened(recipe: Recipe, run: RunFolder, resume: str | None, *, files: Mapping[str, str]) -> Iterator[Opening]:
    """Hold a run folder while the block runs; for the main process of a launch.

    Args:
        recipe: of the run.
        run: its folder.
        resume: what to go on from, as `--resume` takes it; None starts anew.
        files: texts to write into the folder, by name.

    Raises:
        CheckpointError: another process holds it, it has begun and `resume` is None, there is nothing to go on from,
            or the folder cannot be used.
        SettingsError: the recipe changes what a resumed run keeps.
    """
    with worked_on(run.root) as is_ours:
        before = {path.name for path in run.root.iterdir()} - {LOCK}
        opening = None
        try:
            opening = _ready(recipe, run, resume, files)
            if not run.has_begun():
                opening.describe()
                Status(run, enabled=True).started()
            yield opening
        except BaseException:
            if not run.has_begun() and not (opening is not None and opening.has_begun):
                _discard(run, before, is_ours=is_ours)
            raise


def _ready(recipe: Recipe, run: RunFolder, resume: str | None, files: Mapping[str, str]) -> Opening:
    """The folder put in order, and the checkpoint to go on from."""
    _check_entries(run)
    run.clean()
    if recipe.data.cache_dir is not None:
        remove_leftovers(Path(recipe.data.cache_dir))
    if resume is None and run.has_begun():
        raise CheckpointError(
            f"The run folder {run.root} exists already. Go on with it: --resume auto. Start another one: name=NEW_NAME"
        )
    branches.finish_moves(run)
    branches.relink(run)
    source = None if resume is None else checkpoints.resumable(run, resume)
    if source is None and run.final.exists():
        raise CheckpointError(
            f"{run.root} has a final model and no checkpoint to go on from. Start another run: name=NEW_NAME, with "
            f"model.from_pretrained={run.root} from its weights"
        )
    notes = [] if source is None else lineage.checked(recipe, run, source)
    return Opening(recipe, run, source, files, notes)


def _check_entries(run: RunFolder) -> None:
    """What has a name of ours in the folder is of that kind.

    Raises:
        CheckpointError: something is not.
    """
    folders = (run.checkpoints, run.plots, run.samples, run.final, run.data, run.branches)
    files = (run.config, run.metrics, run.status, run.split)
    links = (run.root / "best", run.root / "latest")
    wrong = [f"{path} must be a folder" for path in folders if _exists(path) and not path.is_dir()]
    wrong += [f"{path} must be a file" for path in files if _exists(path) and not path.is_file()]
    wrong += [f"{path} must be a link" for path in links if _exists(path) and not path.is_symlink()]
    if run.checkpoints.is_dir():
        steps = run.checkpoints.glob("step-*")
        wrong += [f"{path} must be a folder" for path in steps if not path.is_dir()]
    if wrong:
        raise CheckpointError(f"{'; '.join(wrong)}. Move what is there out of the run, or start another: name=NEW_NAME")


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[list[Path]]:
    """Make a folder with those above it; the ones that were made, the folder itself first.

    On an error those that are empty by then are removed again.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not _exists(path)]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parents = [path for path in (folder, *folder.parents) if os.path.lexists(path) and not os.path.isdir(path)]
        at = next(iter(parents), error.filename or folder)
        raise CheckpointError(
            f"The run folder {folder} cannot be made: {at}: {error.strerror}. Choose another place with output_dir, or "
            "another name."
        ) from None
    made = [path for path in made if path.is_dir()]
    try:
        yield made
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # somebody has put something into it
                path.rmdir()
        raise


def _discard(run: RunFolder, before: set[str], *, is_ours: bool) -> None:
    """Remove what a start that came to nothing has put into its folder; all of it, if it made the folder."""
    known = {path.name for path in (run.config, run.status, run.metrics, run.checkpoints, run.data)}
    for path in run.root.iterdir():
        if path.name not in before and (is_ours or path.name in {*known, "environment.json"}) and path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
