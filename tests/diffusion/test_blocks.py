"""Blocks of packed documents against plain loops: groups, what fills a last block up, and the times of the blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.block_cases import Document, Rows, batch_of, rows_of_documents, runs
from unmask.data.batch import Batch
from unmask.diffusion.blocks import block_groups, block_times, completed, trimmed, widened
from unmask.settings.objective import ObjectiveSettings

LENGTHS = st.integers(1, 9)
some = settings(max_examples=100)


def chosen(**options: Any) -> ObjectiveSettings:
    return ObjectiveSettings(method="block_diffusion", **options)


def whole(length: int, block_length: int) -> int:
    """The places of whole blocks that hold `length` tokens."""
    while length % block_length:
        length += 1
    return length


@some
@given(rows_of_documents(), LENGTHS)
def test_blocks_are_counted_from_the_start_of_each_document(rows: Rows, block_length: int) -> None:
    document_BL = batch_of(rows).document_BL
    found = block_groups(document_BL, block_length).tolist()
    for line, documents in zip(found, document_BL.tolist(), strict=True):
        expected: list[int] = []
        for _, start, stop in runs(documents):
            for place in range(stop - start):
                expected.append((expected[-1] if expected else -1) + (place % block_length == 0))
        assert line == expected


@some
@given(rows_of_documents(), LENGTHS)
def test_trimming_leaves_the_filling_of_each_last_block_only(rows: Rows, block_length: int) -> None:
    batch = batch_of(rows)
    found = trimmed(batch, block_length)
    for number, row in enumerate(rows):
        column = 0
        for document, (prompt, text, fill, gap) in enumerate(row):
            kept = min(fill, whole(prompt + text, block_length) - prompt - text)
            parts = [(prompt, document, 0, 0), (text, document, 1, 0), (kept, document, 1, 1), (fill - kept, -1, 0, 0)]
            for count, owner, supervised, filling in parts:
                place = slice(column, column + count)
                assert (found.document_BL[number, place] == owner).all()
                assert (found.supervised_BL[number, place] == supervised).all()
                assert found.fill_BL is not None
                assert (found.fill_BL[number, place] == filling).all()
                column += count
            column += gap
    assert torch.equal(found.ids_BL, batch.ids_BL)
    unfilled = dataclasses.replace(batch, fill_BL=None)
    assert trimmed(unfilled, block_length) is unfilled


def completed_slowly(documents: list[int], block_length: int) -> list[int]:
    """The documents after their last blocks took what padding there is right behind them."""
    found = list(documents)
    for document, start, stop in runs(documents):
        column = stop
        while document >= 0 and (column - start) % block_length and column < len(found) and found[column] == -1:
            found[column] = document
            column += 1
    return found


@some
@given(rows_of_documents(), LENGTHS, st.integers(0, 3))
def test_padding_behind_a_document_completes_its_last_block(rows: Rows, block_length: int, lead: int) -> None:
    batch = batch_of(rows)
    # Padding at the start belongs to nobody.
    batch = dataclasses.replace(batch, document_BL=torch.nn.functional.pad(batch.document_BL, (lead, 0), value=-1))
    found, added_BL = completed(batch, block_length)
    expected = torch.tensor([completed_slowly(line, block_length) for line in batch.document_BL.tolist()])
    assert torch.equal(found.document_BL, expected)
    assert torch.equal(added_BL, (batch.document_BL < 0) & (expected >= 0))
    for name in ("ids_BL", "supervised_BL", "fill_BL"):
        assert getattr(found, name) is getattr(batch, name)


def test_widening_adds_padding_to_every_field() -> None:
    batch = batch_of([[Document(1, 3, 1)], [Document(0, 2)]])
    batch = dataclasses.replace(batch, bytes_BL=torch.ones_like(batch.ids_BL))
    found = widened(batch, 3)
    assert found.document_BL[:, -3:].tolist() == [[-1] * 3] * 2
    for name in ("ids_BL", "supervised_BL", "fill_BL", "bytes_BL"):
        assert getattr(found, name).shape == (2, 8)
        assert not getattr(found, name)[:, -3:].any()
    for name in ("ids_BL", "document_BL", "supervised_BL", "fill_BL", "bytes_BL"):
        assert torch.equal(getattr(found.cut(5), name), getattr(batch, name))
    assert torch.equal(found.uid_B, batch.uid_B)
    assert found.global_rows == batch.global_rows


# --- times -----------------------------------------------------------------------------------------------------------


def timed(
    batch: Batch, block_length: int, made: ObjectiveSettings, seed: int = 0
) -> list[dict[tuple[int, int], float]]:
    """The time of each block of each row, under (number of the document's run, number of the block in it)."""
    group_BL = block_groups(batch.document_BL, block_length)
    time_BG = block_times(batch, group_BL, made, seed=seed)
    assert time_BG.dtype == torch.float64
    assert time_BG.shape == (len(group_BL), int(group_BL.max()) + 1)
    found: list[dict[tuple[int, int], float]] = []
    for number, documents in enumerate(batch.document_BL.tolist()):
        times: dict[tuple[int, int], float] = {}
        for run, (document, start, stop) in enumerate(runs(documents)):
            for column in range(start, stop if document >= 0 else start):
                time = float(time_BG[number, group_BL[number, column]])
                assert times.setdefault((run, (column - start) // block_length), time) == time
        found.append(times)
    return found


@some
@given(rows_of_documents(), LENGTHS, st.sampled_from(["iid", "stratified", "systematic"]))
def test_each_block_each_document_or_the_whole_batch_has_a_time(rows: Rows, block_length: int, sampling: Any) -> None:
    batch = batch_of(rows)
    own = timed(batch, block_length, chosen(time_sampling=sampling))
    assert own == timed(batch, block_length, chosen(time_sampling=sampling, t_granularity="block"))
    assert all(len(set(times.values())) == len(times) for times in own)
    for times in timed(batch, block_length, chosen(time_sampling=sampling, t_granularity="sequence")):
        of_run = {run: time for (run, _), time in times.items()}
        assert times == {key: of_run[key[0]] for key in times}
        assert len(set(of_run.values())) == len(of_run)
    shared = timed(batch, block_length, chosen(time_sampling=sampling, t_granularity="batch"))
    assert len({time for times in shared for time in times.values()}) == 1


@some
@given(rows_of_documents(), LENGTHS, st.sampled_from(["block", "sequence", "batch"]), st.data())
def test_a_clipped_range_squeezes_the_times(
    rows: Rows, block_length: int, granularity: Any, data: st.DataObject
) -> None:
    low, high = sorted(data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True)))
    batch = batch_of(rows)
    plain = timed(batch, block_length, chosen(t_granularity=granularity))
    squeezed = timed(batch, block_length, chosen(t_granularity=granularity, mask_ratio_range=(low, high)))
    for times, others in zip(plain, squeezed, strict=True):
        assert others == pytest.approx({key: low * (1 - time) + high * time for key, time in times.items()})


@pytest.mark.parametrize("granularity", ["block", "sequence"])
def test_the_rows_of_a_global_batch_share_the_strata_of_every_block(granularity: Any) -> None:
    """Each block (or document) of a row has its own stratum of equal width, drawn anew for the next one."""
    batch = batch_of([[Document(0, 6), Document(0, 3)]] * 16)
    times = timed(batch, 3, chosen(t_granularity=granularity))
    orders = [[int(16 * row[key]) for row in times] for key in times[0]]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len(set(map(tuple, orders))) == (3 if granularity == "block" else 2)
    later = timed(dataclasses.replace(batch, step=1), 3, chosen(t_granularity=granularity))
    assert [[int(16 * row[key]) for row in later] for key in later[0]] != orders


@some
@given(rows_of_documents(), LENGTHS, st.sampled_from(["block", "sequence", "batch"]), st.integers(0, 3))
def test_times_do_not_depend_on_the_split(rows: Rows, block_length: int, granularity: Any, seed: int) -> None:
    batch = batch_of(rows)
    made = chosen(t_granularity=granularity)
    together = timed(batch, block_length, made, seed)
    apart = [timed(batch.rows(row, row + 1), block_length, made, seed)[0] for row in range(len(rows))]
    assert together == apart
