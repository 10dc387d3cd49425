"""Tasks compared question by question, against a plain bootstrap."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from unmask.evaluation.compare_tasks import paired


def row(each: list[float] | None, *, metric: str = "acc", higher: bool | None = True) -> dict[str, Any]:
    return {"task": "quiz", "filter": "none", "metric": metric, "higher_is_better": higher, "each": each}


def answers(share: float, seed: int, questions: int = 200) -> list[float]:
    drawn = random.Random(seed)
    return [float(drawn.random() < share) for _ in range(questions)]


def test_the_interval_is_that_of_a_plain_bootstrap_over_questions() -> None:
    a, b = answers(0.7, 1), answers(0.5, 2)
    (found,) = paired({"a": [row(a)], "b": [row(b)]}, seed=0)
    drawn = random.Random(5)
    means = sorted(statistics.fmean(a[at] - b[at] for at in drawn.choices(range(200), k=200)) for _ in range(4000))
    assert found["difference"] == pytest.approx(statistics.fmean(a) - statistics.fmean(b))
    assert found["low"] == pytest.approx(means[100], abs=0.012)
    assert found["high"] == pytest.approx(means[3899], abs=0.012)
    assert found["questions"] == 200 and found["winner"] == "a"


def test_pairing_takes_out_what_questions_share() -> None:
    a = answers(0.5, 3)
    b = [1 - one if at < 8 else one for at, one in enumerate(a)]  # all but a few are answered alike
    (found,) = paired({"a": [row(a)], "b": [row(b)]}, seed=0)
    assert found["high"] - found["low"] < 0.1 < 4 * statistics.stdev(a) / 200**0.5


@pytest.mark.parametrize(("higher", "winner"), [(True, "b"), (False, "a"), (None, None)])
def test_better_is_what_the_task_says(higher: bool | None, winner: str | None) -> None:
    (found,) = paired({"a": [row(answers(0.2, 1), higher=higher)], "b": [row(answers(0.8, 2), higher=higher)]}, seed=0)
    assert found["winner"] == winner


def test_intervals_hold_together() -> None:
    models = {name: [row(answers(0.5, seed))] for seed, name in enumerate("abcde")}
    (alone,) = paired({"a": models["a"], "b": models["b"]}, seed=0)
    together = paired(models, seed=0)[0]
    assert (together["a"], together["b"]) == ("a", "b") and len(paired(models, seed=0)) == 10
    assert together["high"] - together["low"] > 1.2 * (alone["high"] - alone["low"])


def test_what_cannot_be_compared_is_left_out() -> None:
    few = paired({"a": [row([1.0] * 5)], "b": [row([0.0] * 5)]}, seed=0)
    assert few[0]["low"] is None and few[0]["winner"] is None and few[0]["difference"] == 1
    assert paired({"a": [row(None)], "b": [row([1.0])]}, seed=0) == []
    assert paired({"a": [row([1.0, 0.0])], "b": [row([1.0])]}, seed=0) == []
    assert paired({"a": [row([1.0])], "b": [row([1.0], metric="f1")]}, seed=0) == []
