"""Block diffusion: the loss of the doubled layout against one forward for each block, and what no row may see."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.attention_cases import reaches
from tests.block_cases import EOS, Document, Rows, backbone, batch_of, rows_of_documents, runs
from tests.references import block_loss
from tests.references.masks import block_diffusion_doubled, doubled_position_ids
from tests.references.stock import MASK, stock
from unmask import attention
from unmask.data.batch import Batch
from unmask.diffusion.corruption import Corruption
from unmask.models.backbone import Backbone
from unmask.objectives import autoregressive, block_diffusion, masked_diffusion
from unmask.objectives.example import Example
from unmask.objectives.loss import row_losses
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings
from unmask.training.module import TrainingModule

# Prompts, partial last blocks with and without room behind them, filled ones, a fill for longer blocks, documents of
# less than a block, documents right behind one another.
ROWS: Rows = [
    [Document(3, 6, 3), Document(0, 5), Document(2, 1, 0, 2)],
    [Document(0, 9, 0, 3), Document(5, 2, 1)],
    [Document(1, 4, 7), Document(0, 1, 0, 1), Document(0, 4)],
]
KINDS: list[dict[str, Any]] = [
    {},
    {"corruption": "bernoulli"},
    {"complementary_masks": True},
    {"complementary_masks": True, "t_granularity": "sequence", "weighting": "unweighted"},
    {"weighting": "unweighted", "corruption": "bernoulli", "t_granularity": "batch"},
    {"mask_ratio_range": (0.3, 0.8), "time_sampling": "iid"},
    {"mask_ratio_range": (0.45, 0.95), "complementary_masks": True, "normalize": "answers"},
    {"normalize": "answers", "time_sampling": "systematic"},
    {"normalize": "answers", "weighting": "unweighted", "corruption": "bernoulli"},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
some = settings(max_examples=60)


def chosen(**options: Any) -> ObjectiveSettings:
    return ObjectiveSettings(method="block_diffusion", **options)


def example(batch: Batch, made: ObjectiveSettings, block_length: int, seed: int = 0) -> Example:
    return block_diffusion.example(batch, made, mask_token_id=MASK, block_length=block_length, seed=seed)


@functools.cache
def model(family: str = "qwen3") -> Backbone:
    return backbone(4, family)


def nats(network: Backbone, made: Example) -> Tensor:
    """Cross-entropy of each supervised row, float64."""
    with torch.no_grad():
        hidden = network(made.ids_BL, made.layout.position_ids, network.render(made.layout, made.layout))
        return row_losses(hidden, made, network.logits)


def total(network: Backbone, made: Example) -> float:
    return float((nats(network, made) * made.weight_R.double()).sum() / made.denominator_T)


def copies_of(made: ObjectiveSettings) -> int:
    return 2 if made.complementary_masks else 1


def learned(rows: Rows, block_length: int) -> list[list[list[list[int]]]]:
    """By row, document and block: the columns to learn, prompts and what fills up more than the block left out."""
    found: list[list[list[list[int]]]] = []
    for row in rows:
        documents: list[list[list[int]]] = []
        column = 0
        for prompt, text, fill, gap in row:
            length = prompt + text
            end = min(length + fill, math.ceil(length / block_length) * block_length)
            documents.append(
                [
                    [column + place for place in range(start, min(start + block_length, end)) if place >= prompt]
                    for start in range(0, end, block_length)
                ]
            )
            column += length + fill + gap
        found.append(documents)
    return found


def room(rows: Rows, block_length: int) -> list[list[int]]:
    """By row and document: the places of the document and of what completes its last block."""
    width, found = batch_of(rows).ids_BL.shape[1], []
    for row in rows:
        ends, column = [], 0
        for number, (prompt, text, fill, gap) in enumerate(row):
            free = fill + gap if number < len(row) - 1 else width - column - prompt - text
            whole = math.ceil((prompt + text) / block_length) * block_length
            ends.append(min(whole, prompt + text + free))
            column += prompt + text + fill + gap
        found.append(ends)
    return found


# --- the loss --------------------------------------------------------------------------------------------------------


def reference_loss(rows: Rows, made: Example, options: ObjectiveSettings, block_length: int, network: Any) -> float:
    """The loss from one forward for each block; of the example only which tokens are masked is read."""
    clean, copies = batch_of(rows), copies_of(options)
    width = clean.ids_BL.shape[1]
    loss_of_row, size_of_row = [], []
    for number, (documents, ends) in enumerate(zip(learned(rows, block_length), room(rows, block_length), strict=True)):
        terms: list[float] = []
        sizes: list[float] = []
        column = 0
        for (prompt, text, fill, gap), blocks, end in zip(rows[number], documents, ends, strict=True):
            ids = clean.ids_BL[number, column : column + end].tolist()
            size_of = {place - column: len(block) for block in blocks for place in block}
            halves = [made.ids_BL[number, copy * width + column :][:end] == MASK for copy in range(copies)]
            masked = [half.nonzero()[:, 0].tolist() for half in halves]
            for places in masked:
                found = block_loss.masked_cross_entropy(
                    network, ids, places, block_length=block_length, mask_token_id=MASK, excluded_ids={MASK}
                )
                for place in set(places) & set(size_of):
                    size = size_of[place]
                    others = set(places) & set(size_of)
                    together = sum(place // block_length == other // block_length for other in others)
                    weight = size / together
                    if options.complementary_masks and together < size:
                        weight /= 2
                    if options.weighting == "unweighted":
                        weight = 1.0
                        sizes.append(1)
                    terms.append(weight * found[place])
            if options.weighting == "elbo":
                sizes.append(len(size_of))
            column += prompt + text + fill + gap
        loss_of_row.append(math.fsum(terms))
        size_of_row.append(sum(sizes))
    if options.normalize == "tokens":
        return math.fsum(loss_of_row) / sum(size_of_row)
    means = [loss / size for loss, size in zip(loss_of_row, size_of_row, strict=True) if size]
    return math.fsum(means) / len(means)


def is_counted(kind: dict[str, Any]) -> bool:
    """Whether the weights are functions of the masks alone."""
    return kind.get("corruption") != "bernoulli" or kind.get("weighting") == "unweighted"


@pytest.mark.parametrize("block_length", [1, 2, 4, 9, 16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_counted(kind)], ids=str)
def test_the_loss_is_that_of_one_forward_for_each_block(kind: dict[str, Any], block_length: int) -> None:
    made = example(batch_of(ROWS), chosen(**kind), block_length, seed=2)
    expected = reference_loss(ROWS, made, chosen(**kind), block_length, stock("qwen3"))
    assert total(model(), made) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_loss_of_the_other_families(family: str) -> None:
    made = example(batch_of(ROWS), chosen(complementary_masks=True), 4)
    expected = reference_loss(ROWS, made, chosen(complementary_masks=True), 4, stock(family))
    assert total(model(family), made) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25)
@given(rows_of_documents(most_rows=2), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_the_loss_of_any_rows(rows: Rows, block_length: int, complementary: bool, seed: int) -> None:
    options = chosen(complementary_masks=complementary)
    made = example(batch_of(rows), options, block_length, seed=seed)
    expected = reference_loss(rows, made, options, block_length, stock("qwen3"))
    assert total(model(), made) == pytest.approx(expected, rel=1e-6)


def test_bernoulli_weights_are_the_inverse_of_the_chance_to_be_masked() -> None:
    """At one time for the whole batch there is one weight, and over many steps the masked share is its inverse."""
    batch = batch_of([[Document(0, 40)]] * 50)
    options = chosen(corruption="bernoulli", t_granularity="batch", mask_ratio_range=(0.25, 0.75))
    for step in range(5):
        made = example(dataclasses.replace(batch, step=step), options, 8)
        (weight,) = set(made.weight_R.tolist())
        share = len(made.row_R) / 2000
        assert share == pytest.approx(1 / weight, abs=4 * math.sqrt(0.25 / 2000))


# --- what each block's masks and weights sum up to -------------------------------------------------------------------


def masked_columns(made: Example, width: int) -> list[list[list[tuple[int, float, float]]]]:
    """By row and copy: (column, weight, ratio) of every supervised row."""
    copies = len(made.layout) // width
    found: list[list[list[tuple[int, float, float]]]] = [[[] for _ in range(copies)] for _ in made.ids_BL]
    listed = zip(made.row_R.tolist(), made.weight_R.tolist(), made.ratio_R.tolist(), strict=True)
    for place, weight, ratio in listed:
        row, column = divmod(place, len(made.layout))
        found[row][column // width].append((column % width, weight, ratio))
    return found


@some
@given(rows_of_documents(), st.integers(1, 9), st.sampled_from(KINDS), st.integers(0, 99))
def test_only_what_is_learned_is_masked_and_read(
    rows: Rows, block_length: int, kind: dict[str, Any], seed: int
) -> None:
    batch, options = batch_of(rows), chosen(**kind)
    made, width, copies = example(batch, options, block_length, seed), batch.ids_BL.shape[1], copies_of(options)
    found = masked_columns(made, width)
    assert made.terms == ("diffusion",)
    assert torch.equal(made.group_R, made.row_R // len(made.layout))
    for number, (documents, ends) in enumerate(zip(learned(rows, block_length), room(rows, block_length), strict=True)):
        to_learn = [column for document in documents for block in document for column in block]
        starts = [start for document, start, _ in runs(batch.document_BL[number].tolist()) if document >= 0]
        texts = [prompt + text for prompt, text, _, _ in rows[number]]
        fills = [fill for _, _, fill, _ in rows[number]]
        hidden = [
            start + place
            for start, text, fill, end in zip(starts, texts, fills, ends, strict=True)
            for place in range(text, end)
            if place >= min(text + fill, math.ceil(text / block_length) * block_length)
        ]
        for copy in range(copies):
            columns = [column for column, _, _ in found[number][copy]]
            assert set(columns) <= set(to_learn)
            noisy = made.ids_BL[number, copy * width : (copy + 1) * width]
            assert (noisy == MASK).nonzero()[:, 0].tolist() == sorted(columns + hidden)
            seen = noisy != MASK
            assert torch.equal(noisy[seen], batch.ids_BL[number][seen])
        clean = made.ids_BL[number, copies * width :]
        assert clean.tolist() in ([], batch.ids_BL[number].tolist())
    targets = [
        int(batch.ids_BL[place // len(made.layout), place % len(made.layout) % width]) for place in made.row_R.tolist()
    ]
    assert made.target_R.tolist() == targets


@some
@given(rows_of_documents(), st.integers(1, 9), st.sampled_from(KINDS), st.integers(0, 99))
def test_a_uniform_predictor_costs_log_v(rows: Rows, block_length: int, kind: dict[str, Any], seed: int) -> None:
    """Counted masks give it at every draw, block by block: the weights of a block's tokens sum up to their number."""
    options, batch = chosen(**kind), batch_of(rows)
    made, width = example(batch, options, block_length, seed), batch.ids_BL.shape[1]
    found = masked_columns(made, width)
    for row, documents in zip(found, learned(rows, block_length), strict=True):
        size = sum(len(block) for document in documents for block in document)
        for block in (block for document in documents for block in document if block):
            both = [[one for one in copy if one[0] in block] for copy in row]
            for copy in both:
                assert [ratio for _, _, ratio in copy] == pytest.approx([len(copy) / len(block)] * len(copy))
            weights = [weight for copy in both for _, weight, _ in copy]
            if options.complementary_masks:
                assert sorted(column for copy in both for column, _, _ in copy) == block
            if options.weighting == "elbo" and options.corruption == "count":
                scale = size if options.normalize == "answers" else 1
                assert math.fsum(weights) * scale == pytest.approx(len(block), rel=1e-5)
                low, high = options.mask_ratio_range
                assert math.ceil(len(block) * low) <= len(both[0]) <= math.ceil(len(block) * high)
    if is_counted(kind) and len(made.row_R):
        assert float(made.weight_R.double().sum() / made.denominator_T) == pytest.approx(1, rel=1e-5)
    if options.weighting == "elbo" and options.normalize == "tokens":
        blocks = itertools.chain(*itertools.chain(*learned(rows, block_length)))
        assert float(made.denominator_T) == sum(map(len, blocks))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not is_counted(kind)] + [{"schedule": "cosine"}], ids=str)
def test_a_uniform_predictor_expects_log_v_of_other_draws(kind: dict[str, Any]) -> None:
    batch, options = batch_of([[Document(1, 6), Document(0, 5)]] * 64), chosen(**kind)
    sums = []
    for step in range(40):
        made = example(dataclasses.replace(batch, step=step), options, 4)
        sums.append(float(made.weight_R.double().sum() / made.denominator_T))
    mean, error = torch.tensor(sums).mean(), torch.tensor(sums).std() / math.sqrt(len(sums))
    assert 0 < error < 0.1
    assert abs(mean - 1) < 4 * error


TEXT = Document(1, 6)  # blocks of 2, 3 and 1 tokens to learn at block length 3


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"complementary_masks": True},
        {"complementary_masks": True, "t_granularity": "sequence", "time_sampling": "systematic"},
        {"corruption": "bernoulli"},
        {"schedule": "cosine", "t_granularity": "sequence"},
    ],
    ids=str,
)
def test_the_expected_loss_is_the_exact_bound(kind: dict[str, Any]) -> None:
    """The mean over many steps lies within its standard error of the enumeration of all masks."""
    batch = batch_of([[TEXT]] * 64)
    batch = dataclasses.replace(batch, ids_BL=batch.ids_BL[:1].expand(64, -1).contiguous())
    ids, supervised = batch.ids_BL[0].tolist(), {1, 2, 3, 4, 5, 6}
    # The last block is partial and has no room behind it.
    exact = block_loss.exact_block_elbo(stock("qwen3"), ids, supervised, 3, MASK, {MASK}) / 6
    found = torch.tensor(
        [total(model(), example(dataclasses.replace(batch, step=step), chosen(**kind), 3)) for step in range(24)]
    )
    error = float(found.std() / math.sqrt(len(found)))
    assert 0 < error < (0.05 if kind.get("corruption") == "bernoulli" else 0.02) * exact
    assert abs(float(found.mean()) - exact) < 4 * error


def test_a_clipped_range_is_no_bound() -> None:
    """It is for training only: its expectation differs by far more than the error above."""
    batch = batch_of([[TEXT]] * 64)
    batch = dataclasses.replace(batch, ids_BL=batch.ids_BL[:1].expand(64, -1).contiguous())
    exact = block_loss.exact_block_elbo(stock("qwen3"), batch.ids_BL[0].tolist(), range(1, 7), 3, MASK, {MASK}) / 6
    clipped = chosen(mask_ratio_range=(0.9, 1.0))
    assert abs(total(model(), example(batch, clipped, 3)) - exact) > 0.02 * exact


# --- special cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_length", [8, 11])
@pytest.mark.parametrize(
    "kind", [{}, {"corruption": "bernoulli"}, {"schedule": "cosine"}, {"mask_ratio_range": (0.3, 0.8)}], ids=str
)
def test_a_block_over_everything_is_masked_diffusion(kind: dict[str, Any], block_length: int) -> None:
    batch = batch_of([[Document(2, 6)]] * 5)
    made = example(batch, chosen(**kind), block_length, seed=3)
    canvas = masked_diffusion.example(batch, ObjectiveSettings(**kind), mask_token_id=MASK, logit_shift=False, seed=3)
    # Nobody would see the clean half.
    assert torch.equal(made.ids_BL, canvas.ids_BL)
    for name in ("row_R", "target_R", "weight_R", "group_R", "ratio_R", "source_R", "denominator_T"):
        assert torch.equal(getattr(made, name), getattr(canvas, name))
    assert torch.allclose(nats(model(), made), nats(model(), canvas), rtol=1e-12)


def test_the_clean_half_is_left_out_only_where_no_document_has_a_second_block() -> None:
    short, long = [Document(0, 4, 0, 1), Document(2, 2)], [Document(0, 5), Document(0, 4)]
    for rows, width in (([short], 9), ([long], 18), ([short, long], 18)):
        assert len(example(batch_of(rows), chosen(), 4).layout) == width
    together = example(batch_of([short, long]), chosen(), 4)
    alone = example(batch_of([short, long]).rows(0, 1), chosen(), 4)
    assert len(alone.layout) == 9
    row = nats(model(), together)[together.group_R == 0]
    assert torch.allclose(row, nats(model(), alone), rtol=1e-10)


def test_block_length_one_is_the_chain_rule() -> None:
    batch = batch_of([[Document(2, 7)]])
    made = example(batch, chosen(), 1)
    assert made.weight_R.tolist() == [1.0] * 7
    expected = block_loss.chain_rule(stock("qwen3"), batch.ids_BL[0].tolist(), range(2, 9), MASK, {MASK})
    assert float(nats(model(), made).sum()) == pytest.approx(expected, rel=1e-9)


@some
@given(rows_of_documents(), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_the_source_row_is_the_autoregressive_row_of_the_same_token(
    rows: Rows, block_length: int, complementary: bool, seed: int
) -> None:
    batch = batch_of(rows)
    causal = autoregressive.example(batch)
    row_of = dict(zip((causal.row_R + 1).tolist(), causal.row_R.tolist(), strict=True))
    made, width = example(batch, chosen(complementary_masks=complementary), block_length, seed), batch.ids_BL.shape[1]
    for place, source in zip(made.row_R.tolist(), made.source_R.tolist(), strict=True):
        row, column = divmod(place, len(made.layout))
        assert source == row_of.get(row * width + column % width, -1)


# --- steps and splits ------------------------------------------------------------------------------------------------


def block_length_of(made: Example) -> int:
    """The block length of an example of one long document, read off its clean half."""
    return int(made.layout.limit[0, -1 - (len(made.layout) // 2 - 1)]) + 1


def test_a_curriculum_changes_the_block_length_by_step() -> None:
    options = chosen(block_curriculum=((0.0, 1), (0.3, 2), (0.65, 8), (0.9, 4)))
    make = objective(options, model().diffusion, seed=0, steps=20)
    batch = batch_of([[Document(0, 13, 3)]])
    made = [make(dataclasses.replace(batch, step=step)) for step in range(20)]
    assert [block_length_of(one) for one in made] == [1] * 6 + [2] * 7 + [8] * 5 + [4] * 2
    # At shorter blocks the rest of the filling is neither learned nor seen.
    assert [int(one.denominator_T) for one in made] == [13] * 6 + [14] * 7 + [16] * 7
    for step, length in ((0, 1), (6, 2), (13, 8), (18, 4)):
        alone = example(dataclasses.replace(batch, step=step), chosen(), length)
        assert torch.equal(made[step].ids_BL, alone.ids_BL)
        assert torch.equal(made[step].weight_R, alone.weight_R)


def test_without_a_curriculum_the_block_length_is_the_checkpoints() -> None:
    batch = batch_of([[Document(0, 16)]])
    for length in (2, 4):
        entry = dataclasses.replace(model().diffusion, block_length=length)
        assert block_length_of(objective(chosen(), entry, seed=0)(batch)) == length


@every_kind
def test_splits_of_the_batch_draw_the_same(kind: dict[str, Any]) -> None:
    batch, options = batch_of(ROWS * 2, step=5), chosen(**kind)
    made, width, copies = example(batch, options, 4), batch.ids_BL.shape[1], copies_of(options)
    whole = masked_columns(made, width)
    denominator = 0.0
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        part = example(batch.rows(start, stop), options, 4)
        assert torch.equal(part.ids_BL[:, : copies * width], made.ids_BL[start:stop, : copies * width])
        assert [row[:copies] for row in masked_columns(part, width)] == [row[:copies] for row in whole[start:stop]]
        denominator += float(part.denominator_T)
    assert denominator == float(made.denominator_T)


def test_seeds_and_steps_draw_differently() -> None:
    batch = batch_of(ROWS)
    found = [example(batch, chosen(), 4), example(batch, chosen(), 4, seed=1)]
    found.append(example(dataclasses.replace(batch, step=1), chosen(), 4))
    assert not any(torch.equal(one.ids_BL, other.ids_BL) for one, other in itertools.combinations(found, 2))


# --- leaks -----------------------------------------------------------------------------------------------------------


def reference_mask(documents: list[int], block_length: int, copies: int) -> list[list[bool]]:
    """[noisy x copies | clean]: each copy stands to the clean half as the one of the doubled layout does."""
    double, length = block_diffusion_doubled(documents, block_length), len(documents)
    width = (copies + 1) * length

    def cell(q: int, k: int) -> bool:
        of_q, of_k = q // length, k // length
        if of_q < copies and of_k < copies:
            return of_q == of_k and double[q % length][k % length]
        return double[q % length + length * (of_q == copies)][k % length + length * (of_k == copies)]

    return [[cell(q, k) for k in range(width)] for q in range(width)]


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_supervised_row_depends_on_what_the_rule_shows_and_never_on_its_target(
    number: int, complementary: bool
) -> None:
    made = example(batch_of(ROWS[number : number + 1]), chosen(complementary_masks=complementary), 4)
    copies, width = 1 + complementary, len(made.layout) // (2 + complementary)
    documents = made.layout.document[0, :width].tolist()
    expected = reaches(reference_mask(documents, 4, copies), hops=3)  # the network has three layers
    network = model()
    changed = made.ids_BL.repeat(len(made.layout) + 1, 1)
    places = torch.arange(len(made.layout))
    changed[1 + places, places] = (changed[0] + 1) % MASK
    with torch.no_grad():
        mask = network.render(made.layout, made.layout)
        hidden = network(changed, made.layout.position_ids.expand_as(changed), mask)
        logits = network.logits(hidden[:, made.row_R])
    moved = (logits[1:] - logits[0]).nan_to_num().abs().amax(dim=-1).T
    real = torch.tensor([document >= 0 for document in documents] * (copies + 1))
    for row, line in zip(made.row_R.tolist(), moved, strict=True):
        assert not (line[real & ~expected[row]] > 1e-12).any()
        assert (line[real & expected[row]] > 1e-9).all()
        column = row % width
        for copy in range(copies + 1):  # the token itself, wherever it stands clean
            if made.ids_BL[0, copy * width + column] != MASK:
                assert float(line[copy * width + column]) == 0
    assert made.layout.position_ids[0, :width].tolist() == doubled_position_ids(documents)[:width]
    assert made.layout.position_ids[0].tolist() == doubled_position_ids(documents)[:width] * (copies + 1)


@some
@given(rows_of_documents(), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_no_row_sees_a_place_where_its_target_stands(
    rows: Rows, block_length: int, complementary: bool, seed: int
) -> None:
    batch = batch_of(rows)
    made, width = example(batch, chosen(complementary_masks=complementary), block_length, seed), batch.ids_BL.shape[1]
    visible = attention.sees(made.layout, made.layout)
    for place in made.row_R.tolist():
        row, column = divmod(place, len(made.layout))
        seen = visible[row, column].nonzero()[:, 0].tolist()
        assert column in seen
        assert made.ids_BL[row, column] == MASK
        assert not [other for other in seen if other % width == column % width and other != column]


# --- the network's side ----------------------------------------------------------------------------------------------


def trained(network: Backbone, made: Example) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients."""
    module = TrainingModule(network, chunk_rows=3)
    network.zero_grad()
    found = module(made, 1 / made.denominator_T)
    assert not isinstance(found, Tensor)
    found.total.backward()
    gradients = [one.grad.clone() for one in network.network.parameters() if one.grad is not None]
    assert len(gradients) == len(list(network.network.parameters()))
    return found.total.detach(), gradients


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", [{}, {"complementary_masks": True}], ids=str)
def test_flex_attention_learns_the_same(kind: dict[str, Any]) -> None:
    made = example(batch_of(ROWS), chosen(**kind), 4)
    dense, flex = backbone(4), backbone(4, attention_backend="flex")
    assert float(nats(flex, made).sub(nats(dense, made)).abs().max()) < 1e-9


@pytest.mark.parametrize("kind", [{}, {"complementary_masks": True}], ids=str)
def test_the_rows_that_the_last_mlp_skips_change_nothing(kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made, network = example(batch_of(ROWS), chosen(**kind), 4), backbone(4)
    loss, gradients = trained(network, made)
    assert float(loss) == pytest.approx(total(network, made), rel=1e-6)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *args, read_R, **options: forward(*args, **options))
    full, others = trained(network, made)
    assert float(full) == pytest.approx(float(loss), rel=1e-12)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_hidden_places_are_masked_in_every_copy_and_cost_nothing() -> None:
    batch = batch_of([[Document(0, 6, 0, 2)]])
    masked = torch.zeros_like(batch.supervised_BL)
    masked[0, 4] = True
    hidden = batch.document_BL < 0
    corruption = Corruption(masked, torch.full(masked.shape, 2.0), torch.full(masked.shape, 0.5))
    whole = dataclasses.replace(batch, document_BL=torch.zeros_like(batch.document_BL))
    made = block_diffusion.corrupted_example(whole, [corruption] * 2, hidden, mask_token_id=MASK, block_length=4)
    noisy = [*batch.ids_BL[0, :4].tolist(), MASK, int(batch.ids_BL[0, 5]), MASK, MASK]
    assert made.ids_BL[0].tolist() == [*noisy, *noisy, *batch.ids_BL[0].tolist()]
    assert made.row_R.tolist() == [4, 12]
    assert made.target_R.tolist() == [int(batch.ids_BL[0, 4])] * 2
    assert EOS not in made.target_R.tolist()
