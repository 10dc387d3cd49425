"""The attention rule in training: every layout in every rendering against brute force, and what no row may see."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tests.attention_cases import Rows, assert_draws, assert_same, packed_rows, plain, reaches
from tests.references import masks
from unmask import attention
from unmask.attention import HIDDEN, Layout

BLOCK_LENGTHS = st.integers(1, 6)
either_side = st.booleans().flatmap(lambda left: packed_rows(left=left))
few = settings(max_examples=20)


def ids(rows: Rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def doubled(rows: Rows) -> Rows:
    return [row + row for row in rows]


# --- the layouts against the references ---------------------------------------------------------------------------


@few
@given(rows=either_side)
def test_causal_draws_the_reference(rows: Rows) -> None:
    layout = attention.causal(ids(rows))
    assert_draws(layout, layout, [masks.causal(row) for row in rows], rows, rows)


@few
@given(rows=either_side)
def test_bidirectional_draws_the_reference(rows: Rows) -> None:
    layout = attention.bidirectional(ids(rows))
    assert_draws(layout, layout, [masks.bidirectional(row) for row in rows], rows, rows)


@few
@given(rows=either_side, block_length=BLOCK_LENGTHS)
def test_block_diffusion_training_draws_the_reference(rows: Rows, block_length: int) -> None:
    layout = attention.block_diffusion_training(ids(rows), block_length)
    expected = [masks.block_diffusion_doubled(row, block_length) for row in rows]
    assert_draws(layout, layout, expected, doubled(rows), doubled(rows))


@few
@given(rows=either_side, block_length=BLOCK_LENGTHS)
def test_tidar_training_draws_the_reference_with_the_clean_half_first(rows: Rows, block_length: int) -> None:
    layout = attention.tidar_training(ids(rows), block_length)
    expected = [masks.tidar_doubled(row, block_length, order="clean_first") for row in rows]
    assert_draws(layout, layout, expected, doubled(rows), doubled(rows))


@few
@given(rows=either_side, clean_length=st.integers(0, 10), block_length=BLOCK_LENGTHS)
def test_tidar_split_draws_the_reference_in_every_document(rows: Rows, clean_length: int, block_length: int) -> None:
    layout = attention.tidar_split(ids(rows), clean_length, block_length)
    expected = [_split_reference(row, dict.fromkeys(row, clean_length), block_length) for row in rows]
    assert_draws(layout, layout, expected, rows, rows)


@few
@given(length=st.integers(1, 10), clean_length=st.integers(0, 10), block_length=BLOCK_LENGTHS)
def test_tidar_split_draws_the_reference_of_one_document(length: int, clean_length: int, block_length: int) -> None:
    layout = attention.tidar_split(torch.zeros(2, length, dtype=torch.int64), clean_length, block_length)
    expected = [masks.tidar_split(length, clean_length, block_length)] * 2
    assert_draws(layout, layout, expected, plain(2, length), plain(2, length))


@few
@given(rows=either_side, block_length=BLOCK_LENGTHS, data=st.data())
def test_tidar_split_takes_a_head_length_for_each_document(rows: Rows, block_length: int, data: st.DataObject) -> None:
    heads = [{name: data.draw(st.integers(0, 6)) for name in sorted(set(row))} for row in rows]
    clean_BL = torch.tensor([[head[name] for name in row] for row, head in zip(rows, heads, strict=True)])
    layout = attention.tidar_split(ids(rows), clean_BL, block_length)
    expected = [_split_reference(row, head, block_length) for row, head in zip(rows, heads, strict=True)]
    assert_draws(layout, layout, expected, rows, rows)


def _split_reference(row: list[int], heads: dict[int, int], block_length: int) -> masks.Mask:
    """The reference of one document, laid along the diagonal for each document of a packed row."""
    places = masks.places_of(row)
    drawn = {name: masks.tidar_split(row.count(name), heads[name], block_length) for name in set(row)}
    return [
        [row[q] == row[k] != masks.PADDING and drawn[row[q]][places[q]][places[k]] for k in range(len(row))]
        for q in range(len(row))
    ]


@few
@given(rows=either_side, block_length=BLOCK_LENGTHS)
def test_block_causal_is_the_clean_half_of_block_diffusion_training(rows: Rows, block_length: int) -> None:
    layout, width = attention.block_causal(ids(rows), block_length), len(rows[0])
    both = [masks.block_diffusion_doubled(row, block_length) for row in rows]
    assert_draws(layout, layout, [[line[width:] for line in mask[width:]] for mask in both], rows, rows)


# --- places -------------------------------------------------------------------------------------------------------


@few
@given(rows=either_side, block_length=BLOCK_LENGTHS)
def test_rope_counts_every_document_from_zero_and_both_halves_alike(rows: Rows, block_length: int) -> None:
    document_BL = ids(rows)
    single, double = [masks.places_of(row) for row in rows], [masks.doubled_position_ids(row) for row in rows]
    for layout in (attention.causal(document_BL), attention.bidirectional(document_BL)):
        assert layout.position_ids.tolist() == single
    assert attention.tidar_split(document_BL, 2, block_length).position_ids.tolist() == single
    assert attention.block_diffusion_training(document_BL, block_length).position_ids.tolist() == double
    assert attention.tidar_training(document_BL, block_length).position_ids.tolist() == double


@given(length=st.integers(1, 12), clean_length=st.integers(0, 12))
def test_rope_runs_on_through_the_tail_of_the_split_layout(length: int, clean_length: int) -> None:
    layout = attention.tidar_split(torch.zeros(1, length, dtype=torch.int64), clean_length, 3)
    assert layout.position_ids.tolist() == [masks.tidar_split_position_ids(length)]


@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4), spare=st.integers(0, 3), left=st.booleans())
def test_documents_pads_each_row_on_the_side_that_was_asked_for(lengths: list[int], spare: int, left: bool) -> None:
    width = max(lengths) + spare
    rows = attention.documents(torch.tensor(lengths), width, left=left).tolist()
    for row, length in zip(rows, lengths, strict=True):
        text, padding = [0] * length, [-1] * (width - length)
        assert row == (padding + text if left else text + padding)


@few
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3), block_length=BLOCK_LENGTHS)
def test_a_left_padded_row_is_the_right_padded_row_shifted(lengths: list[int], block_length: int) -> None:
    width = max(lengths) + 2
    for row, length in enumerate(lengths):
        bare = attention.block_causal(torch.zeros(1, length, dtype=torch.int64), block_length)
        for left in (False, True):
            documents = attention.documents(torch.tensor(lengths), width, left=left)
            layout = attention.block_causal(documents, block_length).rows(torch.tensor([row]))
            start = width - length if left else 0
            assert_same(layout.columns(start, start + length), bare)


# --- padding ------------------------------------------------------------------------------------------------------


@few
@given(rows=either_side, block_length=BLOCK_LENGTHS)
def test_padding_sees_only_padding_and_nobody_sees_padding(rows: Rows, block_length: int) -> None:
    for layout in _training_layouts(ids(rows), block_length):
        visible_BQK = attention.sees(layout, layout)
        padding_BL = layout.document < 0
        one_is_padding = padding_BL[:, :, None] != padding_BL[:, None, :]
        assert not (visible_BQK & one_is_padding).any()
        assert (layout.position[padding_BL] == HIDDEN).all() and (layout.block[padding_BL] == -1).all()


def _training_layouts(document_BL: Tensor, block_length: int) -> list[Layout]:
    return [
        attention.causal(document_BL),
        attention.bidirectional(document_BL),
        attention.block_causal(document_BL, block_length),
        attention.block_diffusion_training(document_BL, block_length),
        attention.tidar_training(document_BL, block_length),
        attention.tidar_split(document_BL, 2, block_length),
    ]


# --- structure: what a supervised row may never see ---------------------------------------------------------------


@few
@given(rows=packed_rows(), block_length=BLOCK_LENGTHS, doubled_by=st.sampled_from(["block_diffusion", "tidar"]))
def test_a_noisy_token_never_sees_the_clean_token_at_its_own_place(
    rows: Rows, block_length: int, doubled_by: str
) -> None:
    width = len(rows[0])
    make = attention.block_diffusion_training if doubled_by == "block_diffusion" else attention.tidar_training
    layout = make(ids(rows), block_length)
    noisy, clean = (0, width) if doubled_by == "block_diffusion" else (width, 0)
    for row, visible in zip(rows, attention.sees(layout, layout).tolist(), strict=True):
        reached = reaches(visible, hops=2 * width)  # as many layers as there are tokens: all that a deep network mixes
        for place in range(width):
            if row[place] >= 0:
                assert not reached[noisy + place, clean + place]


@few
@given(rows=packed_rows(), block_length=BLOCK_LENGTHS)
def test_the_causal_half_never_sees_its_next_token_nor_a_mask(rows: Rows, block_length: int) -> None:
    width = len(rows[0])
    layout = attention.tidar_training(ids(rows), block_length)
    for row, visible in zip(rows, attention.sees(layout, layout).tolist(), strict=True):
        reached = reaches(visible, hops=2 * width)
        for place in range(width):
            if row[place] >= 0:
                assert not reached[place, place + 1 :].any()


@few
@given(rows=packed_rows())
def test_blocks_of_one_token_make_the_clean_half_causal_and_each_noisy_token_its_own_block(rows: Rows) -> None:
    width, document_BL = len(rows[0]), ids(rows)
    both = attention.block_diffusion_training(document_BL, 1)
    noisy, clean = both.columns(0, width), both.columns(width, 2 * width)
    plain_causal = attention.causal(document_BL)
    real = document_BL >= 0
    assert attention.sees(clean, clean).equal(attention.sees(plain_causal, plain_causal))
    own = torch.eye(width, dtype=torch.bool) & real[:, None, :]
    assert (attention.sees(noisy, noisy) & real[:, :, None]).equal(own)
    strictly_before = attention.sees(plain_causal, plain_causal) & ~torch.eye(width, dtype=torch.bool)
    assert (attention.sees(noisy, clean) & real[:, :, None]).equal(strictly_before & real[:, :, None])


@few
@given(rows=packed_rows(), spare=st.integers(0, 3))
def test_one_block_over_everything_is_masked_diffusion_on_the_noisy_half(rows: Rows, spare: int) -> None:
    width, document_BL = len(rows[0]), ids(rows)
    both = attention.block_diffusion_training(document_BL, width + spare)
    noisy, clean = both.columns(0, width), both.columns(width, 2 * width)
    full = attention.bidirectional(document_BL)
    real = (document_BL >= 0)[:, :, None]
    assert (attention.sees(noisy, noisy) & real).equal(attention.sees(full, full) & real)
    assert not (attention.sees(noisy, clean) & real).any()


@few
@given(rows=packed_rows(), block_length=BLOCK_LENGTHS)
def test_tidar_and_block_diffusion_share_the_noisy_half(rows: Rows, block_length: int) -> None:
    width, document_BL = len(rows[0]), ids(rows)
    first = attention.block_diffusion_training(document_BL, block_length).columns(0, width)
    second = attention.tidar_training(document_BL, block_length).columns(width, 2 * width)
    assert_same(first, second)


# --- operations on layouts ----------------------------------------------------------------------------------------


@few
@given(rows=packed_rows(), block_length=BLOCK_LENGTHS, cut=st.integers(0, 9))
def test_columns_take_tokens_apart_and_joined_puts_them_together(rows: Rows, block_length: int, cut: int) -> None:
    layout = attention.block_diffusion_training(ids(rows), block_length)
    first, second = layout.columns(0, cut), layout.columns(cut, len(layout))
    assert len(first) == min(cut, len(layout)) and len(first) + len(second) == len(layout)
    assert_same(attention.joined([first, second]), layout)
    visible = attention.sees(layout, layout)
    assert attention.sees(second, first).equal(visible[:, cut:, :cut])


def test_joined_repeats_a_single_row_to_the_largest_batch() -> None:
    one, three = attention.causal(ids([[0, 0]])), attention.bidirectional(ids([[0], [0], [-1]]))
    both = attention.joined([one, three])
    assert both.position_ids.tolist() == [[0, 1, 0]] * 3
    assert both.document.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, -1]]


@few
@given(rows=packed_rows(), data=st.data())
def test_rows_choose_rows_in_order_and_with_repetition(rows: Rows, data: st.DataObject) -> None:
    layout = attention.tidar_training(ids(rows), 2)
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4)))
    chosen = layout.rows(index)
    if len(rows) == 1:
        assert_same(chosen, layout)
    else:
        assert attention.sees(chosen, chosen).equal(attention.sees(layout, layout)[index])
        assert chosen.position_ids.equal(layout.position_ids[index])


def test_a_layout_keeps_its_integers_on_another_device() -> None:
    layout = attention.causal(ids([[0, 0, 1, -1]]))
    assert_same(layout.to("cpu"), layout)
    assert all(field.device.type == "meta" for field in layout.to("meta").fields)


def test_a_layout_is_frozen() -> None:
    layout = attention.causal(ids([[0, 0]]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.limit = layout.position  # type: ignore[misc]


# --- the back ends ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("block_length", [1, 3, 8])
def test_flex_attention_under_the_block_mask_equals_sdpa_under_the_dense_mask(
    dtype: torch.dtype, tolerance: float, block_length: int
) -> None:
    # Tolerance: values are of order 1 and sums run over at most 32 keys, so some ten units in the last place.
    rows = [[0] * 8 + [1] * 5 + [2] * 3, [0] * 11 + [-1] * 5]
    layout = attention.block_diffusion_training(ids(rows), block_length)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 32, 8, generator=generator, dtype=dtype) for _ in range(3))
    flex = flex_attention(q, k, v, block_mask=attention.block_mask(layout, layout))
    assert isinstance(flex, Tensor)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=attention.dense_mask(layout, layout))
    assert (flex - dense).abs().max() < tolerance
    full = F.scaled_dot_product_attention(q, k, v)
    assert (full - dense).abs().max() > 0.1, "the mask matters here"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_block_mask_of_one_row_serves_a_batch_and_several_mask_blocks() -> None:
    # 300 tokens span three of FlexAttention's blocks of 128, so its block lists, not only its rule, decide.
    layout = attention.causal(torch.arange(3).repeat_interleave(100)[None])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, 300, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    block = attention.block_mask(layout, layout)
    assert 0 < block.sparsity() < 100
    flex = flex_attention(q, k, v, block_mask=block)
    assert isinstance(flex, Tensor)
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=attention.dense_mask(layout, layout))
    assert (flex - dense).abs().max() < 1e-13


def test_a_mask_that_hides_nothing_is_none_and_one_that_hides_a_single_cell_is_not() -> None:
    full = attention.bidirectional(torch.zeros(2, 4, dtype=torch.int64))
    assert attention.dense_mask(full, full) is None
    padded = attention.bidirectional(attention.documents(torch.tensor([4, 3]), 4))
    mask = attention.dense_mask(padded, padded)
    assert mask is not None and mask.shape == (2, 1, 4, 4) and mask.dtype == torch.bool
    assert mask[0].all() and not mask[1].all()


def test_the_picture_of_a_row_is_readable() -> None:
    layout = attention.tidar_training(ids([[-1, -1, -1], [0, 0, 0]]), 2)
    drawn = attention.picture(layout, layout, row=1)
    assert drawn.splitlines() == ["#.....", "##....", "###...", "...##.", "...##.", "##...#"]


def test_rows_of_one_document_of_any_batch_size_draw_the_same_mask() -> None:
    one, many = (attention.block_causal(ids(plain(rows, 5)), 2) for rows in (1, 3))
    assert_draws(one, many, [masks.block_decode(list(range(5)), list(range(5)), 2)] * 3, plain(3, 5), plain(3, 5))
