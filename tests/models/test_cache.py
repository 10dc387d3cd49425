"""The cache: any sequence of commits, prefixes, rejections and row selections equals one forward without a cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.tiny import BORDER, FAMILY_NAMES, backbone, random_ids
from unmask import attention
from unmask.attention import HIDDEN, Layout
from unmask.models.backbone import Backbone
from unmask.models.cache import KVCache

MODELS = {family: backbone(family) for family in FAMILY_NAMES}
MODEL = MODELS["qwen3"]
SAME = 1e-10  # fixed inputs in float64: only the order of summation differs

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
either_cache = pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])


def new_cache(model: Backbone, rows: int, *, static: bool, capacity: int = 64) -> KVCache:
    return model.new_cache(rows, static=static, capacity=capacity)


def extend(model: Backbone, ids_BQ: Tensor, layout: Layout, cache: KVCache, keep: int | Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.extend(ids_BQ, layout, cache, keep=keep)


def uncached(model: Backbone, ids_BL: Tensor, layout: Layout) -> Tensor:
    with torch.no_grad():
        return model(ids_BL, layout.position_ids.expand_as(ids_BL), model.render(layout, layout))


def one_document(ids_BL: Tensor) -> Tensor:
    return torch.zeros_like(ids_BL)


def causal_alone(ids: list[int]) -> Tensor:
    """Hidden states [L, D] of one row of tokens in a forward of its own."""
    ids_BL = torch.tensor([ids])
    return uncached(MODEL, ids_BL, attention.causal(one_document(ids_BL)))[0]


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


# --- cached equals uncached -------------------------------------------------------------------------------------------


@either_cache
@every_family
def test_causal_steps_behind_a_cache_equal_one_forward(family: str, static: bool) -> None:
    model, ids_BL = MODELS[family], random_ids(3, 11)
    cache = new_cache(model, 3, static=static)
    hidden = []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 11)):
        hidden.append(extend(model, ids_BL[:, start:stop], attention.causal_step(cache.length_B, stop - start), cache))
    assert difference(torch.cat(hidden, dim=1), uncached(model, ids_BL, attention.causal(one_document(ids_BL)))) < SAME
    assert cache.length_B.tolist() == [11, 11, 11]


@either_cache
@every_family
def test_blocks_behind_a_cache_equal_one_block_causal_forward(family: str, static: bool) -> None:
    model, ids_BL = MODELS[family], random_ids(2, 12)
    cache = new_cache(model, 2, static=static)
    hidden = []
    for start, stop in ((0, 8), (8, 12)):
        hidden.append(
            extend(model, ids_BL[:, start:stop], attention.block_step(cache.length_B, stop - start, 4), cache)
        )
    expected = uncached(model, ids_BL, attention.block_causal(one_document(ids_BL), 4))
    assert difference(torch.cat(hidden, dim=1), expected) < SAME


@either_cache
@every_family
def test_a_fused_commit_equals_a_commit_and_a_denoising_step(family: str, static: bool) -> None:
    model, ids_BL = MODELS[family], random_ids(2, 12)
    fused, plain = (new_cache(model, 2, static=static) for _ in range(2))
    for cache in (fused, plain):
        extend(model, ids_BL[:, :4], attention.block_step(cache.length_B, 4, 4), cache)
    both = extend(model, ids_BL[:, 4:], attention.block_step(fused.length_B, 8, 4), fused, keep=4)
    commit = extend(model, ids_BL[:, 4:8], attention.block_step(plain.length_B, 4, 4), plain)
    denoise = extend(model, ids_BL[:, 8:], attention.block_step(plain.length_B, 4, 4), plain, keep=0)
    assert difference(both, torch.cat([commit, denoise], dim=1)) < SAME
    assert fused.length_B.equal(plain.length_B)
    after = [
        extend(model, ids_BL[:, :4], attention.block_step(cache.length_B, 4, 4), cache) for cache in (fused, plain)
    ]
    assert difference(*after) < SAME


@either_cache
@every_family
def test_rows_of_ragged_prompts_continue_as_if_they_were_alone(family: str, static: bool) -> None:
    model, ids_BL, lengths_B = MODELS[family], random_ids(3, 9), torch.tensor([5, 2, 4])
    cache = new_cache(model, 3, static=static)
    extend(model, ids_BL[:, :6], attention.causal(attention.documents(lengths_B, 6)), cache, keep=lengths_B)
    assert cache.length_B.equal(lengths_B)
    for start, stop in ((6, 8), (8, 9)):
        hidden = extend(model, ids_BL[:, start:stop], attention.causal_step(cache.length_B, stop - start), cache)
        for row, length in enumerate(lengths_B.tolist()):
            alone = torch.cat([ids_BL[row : row + 1, :length], ids_BL[row : row + 1, 6:stop]], dim=1)
            expected = uncached(model, alone, attention.causal(one_document(alone)))
            assert difference(hidden[row], expected[0, start - stop :]) < SAME


@either_cache
def test_a_new_cache_sees_nothing_and_starts_at_nought(static: bool) -> None:
    cache, ids_BL = new_cache(MODEL, 2, static=static), random_ids(2, 3)
    assert cache.length_B.tolist() == [0, 0]
    keys = cache.begin(attention.bidirectional(one_document(ids_BL)))
    assert (keys.position[:, 3:] == HIDDEN).all() and (keys.block[:, 3:] == -1).all()
    assert len(keys) == (64 if static else 3)


# --- keep -------------------------------------------------------------------------------------------------------------


@either_cache
@every_family
def test_a_forward_that_keeps_nothing_leaves_no_trace(family: str, static: bool) -> None:
    model, ids_BL = MODELS[family], random_ids(2, 10)
    quiet, disturbed = (new_cache(model, 2, static=static) for _ in range(2))
    hidden = []
    for cache in (quiet, disturbed):
        extend(model, ids_BL[:, :4], attention.causal_step(cache.length_B, 4), cache)
        if cache is disturbed:
            for length in (6, 3):
                noise = random_ids(2, length, seed=length)
                extend(model, noise, attention.block_step(cache.length_B, length, 3), cache, keep=0)
                assert cache.length_B.tolist() == [4, 4]
        hidden.append(extend(model, ids_BL[:, 4:6], attention.causal_step(cache.length_B, 2), cache))
        hidden.append(extend(model, ids_BL[:, 6:7], attention.causal_step(cache.length_B, 1), cache))
    assert difference(hidden[0], hidden[2]) < SAME and difference(hidden[1], hidden[3]) < SAME


@either_cache
@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_a_kept_prefix_stays_and_the_rest_is_overwritten(static: bool, kept: int) -> None:
    ids_BL, rejected = random_ids(2, 12), random_ids(2, 5, seed=3)
    cache = new_cache(MODEL, 2, static=static)
    extend(MODEL, ids_BL[:, :3], attention.causal_step(cache.length_B, 3), cache)
    first = torch.cat([ids_BL[:, 3 : 3 + kept], rejected[:, kept:]], dim=1)
    extend(MODEL, first, attention.causal_step(cache.length_B, 5), cache, keep=kept)
    assert cache.length_B.tolist() == [3 + kept] * 2
    hidden = extend(MODEL, ids_BL[:, 3 + kept :], attention.causal_step(cache.length_B, 9 - kept), cache)
    expected = uncached(MODEL, ids_BL, attention.causal(one_document(ids_BL)))[:, 3 + kept :]
    assert difference(hidden, expected) < SAME


@either_cache
def test_each_row_keeps_a_prefix_of_its_own(static: bool) -> None:
    ids_BL, kept_B = random_ids(4, 8), torch.tensor([0, 1, 3, 4])
    cache = new_cache(MODEL, 4, static=static)
    extend(MODEL, ids_BL[:, :2], attention.causal_step(cache.length_B, 2), cache)
    extend(MODEL, ids_BL[:, 2:6], attention.causal_step(cache.length_B, 4), cache, keep=kept_B)
    assert cache.length_B.tolist() == [2, 3, 5, 6]
    hidden = extend(MODEL, ids_BL[:, 6:], attention.causal_step(cache.length_B, 2), cache)
    for row, kept in enumerate(kept_B.tolist()):
        committed = ids_BL[row, : 2 + kept].tolist() + ids_BL[row, 6:].tolist()
        assert difference(hidden[row], causal_alone(committed)[-2:]) < SAME


@either_cache
def test_draft_masks_that_were_given_up_are_out_of_sight_of_the_next_draft_masks(static: bool) -> None:
    # Both steps number their blocks from 0, so a stale block id would let old masks in.
    ids_BL, starts_B = random_ids(2, 12), torch.tensor([4, 4])
    hidden = []
    for disturbed in (False, True):
        cache = new_cache(MODEL, 2, static=static)
        extend(MODEL, ids_BL[:, :4], attention.causal_step(cache.length_B, 4), cache)
        if disturbed:
            noise = random_ids(2, 12, seed=3)
            extend(MODEL, noise, attention.tidar_step(starts_B, 3), cache, keep=torch.tensor([0, 0]))
        hidden.append(extend(MODEL, ids_BL[:, 4:6], attention.tidar_linear(starts_B, 2), cache, keep=0))
    assert difference(*hidden) < SAME


@either_cache
@pytest.mark.parametrize("selects", [False, True])
def test_a_forward_that_fails_leaves_no_trace(static: bool, selects: bool) -> None:
    ids_BL, lengths_B = random_ids(2, 5), torch.tensor([4, 2])
    hidden = []
    for fails in (False, True):
        cache = new_cache(MODEL, 2, static=static)
        extend(MODEL, ids_BL[:, :4], attention.causal_step(cache.length_B, 4), cache, keep=lengths_B)
        if fails:
            with pytest.raises(IndexError):
                extend(MODEL, torch.full((2, 6), 999), attention.causal_step(cache.length_B, 6), cache)
        if selects:
            cache.select(torch.tensor([1, 0, 1]))
        new_BQ = ids_BL[:, 4:].repeat(2, 1)[: len(cache.length_B)]
        # One block of eight sees as far ahead as anything that the failed forward announced.
        hidden.append(extend(MODEL, new_BQ, attention.block_step(cache.length_B, 1, 8), cache))
    assert difference(*hidden) < SAME


def test_what_was_given_up_is_marked_hidden_in_every_slot() -> None:
    cache = new_cache(MODEL, 2, static=False)
    extend(MODEL, random_ids(2, 6), attention.tidar_step(cache.length_B, 2), cache, keep=torch.tensor([0, 2]))
    keys = cache.begin(attention.causal_step(cache.length_B, 1))
    visible = (keys.position < HIDDEN).tolist()
    assert visible == [[True, False, False], [True, True, True]]
    assert (keys.block == -1).all()


@either_cache
def test_dropped_tokens_are_out_of_sight_of_tokens_that_look_ahead(static: bool) -> None:
    """And of masks of the same block number as theirs."""
    ids_BL, drafts_BL = random_ids(2, 3), random_ids(2, 3, seed=2)
    hidden = []
    for drops in (False, True):
        cache = new_cache(MODEL, 2, static=static)
        extend(MODEL, ids_BL, attention.causal_step(cache.length_B, 3), cache)
        if drops:
            extend(MODEL, drafts_BL, attention.tidar_linear(cache.length_B, 3), cache)
            cache.drop(3)
            assert cache.length_B.tolist() == [3, 3]
        ahead = attention.block_step(cache.length_B, 1, 8)
        drafting = attention.joined([ahead, attention.tidar_linear(cache.length_B + 1, 3).columns(1, 3)])
        hidden.append(extend(MODEL, random_ids(2, 3, seed=5), drafting, cache))
    assert difference(*hidden) < SAME


@pytest.mark.parametrize("layout", [attention.causal_step, attention.tidar_linear])
def test_every_slot_of_dropped_tokens_is_marked_hidden(layout: Callable[[Tensor, int], Layout]) -> None:
    cache = new_cache(MODEL, 1, static=True, capacity=8)
    extend(MODEL, random_ids(1, 3), layout(cache.length_B, 3), cache)
    cache.drop(2)
    keys = cache.begin(attention.causal_step(cache.length_B, 1))
    assert (keys.position[0] < HIDDEN).tolist() == [True, True, *[False] * 6]
    assert (keys.block == -1).all()


def test_a_window_that_is_rewritten_sees_every_slot_and_keeps_their_number() -> None:
    """Bidirectional: the window reads the old keys before and after it, and replaces its own."""
    ids_BL, new_BQ = random_ids(2, 8), random_ids(2, 3, seed=7)
    everything = attention.bidirectional(one_document(ids_BL))
    cache = new_cache(MODEL, 2, static=False)
    extend(MODEL, ids_BL, everything, cache)
    window = everything.columns(2, 5)
    with torch.no_grad():
        keys = cache.rewrite(2, 3)
        first = MODEL(new_BQ, window.position_ids.expand_as(new_BQ), MODEL.render(window, keys), cache=cache)
        assert len(keys) == 8 and cache.visible == 8 and cache.length_B.tolist() == [8, 8]
        again = MODEL(new_BQ, window.position_ids.expand_as(new_BQ), MODEL.render(window, keys), cache=cache)
    assert difference(first, again) < SAME, "its own keys are the new ones in either forward"
    stored = [layer.keys[:, :, :8] for layer in cache.layers]  # type: ignore[union-attr,index]
    fresh = new_cache(MODEL, 2, static=False)
    extend(MODEL, ids_BL, everything, fresh)
    for layer, (kept, before) in enumerate(zip(stored, fresh.layers, strict=True)):
        old = before.keys[:, :, :8]  # type: ignore[index]
        assert torch.equal(kept[:, :, :2], old[:, :, :2]) and torch.equal(kept[:, :, 5:], old[:, :, 5:]), layer
        assert not torch.equal(kept[:, :, 2:5], old[:, :, 2:5]), layer


# --- select -----------------------------------------------------------------------------------------------------------


@either_cache
@pytest.mark.parametrize("index", [[2], [2, 0], [1, 1, 0, 2]], ids=str)
def test_chosen_rows_go_on_as_before(static: bool, index: list[int]) -> None:
    ids_BL, lengths_B = random_ids(3, 8), torch.tensor([5, 2, 4])
    cache = new_cache(MODEL, 3, static=static)
    extend(MODEL, ids_BL[:, :5], attention.causal_step(cache.length_B, 5), cache, keep=lengths_B)
    cache.select(torch.tensor(index))
    assert cache.length_B.tolist() == [lengths_B[row] for row in index]
    new_BQ = random_ids(len(index), 3, seed=4)
    for start, stop in ((0, 1), (1, 3)):
        hidden = extend(MODEL, new_BQ[:, start:stop], attention.causal_step(cache.length_B, stop - start), cache)
        for place, row in enumerate(index):
            committed = ids_BL[row, : lengths_B[row]].tolist() + new_BQ[place, :stop].tolist()
            assert difference(hidden[place], causal_alone(committed)[start - stop :]) < SAME


@either_cache
def test_a_single_row_is_repeated_into_several(static: bool) -> None:
    ids_BL, new_BQ = random_ids(1, 5), random_ids(3, 2, seed=4)
    cache = new_cache(MODEL, 1, static=static)
    extend(MODEL, ids_BL, attention.causal_step(cache.length_B, 5), cache)
    cache.select(torch.tensor([0, 0, 0]))
    hidden = extend(MODEL, new_BQ, attention.causal_step(cache.length_B, 2), cache)
    for row in range(3):
        assert difference(hidden[row], causal_alone(ids_BL[0].tolist() + new_BQ[row].tolist())[-2:]) < SAME


@either_cache
def test_rows_may_be_chosen_before_anything_is_stored(static: bool) -> None:
    cache = new_cache(MODEL, 3, static=static)
    cache.select(torch.tensor([1, 2]))
    ids_BL = random_ids(2, 4)
    hidden = extend(MODEL, ids_BL, attention.causal_step(cache.length_B, 4), cache)
    assert difference(hidden, uncached(MODEL, ids_BL, attention.causal(one_document(ids_BL)))) < SAME


# --- capacity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
def test_a_dynamic_cache_grows_beyond_its_first_capacity_and_forgets_nothing(ragged: bool) -> None:
    ids_BL = random_ids(2, 100)
    cache = new_cache(MODEL, 2, static=False, capacity=3)
    hidden, start = [], 0
    for length in (2, 1, 1, 5, 30, 1, 60):
        keep = torch.tensor([length, length]) if ragged else None
        new = ids_BL[:, start : start + length]
        hidden.append(extend(MODEL, new, attention.causal_step(cache.length_B, length), cache, keep))
        start += length
    assert cache.capacity == 156, "3, 6, 12, 39, 78, 156: doubled, or as much as is needed at once"
    assert difference(torch.cat(hidden, dim=1), uncached(MODEL, ids_BL, attention.causal(one_document(ids_BL)))) < SAME


def test_a_static_cache_says_when_it_is_full() -> None:
    cache = new_cache(MODEL, 1, static=True, capacity=4)
    extend(MODEL, random_ids(1, 3), attention.causal_step(cache.length_B, 3), cache)
    with pytest.raises(ValueError, match="holds 4 tokens per row, and 5 are needed"):
        extend(MODEL, random_ids(1, 2), attention.causal_step(cache.length_B, 2), cache)


def test_every_forward_behind_a_static_cache_has_the_same_shapes_and_the_same_storage() -> None:
    cache = new_cache(MODEL, 2, static=True, capacity=24)
    seen: set[tuple[int, ...]] = set()
    storage: set[int] = set()
    for step in range(6):
        layout = attention.causal_step(cache.length_B, 3)
        keys = cache.begin(layout)
        mask = MODEL.render(layout, keys)
        assert isinstance(mask, Tensor)
        with torch.no_grad():
            MODEL(random_ids(2, 3, seed=step), layout.position_ids, mask, cache=cache)
        cache.keep(torch.tensor([step % 3, 2]))
        held = [layer.keys for layer in cache.layers] + [layer.values for layer in cache.layers]
        assert all(slots is not None for slots in held)
        seen |= {tuple(mask.shape), *(tuple(slots.shape) for slots in held if slots is not None)}
        storage |= {slots.data_ptr() for slots in held if slots is not None}
        storage |= {field.data_ptr() for field in keys.fields}
    assert seen == {(2, 1, 3, 24), (2, 2, 24, 8)}
    assert len(storage) == 2 * 2 + 5, "slots and integers stay where a compiled graph expects them"


# --- any history ------------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(data=st.data(), static=st.booleans(), uniform=st.booleans())
def test_any_history_equals_a_fresh_forward_over_what_was_committed(
    data: st.DataObject, static: bool, uniform: bool
) -> None:
    # Uniform histories keep a number for all rows, the others a prefix for each, which makes them ragged.
    rows = data.draw(st.integers(1, 3))
    cache = new_cache(MODEL, rows, static=static, capacity=64 if static else 2)
    committed: list[list[int]] = [[] for _ in range(rows)]
    for step in range(data.draw(st.integers(1, 6))):
        length = data.draw(st.integers(1, 5))
        block_length = data.draw(st.one_of(st.none(), st.integers(1, 4)))  # None: a causal step
        counts = [data.draw(st.integers(0, length))] * rows
        if not uniform:
            counts = [data.draw(st.integers(0, length)) for _ in range(rows)]
        if block_length is not None:
            counts = [0] * rows  # a token of a partly kept block would remember the tokens that were given up
        keep = counts[0] if uniform else torch.tensor(counts)
        if counts == [length] * rows:
            keep = data.draw(st.sampled_from([None, keep]))

        new_BQ = random_ids(rows, length, seed=10 * step + rows)
        hidden_BQD = extend(MODEL, new_BQ, step_at(cache.length_B, length, block_length), cache, keep)
        for row, ids in enumerate(committed):
            expected = fresh(ids + new_BQ[row].tolist(), length, block_length)
            assert difference(hidden_BQD[row], expected) < BORDER  # random inputs: tiny.py says why not 1e-10
        committed = [ids + new_BQ[row, : counts[row]].tolist() for row, ids in enumerate(committed)]
        assert cache.length_B.tolist() == [len(ids) for ids in committed]

        if data.draw(st.integers(0, 2)) == 0:
            index = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=3))
            cache.select(torch.tensor(index))
            committed, rows = [committed[row] for row in index], len(index)


def step_at(start_B: Tensor, length: int, block_length: int | None) -> Layout:
    if block_length is None:
        return attention.causal_step(start_B, length)
    return attention.block_step(start_B, length, block_length)


def fresh(ids: list[int], length: int, block_length: int | None) -> Tensor:
    """Hidden states of the last tokens of one row, behind a causal past, in one forward without a cache."""
    past = attention.causal_step(torch.tensor([0]), len(ids) - length)
    new = step_at(torch.tensor([len(ids) - length]), length, block_length)
    return uncached(MODEL, torch.tensor([ids]), attention.joined([past, new]))[0, -length:]
