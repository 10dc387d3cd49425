"""`unmask experiments list [DIR]`: the runs in a folder, how far they came and how good they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import parser
from unmask.cli.output import note, show, show_json
from unmask.errors import SettingsError, nearest

if TYPE_CHECKING:
    from unmask.reports.experiments import Experiment

_ACTIONS = {"list": "the runs in a folder"}
_EXAMPLES = """\
  unmask experiments list
  unmask experiments list experiments                        # runs in another folder than runs/
  unmask experiments list runs/python-docs                   # one run, or the stages of one pipeline
  unmask experiments list --json | jq -r '.[] | select(.status == "finished") | .path'
"""
_HEADER = ("run", "method", "parameters", "steps", "bits/byte", "status", "")
_NONE = "-"


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser(
        "experiments",
        "The runs in a folder: method, parameters, steps done and planned, best held-out bits per byte (<= before an "
        "upper bound), and whether they are finished, interrupted, failed or damaged. No weights are read.",
        _EXAMPLES,
    )
    options.add_argument("action", metavar="list", help="list: " + _ACTIONS["list"])
    options.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR", help="[default: runs]")
    options.add_argument("--json", action="store_true", help="print one list of JSON objects")
    parsed = options.parse_args(list(arguments))
    if parsed.action not in _ACTIONS:
        raise SettingsError(f"There is nothing to do called `{parsed.action}`. {nearest(parsed.action, _ACTIONS)}")
    from unmask.reports.experiments import experiments

    found = experiments(parsed.folder)
    if parsed.json:
        show_json([dataclasses.asdict(one) for one in found], indent=2)
    elif not found:
        note(f"There are no runs in {parsed.folder}.")
    else:
        _show([_cells(one) for one in found])
    return 0


def _show(rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere plain lines with tabs between the columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from unmask.reports.replay import printable

    console = Console(highlight=False)
    if not console.is_terminal:
        for row in (_HEADER, *rows):
            show("\t".join(row).rstrip())
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in _HEADER:
        is_number = name in ("parameters", "steps", "bits/byte")
        is_whole = is_number or name == "status"
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_whole, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def _cells(one: Experiment) -> list[str]:
    block = f" ({one.block_length})" if one.block_length else ""
    parameters = _NONE if one.parameters is None else f"{one.parameters:,}" + " (adapter)" * one.is_adapter
    cells = [
        one.name,
        _NONE if one.method is None else one.method + block,
        parameters,
        _steps(one),
        _score(one),
        one.status,
        _remark(one),
    ]
    # Names and errors are anybody's text: what a terminal would obey, or read as another cell, is shown instead.
    return ["".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in cell) for cell in cells]


def _steps(one: Experiment) -> str:
    if one.planned_steps is None:
        return f"{one.steps:,}" + (f" of {one.epochs:g} epochs" if one.epochs is not None else "")
    return f"{one.steps:,}/{one.planned_steps:,}"


def _score(one: Experiment) -> str:
    if one.bits_per_byte is None:
        return _NONE
    spread = f" +- {one.stderr:.4f}" if one.stderr else ""
    return f"{'<= ' if one.is_bound else ''}{one.bits_per_byte:.4f}{spread}"


def _remark(one: Experiment) -> str:
    """Why a run is not finished, in a few words."""
    if one.problems:
        return "; ".join(one.problems)
    if one.status == "failed":
        return one.error or ""
    if one.status == "interrupted":
        return "nothing saved" if one.saved_step is None else f"saved at step {one.saved_step:,}"
    return ""
