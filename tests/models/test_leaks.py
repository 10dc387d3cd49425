"""Leak tests: with real networks, a logit depends on exactly the tokens that the rule lets it see, and on no other.

Each test changes every token of an input in turn (one row of a batch for each) and records whose logits moved. Over
layers sight adds up: what a query depends on is what it sees, what that sees, and so on, once per layer. So the
expected dependencies are the reference mask, with every token of the past as a query of its own, raised to the
number of layers; both "no leak" and "no blindness" are asserted, cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.attention_cases import Rows, packed_rows, reaches
from tests.models.tiny import BORDER, FAMILY_NAMES, VOCABULARY, backbone, random_ids
from tests.references import masks
from tests.references.masks import PADDING, Mask
from unmask import attention
from unmask.attention import Layout
from unmask.models.backbone import Backbone
from unmask.models.cache import KVCache

LAYERS = 2
NOISE = 1e-12  # rows of one batch that hold the same numbers are computed alike: in practice they are equal
MODELS = {family: backbone(family) for family in FAMILY_NAMES}
Forward = Callable[[Tensor], Tensor]  # ids [R, N] -> logits [R, M, V] of the last M tokens

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
either_cache = pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
few = settings(max_examples=60)


def movements(forward: Forward, ids_N: Tensor) -> Tensor:
    """How far the logits of each of the last tokens move when each token changes: [M, N]."""
    places = torch.arange(len(ids_N))
    changed_RN = ids_N.repeat(len(ids_N) + 1, 1)
    changed_RN[1 + places, places] = (ids_N + 1 + places) % VOCABULARY
    with torch.no_grad():
        logits_RMV = forward(changed_RN)
    return (logits_RMV[1:] - logits_RMV[0]).abs().amax(dim=-1).T


def assert_depends(forward: Forward, sees: Mask, *, last: int | None = None, padding: list[int] | None = None) -> None:
    """The last tokens depend on exactly what the reference over all tokens lets through, layer by layer.

    Args:
        forward: the network at work.
        sees: the reference of all tokens, those of the past included.
        last: how many of them `forward` returns logits of (default: all).
        padding: tokens whose sight of each other nobody specified.
    """
    count = len(sees)
    first = 0 if last is None else count - last
    expected_MN, moved_MN = reaches(sees, hops=LAYERS)[first:], movements(forward, random_ids(count))
    assert moved_MN.shape == expected_MN.shape
    real_N = torch.ones(count, dtype=torch.bool)
    real_N[padding or []] = False
    specified_MN = real_N[first:, None] | real_N
    leaks = (specified_MN & ~expected_MN & ~(moved_MN <= NOISE)).nonzero().tolist()
    blind = (specified_MN & expected_MN & ~(moved_MN >= BORDER)).nonzero().tolist()
    assert not leaks, f"[query, token] that must not matter and does: {leaks[:6]}"
    assert not blind, f"[query, token] that must matter and does not: {blind[:6]}"


def at_once(model: Backbone, layout: Layout) -> Forward:
    """One forward without a cache, under a layout of one row."""

    def forward(ids_RN: Tensor) -> Tensor:
        hidden = model(ids_RN, layout.position_ids.expand_as(ids_RN), model.render(layout, layout))
        return model.logits(hidden)

    return forward


def behind(past: Mask, new: Mask) -> Mask:
    """A reference over committed and new tokens: each committed one sees what it saw when it was committed."""
    return [line + [False] * len(new) for line in past] + new


def starts(rows: int, place: int) -> Tensor:
    return torch.full((rows,), place, dtype=torch.int64)


def junk(rows: int, length: int) -> Tensor:
    """Other tokens in every row: should one of them matter, then all rows differ, and every cell is a leak."""
    return random_ids(rows, length, seed=99)


# --- training layouts -------------------------------------------------------------------------------------------------

PACKED = [0, 0, 0, 0, 0, 1, 1, 1, 2, PADDING, PADDING]
LEFT_PADDED = [PADDING, PADDING, 0, 0, 0, 0, 0]
TRAINING: dict[str, tuple[Callable[[Tensor], Layout], Callable[[list[int]], Mask], int]] = {
    "autoregressive": (attention.causal, masks.causal, 1),
    "masked diffusion": (attention.bidirectional, masks.bidirectional, 1),
    "block diffusion": (
        lambda documents: attention.block_diffusion_training(documents, 2),
        lambda row: masks.block_diffusion_doubled(row, 2),
        2,
    ),
    "tidar": (
        lambda documents: attention.tidar_training(documents, 2),
        lambda row: masks.tidar_doubled(row, 2, order="clean_first"),
        2,
    ),
}
every_layout = pytest.mark.parametrize("name", TRAINING)


def assert_trains(model: Backbone, row: list[int], name: str) -> None:
    make, reference, copies = TRAINING[name]
    padding = [index for index, document in enumerate(row * copies) if document == PADDING]
    assert_depends(at_once(model, make(torch.tensor([row]))), reference(row), padding=padding)


@every_layout
@every_family
def test_packed_training_rows_depend_on_what_the_rule_shows(family: str, name: str) -> None:
    assert_trains(MODELS[family], PACKED, name)


@every_layout
@every_family
def test_left_padded_rows_depend_on_what_the_rule_shows(family: str, name: str) -> None:
    assert_trains(MODELS[family], LEFT_PADDED, name)


@few
@given(rows=st.booleans().flatmap(lambda left: packed_rows(left=left)), name=st.sampled_from(sorted(TRAINING)))
def test_random_training_rows_depend_on_what_the_rule_shows(rows: Rows, name: str) -> None:
    assert_trains(MODELS["qwen3"], rows[0], name)


@few
@given(length=st.integers(1, 9), block_length=st.integers(1, 10))
def test_block_diffusion_of_any_block_length_depends_on_what_the_rule_shows(length: int, block_length: int) -> None:
    layout = attention.block_diffusion_training(torch.zeros(1, length, dtype=torch.int64), block_length)
    assert_depends(at_once(MODELS["qwen3"], layout), masks.block_diffusion_doubled([0] * length, block_length))


@few
@given(length=st.integers(1, 9), clean_length=st.integers(0, 9), block_length=st.integers(1, 4))
def test_the_split_tidar_layout_depends_on_what_the_rule_shows(
    length: int, clean_length: int, block_length: int
) -> None:
    layout = attention.tidar_split(torch.zeros(1, length, dtype=torch.int64), clean_length, block_length)
    assert_depends(at_once(MODELS["qwen3"], layout), masks.tidar_split(length, clean_length, block_length))


# --- decoding behind a cache ------------------------------------------------------------------------------------------


def new_cache(model: Backbone, rows: int, *, static: bool) -> KVCache:
    return model.new_cache(rows, static=True, capacity=48) if static else model.new_cache(rows, capacity=2)


@either_cache
@every_family
def test_autoregressive_decoding_depends_on_the_tokens_before(family: str, static: bool) -> None:
    model = MODELS[family]

    def forward(ids_RN: Tensor) -> Tensor:
        rows = len(ids_RN)
        cache = new_cache(model, rows, static=static)
        hidden = [model.extend(ids_RN[:, :4], attention.causal_step(starts(rows, 0), 4), cache)]
        for place in range(4, 8):
            new = ids_RN[:, place : place + 1]
            hidden.append(model.extend(new, attention.causal_step(cache.length_B, 1), cache))
        return model.logits(torch.cat(hidden, dim=1))

    assert_depends(forward, masks.causal([0] * 8))


@either_cache
@every_family
def test_block_decoding_depends_on_committed_blocks_and_its_own(family: str, static: bool) -> None:
    model = MODELS[family]

    def forward(ids_RN: Tensor) -> Tensor:
        rows = len(ids_RN)
        cache = new_cache(model, rows, static=static)
        hidden = [model.extend(ids_RN[:, :6], attention.block_step(starts(rows, 0), 6, 3), cache)]
        for place in (6, 9):
            block = attention.block_step(cache.length_B, 3, 3)
            model.extend(junk(rows, 3), block, cache, keep=0)  # a denoising forward leaves no trace
            hidden.append(model.extend(ids_RN[:, place : place + 3], block, cache))
        return model.logits(torch.cat(hidden, dim=1))

    assert_depends(forward, masks.block_decode(list(range(12)), list(range(12)), 3))


@either_cache
@every_family
def test_a_fused_commit_depends_on_what_the_unfused_forwards_do(family: str, static: bool) -> None:
    model = MODELS[family]

    def forward(ids_RN: Tensor) -> Tensor:
        rows = len(ids_RN)
        cache = new_cache(model, rows, static=static)
        model.extend(ids_RN[:, :3], attention.block_step(starts(rows, 0), 3, 3), cache)
        first = torch.cat([ids_RN[:, 3:6], junk(rows, 3)], dim=1)
        model.extend(first, attention.block_step(cache.length_B, 6, 3), cache, keep=3)
        hidden = model.extend(ids_RN[:, 6:12], attention.block_step(cache.length_B, 6, 3), cache, keep=3)
        return model.logits(hidden)

    blocks = masks.block_decode(list(range(6)), list(range(6)), 3)
    assert_depends(forward, behind(blocks, masks.fused_commit(6, 3, cached=6)), last=6)


@every_family
def test_a_tidar_prefill_depends_on_what_the_rule_shows(family: str) -> None:
    layout = attention.tidar_prefill(torch.tensor([5]), 7, 3)
    real = [0, 1, 2, 3, 4, 7, 8, 9]
    model = MODELS[family]

    def forward(ids_RN: Tensor) -> Tensor:
        wide_RW = junk(len(ids_RN), 10)  # the two padding columns differ from row to row
        wide_RW[:, real] = ids_RN
        return at_once(model, layout)(wide_RW)[:, real]

    assert_depends(forward, masks.tidar_prefill(5, 3))


@either_cache
@every_family
def test_a_tidar_step_depends_on_committed_tokens_accepted_drafts_and_its_own_block(family: str, static: bool) -> None:
    model, prompt, draft, accepted = MODELS[family], 4, 3, 2

    def forward(ids_RN: Tensor) -> Tensor:
        rows, committed = len(ids_RN), prompt + accepted
        cache = new_cache(model, rows, static=static)
        prefill = attention.tidar_prefill(starts(rows, prompt), prompt + 1, draft)
        filled = torch.cat([ids_RN[:, :prompt], junk(rows, 1 + draft)], dim=1)
        model.extend(filled, prefill, cache, keep=starts(rows, prompt))
        length = draft * (draft + 1)
        first = torch.cat([ids_RN[:, prompt:committed], junk(rows, length - accepted)], dim=1)
        model.extend(first, attention.tidar_step(cache.length_B, draft), cache, keep=starts(rows, accepted))
        second = attention.tidar_step(cache.length_B, draft)
        return model.logits(model.extend(ids_RN[:, committed:], second, cache, keep=0))

    past = masks.causal([0] * (prompt + accepted))
    step = masks.tidar_step(prompt + accepted, draft)
    assert_depends(forward, behind(past, step), last=draft * (draft + 1))


@either_cache
@every_family
def test_linear_tidar_commits_one_clean_token_and_verifies_causally(family: str, static: bool) -> None:
    model, draft = MODELS[family], 4

    def first(ids_RN: Tensor) -> tuple[Tensor, KVCache]:
        rows = len(ids_RN)
        cache = new_cache(model, rows, static=static)
        model.extend(ids_RN[:, :5], attention.causal_step(starts(rows, 0), 5), cache)
        drafted = torch.cat([ids_RN[:, 5:6], ids_RN[:, 6:9]], dim=1)
        return model.extend(drafted, attention.tidar_linear(cache.length_B, draft), cache, keep=1), cache

    def second(ids_RN: Tensor) -> Tensor:
        filled = torch.cat([ids_RN[:, :6], junk(len(ids_RN), 3)], dim=1)
        _, cache = first(filled)
        verify = attention.causal_step(cache.length_B, draft - 1)
        return model.logits(model.extend(ids_RN[:, 6:9], verify, cache))

    past = masks.causal([0] * 5)
    assert_depends(
        lambda ids_RN: model.logits(first(ids_RN)[0]), behind(past, masks.tidar_linear(5, draft)), last=draft
    )
    assert_depends(second, masks.causal([0] * 9), last=draft - 1)


# --- ragged batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "others"), [(3, 6), (6, 3), (1, 7)])
@either_cache
@every_family
def test_a_row_of_a_ragged_batch_depends_on_its_own_tokens_only(
    family: str, static: bool, length: int, others: int
) -> None:
    model, width, blocks = MODELS[family], max(length, others) + 1, 2

    def forward(ids_RN: Tensor) -> Tensor:
        rows = len(ids_RN)
        lengths_B = torch.cat([starts(rows, length), starts(2, others)])
        prompts = junk(rows + 2, width)
        prompts[:rows, :length] = ids_RN[:, :length]
        new = junk(rows + 2, 4)
        new[:rows] = ids_RN[:, length:]
        cache = new_cache(model, rows + 2, static=static)
        model.extend(prompts, attention.causal_step(starts(rows + 2, 0), width), cache, keep=lengths_B)
        hidden = model.extend(new, attention.block_step(cache.length_B, 4, blocks), cache)
        return model.logits(hidden[:rows])

    places = list(range(length, length + 4))
    step = masks.block_decode(places, list(range(length + 4)), blocks)
    assert_depends(forward, behind(masks.causal([0] * length), step), last=4)


@either_cache
def test_rows_of_a_ragged_batch_never_see_each_other(static: bool) -> None:
    model, lengths_B = MODELS["qwen3"], torch.tensor([2, 5, 4])

    def forward(prompts_BL: Tensor, new_BQ: Tensor) -> Tensor:
        cache = new_cache(model, 3, static=static)
        with torch.no_grad():
            model.extend(prompts_BL, attention.tidar_prefill(lengths_B, 5, 2), cache, keep=lengths_B)
            return model.extend(new_BQ, attention.tidar_step(cache.length_B, 2), cache, keep=0)

    prompts_BL, new_BQ = random_ids(3, 7), random_ids(3, 6, seed=2)
    before = forward(prompts_BL, new_BQ)
    for row in range(3):
        others = [other for other in range(3) if other != row]
        after = forward(prompts_BL.index_put((torch.tensor(row),), junk(1, 7)[0]), new_BQ)
        assert (after - before)[others].abs().max() <= NOISE
        assert (after - before)[row].abs().amax(dim=-1).min() >= BORDER
