"""What the run folders below a folder are, how far they came and how good they are.

In: a folder. Out: one `Experiment` for each run in it, a pipeline's stages too. Read are `config.yaml`, `status.json`,
`metrics.jsonl`, a checkpoint's `progress.json` and configuration, and safetensors headers; never weights, and without
PyTorch. What cannot be read is told as a problem of its run: no run keeps the others from being listed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from unmask import config
from unmask.errors import CheckpointError, ReportError, SettingsError, UnmaskError
from unmask.models.headers import FACTS_FILE, WEIGHTS_FILE, counted, weight_files
from unmask.models.json_files import read_json
from unmask.runs import ADAPTER_FILE, RunFolder, State, metrics_lines
from unmask.settings.recipe import Recipe

Status = Literal["finished", "running?", "interrupted", "failed", "damaged"]
DEFAULT_STEPS = 1000
# A run that says it goes on, and has written nothing for this long, was killed.
_SILENCE = 600.0
_BOUNDED = ("masked_diffusion", "block_diffusion")


@dataclass
class Experiment:
    """One run.

    Attributes:
        name: of its folder, below the folder that was asked for.
        path: of its folder.
        status: finished (`final/` is there), running? (it has written something in the last ten minutes), interrupted
            (it can go on), failed (with `error`), damaged (with `problems`).
        method: of training.
        block_length: of its checkpoint.
        parameters: numbers that its newest checkpoint holds; of an adapter only its own.
        is_adapter: whether that is so.
        steps: optimiser steps done.
        saved_step: of the newest checkpoint, which a resume goes on from.
        planned_steps: how many it is to have; None where only its epochs are known.
        epochs: that it is to have, where the recipe says so.
        bits_per_byte: best held-out score, or its upper bound.
        stderr: of that score, from the draws of the masks.
        best_step: that reached it.
        is_bound: whether the score is only an upper bound.
        error: what ended it.
        problems: what is damaged or missing.
    """

    name: str
    path: str
    status: Status = "interrupted"
    method: str | None = None
    block_length: int | None = None
    parameters: int | None = None
    is_adapter: bool = False
    steps: int = 0
    saved_step: int | None = None
    planned_steps: int | None = None
    epochs: float | None = None
    bits_per_byte: float | None = None
    stderr: float | None = None
    best_step: int | None = None
    is_bound: bool | None = None
    error: str | None = None
    problems: list[str] = field(default_factory=list)


def experiments(folder: Path) -> list[Experiment]:
    """The runs in a folder, by name: itself, those in it, and the stages of the pipelines in it.

    Raises:
        CheckpointError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder}. Name one that holds runs: unmask experiments list DIR")
    try:
        if _is_run(folder):
            return [read(folder, folder.resolve().name)]
        inside_it = sorted(_folders(folder))
    except OSError as error:
        raise CheckpointError(f"The folder {folder} cannot be read: {error.strerror}") from None
    found: list[Experiment] = []
    for one in inside_it:
        try:
            inside = [one] if _is_run(one) else sorted(stage for stage in _folders(one) if _is_run(stage))
        except OSError as error:
            problem = f"{one} cannot be read: {error.strerror}"
            found.append(Experiment(one.name, str(one), "damaged", problems=[problem]))
            continue
        found += [read(run, str(run.relative_to(folder))) for run in inside]
    return found


def read(folder: Path, name: str) -> Experiment:
    """One run."""
    run, found = RunFolder(folder), Experiment(name, str(folder))
    state: list[str | None] = []
    for part in (lambda *given: state.append(_status(*given)), _recipe, _metrics, _checkpoint):
        try:
            part(run, found)
        except (UnmaskError, OSError, ValueError, RecursionError) as error:
            found.problems.append(" ".join(str(error).split()))
    if found.method is not None:
        found.is_bound = found.method in _BOUNDED and found.block_length != 1
    try:
        if state == ["finished"] and not run.final.is_dir():
            found.problems.append(f"{run.final} is missing")
        found.status = _judged(run, found, next(iter(state), None))
    except OSError as error:
        found.status = "damaged"
        found.problems.append(f"{folder} cannot be read: {error.strerror}")
    return found


def _judged(run: RunFolder, found: Experiment, state: str | None) -> Status:
    if found.problems:
        return "damaged"
    if state == "failed":
        return "failed"
    if state in (None, "finished") and run.final.is_dir():
        found.planned_steps = found.planned_steps or found.steps
        return "finished"
    return "running?" if state in (None, "running") and _is_fresh(run) else "interrupted"


def _is_fresh(run: RunFolder) -> bool:
    written = [one.stat().st_mtime for one in (run.metrics, run.status, run.config) if one.exists()]
    return time.time() - max(written, default=0.0) < _SILENCE


def _status(run: RunFolder, found: Experiment) -> str | None:
    """What the run says of itself; None for a run that does not.

    Raises:
        CheckpointError: the file is damaged.
    """
    record = read_json(run.root, run.status.name) or {}
    state, error, planned = (record.get(name) for name in ("state", "error", "planned_steps"))
    wrong = {"planned_steps": planned} if planned is not None and (_whole(planned) or 0) < 1 else {}
    wrong |= {"state": state} if state is not None and state not in get_args(State) else {}
    wrong |= {"error": error} if not isinstance(error, str | None) else {}
    if wrong:
        found_values = ", ".join(f"{name} {value!r:.60}" for name, value in wrong.items())
        raise CheckpointError(f"{run.status} is damaged: {found_values}")
    found.planned_steps, found.error = planned, error
    return state


def _recipe(run: RunFolder, found: Experiment) -> None:
    if not run.config.is_file():
        raise SettingsError(f"{run.config} is missing")
    tree = config.read_yaml(run.config)
    config.check_keys(Recipe, tree, source=str(run.config))
    training = tree.get("training", {})
    found.method = str(tree.get("objective", {}).get("method", "masked_diffusion"))
    found.epochs = _real(training.get("epochs"))
    if found.planned_steps is None and found.epochs is None:
        found.planned_steps = _whole(training.get("steps")) or DEFAULT_STEPS


def _metrics(run: RunFolder, found: Experiment) -> None:
    """How far the run came, and its best score. A last line that a kill cut off does not count."""
    if not run.metrics.is_file():
        if run.saved_steps() or run.final.is_dir():
            raise CheckpointError(f"{run.metrics} is missing")
        return
    for line in metrics_lines(run.metrics):
        if line.is_cut_off:
            return
        if line.damage is not None:
            raise ReportError(f"{line.where}: {line.damage}")
        found.steps = max(found.steps, line.values["step"])
        score = _real(line.values.get("eval/bits_per_byte"))
        if score is not None and score < (math.inf if found.bits_per_byte is None else found.bits_per_byte):
            found.bits_per_byte, found.stderr = score, _real(line.values.get("eval/stderr"))
            found.best_step = line.values["step"]


def _checkpoint(run: RunFolder, found: Experiment) -> None:
    """What the newest checkpoint, else the final model, says."""
    steps = run.saved_steps()
    folder = run.checkpoints / f"step-{steps[-1]}" if steps else run.final
    if steps:
        found.saved_step = steps[-1]
        found.steps = max(found.steps, steps[-1])
        progress = read_json(folder / "training", "progress.json")
        if progress is None:
            raise CheckpointError(f"{folder} has no training/progress.json, so it cannot be resumed")
        if found.bits_per_byte is None:
            found.bits_per_byte = _real(progress.get("best_score"))
            found.best_step = _whole(progress.get("best_step"))
    if not folder.is_dir():
        return
    found.is_adapter = (folder / ADAPTER_FILE).is_file()
    entry = read_json(folder, FACTS_FILE if found.is_adapter else "config.json") or {}
    facts = entry.get("diffusion", {})
    if not isinstance(facts, dict):
        raise CheckpointError(f"The entry `diffusion` of {folder} must be an object, got {facts!r}")
    found.block_length = _whole(facts.get("block_length"))
    files = [folder / WEIGHTS_FILE] if found.is_adapter else weight_files(folder)
    stored = counted(files)
    if stored.truncated:
        raise CheckpointError(f"{folder} ends before its last tensor ({', '.join(stored.truncated)})")
    found.parameters = sum(stored.values.values())


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _real(value: Any) -> float | None:
    """A finite number; anything else is None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return any(one.exists() for one in (run.config, run.metrics, run.checkpoints, run.status))


def _folders(folder: Path) -> Iterator[Path]:
    return (one for one in folder.iterdir() if one.is_dir() and not one.is_symlink() and not one.name.startswith("."))
