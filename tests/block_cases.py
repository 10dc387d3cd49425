"""What the tests of block diffusion share: packed rows of every kind, and networks that the references drive as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from tests.references.stock import MASK, stock
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.settings.model import DiffusionConfig

EOS = MASK - 1  # ids from 0 to here are text


class Document(NamedTuple):
    """A packed document: tokens that are given, tokens to learn, EOS to learn, and the padding behind it."""

    prompt: int
    text: int
    fill: int = 0
    gap: int = 0


Rows = Sequence[Sequence[Document]]


def batch_of(rows: Rows, *, step: int = 0) -> Batch:
    """Rows of documents, padded to the longest."""
    columns: list[list[tuple[int, int, bool, bool]]] = []
    for number, row in enumerate(rows):
        line: list[tuple[int, int, bool, bool]] = []
        for document, (prompt, text, fill, gap) in enumerate(row):
            ids = [(7 * number + 5 * (len(line) + place) + place * place) % EOS for place in range(prompt + text)]
            line += [(token, document, place >= prompt, False) for place, token in enumerate(ids)]
            line += [(EOS, document, True, True)] * fill + [(0, -1, False, False)] * gap
        columns.append(line)
    width = max(map(len, columns))
    padded = [line + [(0, -1, False, False)] * (width - len(line)) for line in columns]
    ids, document, supervised, fill = (torch.tensor([[one[at] for one in line] for line in padded]) for at in range(4))
    batch = Batch.of_rows(ids.tolist(), step=step)
    return dataclasses.replace(batch, document_BL=document, supervised_BL=supervised, fill_BL=fill)


def runs(documents: Sequence[int]) -> list[tuple[int, int, int]]:
    """(document, start, stop) of every run of one id."""
    found: list[tuple[int, int, int]] = []
    for column, document in enumerate(documents):
        if found and found[-1][0] == document:
            found[-1] = (document, found[-1][1], column + 1)
        else:
            found.append((document, column, column + 1))
    return found


@st.composite
def rows_of_documents(draw: st.DrawFn, *, most_rows: int = 3) -> Rows:
    """One to three rows of one to three documents; some are all text, some are filled up, some have a gap behind."""
    one = st.builds(Document, st.integers(0, 3), st.integers(1, 6), st.integers(0, 7), st.sampled_from([0, 0, 1, 5]))
    return draw(st.lists(st.lists(one, min_size=1, max_size=3), min_size=1, max_size=most_rows))


def backbone(block_length: int, family: str = "qwen3", **options: Any) -> Backbone:
    """The network `stock(family)`, float64 and random, as a block-diffusion model."""
    entry = DiffusionConfig(
        method="block_diffusion", vocabulary_size=MASK + 1, mask_token_id=MASK, block_length=block_length
    )
    return Backbone(stock(family), entry, **options).eval()
