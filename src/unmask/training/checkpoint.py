"""Training checkpoints: a model folder that `from_pretrained` opens, plus `training/`, all that a resume needs.

Because draws and data order are functions of the step, a resume needs weights, optimiser, averages and the step, and no
generator or loader state. Tensors are safetensors, everything else JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.errors import CheckpointError
from unmask.models.folders import written_model
from unmask.runs import STEP, RunFolder
from unmask.writing import temporary_beside, write_json, write_text

STATE = "training"
_ANOTHER = "Resume from another checkpoint of the run."
_NAMES = "Name a run, its best or latest, or a checkpoints/step-N folder of it."
_TDLM_NAME = re.compile(r"(?P<link>best|latest)_model\.pt|checkpoint_step_(?P<step>\d+)\.pt")


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        tokens: input tokens seen, over all processes.
        best_score: lowest held-out bits per byte so far, or None.
        best_step: the step that reached it.
        scored_on: hash of the held-out text that it is of; None in checkpoints from before there was one.
        window: sum and number of the losses since the last logged step.
        terms: sums of each loss term's values since then, by its name, where there are several.
        scaler: state of the fp16 loss scaler.
        stream: where the reader of a streamed text stands.
    """

    step: int = 0
    tokens: int = 0
    best_score: float | None = None
    best_step: int | None = None
    scored_on: str | None = None
    window: tuple[float, int] = (0.0, 0)
    terms: dict[str, list[float]] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    stream: dict[str, Any] | None = None


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `parameter name:key`, whole even where it is sharded (then every process must call)."""
    return {
        f"{name}:{key}": _whole(value)
        for name, parameter in _parameters(module).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put saved state back; parameters are matched by name.

    Raises:
        CheckpointError: the state does not belong to these parameters.
    """
    parameters = _parameters(module)
    saved: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(":")
        saved.setdefault(name, {})[key] = tensor
    if saved.keys() != parameters.keys():
        strange = sorted(saved.keys() ^ parameters.keys())[:4]
        raise CheckpointError(
            f"The optimiser state of the checkpoint is of another model; it differs in {', '.join(strange)}. Resume "
            "with the recipe of the run, or start from the weights alone with model.from_pretrained."
        )
    _check_moments(saved, parameters)
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    entry = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entry["state"] = {
        number: {key: _sharded(value, parameter) for key, value in saved[name_of[id(parameter)]].items()}
        for number, parameter in enumerate(order)
    }
    optimizer.load_state_dict(entry)


def _check_moments(saved: Mapping[str, Mapping[str, Tensor]], parameters: Mapping[str, Tensor]) -> None:
    """Each parameter has the state of AdamW, in its own shape; the fused update reads memory as if it had."""
    for name, parameter in parameters.items():
        shapes = {key: tuple(value.shape) for key, value in saved[name].items()}
        expected = {"step": (), **dict.fromkeys(("exp_avg", "exp_avg_sq"), tuple(parameter.shape))}
        if shapes != expected:
            raise CheckpointError(
                f"The optimiser state of the checkpoint does not fit: of {name} it has {shapes}, and the model needs "
                f"{expected}. {_ANOTHER}"
            )


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by the name that they have without a data-parallel wrapper."""
    named = module.named_parameters()
    return {name.removeprefix("module."): one for name, one in named if one.requires_grad}


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _sharded(value: Tensor, parameter: Tensor) -> Tensor:
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def write_state(folder: Path, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `training/` into a checkpoint that is being made; `tensors` holds one file's tensors by its name."""
    state = folder / STATE
    state.mkdir()
    for name, content in tensors.items():
        save_file({key: one.detach().cpu().contiguous() for key, one in content.items()}, state / f"{name}.safetensors")
    write_json(state / "progress.json", asdict(progress))


def read_progress(folder: Path) -> Progress:
    """Where the run stood when a checkpoint was written.

    Raises:
        CheckpointError: the folder holds no training state, or a damaged one.
    """
    path = folder / STATE / "progress.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} cannot be resumed: it has no {STATE}/progress.json. Resume from a checkpoints/step-N folder, or "
            "start from its weights alone with model.from_pretrained."
        )
    try:
        progress = _progress(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. {_ANOTHER}") from None
    match = STEP.fullmatch(folder.resolve().name)
    if match is not None and int(match[1]) != progress.step:
        raise CheckpointError(f"{path} is of step {progress.step}, which is not that of its folder. {_ANOTHER}")
    return progress


def _progress(entry: Any) -> Progress:
    """The record in a file. Raises ValueError, TypeError or KeyError with what is wrong with it."""
    if not isinstance(entry, dict):
        raise TypeError("it is no JSON object")
    values: dict[str, Any] = entry | {"window": tuple(entry["window"])}
    progress = Progress(**values)
    for name in ("step", "tokens", "best_step"):
        value = getattr(progress, name)
        if not (_is_whole(value) and value >= 0) and not (name == "best_step" and value is None):
            raise ValueError(f"its `{name}` must be a whole number of at least 0 and is {value!r}")
    if not isinstance(progress.scored_on, str | None):
        raise ValueError(f"its `scored_on` must be text and is {progress.scored_on!r}")
    score, best = progress.best_score, progress.best_step
    if (score is None) != (best is None) or not (score is None or _is_finite(score)):
        raise ValueError(f"its `best_score` must be a finite number, as there is a `best_step`, and is {score!r}")
    if best is not None and best > progress.step:
        raise ValueError(f"its `best_step` {best} is later than its `step` {progress.step}")
    total, count = progress.window
    if not (_is_finite(total) and _is_whole(count) and count >= 0):
        raise ValueError(f"its `window` must be a sum and a count and is {progress.window!r}")
    if not isinstance(progress.terms, dict) or not all(
        isinstance(values, list) and all(isinstance(one, int | float) for one in values)
        for values in progress.terms.values()
    ):
        raise ValueError(f"its `terms` must be lists of numbers and are {progress.terms!r}")
    return progress


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One file of the training state."""
    path = folder / STATE / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. {_ANOTHER}") from None


def remove_old(run: RunFolder, *, keep: int | None, best: int | None, written: int) -> None:
    """Remove all checkpoints but the newest `keep` (None: all stay), the best one and the one that was just written."""
    if keep is None:
        return
    for step in run.saved_steps()[:-keep]:
        if step not in (best, written):
            removed = temporary_beside(run.checkpoints / f"step-{step}")
            os.replace(run.checkpoints / f"step-{step}", removed)  # a kill in mid-removal leaves no half checkpoint
            shutil.rmtree(removed)


def resumable(run: RunFolder, resume: str) -> Path | None:
    """The checkpoint to go on from: `auto` is the run's latest or None; else a folder, or what `named` makes of it."""
    if resume != "auto":
        return named(resume, default="latest")
    steps = run.saved_steps()
    return run.checkpoints / f"step-{steps[-1]}" if steps else None


def named(path: str, *, default: Literal["best", "latest"]) -> Path:
    """The checkpoint that a path means: its folder, a run's `default` one, or TDLM's name for one of a run.

    TDLM's checkpoints/best_model.pt, latest_model.pt and checkpoint_step_N.pt are our best, latest and step-N.

    Raises:
        CheckpointError: there is none, or it is a file of pickled weights.
    """
    folder = Path(path)
    if folder.is_file():
        raise CheckpointError(
            f"{path} is a file, and a checkpoint is a folder. (No file of pickled weights is opened.) {_NAMES}"
        )
    if folder.parent.name == "checkpoints" and (theirs := _TDLM_NAME.fullmatch(folder.name)):
        run = RunFolder(folder.parent.parent)
        found = run.checkpoint(theirs["link"] or f"step-{theirs['step']}")
    elif (run := run_of(folder)).root == folder:
        newest = [run.checkpoints / f"step-{step}" for step in run.saved_steps()[-1:]]
        found = (run.checkpoint("best") if default == "best" else None) or next(iter(newest), None)
    else:
        found = folder.resolve() if folder.is_dir() else None
    if found is None:
        there = ", ".join(f"step-{step}" for step in run.saved_steps())
        hint = f"The run {run.root} has: {there or 'none'}." if run.exists() else _NAMES
        raise CheckpointError(f"There is no checkpoint {path}. {hint}")
    return found


def run_of(path: Path) -> RunFolder:
    """The run that a path names, or that the path of a checkpoint, or of a run's best or latest one, lies in."""
    if RunFolder(path).exists():
        return RunFolder(path)
    return RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def write_final(run: RunFolder, card: str) -> Path:
    """Make `final/` from the best checkpoint, or the latest one, with a model card."""
    source = run.checkpoint("best") or run.checkpoint("latest")
    assert source is not None, "a run saves at its last step"
    with written_model(run.final) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STATE))
        write_text(folder / "README.md", card)
    return run.final
