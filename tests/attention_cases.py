"""What the attention tests share: random packed rows, and one comparison that covers every rendering of the rule."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from tests.references.masks import PADDING, Mask, unspecified
from unmask.attention import Layout, block_mask, dense_mask, picture, sees

Rows = list[list[int]]


@st.composite
def packed_rows(draw: st.DrawFn, *, left: bool = False, max_width: int = 9) -> Rows:
    """Document ids of one to three rows of one width: packed documents, then padding (or padding first)."""
    width = draw(st.integers(1, max_width))
    rows: Rows = []
    for _ in range(draw(st.integers(1, 3))):
        padding = draw(st.one_of(st.just(0), st.integers(0, width)))
        cuts = draw(st.lists(st.integers(0, 5), min_size=width - padding, max_size=width - padding))
        documents = [sum(cut == 5 for cut in cuts[: index + 1]) for index in range(width - padding)]
        filler = [PADDING] * padding
        rows.append(filler + documents if left else documents + filler)
    return rows


def renderings(query: Layout, key: Layout) -> dict[str, Tensor]:
    """The rule as each rendering draws it, all as bool [B, Q, K]."""
    visible = sees(query, key)
    batch, dense = visible.shape[0], dense_mask(query, key)
    assert (dense is None) == bool(visible.all()), "None stands for a mask that hides nothing, and for no other"
    if dense is not None:
        assert dense.dtype == torch.bool and dense.shape == (batch, 1, len(query), len(key))
    drawn = [[[cell == "#" for cell in line] for line in _lines(query, key, row)] for row in range(batch)]
    block = block_mask(query, key)
    return {
        "sees": visible,
        "dense_mask": torch.ones_like(visible) if dense is None else dense[:, 0],
        "block_mask": create_mask(block.mask_mod, batch, 1, len(query), len(key), device="cpu")[:, 0],
        "picture": torch.tensor(drawn),
    }


def _lines(query: Layout, key: Layout, row: int) -> list[str]:
    lines = picture(query, key, row=row).split("\n")
    assert set("".join(lines)) <= {"#", "."}
    return lines


def assert_draws(query: Layout, key: Layout, expected: list[Mask], rows_q: Rows, rows_k: Rows) -> None:
    """Every rendering equals the reference in each cell but those of padding with padding, and no row is empty."""
    specified = torch.tensor(
        [[[not unspecified(q, k) for k in keys] for q in queries] for queries, keys in zip(rows_q, rows_k, strict=True)]
    )
    wanted = torch.tensor(expected)
    for name, drawn in renderings(query, key).items():
        assert drawn.shape == wanted.shape, name
        differs = ((drawn != wanted) & specified).nonzero().tolist()
        assert not differs, f"{name} differs from the reference at [row, query, key] {differs[:5]}"
        assert drawn.any(dim=2).all(), f"{name} leaves a query without keys, whose softmax is undefined"


def assert_same(one: Layout, other: Layout) -> None:
    """Two layouts are equal in every field and every row."""
    for left, right in zip(one.fields, other.fields, strict=True):
        assert left.tolist() == right.tolist()


def plain(rows: int, length: int) -> Rows:
    """Document ids of rows that hold one document and no padding."""
    return [[0] * length] * rows


def reaches(mask: Mask, hops: int) -> Tensor:
    """Which key each query depends on after so many layers: bool [Q, K], from a square mask."""
    step = torch.tensor(mask).double()
    reached = torch.eye(len(mask), dtype=torch.float64)
    for _ in range(hops):
        reached = ((reached @ step + reached) > 0).double()
    return reached.bool()
