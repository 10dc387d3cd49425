"""What a run's checkpoints say about it: which is the best, which the latest; and how a run goes back to one of them.

A run that goes on from an earlier checkpoint leaves a branch: the checkpoints and records after it, and the final
model. They are moved to `branches/after-step-N/` in the run folder, so that they are neither resumed by mistake nor
taken for old checkpoints of the new branch. With copies of the recipe, the split and all records the folder is a run of
its own. `branch.json` there says what is to be moved before anything is, so a start after a kill in the middle moves
the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

from unmask.errors import CheckpointError
from unmask.runs import RunFolder
from unmask.training.checkpoint import Progress, read_progress
from unmask.training.records import split_metrics
from unmask.writing import remove_leftovers, write_text

_FILE = "branch.json"


def relink(run: RunFolder) -> None:
    """Let `best` and `latest` mean what the checkpoints' own records say; a kill may have left them on older ones."""
    steps = run.saved_steps()
    records = {step: _record(run, step) for step in steps}
    known = [one for one in records.values() if one is not None]
    text = known[-1].scored_on if known else None
    scored = {one.step: one.best_score for one in known if one.best_step == one.step and one.scored_on in (None, text)}
    best = min(scored, key=lambda step: (scored[step], step), default=None)
    for name, step in (("best", best), ("latest", steps[-1] if steps else None)):
        if step is None:
            _unlink(run.root / name)
        elif run.checkpoint(name) != (run.checkpoints / f"step-{step}").resolve():
            run.link(name, step)


def going_on(run: RunFolder, progress: Progress, scored_on: str | None) -> Progress:
    """The progress of a run that goes on to be scored on the text `scored_on` (a hash).

    A best score stays the best only where its checkpoint is there, of which something can be made, and where it is of
    the same text.
    """
    is_there = progress.best_step is not None and progress.best_step in run.saved_steps()
    if not is_there or progress.scored_on not in (None, scored_on):
        progress = replace(progress, best_score=None, best_step=None)
    return replace(progress, scored_on=scored_on)


def go_back(run: RunFolder, step: int) -> Path | None:
    """Close the branch after the checkpoint of a step, if the run has saved later ones; the folder it went to."""
    later = [one for one in run.saved_steps() if one > step]
    if not later:
        return None
    folder = _free(run.branches / f"after-step-{step}")
    folder.mkdir(parents=True)
    write_text(folder / _FILE, json.dumps({"after_step": step, "checkpoints": later, "is_moved": False}) + "\n")
    _move(run, folder, step, later)
    return folder


def finish_moves(run: RunFolder) -> None:
    """Move what is left of a branch whose closing was cut off by a kill.

    Raises:
        CheckpointError: a branch does not say what belongs to it.
    """
    for folder in sorted(run.branches.glob("*")):
        remove_leftovers(folder)
        file = folder / _FILE
        if not file.is_file():
            with contextlib.suppress(OSError):  # it holds something, which is not ours
                folder.rmdir()
            continue
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
            is_moved, step, later = bool(entry["is_moved"]), int(entry["after_step"]), [*map(int, entry["checkpoints"])]
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}), so it is not known which checkpoints belong to that branch. Move the "
                f"folder {folder} out of the run."
            ) from None
        if not is_moved:
            _move(run, folder, step, later)


def _move(run: RunFolder, folder: Path, step: int, later: list[int]) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    for number in later:
        name = f"step-{number}"
        if (run.checkpoints / name).is_dir() and not (folder / "checkpoints" / name).exists():
            os.replace(run.checkpoints / name, folder / "checkpoints" / name)
    if run.final.is_dir() and not (folder / "final").exists():
        os.replace(run.final, folder / "final")
    relink(run)
    kept, cut = split_metrics(run, step)
    branch = RunFolder(folder)
    for own, copied in ((run.config, branch.config), (run.split, branch.split)):
        if own.is_file() and not copied.exists():
            write_text(copied, own.read_text(encoding="utf-8"))
    if cut and not RunFolder(folder).metrics.exists():
        write_text(RunFolder(folder).metrics, kept + cut)
    write_text(run.metrics, kept)
    write_text(folder / _FILE, json.dumps({"after_step": step, "checkpoints": later, "is_moved": True}) + "\n")


def _record(run: RunFolder, step: int) -> Progress | None:
    """What the checkpoint of a step says; None where it is damaged, which whoever resumes it is told."""
    try:
        return read_progress(run.checkpoints / f"step-{step}")
    except CheckpointError:
        return None


def _free(path: Path) -> Path:
    """The path, with a number behind it where it is taken."""
    taken = {one.name for one in path.parent.glob(f"{path.name}*")}
    names = (path.name if number == 1 else f"{path.name}-{number}" for number in range(1, len(taken) + 2))
    return path.parent / next(name for name in names if name not in taken)


def _unlink(link: Path) -> None:
    """Remove a link that means nothing; what is no link is not ours."""
    if link.is_symlink():
        link.unlink()
