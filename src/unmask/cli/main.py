"""The command line: finds the verb, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done, 2 a mistake that the user can mend, 128 + N ended by signal N after saving, 1 a fault of ours.
No verb is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from unmask import __version__
from unmask.errors import UnmaskError, nearest

VERBS = {
    "train": "train a model from a recipe",
    "tokenize": "write conversations as files of tokens with their loss mask",
    "pipeline": "pre-train, fine-tune and ask a model, stage by stage",
    "generate": "generate text from a run or model",
    "chat": "talk to a model in the terminal",
    "evaluate": "measure the likelihood of text, or downstream tasks",
    "compare": "runs and models on the same held-out text, with intervals",
    "experiments": "the runs in a folder: how far they came, how good they are",
    "analyze": "look into a model: what its tokens see, what its heads attend to",
    "info": "what a checkpoint is and needs, without loading its weights",
    "convert": "write a checkpoint in another format: LLaDA, Dream, ours",
    "merge": "merge an adapter into its base model",
}
_EXAMPLES = """\
examples:
  unmask train recipes/python-docs.yaml                         # masked diffusion on Python's documentation
  unmask train recipes/python-docs.yaml objective.method=autoregressive name=python-docs-ar
  unmask train recipes/python-docs.yaml training.steps=50 --dry-run
  unmask generate runs/python-docs "The function returns" --watch
  unmask evaluate runs/python-docs
  unmask compare runs/python-docs runs/python-docs-ar
"""


def help_text() -> str:
    """What `unmask --help` prints."""
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: unmask VERB ...\n\n"
        "Train, decode and evaluate diffusion language models next to autoregressive ones.\n\n"
        f"verbs:\n{lines}\n\n{_EXAMPLES}\n`unmask VERB --help` explains a verb, `unmask --version` tells the version.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"unmask {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        print(f"unmask: There is no verb `{verb}`. {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"unmask.cli.{verb}").run(rest)
    except UnmaskError as error:
        print(f"unmask {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def entry() -> None:
    """The installed command."""
    sys.exit(main())
