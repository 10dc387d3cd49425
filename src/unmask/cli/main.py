"""The command line: finds the verb, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done; 2 what the user can act on: a mistake in the command, in a file, or a full disk, a folder that may
not be written, too little memory; 128 + N ended by signal N, after saving where there is something to save (130 Ctrl-C,
141 the reader of a pipe has gone); 1 a fault of ours, with its traceback. No verb is imported before it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from unmask import __version__
from unmask.cli.failures import explained, machine_errors
from unmask.cli.output import forgive_encodings, note, one_line, show
from unmask.errors import SettingsError, UnmaskError, nearest

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
        f"verbs:\n{lines}\n\n{_EXAMPLES}\n"
        "`unmask VERB --help` explains a verb, `unmask --version` prints the version.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = f"unmask {words[0]}" if words and words[0] in VERBS else "unmask"
    forgive_encodings()
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk or a closed pipe is found here, and not when Python ends
        return code
    except UnmaskError as error:
        return _failed(name, str(error))
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        return 130
    except machine_errors() as error:
        message = explained(error)
        if message is None:
            raise
        return _failed(name, message)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        show(help_text(), end="")
        return 0 if words else 2
    verb, *rest = words
    if verb == "--version":
        show(f"unmask {__version__}")
        return 0
    if verb not in VERBS:
        raise SettingsError(f"There is no verb `{verb}`. {nearest(verb, VERBS)}")
    return importlib.import_module(f"unmask.cli.{verb}").run(rest)


def _failed(name: str, message: str) -> int:
    """Print what is wrong in one line, if anyone can still read it; returns the exit code."""
    with contextlib.suppress(OSError):
        note(f"{name}: {one_line(message)}")
    return 2


def entry() -> None:
    """The installed command."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    sys.exit(code)


def _let_go(stream: TextIO | None) -> None:
    """Keep what cannot be written from failing once more, with a traceback, when Python ends."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
