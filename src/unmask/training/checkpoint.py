"""Training checkpoints: a model folder that `from_pretrained` opens, plus `training/`, all that a resume needs.

Because draws and data order are functions of the step, a resume needs weights, optimiser, averages and the step, and no
generator or loader state. Tensors are safetensors, everything else JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from unmask.errors import CheckpointError
from unmask.runs import RunFolder

STATE = "training"
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        tokens: input tokens seen, over all processes.
        best_score: lowest held-out bits per byte so far, or None.
        best_step: the step that reached it.
        window: sums of the records since the last logged step.
        scaler: state of the fp16 loss scaler.
    """

    step: int = 0
    tokens: int = 0
    best_score: float | None = None
    best_step: int | None = None
    window: tuple[float, int] = (0.0, 0)
    scaler: dict[str, Any] | None = None


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by parameter name, gathered; collective under data parallelism."""
    gathered = get_optimizer_state_dict(module, optimizer, options=_OPTIONS)
    state = cast("dict[str, dict[str, Any]]", gathered["state"])
    return {
        f"{name}:{key}": torch.as_tensor(value).contiguous()
        for name, entries in state.items()
        for key, value in entries.items()
    }


def restore_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put saved state back; parameters are matched by name."""
    state: dict[str, Any] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(":")
        state.setdefault(name, {})[key] = tensor
    groups = get_optimizer_state_dict(module, optimizer, options=_OPTIONS)["param_groups"]
    set_optimizer_state_dict(module, optimizer, {"state": state, "param_groups": groups}, options=_OPTIONS)


def write_state(folder: Path, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `training/` into a checkpoint that is being made; `tensors` holds one file's tensors by its name."""
    state = folder / STATE
    state.mkdir()
    for name, content in tensors.items():
        save_file({key: one.detach().cpu().contiguous() for key, one in content.items()}, state / f"{name}.safetensors")
    (state / "progress.json").write_text(json.dumps(asdict(progress), indent=2), encoding="utf-8")


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
        entry = json.loads(path.read_text(encoding="utf-8"))
        return Progress(**entry | {"window": tuple(entry["window"])})
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Resume from another checkpoint of the run.") from None


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One file of the training state."""
    path = folder / STATE / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Resume from another checkpoint of the run.") from None


def remove_old(run: RunFolder, *, keep: int | None, best: int | None) -> None:
    """Remove all checkpoints but the newest `keep` (None: all stay) and the best one."""
    if keep is None:
        return
    for step in run.saved_steps()[:-keep]:
        if step != best:
            shutil.rmtree(run.checkpoints / f"step-{step}")


def resumable(run: RunFolder, resume: str) -> Path | None:
    """The checkpoint to go on from: `auto` is the run's latest or None; else a folder."""
    if resume != "auto":
        folder = Path(resume)
        if not folder.is_dir():
            there = ", ".join(f"step-{step}" for step in run.saved_steps())
            raise CheckpointError(f"There is no checkpoint {folder}. The run has: {there or 'none'}.")
        return folder.resolve()
    steps = run.saved_steps()
    return run.checkpoints / f"step-{steps[-1]}" if steps else None
