"""Rows of conversations: how they are filled up, what is too long, and that no split of the batch changes a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.batch import Batch
from unmask.data.chat_rows import ChatRows
from unmask.data.tokenized import Document, TokenizedText
from unmask.errors import DataError
from unmask.objectives.methods import objective
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

EOS, MASK = 900, 901


def tokenized(shapes: list[tuple[int, int]]) -> TokenizedText:
    """Conversations of a prompt and an answer of the given lengths, whose tokens count up."""
    total = sum(prompt + answer for prompt, answer in shapes)
    flags = [flag for prompt, answer in shapes for flag in [False] * prompt + [True] * answer]
    starts = np.cumsum([0, *(prompt + answer for prompt, answer in shapes)]).astype(np.int64)
    supervised = np.array(flags, dtype=bool)
    return TokenizedText(np.arange(total, dtype=np.uint32), supervised.astype(np.uint16), starts, supervised)


def rows_of(shapes: list[tuple[int, int]], **options: Any) -> ChatRows:
    return ChatRows(tokenized(shapes), **{"context_length": 64, **options})


SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=10)
FILLS = st.sampled_from([{}, {"eos": EOS}, {"eos": EOS, "eos_cap": 1}, {"eos": EOS, "eos_cap": 3}])


@settings(max_examples=80)
@given(SHAPES, FILLS, st.data())
def test_rows_are_filled_up_to_the_longest_of_the_global_batch_however_it_is_split(
    shapes: list[tuple[int, int]], fill: dict[str, int], data: st.DataObject
) -> None:
    rows = rows_of(shapes, **fill)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(shapes) - 1), min_size=1, max_size=8)))
    whole = rows.batch(chosen, 0, len(chosen), step=3)
    longest = max(sum(shapes[row]) for row in chosen)
    for line, row in enumerate(chosen.tolist()):
        prompt, answer = shapes[row]
        missing = longest - prompt - answer
        filled = 0 if "eos" not in fill else min(missing, fill.get("eos_cap", missing))
        first = int(rows.text.starts[row])
        visible = prompt + answer + filled
        assert whole.ids_BL[line, :visible].tolist() == [*range(first, first + prompt + answer)] + [EOS] * filled
        assert whole.document_BL[line].tolist() == [0] * visible + [-1] * (whole.ids_BL.shape[1] - visible)
        supervised = [False] * prompt + [True] * (answer + filled)
        assert whole.supervised_BL[line, :visible].tolist() == supervised
        assert not whole.supervised_BL[line, visible:].any()
        assert whole.bytes_BL is not None
        assert whole.fill_BL is not None
        assert whole.fill_BL[line].nonzero()[:, 0].tolist() == [*range(prompt + answer, visible)]
        assert int(whole.bytes_BL[line].sum()) == answer
    cut = data.draw(st.integers(0, len(chosen)))
    parts = [rows.batch(chosen, *bounds, step=3) for bounds in ((0, cut), (cut, len(chosen))) if bounds[0] < bounds[1]]
    assert_same_rows(parts, whole)


@settings(max_examples=60)
@given(SHAPES, st.sampled_from([2, 3, 8]))
def test_a_last_block_is_filled_up_whatever_the_other_rows(shapes: list[tuple[int, int]], block: int) -> None:
    rows = rows_of(shapes, eos=EOS, fill=block)
    whole = rows.batch(np.arange(len(shapes)), 0, len(shapes), step=0)
    assert whole.fill_BL is not None
    assert whole.ids_BL.shape[1] == max(-(-(prompt + answer) // block) * block for prompt, answer in shapes)
    for line, (prompt, answer) in enumerate(shapes):
        length, end = prompt + answer, -(-(prompt + answer) // block) * block
        assert whole.ids_BL[line, length:end].tolist() == [EOS] * (end - length)
        assert whole.fill_BL[line].nonzero()[:, 0].tolist() == [*range(length, end)]
        assert whole.supervised_BL[line].nonzero()[:, 0].tolist() == [*range(prompt, end)]
        assert whole.document_BL[line].tolist() == [0] * end + [-1] * (whole.ids_BL.shape[1] - end)
        alone = rows.batch(np.array([line]), 0, 1, step=0)
        assert alone.ids_BL.tolist() == whole.ids_BL[line : line + 1, :end].tolist()


def assert_same_rows(parts: list[Batch], whole: Batch) -> None:
    """The parts are the whole, but for columns that are padding in all their rows."""
    line = 0
    for part in parts:
        assert part.global_row_B.tolist() == [*range(line, line + len(part.ids_BL))]
        assert part.global_rows == whole.global_rows
        for ids, document, supervised in zip(part.ids_BL, part.document_BL, part.supervised_BL, strict=True):
            width = len(ids)
            assert torch.equal(ids, whole.ids_BL[line, :width])
            assert torch.equal(document, whole.document_BL[line, :width])
            assert torch.equal(supervised, whole.supervised_BL[line, :width])
            assert bool((whole.document_BL[line, width:] == -1).all())
            line += 1
    assert line == len(whole.ids_BL)


@settings(max_examples=60)
@given(
    SHAPES,
    FILLS,
    st.sampled_from(["count", "bernoulli"]),
    st.sampled_from(["tokens", "answers"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_prompts_and_padding_are_never_masked_and_never_learned(
    shapes: list[tuple[int, int]], fill: dict[str, int], corruption: Any, normalize: Any, shift: bool, seed: int
) -> None:
    rows = rows_of(shapes, **fill)
    batch = rows.batch(np.arange(len(rows)), 0, len(rows), step=seed)
    entry = DiffusionConfig(method="masked_diffusion", vocabulary_size=902, mask_token_id=MASK, logit_shift=shift)
    chosen = ObjectiveSettings(corruption=corruption, normalize=normalize)
    made = objective(chosen, entry, seed=seed)(batch)
    assert torch.equal(made.ids_BL[~batch.supervised_BL], batch.ids_BL[~batch.supervised_BL])
    targets_R = made.row_R + int(shift)
    assert bool(batch.supervised_BL.flatten()[targets_R].all())
    # What counts is masked in the input that the model gets, not merely drawn to be.
    assert torch.equal((made.ids_BL == MASK).flatten().nonzero()[:, 0], targets_R)


def test_over_long_conversations_stop_are_dropped_or_cut() -> None:
    shapes = [(2, 3), (4, 6), (9, 2), (3, 4)]
    with pytest.raises(
        DataError, match=r"2 of 4 conversations are longer .*\(8 tokens\)\. The longest, number 2, has 11"
    ):
        rows_of(shapes, context_length=8)
    dropped = rows_of(shapes, context_length=8, over_long="drop")
    assert [len(dropped), dropped.dropped, dropped.cut] == [2, 2, 0]
    cut = rows_of(shapes, context_length=8, over_long="cut")
    assert [len(cut), cut.dropped, cut.cut] == [3, 1, 1]
    batch = cut.batch(np.array([1]), 0, 1, step=0)
    assert batch.ids_BL[0].tolist() == [*range(5, 13)]
    assert batch.supervised_BL[0].tolist() == [False] * 4 + [True] * 4
    assert "1 over-long ones dropped, 1 over-long ones cut" in cut.description
    assert cut.description.startswith("3 conversations of 5 to 8 tokens (mean 6.7, 55% supervised)")
    with pytest.raises(DataError, match="No conversation fits"):
        rows_of([(9, 2)], context_length=8, over_long="cut")
    with pytest.raises(DataError, match="There is no conversation"):
        ChatRows(TokenizedText(*(np.zeros(0, dtype=np.uint32),) * 2, np.zeros(1, dtype=np.int64)), context_length=8)


def test_the_longest_conversation_is_named_by_file_and_line(tmp_path: Path) -> None:
    def document(length: int, where: str) -> Document:
        flags = np.ones(length, dtype=bool)
        return Document(np.zeros(length, dtype=np.uint32), flags.astype(np.uint16), flags, where)

    some = [document(5, "a.jsonl, line 1"), document(12, "a.jsonl, line 9"), document(9, "b.jsonl, line 2")]
    TokenizedText.write(some, tmp_path / "kept")
    with pytest.raises(DataError, match=r"The longest, a\.jsonl, line 9, has 12"):
        ChatRows(TokenizedText.open(tmp_path / "kept"), context_length=8)


def test_prompts_end_where_the_first_reply_begins() -> None:
    assert rows_of([(2, 3), (4, 1)]).prompt(1) == [5, 6, 7, 8]
