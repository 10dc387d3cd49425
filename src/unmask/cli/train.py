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
from unmask.errors import SettingsError
from unmask.settings.recipe import Recipe

_SUFFIXES = (".yaml", ".yml")
_EXAMPLES = """\
  unmask train recipes/python-docs.yaml
  unmask train recipes/python-docs.yaml data.train=my.jsonl training.steps=2000 name=mine
  unmask train recipes/python-docs.yaml --resume auto
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
    from unmask.training.run import dry_run, train

    if parsed.dry_run:
        show(config.to_yaml(recipe), end="")
        for line in dry_run(recipe):
            show(f"# {line}")
        return 0
    outcome = train(recipe, resume=parsed.resume)
    if outcome.signal is not None and outcome.is_main:
        note(f"Stopped and saved. Go on with: unmask train {' '.join(files)} ... --resume auto")
    elif outcome.is_main:
        show(outcome.run.root)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _options() -> Parser:
    options = parser("train", "Train a model from a recipe (defaults < files < flags < key=value).", _EXAMPLES)
    options.add_argument("recipe", nargs="?", help="YAML file; without one, the defaults")
    options.add_argument(
        "overrides", nargs="*", metavar="RECIPE|key=value", help="further files, each over those before it; settings"
    )
    options.add_argument(
        "--resume", metavar="auto|CHECKPOINT",
        help="go on from the run's latest checkpoint, or from this one: runs/NAME[/best|/checkpoints/step-N]",
    )  # fmt: skip
    options.add_argument("--dry-run", action="store_true", help="say what would be trained, on what, and stop")
    options.add_argument("--print-config", "--print_config", action="store_true", help="print the resolved recipe")
    options.add_argument("--help-keys", action="store_true", help="list every key of a recipe and stop")
    tdlm_files.add_options(options)
    port_files.add_options(options)
    return options


def _recipe(parsed: argparse.Namespace, files: Sequence[str], words: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe that the command line means, and what there is to tell about it."""
    given = tdlm_files.given(parsed, files[0] if files else None, words)
    if tdlm_files.is_yaml(parsed.config):
        parsed.config = None
    starts = not (parsed.print_config or parsed.dry_run or parsed.eval_only)
    has_recipe = given.file is not None or given.is_alone
    over, notes = port_files.tree_of(parsed, has_recipe=has_recipe, overrides=given.overrides, starts=starts)
    over = config.merged(given.tree, over)
    if not given.is_named:
        over |= _run_named(parsed.resume, is_started=parsed.eval_only)
    over |= given.flags
    below = [*([] if given.file is None else [given.file]), *files[1:]]
    recipe = config.load(Recipe, file=below, over=over, overrides=given.overrides, read=tdlm_files.read)
    return recipe, [*given.notes, *notes]


def _run_named(resume: str | None, *, is_started: bool) -> dict[str, str]:
    """What a run of TDLM's file is called where nobody says it: as the run that goes on, or by the time of day."""
    if resume not in (None, "auto"):
        from unmask.training.checkpoint import run_of

        root = run_of(Path(str(resume))).root
        return {"name": root.name, "output_dir": str(root.parent)}
    if resume == "auto" or is_started:
        flag = "--resume auto" if resume else "--eval-only"
        raise SettingsError(f"{flag} does not say which run. Name it: --experiment-id NAME, or --resume CHECKPOINT")
    return {"name": tdlm_files.new_name()}


def _evaluate(recipe: Recipe, resume: str | None) -> int:
    from unmask.cli.evaluate_text import table
    from unmask.cli.train_eval import scored

    show(table(scored(recipe, resume)))
    return 0
