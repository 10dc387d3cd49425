"""Tasks compared question by question: rows of results in, a record of the differences out.

In: for every model the rows of its tasks with what each question was worth, in the same order for all. Out: for each
pair of models and each metric that is a mean over questions, the difference of the means with a bootstrap interval over
the questions, the same ones for both. All intervals hold together (Bonferroni over everything that is compared). The
better model is named where its interval excludes 0; how an answer was scored, exactly or by a bound, is part of what is
compared, as in any multiple-choice evaluation of diffusion models.
Shapes: Q questions, R resamplings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unmask.evaluation.compare import RESAMPLINGS, interval, mean_resampled

FEWEST_QUESTIONS = 10


def paired(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seed: int,
    confidence: float = 0.95,
    resamplings: int = RESAMPLINGS,
) -> list[dict[str, Any]]:
    """The differences of every pair of models; only numbers, texts and None (where there is no interval).

    Args:
        rows: of each model, by its name: `task`, `filter`, `metric`, `higher_is_better` and `each`, the values of the
            questions (None where the metric is no mean over them).
        seed: of the resampling.
        confidence: with which all intervals hold together.
        resamplings: of the questions.
    """
    found = {name: {_key(row): row for row in own if row["each"] is not None} for name, own in rows.items()}
    compared = [
        (a, b, key)
        for a, b in itertools.combinations(found, 2)
        for key in found[a]
        if key in found[b] and len(found[a][key]["each"]) == len(found[b][key]["each"])
    ]
    made = []
    for a, b, key in compared:
        value_Q = torch.tensor(found[a][key]["each"], dtype=torch.float64) - torch.tensor(found[b][key]["each"])
        drawn_R = None
        if len(value_Q) >= FEWEST_QUESTIONS:
            drawn_R = mean_resampled(value_Q, seed=seed, resamplings=resamplings)
        limits = interval(drawn_R, (1 - confidence) / len(compared))
        task, filter_name, metric = key
        better = _better(limits["low"], limits["high"], found[a][key]["higher_is_better"])
        made.append(
            {
                "a": a,
                "b": b,
                "task": task,
                "filter": filter_name,
                "metric": metric,
                "questions": len(value_Q),
                "difference": float(value_Q.mean()),
                **limits,
                "winner": None if better is None else (a, b)[better],
            }
        )
    return made


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["filter"], row["metric"]


def _better(low: float | None, high: float | None, higher_is_better: bool | None) -> int | None:
    """Which of the two is better, 0 or 1; None where the interval includes 0 or nobody says what better is."""
    if low is None or high is None or low <= 0 <= high or higher_is_better is None:
        return None
    return int((high < 0) == higher_is_better)
