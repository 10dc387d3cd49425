"""Curricula: values that change at given shares of a run.

A curriculum is a tuple of pairs (share of the run at which the value begins, value); the first begins at 0. The value
of a step is a function of that step alone, so a resumed run goes on where it was.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

from unmask.settings.checks import is_true

Curriculum = tuple[tuple[float, float], ...]
Value = TypeVar("Value", int, float)


def value_at(curriculum: tuple[tuple[float, Value], ...], otherwise: Value, *, step: int, steps: int) -> Value:
    """The value of optimiser step `step` (from 0) of `steps`; `otherwise` without a curriculum."""
    begun = [value for share, value in curriculum if step >= round(share * steps)]
    return begun[-1] if begun else otherwise


def check_shares(name: str, curriculum: tuple[tuple[float, Value], ...]) -> None:
    """The shares of the run must begin at 0 and rise below 1."""
    if not curriculum:
        return
    starts = [share for share, _ in curriculum]
    is_true(
        starts[0] == 0 and all(one < other for one, other in itertools.pairwise(starts)) and starts[-1] < 1,
        f"{name} must begin at 0 and rise below 1, got starts {starts}.",
    )
