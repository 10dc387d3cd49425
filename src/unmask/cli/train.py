"""`unmask train RECIPE.yaml [RECIPE.yaml ...] [key=value ...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from unmask import config
from unmask.cli import port_files
from unmask.cli.options import help_of_settings, parser, quiet_libraries
from unmask.settings.recipe import Recipe

_SUFFIXES = (".yaml", ".yml")
_EXAMPLES = """\
  unmask train recipes/python-docs.yaml
  unmask train recipes/python-docs.yaml data.train=my.jsonl training.steps=2000 name=mine
  unmask train recipes/python-docs.yaml --resume auto
  unmask train recipes/data-constrained/masked-diffusion.yaml recipes/data-constrained/gpu.yaml
  unmask train recipes/python-docs.yaml --dry-run
  accelerate launch --num_processes 2 -m unmask train recipes/python-docs.yaml
  unmask train --config train_config.json --deepspeed ds_config.json

`unmask train --help-keys` lists every key of a recipe.
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("train", "Train a model from a recipe (defaults < files < key=value).", _EXAMPLES)
    options.add_argument("recipe", nargs="?", help="YAML file; without one, the defaults")
    options.add_argument(
        "overrides", nargs="*", metavar="RECIPE|key=value", help="further files, each over those before it; settings"
    )
    options.add_argument("--resume", metavar="auto|FOLDER", help="go on from the latest, or from this, checkpoint")
    options.add_argument("--dry-run", action="store_true", help="say what would be trained, on what, and stop")
    options.add_argument("--print-config", "--print_config", action="store_true", help="print the resolved recipe")
    options.add_argument("--help-keys", action="store_true", help="list every key of a recipe and stop")
    port_files.add_options(options)
    parsed = options.parse_intermixed_args(list(arguments))
    if parsed.help_keys:
        print(help_of_settings(Recipe))
        return 0
    words = [word for word in [parsed.recipe, *parsed.overrides] if word is not None]
    files = [word for at, word in enumerate(words) if "=" not in word and (at == 0 or Path(word).suffix in _SUFFIXES)]
    words = [word for word in words if word not in files]
    starts = not (parsed.print_config or parsed.dry_run)
    over, notes = port_files.tree_of(parsed, has_recipe=bool(files), overrides=words, starts=starts)
    if os.environ.get("RANK", "0") == "0":
        print("".join(f"note: {note}\n" for note in notes), end="", file=sys.stderr)
    recipe = config.load(Recipe, file=files, over=over, overrides=words)
    if parsed.print_config:
        print(config.to_yaml(recipe), end="")
        return 0
    quiet_libraries()
    from unmask.training.run import dry_run, train

    if parsed.dry_run:
        print(config.to_yaml(recipe), end="")
        for line in dry_run(recipe):
            print(f"# {line}")
        return 0
    outcome = train(recipe, resume=parsed.resume)
    if outcome.signal is not None and outcome.is_main:
        print(f"Stopped and saved. Go on with: unmask train {' '.join(files)} ... --resume auto", file=sys.stderr)
    elif outcome.is_main:
        print(outcome.run.root)
    return 0 if outcome.signal is None else 128 + outcome.signal
