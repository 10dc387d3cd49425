"""The first public TiDAR port under its own names: its `train_config.json`, its command line, its model's arguments.

In: what a user of the port has. Out: keys of a recipe, or arguments of `DiffusionLM.from_pretrained`, and what there is
to tell about names that have no place here. `docs/migration.md` lists them all. DeepSpeed's file is read by
`settings.deepspeed`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.errors import SettingsError, nearest
from unmask.settings.objective import ObjectiveSettings

DEFAULTS: dict[str, Any] = {
    "data_dir": "./train_data",
    "ckpt_dir": "./tidar_checkpoints",
    "qwen_model_path": "Qwen/Qwen2.5-1.5B",
    "model_name": "tidar",
    "num_epochs": 3,
    "start_epoch": 0,
    "save_interval": 1,
    "max_len": 512,
    "run_mode": "train",
    "tidar_block_size": 8,
    "tidar_clean_ratio": 0.5,
    "ar_loss_weight": 1.0,
    "diffusion_loss_weight": 1.0,
}
"""What the port does where its file says nothing."""
BASE: dict[str, Any] = {
    "data": {"format": "ckpt", "over_long": "cut"},
    "objective": {"method": "tidar", "tidar_layout": "split"},
    "training": {"keep_checkpoints": None, "tracker_tags": "tidar_port"},
}
"""What the port does whatever its files say."""
OPTIMISATION: dict[str, Any] = {
    "training": {
        "batch_size": 32,
        "micro_batch_size": 4,
        "learning_rate": 2e-5,
        "lr_schedule": "linear",
        "min_lr_ratio": 0.0,
        "warmup_steps": 100,
        "weight_decay": 0.01,
        "adam_betas": [0.9, 0.999],
        "max_grad_norm": 1.0,
    }
}
"""The values of the port's own `ds_config.json`, for a run without one; its precision is left to the machine."""
RENAMED = {
    "data_dir": "data.train",
    "ckpt_dir": "output_dir",
    "qwen_model_path": "model.from_pretrained",
    "model_name": "name",
    "num_epochs": "training.epochs",
    "save_interval": "training.save_epochs",
    "max_len": "data.context_length",
    "tidar_block_size": "objective.block_length",
    "tidar_clean_ratio": "objective.clean_ratio",
    "ar_loss_weight": "objective.ar_loss_weight",
    "diffusion_loss_weight": "objective.diffusion_loss_weight",
}
"""Keys that only have another name here."""
TRANSLATED = ("existing_model_path", "start_epoch", "run_mode", "deepspeed_config")
"""Keys that depend on others."""
UNUSED = {
    "logger_file": "progress goes to standard error, and every record to metrics.jsonl in the run folder",
    "num_workers": "rows are looked up by number in mapped files, so no workers are needed",
    "local_rank": "the launcher tells it by the environment",
}
"""Keys that have no place here, with the reason."""
_DEBUG_STEPS = 2
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def recipe_of(config: Mapping[str, Any], *, source: str, alone: bool) -> tuple[dict[str, Any], list[str]]:
    """What a `train_config.json` says, as nested keys of a recipe, and what there is to tell about it.

    Args:
        config: the object in the file, with flags of the command line in their places.
        source: the file.
        alone: whether there is no recipe below it: then the port's defaults fill in what it does not say.

    Raises:
        SettingsError: a value has no meaning here.
    """
    given = {key: value for key, value in config.items() if value is not None}
    known = [*RENAMED, *TRANSLATED, *UNUSED]
    notes = [f"{source}: `{key}` is not used: {UNUSED[key]}" for key in given if key in UNUSED]
    notes += [f"{source}: unknown key `{key}`. {nearest(key, known)}" for key in given if key not in known]
    if alone:
        given = DEFAULTS | given
    tree: dict[str, Any] = copy.deepcopy(BASE) if alone else {}
    for key in RENAMED:
        if key in given:
            _set(tree, RENAMED[key], given[key])
    if given.get("existing_model_path"):
        _set(tree, "model.from_pretrained", _checkpoint(given["existing_model_path"]))
    _set_length(tree, given, source, notes)
    return tree, notes


def _set_length(tree: dict[str, Any], given: Mapping[str, Any], source: str, notes: list[str]) -> None:
    """How long a run is: the epochs that are left, or two steps of a debugging run."""
    start, epochs = given.get("start_epoch", 0), given.get("num_epochs")
    if start:
        if not isinstance(start, int) or not isinstance(epochs, int) or not 0 <= start < epochs:
            raise SettingsError(
                f"{source}: start_epoch must be a whole number below num_epochs ({epochs}), got {start!r}. To go on "
                "with an interrupted run exactly where it was, leave it out and give --resume auto."
            )
        _set(tree, "training.epochs", epochs - start)
        notes.append(
            f"{source}: start_epoch {start} leaves {epochs - start} epochs, with a new optimiser and a new warm-up, as "
            "in the port; --resume auto goes on exactly where a run was"
        )
    mode = given.get("run_mode", "train")
    if mode not in ("train", "debug"):
        raise SettingsError(f"{source}: run_mode must be train or debug, got {mode!r}.")
    if mode == "debug":
        tree.get("training", {}).pop("epochs", None)
        _set(tree, "training.steps", _DEBUG_STEPS)


def _checkpoint(path: str) -> str:
    if path.endswith(_PICKLED):
        raise SettingsError(
            f"existing_model_path is a file of pickled weights, {path}, and no pickle is opened. Write the model as a "
            "folder where it was made, with model.save_pretrained(FOLDER), and give that folder; of a run of Unmask, "
            "give the run folder."
        )
    return path


def deepspeed_file(config: Mapping[str, Any], source: Path) -> Path | None:
    """The DeepSpeed file that a `train_config.json` names: from here, or beside the file that names it.

    Raises:
        SettingsError: there is no such file.
    """
    named = config.get("deepspeed_config")
    if not named:
        return None
    places = (Path(named), source.parent / named, source.parent / Path(named).name)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SettingsError(
            f"{source}: there is no deepspeed_config {named}, neither from {Path.cwd()} nor beside {source}. Name it "
            "with --deepspeed FILE."
        )
    return found


def from_port(
    *,
    block_size: int | None = None,
    clean_ratio: float | None = None,
    use_tidar: bool = True,
    torch_dtype: Any = None,
    dtype: Any = None,
    device_map: Any = None,
) -> dict[str, Any]:
    """Arguments of `DiffusionLM.from_pretrained` from those of `TiDARQwen2ForCausalLM.from_pretrained`.

        lm = DiffusionLM.from_pretrained("Qwen/Qwen2.5-1.5B", **from_port(block_size=8, torch_dtype=torch.float16))

    A Qwen2 or Qwen3 checkpoint becomes a TiDAR model with a mask token of its own; a TiDAR checkpoint stays one.

    Args:
        block_size: of drafts and of training; None is the checkpoint's, else 8.
        clean_ratio: share of a row that is clean in training with `tidar_layout: split`; recorded in the checkpoint.
        use_tidar: False opens the checkpoint as the autoregressive model that it also is.
        torch_dtype: type of the weights, under transformers 4's name.
        dtype: the same, under its present name.
        device_map: placement over several devices; "auto" as in `transformers`.

    Raises:
        SettingsError: a value is out of its range, or the type is given twice.
    """
    if torch_dtype is not None and dtype is not None:
        raise SettingsError("torch_dtype and dtype are the same argument. Give one of them.")
    if not use_tidar:
        objective = ObjectiveSettings(method="autoregressive")
    elif clean_ratio is None:
        objective = ObjectiveSettings(method="tidar", block_length=block_size)
    else:
        objective = ObjectiveSettings(
            method="tidar", block_length=block_size, tidar_layout="split", clean_ratio=clean_ratio
        )
    named = {"dtype": torch_dtype if dtype is None else dtype, "device_map": device_map}
    return {"objective": objective} | {name: value for name, value in named.items() if value is not None}


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value
