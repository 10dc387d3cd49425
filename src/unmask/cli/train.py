"""`unmask train RECIPE.yaml [RECIPE.yaml ...] [key=value ...]`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from unmask import config
from unmask.cli import port_files, tdlm_files
from unmask.cli.options import Parser, help_of_settings, parser, quiet_libraries
from unmask.cli.output import note, show
from unmask.errors import CheckpointError, SettingsError
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe

_SUFFIXES = (".yaml", ".yml")
_EXAMPLES = """\
  unmask train recipes/python-docs.yaml
  unmask train recipes/python-docs.yaml data.train=my.jsonl training.steps=2000 name=mine
  unmask train --resume runs/python-docs                         # goes on after a kill or Ctrl-C
  unmask train --resume runs/python-docs/best                    # goes back to the best checkpoint
  unmask train runs/python-docs --resume auto training.steps=4000
  unmask train runs/python-docs --fork slower training.learning_rate=1e-4
  unmask train recipes/data-constrained/masked-diffusion.yaml recipes/data-constrained/gpu.yaml
  unmask train recipes/python-docs.yaml --dry-run
  unmask train recipes/python-docs.yaml --eval-only              # scores the held-out text with the best checkpoint
  accelerate launch --num_processes 2 -m unmask train recipes/python-docs.yaml
  unmask train --config config/example_config.yaml --experiment-id my_experiment         # TDLM's file
  unmask train --config train_config.json --deepspeed ds_config.json                     # the TiDAR port's

`unmask train --help-keys` lists every key of a recipe.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    parsed = _options().parse_intermixed_args(list(arguments))
    if parsed.help_keys:
        show(help_of_settings(Recipe))
        return 0
    words = [word for word in [parsed.recipe, *parsed.overrides] if word is not None]
    files = [word for at, word in enumerate(words) if "=" not in word and (at == 0 or Path(word).suffix in _SUFFIXES)]
    recipe, notes = _recipe(parsed, files, [word for word in words if word not in files])
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        for remark in notes:
            note(f"note: {remark}")
    if parsed.print_config:
        show(config.to_yaml(recipe), end="")
        return 0
    quiet_libraries()
    if parsed.eval_only:
        return _evaluate(recipe, parsed.resume) if is_main else 0
    from unmask.training.lineage import command
    from unmask.training.run import dry_run, train

    if parsed.fork is not None:
        recipe, parsed.resume = _forked(recipe, parsed.resume, parsed.fork), None
    if parsed.dry_run:
        lines = dry_run(recipe, resume=parsed.resume)
        first = next(lines)  # an error comes before there is anything on stdout
        show(config.to_yaml(recipe), end="")
        for line in (first, *lines):
            show(f"# {line}")
        return 0
    outcome = train(recipe, resume=parsed.resume)
    if outcome.signal is not None and outcome.is_main:
        note(f"Stopped and saved. Go on with: {command(outcome.run)}")
    elif outcome.is_main:
        show(outcome.run.root)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _options() -> Parser:
    options = parser("train", "Train a model from a recipe (defaults < files < flags < key=value).", _EXAMPLES)
    options.add_argument(
        "recipe", nargs="?", help="YAML file, or a run, whose recipe it is; without one, that of the run to resume"
    )
    options.add_argument(
        "overrides", nargs="*", metavar="RECIPE|key=value", help="further files, each over those before it; settings"
    )
    options.add_argument(
        "--resume", metavar="auto|CHECKPOINT",
        help="go on from the run's latest checkpoint, or from this one: runs/NAME[/best|/checkpoints/step-N]",
    )  # fmt: skip
    options.add_argument(
        "--fork", metavar="NEW_NAME",
        help="start a new run from the weights of the run's latest checkpoint, or of that of --resume, at step 0",
    )  # fmt: skip
    options.add_argument("--dry-run", action="store_true", help="say what would be trained, on what, and stop")
    options.add_argument("--print-config", "--print_config", action="store_true", help="print the resolved recipe")
    options.add_argument("--help-keys", action="store_true", help="list every key of a recipe and stop")
    tdlm_files.add_options(options)
    port_files.add_options(options)
    return options


def _recipe(parsed: argparse.Namespace, files: Sequence[str], words: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe that the command line means, and what there is to tell about it."""
    run = _run_of(parsed, files)
    if run is not None:
        files = [str(run.config), *files[1:]]
    given = tdlm_files.given(parsed, files[0] if files else None, words)
    if tdlm_files.is_yaml(parsed.config):
        parsed.config = None
    starts = not (parsed.print_config or parsed.dry_run or parsed.eval_only)
    has_recipe = given.file is not None or given.is_alone
    over, notes = port_files.tree_of(parsed, has_recipe=has_recipe, overrides=given.overrides, starts=starts)
    over = config.merged(given.tree, over)
    if run is not None:
        over |= _place(run)
    elif not given.is_named or (parsed.resume not in (None, "auto") and not parsed.eval_only):
        over |= _run_named(parsed.resume, is_started=parsed.eval_only)
    over |= given.flags
    below = [*([] if given.file is None else [given.file]), *files[1:]]
    recipe = config.load(Recipe, file=below, over=over, overrides=given.overrides, read=tdlm_files.read)
    return recipe, [*given.notes, *notes]


def _run_of(parsed: argparse.Namespace, files: Sequence[str]) -> RunFolder | None:
    """The run whose own recipe is meant: it stands in the recipe's place, or is to go on and nothing else is given.

    Raises:
        SettingsError: a folder in the recipe's place is no run.
        CheckpointError: there is nothing to go on from.
    """
    if files and Path(files[0]).is_dir():
        run = RunFolder(Path(files[0]))
        if not run.config.is_file():
            raise SettingsError(f"{files[0]} is a folder and no run: it has no config.yaml. Name a recipe or a run.")
        return run
    if files or parsed.config is not None or parsed.resume in (None, "auto"):
        return None
    from unmask.training.checkpoint import named, run_of

    run = run_of(Path(parsed.resume))
    if not run.config.is_file():
        named(parsed.resume, default="latest")
        return None
    return run


def _place(run: RunFolder) -> dict[str, str]:
    """Name and folder of a run, where it lies now."""
    root = run.root if run.root.name not in ("", "..") else run.root.resolve()
    return {"name": root.name, "output_dir": str(root.parent)}


def _forked(recipe: Recipe, resume: str | None, name: str) -> Recipe:
    """The recipe of a new run from the weights of a checkpoint of the recipe's run."""
    from unmask.training.checkpoint import resumable
    from unmask.training.lineage import forked

    run = RunFolder(Path(recipe.output_dir) / recipe.name)
    source = resumable(run, resume or "auto")
    if source is None:
        raise CheckpointError(f"{run.root} has no checkpoint to start from. Name one: --resume RUN --fork {name}")
    return forked(recipe, source, name)


def _run_named(resume: str | None, *, is_started: bool) -> dict[str, str]:
    """What a run is called where only a checkpoint or TDLM's file says it: as the run of the checkpoint, or by time."""
    if resume not in (None, "auto"):
        from unmask.training.checkpoint import run_of

        run = run_of(Path(str(resume)))
        return _place(run) if run.exists() else {}
    if resume == "auto" or is_started:
        flag = "--resume auto" if resume else "--eval-only"
        raise SettingsError(f"{flag} does not say which run. Name it: --experiment-id NAME, or --resume CHECKPOINT")
    return {"name": tdlm_files.new_name()}


def _evaluate(recipe: Recipe, resume: str | None) -> int:
    from unmask.cli.evaluate_text import table
    from unmask.cli.train_eval import scored

    show(table(scored(recipe, resume)))
    return 0
