"""What a run records of its training steps, and how it forgets what a resume will write again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unmask.runs import RunFolder
from unmask.writing import write_text


class TermResult(NamedTuple):
    """A loss term in one optimiser step, over all processes.

    Attributes:
        loss: in nats, divided by the term's denominator.
        divergence: from a teacher, likewise, times the distillation weight.
        tokens: supervised rows.
        correct: rows whose likeliest token is the target.
    """

    loss: float
    divergence: float
    tokens: float
    correct: float


class StepResult(NamedTuple):
    """One optimiser step over all processes.

    Attributes:
        loss: in nats per token.
        grad_norm: before clipping.
        tokens: of input.
        stop: whether a stop was requested.
        terms: of an objective with several of them, by name; else none.
    """

    loss: float
    grad_norm: float
    tokens: int
    stop: bool
    terms: dict[str, TermResult]


def added(sums: Mapping[str, Sequence[float]], terms: Mapping[str, TermResult]) -> dict[str, list[float]]:
    """The sums of each term's values since the last record, with one more step."""
    zeros = [0.0] * len(TermResult._fields)
    return {
        name: [one + other for one, other in zip(sums.get(name, zeros), result, strict=True)]
        for name, result in terms.items()
    }


def term_records(sums: Mapping[str, Sequence[float]], steps: int, *, taught: bool) -> dict[str, Any]:
    """The metrics of each term over some steps: mean loss (and divergence) of a step, tokens in all, accuracy."""
    records: dict[str, Any] = {}
    for name, values in sums.items():
        result = TermResult(*values)
        records[f"train/{name}_loss"] = result.loss / steps
        if taught:
            records[f"train/{name}_divergence"] = result.divergence / steps
        records[f"train/{name}_tokens"] = round(result.tokens)
        records[f"train/{name}_accuracy"] = result.correct / result.tokens if result.tokens else math.nan
    return records


def truncate_metrics(run: RunFolder, step: int) -> None:
    """Forget records after `step`, so that a resumed run writes each step once."""
    if run.metrics.exists():
        write_text(run.metrics, split_metrics(run, step)[0])


def split_metrics(run: RunFolder, step: int) -> tuple[str, str]:
    """The lines of a run's records up to `step`, and those after it; what a kill cut off is in neither."""
    parts: tuple[list[str], list[str]] = ([], [])
    lines = run.metrics.read_bytes().decode("utf-8", errors="replace").split("\n") if run.metrics.exists() else []
    for line in lines:
        at = _step_of(line)
        if at != math.inf:
            parts[at > step].append(line + "\n")
    return "".join(parts[0]), "".join(parts[1])


def _step_of(line: str) -> float:
    """The step of a record; a line cut off by a crash counts as later than any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
