"""The attention rule in decoding: every step, prefill and commit against brute force, behind ragged caches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention_cases import Rows, assert_draws, assert_same, plain, reaches
from tests.references import masks
from tests.references.masks import PADDING, Mask
from unmask import attention
from unmask.attention import EVERYTHING, HIDDEN, Layout

STARTS = st.lists(st.integers(0, 6), min_size=1, max_size=3)
BLOCK_LENGTHS = st.integers(1, 5)
DRAFT_LENGTHS = st.integers(1, 8)
few = settings(max_examples=20)


def behind_cache(starts: list[int], new: Layout) -> tuple[Layout, Rows]:
    """The keys of a step: each row's committed tokens, empty slots up to the longest row, the new tokens."""
    width = max(starts)
    cached = attention.causal(attention.documents(torch.tensor(starts), width))
    rows_k = [[0] * start + [PADDING] * (width - start) + [0] * len(new) for start in starts]
    return attention.joined([cached, new]), rows_k


def with_empty_slots(mask: Mask, cached: int, width: int) -> Mask:
    """A reference over [cached | new] keys, with never-seen slots between the two."""
    return [line[:cached] + [False] * (width - cached) + line[cached:] for line in mask]


def assert_step(starts: list[int], new: Layout, expected: list[Mask]) -> None:
    """A step behind a ragged cache equals one reference over [cached | new] per row."""
    keys, rows_k = behind_cache(starts, new)
    wide = [with_empty_slots(mask, start, max(starts)) for mask, start in zip(expected, starts, strict=True)]
    assert_draws(new, keys, wide, plain(len(starts), len(new)), rows_k)


# --- autoregression and block diffusion -----------------------------------------------------------------------------


@few
@given(starts=STARTS, length=st.integers(1, 5))
def test_a_causal_step_sees_the_cache_and_the_new_tokens_up_to_itself(starts: list[int], length: int) -> None:
    # The reference is the verification forward of linear TiDAR, which takes one token less than its draft length.
    expected = [masks.tidar_linear_verify(start, length + 1) for start in starts]
    assert_step(starts, attention.causal_step(torch.tensor(starts), length), expected)


@few
@given(starts=STARTS, length=st.integers(1, 8), block_length=BLOCK_LENGTHS)
def test_a_block_step_from_any_place_draws_the_reference(starts: list[int], length: int, block_length: int) -> None:
    expected = [_block_reference(start, length, block_length) for start in starts]
    assert_step(starts, attention.block_step(torch.tensor(starts), length, block_length), expected)


def _block_reference(start: int, length: int, block_length: int) -> Mask:
    return masks.block_decode(list(range(start, start + length)), list(range(start + length)), block_length)


@few
@given(length=st.integers(1, 12), block_length=BLOCK_LENGTHS)
def test_a_block_prefill_is_the_block_causal_training_half(length: int, block_length: int) -> None:
    prefill = attention.block_step(torch.zeros(2, dtype=torch.int64), length, block_length)
    trained = attention.block_causal(torch.zeros(2, length, dtype=torch.int64), block_length)
    assert_same(prefill, trained)
    assert_draws(prefill, prefill, [_block_reference(0, length, block_length)] * 2, plain(2, length), plain(2, length))


@few
@given(blocks=st.lists(st.integers(0, 3), min_size=1, max_size=3), block_length=BLOCK_LENGTHS)
def test_a_fused_commit_draws_the_reference(blocks: list[int], block_length: int) -> None:
    starts = [block * block_length for block in blocks]
    expected = [masks.fused_commit(start, block_length, cached=start) for start in starts]
    assert_step(starts, attention.block_step(torch.tensor(starts), 2 * block_length, block_length), expected)


@few
@given(starts=STARTS, length=st.integers(1, 6), block_length=BLOCK_LENGTHS)
def test_steps_stand_at_absolute_places(starts: list[int], length: int, block_length: int) -> None:
    places = [[start + index for index in range(length)] for start in starts]
    for layout in (
        attention.causal_step(torch.tensor(starts), length),
        attention.block_step(torch.tensor(starts), length, block_length),
    ):
        assert layout.position_ids.tolist() == places and layout.position.tolist() == places


# --- TiDAR ------------------------------------------------------------------------------------------------------------


@few
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=3), spare=st.integers(0, 2), draft_length=DRAFT_LENGTHS)
def test_a_tidar_prefill_of_ragged_prompts_draws_the_reference(
    lengths: list[int], spare: int, draft_length: int
) -> None:
    width = max(lengths) + spare
    layout = attention.tidar_prefill(torch.tensor(lengths), width, draft_length)
    rows = [[0] * length + [PADDING] * (width - length) + [0] * draft_length for length in lengths]
    expected = [
        _spread(masks.tidar_prefill(length, draft_length), row) for length, row in zip(lengths, rows, strict=True)
    ]
    assert_draws(layout, layout, expected, rows, rows)
    for ids, row, length in zip(layout.position_ids.tolist(), rows, lengths, strict=True):
        real = [place for place, document in zip(ids, row, strict=True) if document != PADDING]
        assert real == masks.tidar_prefill_position_ids(length, draft_length)


def _spread(mask: Mask, row: list[int]) -> Mask:
    """A reference over the tokens of a row, with unseen and unseeing padding in between."""
    real = [index for index, document in enumerate(row) if document != PADDING]
    wide = [[False] * len(row) for _ in row]
    for q, index_q in enumerate(real):
        for k, index_k in enumerate(real):
            wide[index_q][index_k] = mask[q][k]
    return wide


@settings(max_examples=16)
@given(starts=STARTS, draft_length=DRAFT_LENGTHS)
def test_a_tidar_step_draws_the_reference(starts: list[int], draft_length: int) -> None:
    layout = attention.tidar_step(torch.tensor(starts), draft_length)
    assert_step(starts, layout, [masks.tidar_step(start, draft_length) for start in starts])
    places = [masks.tidar_step_position_ids(start, draft_length) for start in starts]
    assert layout.position_ids.tolist() == places


def test_a_tidar_step_draws_the_reference_for_every_draft_length() -> None:
    for draft_length in range(1, 9):
        layout = attention.tidar_step(torch.tensor([3, 0]), draft_length)
        assert len(layout) == draft_length * (draft_length + 1)
        assert_step([3, 0], layout, [masks.tidar_step(start, draft_length) for start in (3, 0)])


@few
@given(starts=STARTS, draft_length=DRAFT_LENGTHS)
def test_a_linear_tidar_step_draws_the_reference(starts: list[int], draft_length: int) -> None:
    layout = attention.tidar_linear(torch.tensor(starts), draft_length)
    assert len(layout) == draft_length
    assert_step(starts, layout, [masks.tidar_linear(start, draft_length) for start in starts])
    places = [masks.tidar_linear_position_ids(start, draft_length) for start in starts]
    assert layout.position_ids.tolist() == places


@few
@given(start=st.integers(0, 5), draft_length=DRAFT_LENGTHS)
def test_a_committed_token_never_depends_on_a_draft_mask(start: int, draft_length: int) -> None:
    # Keys and values of clean tokens enter the cache, so not even a deep network may mix a mask into them.
    for new, clean in (
        (attention.tidar_step(torch.tensor([start]), draft_length), draft_length),
        (attention.tidar_linear(torch.tensor([start]), draft_length), 1),
        (attention.tidar_prefill(torch.tensor([start + 1]), start + 1, draft_length), start + 1),
    ):
        reached = reaches(attention.sees(new, new)[0].tolist(), hops=len(new))
        assert not reached[:clean, clean:].any()
        assert reached[:clean, :clean].equal(torch.ones(clean, clean, dtype=torch.bool).tril())


# --- moving -----------------------------------------------------------------------------------------------------------


@few
@given(starts=STARTS, length=st.integers(1, 5), block_length=BLOCK_LENGTHS)
def test_a_step_that_was_moved_is_the_step_built_there(starts: list[int], length: int, block_length: int) -> None:
    start_B, origin = torch.tensor(starts), torch.zeros(1, dtype=torch.int64)
    assert_same(attention.causal_step(origin, length).moved(start_B), attention.causal_step(start_B, length))
    assert_same(attention.tidar_linear(origin, length).moved(start_B), attention.tidar_linear(start_B, length))
    aligned_B = start_B * block_length
    built = attention.block_step(aligned_B, length, block_length)
    assert_same(attention.block_step(origin, length, block_length).moved(aligned_B), built)


@few
@given(first=STARTS, second=st.integers(0, 4), draft_length=st.integers(1, 4))
def test_moving_twice_is_moving_once_by_the_sum(first: list[int], second: int, draft_length: int) -> None:
    once = attention.tidar_step(torch.tensor(first) + second, draft_length)
    assert_same(attention.tidar_step(torch.tensor(first), draft_length).moved(torch.full((len(first),), second)), once)


def test_moving_leaves_what_is_hidden_hidden_and_what_sees_everything_unlimited() -> None:
    document_BL = torch.tensor([[0, 0, -1]])
    offset_B = torch.tensor([5, 0])
    moved = attention.joined([attention.bidirectional(document_BL), attention.noisy_blocks(document_BL, 2)]).moved(
        offset_B
    )
    assert moved.position.tolist() == [[5, 6] + [HIDDEN] * 4, [0, 1] + [HIDDEN] * 4]
    assert moved.limit.tolist() == [
        [EVERYTHING, EVERYTHING, HIDDEN, 4, 4, HIDDEN],
        [EVERYTHING, EVERYTHING, HIDDEN, -1, -1, HIDDEN],
    ]
    assert moved.block.tolist() == [[-1, -1, -1, 0, 0, -1]] * 2 and moved.document.tolist() == [[0, 0, -1] * 2] * 2


def test_every_decoding_layout_stays_on_the_device_and_type_of_its_starts() -> None:
    starts = torch.tensor([1, 2], device="meta")
    layouts = [
        attention.causal_step(starts, 2),
        attention.block_step(starts, 2, 2),
        attention.tidar_linear(starts, 2),
        attention.tidar_prefill(starts, 3, 2),
    ]
    for field in (field for layout in layouts for field in layout.fields):
        assert field.device.type == "meta" and field.dtype == torch.int64


def test_every_layout_is_made_of_five_int64_tensors_of_one_shape() -> None:
    starts = torch.tensor([1, 2])
    for layout in (attention.tidar_step(starts, 3), attention.tidar_prefill(starts, 2, 3)):
        shapes = {(field.dtype, tuple(field.shape)) for field in layout.fields}
        assert shapes == {(torch.int64, (2, len(layout)))}
