"""What a run takes over from what it goes on from: a resumed run stays the same run, a forked one has its weights.

In: a recipe and a run folder. Out: the changes that a resumed run may make, or a refusal that names the others; the
recipe of a fork; and the text of `config.yaml`, which claims nothing that the model has not.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from unmask import config
from unmask.errors import CheckpointError, SettingsError
from unmask.runs import RunFolder
from unmask.settings.data import DataSettings
from unmask.settings.model import ModelSettings
from unmask.settings.recipe import Recipe
from unmask.settings.resuming import class_of

if TYPE_CHECKING:
    from unmask.models.loading import Checkpoint

_SHAPE = tuple(
    field.name for field in dataclasses.fields(ModelSettings) if field.name not in ("from_pretrained", "dtype")
)
_CHECKED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


class Changes(NamedTuple):
    """Where a recipe differs from that of the run: `key: value there -> value here` for each key.

    Attributes:
        free: may change.
        fork: need another run, from the weights of a checkpoint.
        new: need another run from scratch.
    """

    free: list[str]
    fork: list[str]
    new: list[str]


def changes(before: Recipe, after: Recipe) -> Changes:
    """Where the recipe `after` differs from `before`, the one of the run."""
    found = Changes([], [], [])
    for difference in config.differences(_plain(before), _plain(after)):
        kind = class_of(difference.partition(":")[0]) or "fork"
        if kind != "place":
            getattr(found, kind).append(difference)
    return found


def recipe_of(run: RunFolder) -> Recipe:
    """The recipe of a run, under the name that its folder has now.

    Raises:
        CheckpointError: its `config.yaml` is missing or damaged.
    """
    try:
        tree = config.read_yaml(run.config)
        config.check_keys(Recipe, tree, source=str(run.config))
        here = {"name": run.root.resolve().name, "output_dir": str(run.root.parent)}
        return config.from_tree(Recipe, tree | here)
    except (SettingsError, OSError) as error:
        raise CheckpointError(
            f"The recipe of the run {run.root} cannot be read: {error} Without it a resume cannot tell what it goes on "
            "with. Put the file back, or start a new run from the weights of a checkpoint: "
            f"model.from_pretrained={run.root} name=NEW_NAME"
        ) from None


def checked(recipe: Recipe, run: RunFolder, source: Path) -> list[str]:
    """What a recipe changes of the run that goes on from the checkpoint `source`, for a person to read.

    Raises:
        CheckpointError: the checkpoint is of another run.
        SettingsError: the recipe changes what a resumed run keeps.
    """
    if source.resolve().parent != run.checkpoints.resolve():
        raise CheckpointError(
            f"{source} is no checkpoint of {run.root}, the run that the recipe names. Go on with its own run, or start "
            f"a new one from its weights: --resume {shlex.quote(str(source))} --fork NEW_NAME"
        )
    found = changes(recipe_of(run), recipe)
    if found.fork or found.new:
        raise SettingsError(
            f"A resumed run keeps its recipe, and this one differs from that of {run.root} (there -> here): "
            f"{'; '.join([*found.fork, *found.new])}. {_way_out(run, source, found)}"
        )
    return [f"changed: {difference}" for difference in found.free]


def forked(recipe: Recipe, source: Path, name: str) -> Recipe:
    """The recipe of a new run that starts from the weights of a checkpoint, at its own first step.

    The model, its tokenizer and its vocabulary are the checkpoint's; everything else is the recipe's, also the length
    of training. The optimiser begins anew.

    Raises:
        SettingsError: the recipe wants another model.
    """
    run = RunFolder(source.resolve().parent.parent)
    found = changes(recipe_of(run), recipe) if run.exists() else Changes([], [], [])
    if found.new:
        raise SettingsError(
            f"A fork starts from the weights of {source}, which have these values in them (there -> here): "
            f"{'; '.join(found.new)}. Leave them as they are, or train from scratch: name={name} without --fork"
        )
    data = dataclasses.replace(recipe.data, tokenizer=None, vocabulary_size=DataSettings.vocabulary_size)
    model = ModelSettings(from_pretrained=str(source), dtype=recipe.model.dtype)
    return dataclasses.replace(recipe, name=name, data=data, model=model)


def check_model(recipe: Recipe, checkpoint: Checkpoint, source: Path) -> None:
    """The model of a checkpoint is the one that a recipe describes, where that describes it.

    Raises:
        SettingsError: it is not; both values are named.
    """
    backbone = checkpoint.backbone
    pairs = {"objective.method": (backbone.diffusion.method, recipe.objective.method)}
    if recipe.model.from_pretrained is None:
        shape = dataclasses.asdict(recipe.model)
        pairs |= {f"model.{name}": (getattr(backbone.network.config, name, None), shape[name]) for name in _CHECKED}
    wrong = [f"{name}: {own} -> {asked}" for name, (own, asked) in pairs.items() if own != asked]
    if wrong:
        raise SettingsError(
            f"The recipe describes another model than {source} (there -> here): {'; '.join(wrong)}. Give the values of "
            "the checkpoint, or train from scratch: name=NEW_NAME"
        )


def to_yaml(recipe: Recipe) -> str:
    """The text of a run's `config.yaml`: the recipe without the shape of a network that it does not make."""
    tree = yaml.safe_load(config.to_yaml(recipe))
    if recipe.model.from_pretrained is not None:
        tree["model"] = {name: value for name, value in tree["model"].items() if name not in _SHAPE}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _plain(recipe: Recipe) -> Recipe:
    """The recipe with the defaults for what it says in vain: the shape of a network that it does not make."""
    model = recipe.model
    if model.from_pretrained is None:
        return recipe
    return dataclasses.replace(recipe, model=ModelSettings(from_pretrained=model.from_pretrained, dtype=model.dtype))


def _way_out(run: RunFolder, source: Path, found: Changes) -> str:
    same = f"Go on with the run's own recipe: {command(run)}"
    if found.new:
        return f"{same}. Or train from scratch under another name: name=NEW_NAME"
    return f"{same}. Or start a new run from the weights so far: --resume {shlex.quote(str(source))} --fork NEW_NAME"


def command(run: RunFolder) -> str:
    """The command that goes on with a run and needs nothing else."""
    return f"unmask train --resume {shlex.quote(str(run.root))}"


def unused_shape(model: ModelSettings) -> list[str]:
    """Settings of a new network's shape, as `key=value`, where the network is that of a checkpoint."""
    if model.from_pretrained is None:
        return []
    new = ModelSettings()
    given = {name: getattr(model, name) for name in _SHAPE}
    return [f"model.{name}={value}" for name, value in given.items() if value != getattr(new, name)]
