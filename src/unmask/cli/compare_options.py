"""The options of `unmask compare`, and which of them go together."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from unmask.cli.options import Parser, add_placement, add_settings, parser, refuse_without
from unmask.cli.output import note
from unmask.errors import SettingsError
from unmask.settings.comparison import ComparisonSettings
from unmask.settings.evaluation import AnswerSettings, TaskSettings

_EXAMPLES = """\
  unmask compare runs/python-docs runs/python-docs-ar           # on the text that both runs hold out
  unmask compare runs/a runs/b runs/c --save --output-dir comparisons --output-name kinds
  unmask compare runs/a Qwen/Qwen3-0.6B --data my.jsonl         # any tokenizers, on the same bytes
  unmask compare runs/a runs/b --judge Qwen/Qwen3-0.6B --texts 64 --new-tokens 128
  unmask compare runs/a runs/b --tasks hellaswag,piqa --limit 200
"""
TASK_FIELDS = {"limit", "num_fewshot", "mc_num"}
_DATA_HELP = "text to compare on [default: what all runs hold out, if that is the same]"
_TEXT_HELP = {
    "text-field": "field of JSON rows [default: text]",
    "separator": "text between the documents of a plain-text file",
    "split": "split of a Hugging Face dataset [default: train]",
    "malformed": "rows that cannot be read [default: error]",
}


def check_together(parsed: argparse.Namespace, chosen: ComparisonSettings) -> None:
    """Refuse options that do nothing without others; where TDLM has the same command, a note says so.

    Raises:
        SettingsError: there are such options.
    """
    given = {f"--{name.replace('_', '-')}" for name, value in vars(parsed).items() if value not in (None, [])}
    unused = given & {"--output-dir", "--output-name"}
    if unused and not parsed.save:
        note(f"note: {' and '.join(sorted(unused))}: nothing is written without --save")
    if "data" not in parsed:
        text = given & {f"--{name}" for name in _TEXT_HELP}
        refuse_without(text, "--data", "whose text they are about; runs read what they hold out as in training")
    if "tasks" not in parsed:
        refuse_without(given & {"--include-path"}, "--tasks", "which names the tasks")
    if parsed.judge is not None and chosen.texts == 0:
        raise SettingsError("--judge reads what is generated, and --texts 0 generates nothing. Leave one of them out.")


def options() -> Parser:
    """The parser of the verb."""
    made = parser(
        "compare",
        "Compare runs and models on the same held-out text: bits per byte (exact, or an upper bound with its standard "
        "error), paired bootstrap intervals over the documents, generated texts, speed, downstream tasks.",
        _EXAMPLES,
    )
    made.add_argument("models", nargs="*", metavar="RUN_OR_MODEL", help="two or more run folders, model folders, ids")
    made.add_argument("--data", action="append", default=argparse.SUPPRESS, metavar="SOURCE", help=_DATA_HELP)
    for name, text in _TEXT_HELP.items():
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
        choices = ("error", "skip") if name == "malformed" else None
        metavar = None if choices else "VALUE"
        made.add_argument(*spellings, default=argparse.SUPPRESS, metavar=metavar, choices=choices, help=text)
    made.add_argument("--judge", metavar="MODEL", help="independent autoregressive model that reads what is written")
    add_placement(made)
    saving = made.add_argument_group("files")
    saving.add_argument("--save", "--save-results", "--save_results", action="store_true", help="JSON, CSV and a page")
    saving.add_argument("--output-dir", "--output_dir", type=Path, metavar="DIR", help="[comparisons]")
    saving.add_argument("--output-name", "--output_name", metavar="NAME", help="[default: A-vs-B]")
    add_settings(made, ComparisonSettings, "what is measured")
    tasks = made.add_argument_group("downstream tasks of lm-evaluation-harness")
    tasks.add_argument("--tasks", default=argparse.SUPPRESS, metavar="NAMES", help="with commas between them")
    tasks.add_argument(
        "--include-path", "--include_path", action="append", default=[], metavar="DIR", help="definitions of your own"
    )
    for kind in (TaskSettings, AnswerSettings):
        others = {one.name for one in dataclasses.fields(kind)} - TASK_FIELDS
        add_settings(made, kind, "of the tasks", skip=others)
    original = made.add_argument_group("as TDLM names it")
    original.add_argument("--dd", "--diffusion", metavar="RUN", help="the diffusion run, in --experiments-dir")
    original.add_argument("--ar", "--autoregressive", metavar="RUN", help="the autoregressive one, likewise")
    original.add_argument(
        "--experiments-dir", "--experiments_dir", type=Path, metavar="DIR", help="[default: here, experiments or runs]"
    )
    return made
