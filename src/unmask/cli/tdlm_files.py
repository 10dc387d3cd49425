"""TDLM's YAML file and flags on the command line of `unmask train`.

In: `--config FILE.yaml` (or the file in a recipe's place), `--experiment-id`, `--output-dir`, and `training_mode` in a
recipe of ours. Out: the recipe's file, if there is one, and a tree of settings to lay over it, below `key=value`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from unmask import config
from unmask.cli.port_files import keep_one
from unmask.errors import SettingsError
from unmask.settings import tdlm_aliases

_YAML = (".yaml", ".yml")


@dataclass
class Given:
    """What the command line gives, in our words.

    Attributes:
        file: recipe at the bottom, or None.
        overrides: `key=value`, at the top.
        tree: what TDLM's file says, over the recipe.
        flags: what TDLM's flags say, below `key=value`.
        notes: what there is to tell.
        is_alone: whether TDLM's file stands in the place of a recipe.
    """

    file: str | None
    overrides: list[str]
    tree: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_alone: bool = False

    @property
    def is_named(self) -> bool:
        """Whether it is said what the run is called, which TDLM's file does not."""
        return not self.is_alone or "name" in self.flags or any(one.startswith("name=") for one in self.overrides)


def add_options(options: argparse.ArgumentParser) -> None:
    """Files of other systems, and TDLM's flags."""
    group = options.add_argument_group("experiments, as TDLM names them (docs/migration.md)")
    group.add_argument(
        "--config", "--config_path", "--config-path", metavar="FILE",
        help="TDLM's YAML (or a recipe), or the TiDAR port's train_config.json",
    )  # fmt: skip
    group.add_argument(
        "--experiment-id", "--experiment_id", metavar="NAME", help="name=NAME [TDLM's file: tdlm_DATE_TIME]"
    )
    group.add_argument(
        "--output-dir", "--output_dir", metavar="DIR", help="output_dir=DIR [TDLM's file: experiments, else runs]"
    )
    group.add_argument(
        "--eval-only", "--eval_only", action="store_true",
        help="score the held-out text with the checkpoint of --resume, or the run's best one; train and write nothing",
    )  # fmt: skip


def given(parsed: argparse.Namespace, file: str | None, words: Sequence[str]) -> Given:
    """The recipe, TDLM's file and flags as settings.

    Args:
        parsed: the command line; a YAML file in `config` is TDLM's or a recipe, any other file is not looked at.
        file: in the place of a recipe.
        words: `key=value`.

    Raises:
        SettingsError: a file is missing or damaged, there are two recipes, or a value has no meaning here.
    """
    recipe, theirs = file, None
    if is_yaml(parsed.config):
        if _is_theirs(parsed.config):
            theirs = parsed.config
        elif file is not None:
            raise SettingsError(f"{file} and --config {parsed.config} are both recipes. Give one of them.")
        else:
            recipe = parsed.config
    if recipe is not None and _is_theirs(recipe):
        if theirs is not None:
            raise SettingsError(f"{recipe} and --config {theirs} are both files of TDLM. Give one of them.")
        recipe, theirs = None, recipe
    found = Given(recipe, [_in_our_words(word) for word in words])
    if theirs is not None:
        content = config.read_yaml(Path(theirs))
        found.is_alone = recipe is None
        found.tree, found.notes = tdlm_aliases.recipe_of(content, source=theirs, alone=found.is_alone)
        keep_one(found.tree, found.overrides)
    flags = {"name": parsed.experiment_id, "output_dir": parsed.output_dir}
    found.flags = {name: value for name, value in flags.items() if value is not None}
    return found


def read(file: Path) -> dict[str, Any]:
    """The tree of a recipe of ours, in which `training_mode` may stand for `objective.method`."""
    return tdlm_aliases.in_our_words(config.read_yaml(file), source=str(file))


def new_name() -> str:
    """TDLM's name for an experiment that has none.

    Raises:
        SettingsError: several processes need one name.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("Several processes need one name for their run. Give it: --experiment-id NAME")
    return f"tdlm_{datetime.now():%Y%m%d_%H%M%S}"


def is_yaml(file: str | None) -> bool:
    """Whether a file is to be read as YAML."""
    return file is not None and file.endswith(_YAML)


def _is_theirs(file: str) -> bool:
    return tdlm_aliases.is_theirs(config.read_yaml(Path(file)))


def _in_our_words(word: str) -> str:
    """`training_mode=diffusion` as `objective.method=masked_diffusion`; other words as they are."""
    key, _, value = word.removeprefix("--").partition("=")
    if key not in tdlm_aliases.MODE_WORDS:
        return word
    return f"objective.method={tdlm_aliases.method_of(value, source='the command line')}"
