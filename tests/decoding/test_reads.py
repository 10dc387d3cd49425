"""How often the loops of decoding read from the device: each read makes it wait, however little is read.

Masks and the cache read for themselves (`attention.dense_mask`, `Cache.keep`) and are left out, as is `nonzero`, which
waits where a block's open places are counted.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.decoding.tidar_cases import PROMPTS, params_of, rows_of, trained_model
from unmask.decoding.blocks import BlockRun
from unmask.decoding.step import StopRule
from unmask.decoding.tidar import TidarRun
from unmask.settings.decoding import SamplingParams


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the tensors whose values went to the loops, as lists or as single numbers."""
    found: list[tuple[int, ...]] = []

    def watched(name: str) -> None:
        original = getattr(Tensor, name)

        def read(self: Tensor) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("unmask.decoding."):
                found.append(tuple(self.shape))
            return original(self)

        monkeypatch.setattr(Tensor, name, read)

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
        watched(name)
    return found


def each(run: BlockRun | TidarRun, reads: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    """(reads, rows that ended) of every forward."""
    found = []
    while not run.done:
        ended = len(run._results)
        reads.clear()
        run.advance()
        found.append((len(reads), len(run._results) - ended))
    return found


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("mode", ["parallel", "linear"])
def test_tidar_reads_once_a_forward(reads: list[tuple[int, ...]], mode: str, trace: bool) -> None:
    model = trained_model()
    params = params_of(max_new_tokens=9, mode=mode, trace=trace)
    found = each(TidarRun(model, rows_of(PROMPTS), params, StopRule()), reads)
    assert sum(ended for _, ended in found) == len(PROMPTS)
    assert {number for number, _ in found} == {1}


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("edits", [{}, {"edit_threshold": 0.2}])
def test_blocks_are_read_once_a_forward_and_once_as_they_end(
    reads: list[tuple[int, ...]], edits: dict[str, Any], trace: bool
) -> None:
    model = tiny.backbone("block_diffusion", block_length=4)
    params = SamplingParams(max_new_tokens=7, denoising_steps=2, trace=trace, **edits)
    params = params.resolved({"block_length": 4}, "blocks")
    with torch.inference_mode():
        found = each(BlockRun(model, rows_of(PROMPTS), params, StopRule()), reads)
    assert sum(ended for _, ended in found) == len(PROMPTS)
    assert all(number == 1 + ended for number, ended in found)
