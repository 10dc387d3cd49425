"""The probe: the same rows and masks each time, whatever the training draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests import tiny
from unmask.analysis.probe import Probe, masked_tokens, token_counts, token_runs, uniform_counts
from unmask.data.batch import Batch
from unmask.objectives.example import Example
from unmask.settings.objective import ObjectiveSettings

METHODS = ["masked_diffusion", "block_diffusion", "tidar"]


class FixedRows:
    """Rows of random ids, each of one document."""

    def __init__(self, number: int, length: int = 12) -> None:
        self.ids = tiny.random_ids(number, length)
        self.description, self.mean_length, self.supervised_share = "rows", float(length), 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: NDArray[np.int64], start: int, stop: int, *, step: int) -> Batch:
        made = Batch.of_rows(self.ids[torch.from_numpy(rows[start:stop])].tolist(), step=step)
        places = torch.arange(start, start + len(made.uid_B))
        uids = torch.from_numpy(rows[start:stop].copy())
        return dataclasses.replace(made, uid_B=uids, global_row_B=places, global_rows=len(rows))


def probe(method: str, rows: FixedRows, number: int = 6, **options: Any) -> Probe:
    settings = ObjectiveSettings(method=method, **options)  # type: ignore[arg-type]
    entry = tiny.checkpoint(method).backbone.diffusion
    return Probe(rows, number, settings, entry, seed=3)


def rows_of(example: Example) -> list[tuple[int, int, float, float]]:
    """Sequence, token, weight and ratio of every supervised row, sorted."""
    fields = (example.group_R, example.target_R, example.weight_R, example.ratio_R)
    return sorted(zip(*(one.tolist() for one in fields), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_rows_and_masks_are_the_same_each_time_however_they_are_split(method: str) -> None:
    made = probe(method, FixedRows(20))
    (whole,) = made.parts(0, 6, 6)
    again = next(iter(probe(method, FixedRows(20)).parts(0, 6, 6)))
    assert rows_of(whole.example) == rows_of(again.example)
    split = [(2 * part, one) for part, one in enumerate(made.parts(0, 6, 2))]
    found = [(begin + group, *rest) for begin, one in split for group, *rest in rows_of(one.example)]
    assert found == rows_of(whole.example)
    assert torch.cat([one.tokens_B for _, one in split]).tolist() == whole.tokens_B.tolist()
    assert made.tokens == int(whole.tokens_B.sum())


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine"},
        {"corruption": "bernoulli"},
        {"weighting": "unweighted"},
        {"time_sampling": "iid"},
        {"random_length_probability": 1.0},
        {"t_granularity": "batch"},
        {"normalize": "answers"},
    ],
)
def test_what_the_training_draws_changes_nothing(options: dict[str, Any]) -> None:
    plain = next(iter(probe("masked_diffusion", FixedRows(20)).parts(0, 6, 6)))
    other = probe("masked_diffusion", FixedRows(20), **options)
    assert rows_of(next(iter(other.parts(0, 6, 6))).example) == rows_of(plain.example)
    differs = {"schedule", "corruption", "weighting"} & options.keys()
    assert other.weights_differ == bool(differs)
    trained = next(iter(other.parts(0, 6, 6, as_trained=True)))
    assert (rows_of(trained.example) != rows_of(plain.example)) == bool(differs)


def test_counts_are_uniform() -> None:
    made = probe("masked_diffusion", FixedRows(600), number=600)
    (part,) = made.parts(0, 600, 600)
    counts = torch.bincount(torch.bincount(part.example.group_R, minlength=600), minlength=13)
    assert counts[0] == 0 and counts[1:].tolist() == [50] * 12  # stratified over 600 rows: exactly
    assert torch.bincount(part.example.group_R).div(12)[part.example.group_R].tolist() == pytest.approx(
        part.example.ratio_R.tolist()
    )


def test_tidars_next_tokens_are_left_out() -> None:
    made = probe("tidar", FixedRows(20))
    (part,) = made.parts(0, 6, 6)
    assert part.example.term_R.unique().tolist() == [1]
    assert part.tokens_B.tolist() == [12] * 6 and len(part.example.target_R) == 72


def test_clipped_ratios_and_curricula_are_the_trainings_own() -> None:
    options = {"mask_ratio_range": (0.4, 0.6), "block_curriculum": ((0.0, 2), (0.5, 4))}
    made = probe("block_diffusion", FixedRows(40), number=40, **options)
    (plain,), (trained,) = made.parts(0, 40, 40), made.parts(0, 40, 40, as_trained=True)
    assert set(plain.example.ratio_R.tolist()) == {0.25, 0.5, 0.75, 1.0}, "blocks of four"
    assert set(trained.example.ratio_R.tolist()) <= {0.5, 0.75}
    assert uniform_counts(ObjectiveSettings(method="block_diffusion", **options)).mask_ratio_range == (0, 1)  # type: ignore[arg-type]


def test_masked_tokens_are_those_of_the_example() -> None:
    made = tiny.checkpoint("masked_diffusion").backbone
    (part,) = probe("masked_diffusion", FixedRows(20)).parts(0, 6, 6)
    from unmask.training.module import TrainingModule

    with torch.no_grad():
        found = TrainingModule(made, chunk_rows=5)(part.example, predicts=True)
    tokens = masked_tokens(part, found)
    assert tokens.target_R.tolist() == part.example.target_R.tolist()
    assert tokens.tokens_B.tolist() == [12] * 6
    assert len(tokens.cross_entropy_R) == len(part.example.target_R)


def test_tokens_are_counted_where_they_are_supervised() -> None:
    rows = FixedRows(30)
    expected = [rows.ids.flatten().tolist().count(token) for token in range(23)]
    assert token_counts(rows, 23, seed=0).tolist() == [expected, [0] * 23]
    assert list(token_runs(rows)) == rows.ids.tolist()
