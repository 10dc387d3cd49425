"""`unmask evaluate RUN_OR_MODEL`: the likelihood of text, downstream tasks, or infilling.

What is measured decides which options there are; each way has its own module beside this one.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from unmask.cli.options import Parser, add_sampling, add_settings, parser, quiet_libraries, sampling_names
from unmask.errors import SettingsError
from unmask.settings.evaluation import AnswerSettings, EvaluationSettings, TaskSettings
from unmask.writing import write_text

_EXAMPLES = """\
  unmask evaluate runs/python-docs                              # the run's own held-out text
  unmask evaluate runs/python-docs --data my.txt --masks-per-sequence 32
  unmask evaluate Qwen/Qwen3-0.6B --data hf:Salesforce/wikitext:wikitext-2-raw-v1 --split test --max-rows 500
  unmask evaluate runs/python-docs --tasks hellaswag,arc_easy --limit 100 --mc-num 32 --output scores.json
  unmask evaluate GSAI-ML/LLaDA-8B-Base --recipe recipes/evaluation/llada-base.yaml --tasks piqa
  unmask evaluate runs/python-docs --infilling HumanEval-SingleLineInfilling.jsonl.gz --infill-length oracle
"""
_WAYS = {
    "text": "the likelihood of text",
    "tasks": "downstream tasks (--tasks, --recipe)",
    "infilling": "infilling (--infilling)",
}
_COMMON = {"model", "output", "json", "device", "dtype"}
_TITLES: dict[type, str] = {
    EvaluationSettings: "likelihood of text",
    TaskSettings: "tasks",
    AnswerSettings: "likelihood of answers, in tasks",
}
_ONE_TEXT = ("n", "trace", "infill_length")  # every question gets one text, every gap the length of --infill-length


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options, used = _options()
    given = options.parse_args(list(arguments))
    way = "infilling" if "infilling" in given else "tasks" if "tasks" in given or "recipe" in given else "text"
    _check(given, way, used)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    module = importlib.import_module(f"unmask.cli.evaluate_{way}")
    quiet_libraries()
    measure = module.prepare(given.model, given)
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(given.model, device=given.device, dtype=given.dtype).optimize_for_inference()
    record = {}
    for record in measure(lm):
        if given.output is not None:
            write_text(Path(given.output), json.dumps(record, indent=2) + "\n")
    print(json.dumps(record) if given.json else module.table(record))
    return 0


def _options() -> tuple[Parser, dict[str, set[str]]]:
    """The parser, and which options each way of measuring uses."""
    options = parser(
        "evaluate",
        "Likelihood of text (exact for autoregressive and TiDAR models, an upper bound with its standard error for "
        "diffusion), downstream tasks of lm-evaluation-harness, or HumanEval infilling.",
        _EXAMPLES,
    )
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument("--output", metavar="FILE", help="also write the JSON record here")
    options.add_argument("--json", action="store_true", help="print the JSON record instead of the table")
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... [default: the accelerator, if any]")
    options.add_argument("--dtype", metavar="DTYPE", default="auto", help="type of the weights [default: as saved]")
    used: dict[str, set[str]] = {way: set() for way in _WAYS}
    _add_own(options, used)
    kinds = {kind: {one.name for one in dataclasses.fields(kind)} for kind in _TITLES}
    seen = set(_ONE_TEXT)
    for kind, title in _TITLES.items():
        add_settings(options, kind, title, skip=seen)
        seen |= kinds[kind]
    add_sampling(options, "generation, in tasks (where it overrules what the task asks for) and infilling", skip=seen)
    used["text"] |= kinds[EvaluationSettings]
    used["tasks"] |= kinds[TaskSettings] | kinds[AnswerSettings] | sampling_names()
    used["infilling"] |= sampling_names() | {"limit"}
    return options, used


def _add_own(options: Parser, used: dict[str, set[str]]) -> None:
    """The options that are no settings, each under the first of the ways that use it."""
    groups = {way: options.add_argument_group(f"for {name}") for way, name in _WAYS.items()}

    def add(ways: str, name: str, **how: object) -> None:
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
        first, *others = ways.split()
        action = groups[first].add_argument(*spellings, default=argparse.SUPPRESS, **how)  # type: ignore[arg-type]
        for way in (first, *others):
            used[way].add(action.dest)

    add("text", "data", action="append", metavar="SOURCE", help="text to score [default: the run's held-out]")
    add("text", "context-length", type=int, metavar="N", help="tokens per row [default: the run's]")
    add("text", "text-field", metavar="NAME", help="field of JSON rows [default: text]")
    add("text", "separator", metavar="TEXT", help="text between the documents of a plain-text file")
    add("text", "split", metavar="NAME", help="split of a Hugging Face dataset [default: train]")
    add("text", "malformed", choices=("error", "skip"), help="rows that cannot be read [default: error]")
    add("tasks", "tasks", metavar="NAMES", help="tasks, groups or tags, with commas between them")
    add("tasks", "recipe", metavar="FILE", help="tasks with their settings; --tasks then keeps some of them")
    add("tasks", "include-path", action="append", metavar="DIR", help="task definitions of your own")
    add("tasks infilling", "samples", metavar="FILE", help="also write every question and answer, as JSON lines")
    add("tasks infilling", "allow-code", action="store_true", help="run code that the model writes")
    add("tasks", "cfg", dest="cfg_scale", metavar="VALUE", help="cfg_scale, as LLaDA's harness names it")
    add(
        "tasks",
        "is-check-greedy",
        dest="check_greedy",
        metavar="BOOL",
        help="check_greedy, as LLaDA's harness names it",
    )
    add("infilling", "infilling", metavar="FILE", help="HumanEval-infilling problems, .jsonl or .jsonl.gz")
    add(
        "infilling",
        "infill-length",
        metavar="N",
        help="tokens of each gap, or oracle: the solution's [default: oracle]",
    )


def _check(given: argparse.Namespace, way: str, used: dict[str, set[str]]) -> None:
    for name in sorted(set(vars(given)) - _COMMON - used[way]):
        homes = [_WAYS[other] for other, names in used.items() if name in names]
        raise SettingsError(
            f"--{name.replace('_', '-')} goes with {' and '.join(homes)}, and this command measures {_WAYS[way]}. "
            "Leave it out."
        )
