"""Neat packing: the knapsack against a slow one, and rows that hold whole documents, each once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references import knapsack as slow
from unmask.data.neat import NeatRows, greedy_knapsack
from unmask.data.packing import PackedText
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError

BOS, EOS = 999, 998
SIZES = st.lists(st.integers(0, 14), min_size=1, max_size=14).filter(any)


def tokenized(lengths: list[int], prompts: list[int] | None = None) -> TokenizedText:
    """Documents whose tokens count up and stand for a byte each; with `prompts`, so many of them are not supervised."""
    starts = np.cumsum([0, *lengths]).astype(np.int64)
    total = int(starts[-1])
    flags = None
    if prompts is not None:
        pairs = zip(lengths, prompts, strict=True)
        flags = np.array([place >= prompt for length, prompt in pairs for place in range(length)], dtype=bool)
    return TokenizedText(np.arange(total, dtype=np.uint32), np.ones(total, dtype=np.uint16), starts, flags)


def packed(sizes: list[int], capacity: int) -> list[list[int]]:
    order, row = greedy_knapsack(np.array(sizes), capacity)
    return [order[row == number].tolist() for number in range(int(row.max()) + 1)]


def test_the_knapsack_packs_the_known_example() -> None:
    sizes = [12, 12, 20, 8, 28, 4, 16, 31]
    assert [[sizes[item] for item in row] for row in packed(sizes, 32)] == [[31], [28, 4], [20, 12], [16, 12], [8]]


@settings(max_examples=200)
@given(st.integers(1, 12), st.data())
def test_the_knapsack_is_the_slow_one_and_takes_each_item_once(capacity: int, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=20))
    rows = packed(sizes, capacity)
    assert [[sizes[item] for item in row] for row in rows] == slow.greedy_knapsack(sizes, capacity)
    order = [item for row in rows for item in row]
    assert sorted(order) == list(range(len(sizes)))
    for size in set(sizes):
        same = [item for item in order if sizes[item] == size]
        assert same == sorted(same)


@settings(max_examples=200)
@given(SIZES, st.sampled_from([1, 2, 4]), st.integers(1, 4), st.booleans(), st.booleans(), st.data())
def test_rows_hold_every_kept_document_once_and_whole(
    lengths: list[int], fill: int, rows_of_blocks: int, with_bos: bool, chats: bool, data: st.DataObject
) -> None:
    context_length, lead = 4 * rows_of_blocks, int(with_bos)
    over_long = data.draw(st.sampled_from(["drop", "cut"]))
    prompts = [data.draw(st.integers(0, max(0, length - 1))) for length in lengths] if chats else None
    lengths = [max(1, length) for length in lengths] if chats else lengths
    room = context_length - lead
    cut = [min(length, room) for length in lengths]
    kept = [
        number
        for number, length in enumerate(lengths)
        if cut[number] > (prompts[number] if prompts else 0) and (over_long == "cut" or length <= room)
    ]
    text = tokenized(lengths, prompts)
    options: dict[str, Any] = {"context_length": context_length, "over_long": over_long, "fill": fill, "eos": EOS}
    if not kept:
        with pytest.raises(DataError, match="fits into"):
            NeatRows(text, bos=BOS if with_bos else None, **options)
        return
    rows = NeatRows(text, bos=BOS if with_bos else None, **options)
    chosen = np.array(data.draw(st.permutations(range(len(rows)))))
    batch = rows.batch(chosen, 0, len(rows), step=3)
    assert batch.ids_BL.shape == (len(rows), context_length)
    assert batch.uid_B.tolist() == chosen.tolist()
    assert batch.bytes_BL is not None
    assert batch.fill_BL is not None
    found = []
    for line in range(len(rows)):
        ids, document = batch.ids_BL[line].tolist(), batch.document_BL[line].tolist()
        supervised, fills = batch.supervised_BL[line].tolist(), batch.fill_BL[line].tolist()
        column = 0
        for number in range(max(document) + 1):
            owner = int(np.searchsorted(text.starts, ids[column + lead], side="right")) - 1
            first, length = int(text.starts[owner]), cut[owner]
            size = -(-(lead + length) // fill) * fill
            end = column + size
            body = [BOS] * lead + list(range(first, first + length))
            assert ids[column:end] == body + [EOS] * (size - len(body))
            assert document[column:end] == [number] * size
            assert fills[column:end] == [False] * len(body) + [True] * (size - len(body))
            prompt = lead + (prompts[owner] if prompts else 0)
            assert supervised[column:end] == [False] * prompt + [True] * (size - prompt)
            found.append(owner)
            column = end
        assert document[column:] == [-1] * (context_length - column)
        assert not any(supervised[column:]) and not any(fills[column:])
    assert sorted(found) == kept
    text_BL = (batch.document_BL >= 0) & ~batch.fill_BL
    assert int(batch.bytes_BL.sum()) == sum(cut[number] for number in kept)
    assert rows.mean_length == pytest.approx(int(text_BL.sum()) / len(rows))
    learned = int((batch.supervised_BL & ~batch.fill_BL).sum())
    assert rows.supervised_share == pytest.approx(learned / int(text_BL.sum()))
    assert rows.dropped == sum(length > room for length in lengths) - rows.cut
    assert rows.cut == sum(lengths[number] > room for number in kept)


def test_rows_are_numbered_in_the_order_of_packing_and_keep_their_places_in_a_batch() -> None:
    rows = NeatRows(tokenized([12, 12, 20, 8, 28, 4, 16, 31]), context_length=32)
    whole = rows.batch(np.array([4, 0, 2, 1]), 0, 4, step=7)
    assert [(row >= 0).sum().item() for row in whole.document_BL] == [8, 31, 32, 32]
    assert whole.ids_BL[3, :32].tolist() == [*range(52, 80), *range(80, 84)]
    part = rows.batch(np.array([4, 0, 2, 1]), 2, 4, step=7)
    assert part.global_row_B.tolist() == [2, 3]
    assert [part.global_rows, part.step] == [4, 7]
    assert part.ids_BL.tolist() == whole.ids_BL[2:].tolist()


def test_over_long_documents_stop_are_dropped_or_cut() -> None:
    text = tokenized([5, 9, 0, 8, 3])
    with pytest.raises(
        DataError, match=r"2 of 5 documents are longer .*\(8 tokens\)\. The longest, number 1, has 10\."
    ):
        NeatRows(text, context_length=8, bos=BOS)
    dropped = NeatRows(text, context_length=8, bos=BOS, over_long="drop")
    assert [len(dropped), dropped.dropped, dropped.cut] == [2, 2, 0]
    assert dropped.description == (
        "2 documents of 3 to 5 tokens (mean 4.0, 100% supervised), 2 over-long ones dropped in 2 rows of 8 places, "
        "62.5% of them taken"
    )
    cut = NeatRows(text, context_length=8, bos=BOS, over_long="cut")
    assert [len(cut), cut.dropped, cut.cut] == [4, 0, 2]
    assert cut.batch(np.array([0]), 0, 1, step=0).ids_BL[0].tolist() == [BOS, *range(5, 12)]
    with pytest.raises(DataError, match="No document fits into"):
        NeatRows(tokenized([9, 9]), context_length=8, over_long="drop")
    with pytest.raises(DataError, match="no document or conversation"):
        NeatRows(tokenized([0, 0]), context_length=8)


def test_prompts_are_those_of_each_rows_first_conversation() -> None:
    rows = NeatRows(tokenized([5, 5, 6], [2, 1, 3]), context_length=10)
    assert [rows.prompt(row) for row in range(2)] == [[10, 11, 12], [0, 1]]


def test_a_row_of_many_documents_equals_the_stream_where_both_hold_whole_documents() -> None:
    """Documents of one size lie in the same places, whichever way they are packed."""
    text = tokenized([3] * 4000)
    neat = NeatRows(text, context_length=4000, bos=BOS, fill=4, eos=EOS)
    stream = PackedText(text, context_length=4000, bos=BOS)
    chosen = np.arange(4)
    one, other = (rows.batch(chosen, 0, 4, step=0) for rows in (neat, stream))
    assert len(neat) == len(stream) == 4
    assert one.ids_BL.tolist() == other.ids_BL.tolist()
    assert one.document_BL.tolist() == other.document_BL.tolist()
