"""TiDAR: the loss of both layouts against one forward for each block, and what is learned where."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as drawn
from hypothesis import strategies as st

from tests.block_cases import Document, Rows, batch_of, rows_of_documents, runs
from tests.references.stock import MASK, stock
from tests.tidar_cases import backbone, example, head_of, reference_losses, settings, term_losses, texts
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives import tidar
from unmask.objectives.methods import objective

# Prompts, partial last blocks with and without room behind them, documents of less than a block and of one token,
# documents right behind one another.
ROWS: Rows = [
    [Document(3, 6, 0, 2), Document(0, 5), Document(2, 1, 0, 2)],
    [Document(0, 9, 0, 3), Document(5, 2)],
    [Document(1, 4), Document(0, 1, 0, 1), Document(0, 4)],
]
SPLIT: dict[str, Any] = {"tidar_layout": "split"}
KINDS: list[dict[str, Any]] = [
    {},
    {"normalize": "answers"},
    {"masking": "random"},
    {"masking": "random", "weighting": "unweighted", "corruption": "bernoulli", "t_granularity": "sequence"},
    {"masking": "random", "mask_ratio_curriculum": ((0.0, 0.4),), "normalize": "answers"},
    {"masking": "block"},
    {"masking": "block", "weighting": "unweighted", "mask_ratio_range": (0.3, 0.7)},
    SPLIT,
    SPLIT | {"clean_ratio": 0.25, "tail_blocks": 1, "normalize": "answers"},
    SPLIT | {"clean_ratio": 0.8, "masking": "random", "tail_blocks": 2},
    SPLIT | {"clean_ratio": 0.3, "masking": "block", "weighting": "unweighted"},
]


@functools.cache
def model(family: str = "qwen3") -> Backbone:
    return backbone(4, family)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_length", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_loss_is_that_of_one_forward_for_each_block(kind: dict[str, Any], block_length: int) -> None:
    batch, options = batch_of(ROWS), settings(**kind)
    made = example(batch, options, block_length, seed=2)
    expected = reference_losses(batch, made, options, block_length, stock("qwen3"))
    is_exact = bool((made.weight_R == 1).all())  # other weights are rounded to float32
    assert term_losses(model(), made) == pytest.approx(expected, rel=1e-9 if is_exact else 1e-6)
    assert min(expected) > 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_loss_of_the_other_families(family: str) -> None:
    for kind in ({}, SPLIT):
        made = example(batch_of(ROWS), settings(**kind), 4)
        expected = reference_losses(batch_of(ROWS), made, settings(**kind), 4, stock(family))
        assert term_losses(model(family), made) == pytest.approx(expected, rel=1e-9)


@drawn(max_examples=25)
@given(rows_of_documents(most_rows=2), st.integers(1, 6), st.sampled_from(KINDS), st.integers(0, 99))
def test_the_loss_of_any_rows(rows: Rows, block_length: int, kind: dict[str, Any], seed: int) -> None:
    batch, options = batch_of(rows), settings(**kind)
    made = example(batch, options, block_length, seed=seed)
    expected = reference_losses(batch, made, options, block_length, stock("qwen3"))
    assert term_losses(model(), made) == pytest.approx(expected, rel=1e-6)


def test_the_labels_of_figure_three() -> None:
    """A B C D E F, then masks in two blocks of three; G is the last label of the clean half."""
    text = Batch.of_rows([[0, 1, 2, 3, 4, 5, 6]])
    made = example(text, settings(), 3)
    assert made.ids_BL.tolist() == [[0, 1, 2, 3, 4, 5, 6] + [MASK] * 9 + [0]]  # the third block is whole, then padding
    assert made.layout.position_ids.tolist() == [[*range(7), *range(9), 0]]
    labels = dict(zip(made.row_R.tolist(), made.target_R.tolist(), strict=True))
    assert {row: labels[row] for row in range(6)} == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}
    assert {row: labels[7 + row] for row in range(6)} == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    assert labels.keys() == {*range(6), *range(7, 14)}
    assert [made.terms[term] for term in made.term_R.tolist()] == ["ar"] * 6 + ["diffusion"] * 7
    assert made.denominator_T.tolist() == [6, 7]
    assert made.source_R.tolist() == [0, 1, 2, 3, 4, 5, -1, 0, 1, 2, 3, 4, 5]


def test_the_labels_of_the_split_layout() -> None:
    """The port's form: four clean tokens, then masks; the last clean token predicts the first masked one."""
    made = example(Batch.of_rows([[0, 1, 2, 3, 4, 5, 6, 7, 8]]), settings(**SPLIT), 3)
    assert made.ids_BL.tolist() == [[0, 1, 2, 3] + [MASK] * 6 + [0, 0]]  # the second block is whole, then padding
    assert made.layout.position_ids.tolist() == [[*range(10), 0, 0]]
    pairs = list(zip(made.row_R.tolist(), made.target_R.tolist(), made.term_R.tolist(), strict=True))
    assert pairs == [(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 4, 0), *((place, place, 1) for place in range(4, 9))]
    assert made.source_R.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    first = example(Batch.of_rows([[0, 1, 2, 3, 4, 5, 6, 7, 8]]), settings(**SPLIT, tail_blocks=1), 3)
    assert first.ids_BL.tolist() == [[0, 1, 2, 3] + [MASK] * 3]
    assert first.target_R.tolist() == [1, 2, 3, 4, 4, 5, 6]


def test_supervision_is_shifted_for_next_tokens_and_aligned_for_masks() -> None:
    supervised = [False, True, False, False, True, True, False]
    made = example(Batch.of_rows([[0, 1, 2, 3, 4, 5, 6]], [supervised]), settings(), 3)
    assert made.row_R[made.term_R == 0].tolist() == [0, 3, 4]
    assert made.row_R[made.term_R == 1].tolist() == [7 + 1, 7 + 4, 7 + 5]
    assert made.target_R.tolist() == [1, 4, 5] * 2


def test_the_weights_of_the_terms_are_shares_of_one() -> None:
    options = settings(ar_loss_weight=1.2, diffusion_loss_weight=0.3)
    assert example(batch_of(ROWS), options, 4).shares == pytest.approx((0.8, 0.2))
    assert example(batch_of(ROWS), settings(), 4).shares == (0.5, 0.5)


# --- what is masked --------------------------------------------------------------------------------------------------


@drawn(max_examples=60)
@given(rows_of_documents(), st.integers(1, 9), st.sampled_from(KINDS), st.integers(0, 99))
def test_what_is_learned_is_supervised_and_read_once(
    rows: Rows, block_length: int, kind: dict[str, Any], seed: int
) -> None:
    batch, options = batch_of(rows), settings(**kind)
    made, length = example(batch, options, block_length, seed=seed), batch.ids_BL.shape[1]
    width, split = len(made.layout), options.tidar_layout == "split"
    assert len(set(made.row_R.tolist()) | {-1}) == len(made.row_R) + 1 or split  # a split row may predict twice
    for row, target, term, group, source in zip(
        made.row_R.tolist(),
        made.target_R.tolist(),
        made.term_R.tolist(),
        made.group_R.tolist(),
        made.source_R.tolist(),
        strict=True,
    ):
        at, column = divmod(row, width)
        assert at == group
        place = column + 1 if term == 0 else column - (0 if split else length)
        assert target == int(batch.ids_BL[at, place])
        assert bool(batch.supervised_BL[at, place])
        assert int(made.ids_BL[at, column]) == (MASK if term == 1 else int(batch.ids_BL[at, column]))
        start = next(start for _, start, stop in runs(batch.document_BL[at].tolist()) if start <= place < stop)
        assert source == (-1 if place == start else at * length + place - 1)
    if not split:
        clean = made.ids_BL[:, :length]
        assert torch.equal(clean, batch.ids_BL)
    if options.masking == "full" and options.tail_blocks is None:
        supervised = [(one.row, one.start + place) for one in texts(batch) for place in sorted(one.supervised)]
        learned = made.row_R[made.term_R == 1]
        if not split:
            assert [divmod(row, width) for row in learned.tolist()] == [
                (at, length + place) for at, place in supervised
            ]


@pytest.mark.parametrize("weighting", ["elbo", "unweighted"])
def test_whole_blocks_are_masked_in_every_document(weighting: str) -> None:
    rows = [[Document(2, 14), Document(0, 9)], [Document(0, 25)]]
    batch, seen = batch_of(rows), set[int]()
    for step in range(20):
        batch = dataclasses.replace(batch, step=step)
        made = example(batch, settings(masking="block", weighting=weighting), 4)
        noisy = made.ids_BL[:, batch.ids_BL.shape[1] :]
        for row, start, ids, _, _ in texts(batch):
            blocks = [noisy[row, start + place : start + min(place + 4, len(ids))] for place in range(0, len(ids), 4)]
            hidden = [bool((block == MASK).all()) for block in blocks]
            assert all(
                is_hidden or bool((block != MASK).all()) for block, is_hidden in zip(blocks, hidden, strict=True)
            )
            assert any(hidden)
            seen.add(sum(hidden))
        if weighting == "elbo":
            assert float(made.denominator_T[1]) == 14 + 9 + 25
        else:
            assert float(made.denominator_T[1]) == int((made.term_R == 1).sum())
    assert len(seen) > 4


@pytest.mark.parametrize("masking", ["random", "block"])
def test_weighted_masks_expect_what_all_tokens_cost(masking: str) -> None:
    """Of a uniform predictor: the weights of a row's masked tokens sum up to its tokens, over many steps."""
    batch, sums = batch_of([[Document(1, 10), Document(0, 7)]] * 32), list[float]()
    for step in range(60):
        made = example(dataclasses.replace(batch, step=step), settings(masking=masking), 4)
        sums.append(float(made.weight_R[made.term_R == 1].double().sum() / made.denominator_T[1]))
    error = torch.tensor(sums).std() / math.sqrt(len(sums))
    assert abs(torch.tensor(sums).mean() - 1) < 4 * error + 1e-6


# --- the clean head --------------------------------------------------------------------------------------------------


@drawn(max_examples=60)
@given(rows_of_documents(), st.integers(1, 9), st.floats(0.01, 0.99), st.one_of(st.none(), st.integers(1, 3)))
def test_every_document_is_split_by_its_own_length(
    rows: Rows, block_length: int, ratio: float, tail: int | None
) -> None:
    batch, options = batch_of(rows), settings(**SPLIT, clean_ratio=ratio, tail_blocks=tail)
    made = example(batch, options, block_length)
    width = len(made.layout)
    for row, start, ids, supervised, room in texts(batch):
        head = head_of(len(ids), ratio)
        assert 0 < head <= max(1, len(ids) - 1)
        stop = len(ids) if tail is None else min(len(ids), head + tail * block_length)
        assert made.ids_BL[row, start : start + stop].tolist() == ids[:head] + [MASK] * (stop - head)
        layout = made.layout.columns(start, start + stop)
        assert layout.block[row].tolist() == [-1] * head + [place // block_length for place in range(stop - head)]
        assert layout.limit[row].tolist() == [*range(head)] + [head - 1] * (stop - head)
        filled = min(-(stop - head) % block_length, room if stop == len(ids) else 0)
        behind = made.layout.document[row, start + stop : start + stop + filled]
        assert behind.tolist() == [int(batch.document_BL[row, start])] * filled
        mine = (made.row_R >= row * width + start) & (made.row_R < row * width + min(start + len(ids), width))
        following = made.target_R[mine & (made.term_R == 0)].tolist()
        assert following == [ids[place] for place in sorted(supervised) if 0 < place <= head and place < stop]
        learned = made.target_R[mine & (made.term_R == 1)].tolist()
        assert learned == [ids[place] for place in sorted(supervised) if head <= place < stop]


def test_clean_heads_are_drawn_for_every_document_and_step() -> None:
    batch = batch_of([[Document(0, 100), Document(0, 100)]] * 8)
    options = settings(**SPLIT, clean_ratio_range=(0.2, 0.7))
    found: list[int] = []
    for step in range(5):
        batch = dataclasses.replace(batch, step=step)
        stage = tidar.stage_at(options, block_length=4, step=step, steps=5)
        head_BL = tidar.clean_lengths(batch, options, stage, seed=3)
        lone = tidar.clean_lengths(batch.rows(2, 3), options, stage, seed=3)
        assert torch.equal(lone, head_BL[2:3])
        found += head_BL[:, [0, 100]].flatten().tolist()
        assert bool((head_BL[:, :100] == head_BL[:, :1]).all())
    assert min(found) >= 20
    assert max(found) < 70
    assert len(set(found)) > 30
    # uniform on [20, 70): mean 44.5 after rounding down, standard deviation 14.4
    assert abs(sum(found) / len(found) - 44.5) < 4 * 14.4 / math.sqrt(len(found))


def test_nothing_depends_on_how_the_batch_is_cut() -> None:
    batch = dataclasses.replace(
        batch_of([[Document(1, 11)], [Document(0, 4), Document(2, 5)], [Document(0, 7)]]), step=4
    )
    for kind in KINDS:
        if kind.get("normalize") == "answers":
            continue
        options = settings(**kind)
        whole = example(batch, options, 4, steps=9)
        parts = [example(batch.rows(row, row + 1), options, 4, steps=9) for row in range(3)]
        assert sum(part.denominator_T for part in parts).tolist() == whole.denominator_T.tolist()  # type: ignore[union-attr]
        for term in (0, 1):
            targets = torch.cat([part.target_R[part.term_R == term] for part in parts])
            assert targets.tolist() == whole.target_R[whole.term_R == term].tolist()
        sums = [
            torch.tensor(term_losses(model(), part), dtype=torch.float64) * part.denominator_T.clamp(min=1)
            for part in parts
        ]
        expected = torch.tensor(term_losses(model(), whole), dtype=torch.float64) * whole.denominator_T.clamp(min=1)
        torch.testing.assert_close(torch.stack(sums).sum(dim=0), expected, rtol=1e-9, atol=0)


# --- curricula -------------------------------------------------------------------------------------------------------


def test_the_stages_of_a_run() -> None:
    options = settings(
        **SPLIT,
        clean_ratio_curriculum=((0.0, 0.9), (0.5, 0.4)),
        masking="random",
        mask_ratio_curriculum=((0.0, 0.2), (0.25, 0.6), (0.75, 1.0)),
        ar_loss_weight_curriculum=((0.0, 3.0), (0.4, 0.0)),
        diffusion_loss_weight=2.0,
    )
    stages = [tidar.stage_at(options, block_length=4, step=step, steps=20) for step in range(20)]
    assert [one.clean_ratio for one in stages] == [0.9] * 10 + [0.4] * 10
    assert [one.mask_ratio for one in stages] == [0.2] * 5 + [0.6] * 10 + [1.0] * 5
    assert [one.shares for one in stages] == [(0.6, 0.4)] * 8 + [(0.0, 1.0)] * 12
    fixed = tidar.stage_at(settings(), block_length=4, step=3, steps=20)
    assert fixed == tidar.Stage(block_length=4, clean_ratio=0.5, mask_ratio=None, shares=(0.5, 0.5))


def test_the_objective_follows_its_curricula() -> None:
    options = settings(
        block_curriculum=((0.0, 2), (0.5, 3)), masking="random", mask_ratio_curriculum=((0.0, 0.5), (0.5, 1.0))
    )
    made = objective(options, backbone(3).diffusion, seed=0, steps=10)
    batch = Batch.of_rows([[*range(9), 1, 2, 3]])
    for step in range(10):
        one = made(dataclasses.replace(batch, step=step))
        length = 2 if step < 5 else 3
        assert one.layout.block[0, 12:].tolist() == [place // length for place in range(12)]
        assert int((one.term_R == 1).sum()) == (6 if step < 5 else 12)
    with pytest.raises(AssertionError, match="shares of the run"):
        objective(options, backbone(3).diffusion, seed=0)
