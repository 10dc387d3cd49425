"""Objectives: what is supervised, by which row, with what weight, and that no target is visible to it."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from unmask.attention import sees
from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.objectives import autoregressive, masked_diffusion
from unmask.objectives.example import Example
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings

MASK = 99


@st.composite
def packed_batches(draw: st.DrawFn) -> Batch:
    """Rows of packed documents, each led by an unsupervised BOS (id 0), with padding at the end."""
    length, rows = draw(st.integers(3, 14)), draw(st.integers(1, 3))
    ids, document, supervised = [], [], []
    for _ in range(rows):
        row: list[tuple[int, int, bool]] = []
        for number in range(draw(st.integers(1, 3))):
            size = draw(st.integers(1, 6))
            row += [(0, number, False)] + [(draw(st.integers(1, 20)), number, True) for _ in range(size)]
        row = row[:length] + [(0, -1, False)] * (length - len(row))
        ids.append([token for token, _, _ in row])
        document.append([number for _, number, _ in row])
        supervised.append([flag for _, _, flag in row])
    batch = Batch.of_rows(ids)
    return dataclasses.replace(batch, document_BL=torch.tensor(document), supervised_BL=torch.tensor(supervised))


@settings(max_examples=60)
@given(packed_batches())
def test_autoregression_predicts_every_supervised_token_from_the_one_before_it(batch: Batch) -> None:
    made = autoregressive.example(batch)
    expected = [
        (row, column - 1, int(batch.ids_BL[row, column]))
        for row in range(batch.ids_BL.shape[0])
        for column in range(1, batch.ids_BL.shape[1])
        if batch.supervised_BL[row, column] and batch.document_BL[row, column] == batch.document_BL[row, column - 1]
    ]
    width = batch.ids_BL.shape[1]
    found = [(r // width, r % width, t) for r, t in zip(made.row_R.tolist(), made.target_R.tolist(), strict=True)]
    assert found == expected
    assert float(made.denominator_T) == len(expected)


@settings(max_examples=60)
@given(packed_batches(), st.integers(0, 1000))
def test_a_teacher_predicts_a_masked_token_from_the_one_before_it_in_its_document(batch: Batch, seed: int) -> None:
    """And the first token of a document not at all, even where another document stands before it."""
    batch = dataclasses.replace(batch, supervised_BL=batch.document_BL >= 0)
    options = {"settings": ObjectiveSettings(), "mask_token_id": MASK, "logit_shift": False, "seed": seed}
    made = masked_diffusion.example(batch, **options)  # type: ignore[arg-type]
    width, document_BL = batch.ids_BL.shape[1], batch.document_BL.tolist()
    for row, source in zip(made.row_R.tolist(), made.source_R.tolist(), strict=True):
        at, column = divmod(row, width)
        is_first = column == 0 or document_BL[at][column - 1] != document_BL[at][column]
        assert source == (-1 if is_first else row - 1)


@settings(max_examples=60)
@given(packed_batches(), st.integers(0, 1000), st.booleans(), st.sampled_from(["count", "bernoulli"]))
def test_masked_diffusion_predicts_masked_tokens_in_place_or_one_before(
    batch: Batch, seed: int, shift: bool, corruption: str
) -> None:
    chosen = ObjectiveSettings(corruption=corruption)  # type: ignore[arg-type]
    made = masked_diffusion.example(batch, chosen, mask_token_id=MASK, logit_shift=shift, seed=seed)
    masked = made.ids_BL == MASK
    clean = batch.ids_BL
    assert torch.equal(made.ids_BL[~masked], clean[~masked])
    assert torch.equal(made.target_R, clean[masked])
    assert torch.equal(made.row_R + int(shift), masked.flatten().nonzero()[:, 0])
    assert not bool((masked & ~batch.supervised_BL).any())
    first = torch.ones_like(masked)
    first[:, 1:] = batch.document_BL[:, 1:] != batch.document_BL[:, :-1]
    scored = batch.supervised_BL & ~(first & shift)
    assert not bool((masked & first & shift).any())
    assert float(made.denominator_T) == int(scored.sum())


def drawn_counts(chosen: ObjectiveSettings, *, length: int, draws: int) -> list[int]:
    """How often 0, 1, ..., `length` tokens of a row are masked."""
    found = torch.zeros(length + 1, dtype=torch.long)
    for step in range(draws // 512):
        batch = Batch.of_rows([[1] * length for _ in range(512)], step=step)
        made = masked_diffusion.example(batch, chosen, mask_token_id=MASK, logit_shift=False, seed=7)
        found += torch.bincount((made.ids_BL == MASK).sum(dim=1), minlength=length + 1)
        count_R = (made.ids_BL == MASK).sum(dim=1)[made.group_R]
        if chosen.corruption == "count":
            assert torch.allclose(made.weight_R, length / count_R)
    return found.tolist()


@pytest.mark.parametrize("sampling", ["iid", "stratified", "systematic"])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.7), (0.0, 0.5), (0.55, 1.0)])
def test_a_clipped_range_clips_how_many_tokens_are_masked(low: float, high: float, sampling: str) -> None:
    """A share r uniform between the bounds masks m = ceil(6 r) tokens, at the weights of the whole range."""
    length, draws = 6, 4096
    chosen = ObjectiveSettings(mask_ratio_range=(low, high), time_sampling=sampling)  # type: ignore[arg-type]
    found = drawn_counts(chosen, length=length, draws=draws)
    for count in range(length + 1):
        overlap = max(0.0, min(high, count / length) - max(low, (count - 1) / length)) if count else 0.0
        law = overlap / (high - low)
        assert abs(found[count] / draws - law) <= 5 * math.sqrt(law * (1 - law) / draws), count


def test_a_clipped_range_clips_the_chance_of_bernoulli_masks() -> None:
    """The mixture of binomials over the range, by a fine sum; the smallest probability is `time_epsilon`."""
    length, draws, low, high, points = 5, 4096, 0.1, 0.6, 4000
    chosen = ObjectiveSettings(corruption="bernoulli", mask_ratio_range=(low, high), time_epsilon=0.05)
    found = drawn_counts(chosen, length=length, draws=draws)
    for count in range(length + 1):
        law = 0.0
        for point in range(points):
            p = 0.05 + 0.95 * (low + (high - low) * (point + 0.5) / points)
            law += math.comb(length, count) * p**count * (1 - p) ** (length - count) / points
        assert abs(found[count] / draws - law) <= 5 * math.sqrt(law * (1 - law) / draws), count


@settings(max_examples=60)
@given(packed_batches(), st.integers(0, 1000))
def test_no_row_sees_its_own_target(batch: Batch, seed: int) -> None:
    causal = autoregressive.example(batch)
    visible = sees(causal.layout, causal.layout)
    width = batch.ids_BL.shape[1]
    for row in causal.row_R.tolist():
        assert not visible[row // width, row % width, row % width + 1]
    made = masked_diffusion.example(batch, ObjectiveSettings(), mask_token_id=MASK, logit_shift=False, seed=seed)
    assert bool((made.ids_BL.flatten()[made.row_R] == MASK).all())


@settings(max_examples=40)
@given(packed_batches(), st.integers(0, 1000))
def test_the_source_row_is_the_autoregressive_row_of_the_same_token(batch: Batch, seed: int) -> None:
    causal = autoregressive.example(batch)
    row_of = dict(zip((causal.row_R + 1).tolist(), causal.row_R.tolist(), strict=True))
    made = masked_diffusion.example(batch, ObjectiveSettings(), mask_token_id=MASK, logit_shift=False, seed=seed)
    for row, source in zip(made.row_R.tolist(), made.source_R.tolist(), strict=True):
        assert source == row_of.get(row, -1)


def test_unweighted_loss_is_the_mean_over_masked_tokens() -> None:
    batch = Batch.of_rows([[1] * 12, [2] * 12])
    made = masked_diffusion.example(
        batch, ObjectiveSettings(weighting="unweighted"), mask_token_id=MASK, logit_shift=False, seed=0
    )
    assert made.weight_R.unique().tolist() == [1.0]
    assert float(made.denominator_T) == len(made.row_R)


def test_examples_are_functions_of_batch_and_seed_alone() -> None:
    batch = Batch.of_rows([[1, 2, 3, 4, 5, 6, 7, 8]] * 4, step=3)
    model = tiny.backbone("masked_diffusion")
    make = objective(ObjectiveSettings(), model.diffusion, seed=4)
    again = objective(ObjectiveSettings(), model.diffusion, seed=4)
    other = objective(ObjectiveSettings(), model.diffusion, seed=5)
    assert torch.equal(make(batch).ids_BL, again(batch).ids_BL)
    assert not torch.equal(make(batch).ids_BL, other(batch).ids_BL)
    assert not torch.equal(make(batch).ids_BL, make(dataclasses.replace(batch, step=4)).ids_BL)


def test_a_diffusion_objective_without_a_mask_token_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs a mask token"):
        objective(ObjectiveSettings(), tiny.backbone("autoregressive").diffusion, seed=0)


def test_ratio_is_the_realised_share_of_masked_tokens() -> None:
    batch = Batch.of_rows([[1] * 10] * 6)
    made: Example = masked_diffusion.example(batch, ObjectiveSettings(), mask_token_id=MASK, logit_shift=False, seed=1)
    for group in range(6):
        rows = made.group_R == group
        assert made.ratio_R[rows].tolist() == pytest.approx([int(rows.sum()) / 10] * int(rows.sum()))
        assert made.weight_R[rows].tolist() == pytest.approx([10 / int(rows.sum())] * int(rows.sum()))
    assert math.isclose(float(made.denominator_T), 60)
