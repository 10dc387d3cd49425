"""`unmask analyze WHAT ...`: finds what is to be analysed and runs it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from unmask.cli.output import show
from unmask.errors import SettingsError, nearest

TOPICS = {
    "attention": "the masks of a model's layouts and the attention weights of every layer and head",
    "gradients": "gradient norms by corruption over a run, as heatmaps",
    "schedule": "what schedules of revealing cost on held-out text, and the best one",
}
_EXAMPLES = """\
examples:
  unmask analyze attention runs/stories-blocks --text "Once upon a time there was a little girl"
  unmask analyze gradients runs/python-docs
  unmask analyze schedule runs/demo --data held-out.jsonl --save best.json
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        show(_help(), end="")
        return 0 if arguments else 2
    topic, *rest = arguments
    if topic not in TOPICS:
        raise SettingsError(f"There is nothing to analyse called `{topic}`. {nearest(topic, TOPICS)}")
    return importlib.import_module(f"unmask.cli.analyze_{topic}").run(rest)


def _help() -> str:
    lines = "\n".join(f"  {name}  {text}" for name, text in TOPICS.items())
    return (
        f"usage: unmask analyze WHAT ...\n\nLook into a model.\n\nwhat:\n{lines}\n\n{_EXAMPLES}\n"
        "`unmask analyze WHAT --help` explains one of them.\n"
    )
