"""A part of a global batch: the same rows under the same numbers, so draws that are keyed by them are the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from torch import Tensor

from unmask.data.packing import PackedText
from unmask.data.tokenized import TokenizedText


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 2), (2, 5), (5, 6)])
def test_a_part_of_a_batch_is_what_the_whole_has_there(start: int, stop: int) -> None:
    starts = np.array([0, 5, 17, 18, 40], dtype=np.int64)
    text = TokenizedText(np.arange(40, dtype=np.uint32), np.ones(40, dtype=np.uint16), starts)
    packed = PackedText(text, context_length=8, bos=99)
    rows = np.array([4, 0, 3, 3, 1, 2])
    whole, part = packed.batch(rows, 0, 6, step=7), packed.batch(rows, start, stop, step=7)
    assert part.global_row_B.tolist() == list(range(start, stop))
    assert part.uid_B.tolist() == rows[start:stop].tolist()
    assert (part.global_rows, part.step) == (6, 7)
    for field in dataclasses.fields(part):
        if isinstance(value := getattr(whole, field.name), Tensor):
            assert value[start:stop].equal(getattr(part, field.name)), field.name
