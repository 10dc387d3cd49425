"""The files and flags of the first TiDAR port on the command line of `unmask train`.

In: `--config train_config.json`, `--deepspeed ds_config.json` and the port's flags. Out: a tree of settings to lay over
the recipe, below `key=value`. Precedence: defaults < recipe < JSON < flags < key=value.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask import config
from unmask.errors import MissingExtraError, SettingsError
from unmask.settings import deepspeed, port_aliases

_FLAGS = {
    "existing_model_path": "checkpoint to go on from, in the place of qwen_model_path",
    "qwen_model_path": "model.from_pretrained",
    "tidar_block_size": "objective.block_length",
    "tidar_clean_ratio": "objective.clean_ratio",
    "start_epoch": "epochs that are done; --resume auto goes on exactly",
}
_NUMBERS = {"tidar_block_size": int, "tidar_clean_ratio": float, "start_epoch": int}
_BATCH = ("training.batch_size", "training.micro_batch_size")


def add_options(options: argparse.ArgumentParser) -> None:
    """The port's files and flags."""
    group = options.add_argument_group("the first TiDAR port's files and flags (docs/migration.md)")
    group.add_argument(
        "--deepspeed", nargs="?", const="", metavar="JSON", help="a ds_config.json; without ZeRO no DeepSpeed is needed"
    )
    group.add_argument(
        "--deepspeed_config", "--deepspeed-config", "--ds-config", "--ds_config", metavar="JSON", help="the same"
    )
    group.add_argument(
        "--num-gpus", "--num_gpus", type=int, metavar="N", help="processes; `accelerate launch` starts them"
    )
    group.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    for name, text in _FLAGS.items():
        spellings = [f"--{name}", f"--{name.replace('_', '-')}"]
        group.add_argument(*spellings, type=_NUMBERS.get(name, str), metavar="VALUE", help=text)


def tree_of(
    parsed: argparse.Namespace, *, has_recipe: bool, overrides: Sequence[str], starts: bool
) -> tuple[dict[str, Any], list[str]]:
    """The settings in the port's files and flags, and what there is to tell about them.

    Args:
        parsed: the command line.
        has_recipe: whether a recipe lies below; else the port's defaults do.
        overrides: `key=value` above, which decide where they contradict the files.
        starts: whether training is to begin, for which the processes must be there.

    Raises:
        SettingsError: a file is missing or damaged, contradicts itself, or does not fit the number of processes.
        MissingExtraError: ZeRO is asked for, and DeepSpeed is not installed.
    """
    processes = _processes(parsed, starts)
    flags = {name: value for name in _FLAGS if (value := getattr(parsed, name)) is not None}
    tree, notes, above, engine = {}, [], {word.removeprefix("--").partition("=")[0] for word in overrides}, None
    if parsed.config is not None or flags:
        source = Path(parsed.config or "the command line")
        given = (_read(source) if parsed.config is not None else {}) | flags
        tree, notes = port_aliases.recipe_of(
            given, source=str(source), alone=not has_recipe and parsed.config is not None
        )
        engine = port_aliases.deepspeed_file(given, source)
    named = parsed.deepspeed_config or parsed.deepspeed
    if parsed.deepspeed == "" and named is None and engine is None:
        raise SettingsError("--deepspeed needs its file: --deepspeed ds_config.json")
    if named or engine:
        file = Path(named) if named else engine
        assert file is not None
        training, told = deepspeed.training_of(
            _read(file), source=str(file), processes=processes, checks_batch=not above & set(_BATCH)
        )
        notes += told
        if not has_recipe:
            training = deepspeed.DEFAULTS | training
        _keep_length(training, tree, notes, str(file), has_recipe=has_recipe)
        tree = config.merged(tree, {"training": training})
        if starts and training["deepspeed_config"] is not None and "training.deepspeed_config" not in above:
            _require_deepspeed(file)
    elif parsed.config is not None and not has_recipe:
        tree = config.merged(port_aliases.OPTIMISATION, tree)
    keep_one(tree, overrides)
    return tree, notes


def keep_one(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Of two keys that say the same thing, the higher one stays: of the command line, of the files, of the recipe."""
    above = {word.removeprefix("--").partition("=")[0] for word in overrides}
    training = tree.get("training", {})
    for pair in (("steps", "epochs"), ("warmup_steps", "warmup_ratio")):
        for one, other in (pair, pair[::-1]):
            if f"training.{one}" in above:
                training.pop(other, None)
            elif training.get(one) is not None and other != "warmup_ratio":  # which is never null
                training[other] = None


def _keep_length(
    training: dict[str, Any], tree: dict[str, Any], notes: list[str], source: str, *, has_recipe: bool
) -> None:
    """Epochs or the recipe decide how long a run is, and the learning rate falls to its end; else the schedule does."""
    below = tree.get("training", {})
    if "steps" in training and (has_recipe or "epochs" in below or "steps" in below):
        notes.append(
            f"{source}: total_num_steps ({training.pop('steps')}) is not used: the learning rate falls to the run's end"
        )


def _processes(parsed: argparse.Namespace, starts: bool) -> int:
    """How many processes take part: those that a launcher started, or where nothing starts, those that are planned."""
    there = int(os.environ.get("WORLD_SIZE", "1"))
    planned = parsed.num_gpus
    if planned is None or planned == there:
        return there
    if planned < 1 or starts:
        raise SettingsError(
            f"--num-gpus is {planned}, and the processes here are {there}: a launcher starts them. Run the same "
            f"command as: accelerate launch --num_processes {max(1, planned)} -m unmask train ..."
        )
    return planned


def _require_deepspeed(file: Path) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError(
            f"{file} asks for ZeRO, which needs the package `deepspeed`, and it is not installed. Install it with: pip "
            'install "unmask[gpu]". Or train the same steps without ZeRO, with all weights on every device: '
            "training.deepspeed_config=null"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read: {error.strerror}. (Relative paths start at {Path.cwd()}.)"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{file} must hold a JSON object, got {type(found).__name__}.")
    return found
