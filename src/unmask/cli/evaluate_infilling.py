"""`unmask evaluate RUN_OR_MODEL --infilling FILE`: HumanEval infilling."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask.cli.options import sampling_names, settings
from unmask.cli.output import as_json, note
from unmask.errors import SettingsError
from unmask.evaluation.recipes import task_run
from unmask.runs import environment, locate
from unmask.settings.evaluation import TaskSettings
from unmask.writing import write_text

if TYPE_CHECKING:
    from unmask.evaluation.infilling import Infill, Problem
    from unmask.lm import DiffusionLM


def prepare(model: str, given: argparse.Namespace) -> Callable[[DiffusionLM], Iterator[dict[str, Any]]]:
    """What to do with the model; the file and the options are checked before it is loaded."""
    from unmask.evaluation.infilling import read_problems

    length = _length(getattr(given, "infill_length", "oracle"))
    names = sampling_names() - {"infill_length"}
    tree = {"sampling": {name: value for name, value in vars(given).items() if name in names}}
    sampling = task_run("infilling", tree, source="the command line").sampling
    problems = read_problems(given.infilling)[: settings(TaskSettings, given).limit]

    def measure(lm: DiffusionLM) -> Iterator[dict[str, Any]]:
        began = time.perf_counter()
        found, passed = _measured(lm, problems, length, sampling, allow_code="allow_code" in given)
        record = _record(found, passed) | {
            "model": locate(model),
            "method": lm.backbone.diffusion.method,
            "file": given.infilling,
            "infill_length": length,
            "sampling": dict(sampling),
            "seconds": time.perf_counter() - began,
            "environment": environment(),
        }
        if record["too_long"]:
            note(f"{record['too_long']} problems do not fit the model's context: not solved")
        yield record
        if "samples" in given:  # after the record has been taken: it must not be lost if this fails
            write_text(Path(given.samples), _lines(found, passed))

    return measure


def _length(text: str) -> int | Literal["oracle"]:
    if text == "oracle":
        return "oracle"
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"--infill-length must be oracle or a number of tokens from 1 on, got {text}.")
    return int(text)


def _measured(
    lm: DiffusionLM,
    problems: Sequence[Problem],
    length: int | Literal["oracle"],
    sampling: Mapping[str, Any],
    *,
    allow_code: bool,
) -> tuple[list[Infill], list[bool] | None]:
    """The infills in the order of the problems, and which programs pass, if they may run."""
    from unmask.evaluation.infilling import infills
    from unmask.evaluation.programs import each_passes

    place = {problem.task_id: number for number, problem in enumerate(problems)}
    found = sorted(infills(lm, problems, length, sampling), key=lambda one: place[one.problem.task_id])
    if not allow_code:
        return found, None
    passing = iter(each_passes([one.problem.program(one.text) for one in found if one.text is not None]))
    return found, [one.text is not None and next(passing) for one in found]


def _record(found: Sequence[Infill], passed: Sequence[bool] | None) -> dict[str, Any]:
    from unmask.evaluation.infilling import share

    exact, exact_stderr = share([one.is_exact for one in found])
    pass_at_1, pass_at_1_stderr = (None, None) if passed is None else share(passed)
    return {
        "problems": len(found),
        "too_long": sum(one.text is None for one in found),
        "exact_match": exact,
        "exact_match_stderr": exact_stderr,
        "pass_at_1": pass_at_1,
        "pass_at_1_stderr": pass_at_1_stderr,
        "forwards": sum(one.forwards for one in found),
    }


def _lines(found: Sequence[Infill], passed: Sequence[bool] | None) -> str:
    """Every infill as a JSON line."""
    verdicts = passed or [None] * len(found)
    rows = [
        {
            "task_id": one.problem.task_id,
            "infill": one.text,
            "length": one.length,
            "exact": one.is_exact,
            "passed": verdict,
        }
        for one, verdict in zip(found, verdicts, strict=True)
    ]
    return "".join(as_json(row) + "\n" for row in rows)


def table(record: dict[str, Any]) -> str:
    """The record as people read it."""
    columns = ("model", "method", "problems", "infill length", "exact match", "+-", "pass@1", "+-", "too long")
    numbers = ("exact_match", "exact_match_stderr", "pass_at_1", "pass_at_1_stderr")
    shown = ["-" if record[name] is None else f"{record[name]:.4f}" for name in numbers]
    cells = [record["model"], record["method"], f"{record['problems']:,}", str(record["infill_length"]), *shown]
    lines = [
        f"| {' | '.join(columns)} |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        f"| {' | '.join([*cells, str(record['too_long'])])} |",
    ]
    if record["pass_at_1"] is None:
        lines.append("\npass@1 runs the programs that the model completes: --allow-code")
    return "\n".join(lines)
