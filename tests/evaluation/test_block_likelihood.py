"""The likelihood of block diffusion against enumeration: exact where it is exact, unbiased where it samples."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.block_cases import EOS, Document, backbone, batch_of
from tests.references import block_loss
from tests.references.stock import MASK, stock
from unmask.data.batch import Batch
from unmask.evaluation.likelihood import RowNats, is_bound, row_nats, summed
from unmask.objectives.example import Example
from unmask.objectives.loss import row_losses
from unmask.settings.evaluation import EvaluationSettings

TEXT = [3, 0, 7, 7, 10, 5, 1, 9, 2]
model = functools.cache(backbone)


def scored(batch: Batch, block_length: int, *, masks: int = 4, losses: Any = None, **options: Any) -> RowNats:
    made = EvaluationSettings(masks_per_sequence=masks, **options)
    return row_nats(model(block_length), batch, made, losses=losses)


def exact_bound(ids: list[int], supervised: set[int], block_length: int) -> float:
    """By enumeration; where the text ends inside its last block, the places behind it are masked in every version."""
    hidden = set(range(len(ids), math.ceil(len(ids) / block_length) * block_length))
    whole = ids + [0] * len(hidden)
    terms: list[float] = []
    for places in block_loss.block_places(len(whole), block_length):
        candidates = sorted(supervised & set(places))
        for count in range(1, len(candidates) + 1):
            for chosen in itertools.combinations(candidates, count):
                found = block_loss.masked_cross_entropy(
                    stock("qwen3"),
                    whole,
                    {*chosen, *(hidden & set(places))},
                    block_length=block_length,
                    mask_token_id=MASK,
                    excluded_ids={MASK},
                )
                cost = math.fsum(found[place] for place in chosen)
                terms.append(cost / (count * math.comb(len(candidates), count)))
    return math.fsum(terms)


@pytest.mark.parametrize(("length", "block_length"), [(9, 3), (8, 3), (7, 3), (9, 2), (5, 8)])
def test_the_bound_is_that_of_the_enumerated_masks(length: int, block_length: int) -> None:
    ids = TEXT[:length]
    expected = exact_bound(ids, set(range(length)), block_length)
    found = scored(Batch.of_rows([ids]), block_length, masks=1500, batch_size=500)
    error = float(found.stderr_B)
    assert 0 < error < 0.01 * expected
    assert abs(float(found.nats_B) - expected) < 4 * error
    assert found.tokens_B.tolist() == [length]


def test_prompts_and_packed_documents_are_bounded_apart() -> None:
    batch = batch_of([[Document(2, 3, 1), Document(1, 4, 0, 1), Document(0, 2)]])
    ids = batch.ids_BL[0].tolist()
    parts = [(ids[:5], {2, 3, 4}), (ids[6:11], {1, 2, 3, 4}), (ids[12:14], {0, 1})]
    expected = math.fsum(exact_bound(*part, 3) for part in parts)
    found = scored(batch, 3, masks=1500, batch_size=500)
    assert 0 < float(found.stderr_B) < 0.01 * expected
    assert abs(float(found.nats_B) - expected) < 4 * float(found.stderr_B)
    assert found.tokens_B.tolist() == [9]


def test_the_standard_error_is_honest() -> None:
    """Over many seeds the estimates scatter as the reported standard error says, around the exact bound."""
    ids = [*TEXT, *TEXT[::-1], 4, 4]
    for block_length, masks in ((4, 6), (10, 16)):
        found = [scored(Batch.of_rows([ids]), block_length, masks=masks, seed=seed) for seed in range(120)]
        nats = torch.cat([one.nats_B for one in found])
        reported = float(torch.cat([one.stderr_B for one in found]).square().mean().sqrt())
        assert 0.7 < reported / float(nats.std()) < 1.5
        if block_length == 4:
            expected = exact_bound(ids, set(range(len(ids))), 4)
            assert abs(float(nats.mean()) - expected) < 4 * float(nats.std()) / math.sqrt(len(nats))


def test_block_length_one_is_the_chain_rule_and_no_bound() -> None:
    batch = batch_of([[Document(2, 7)], [Document(0, 5)]])
    expected = [
        block_loss.chain_rule(stock("qwen3"), batch.ids_BL[0].tolist(), range(2, 9), MASK, {MASK}),
        block_loss.chain_rule(stock("qwen3"), batch.ids_BL[1, :5].tolist(), range(5), MASK, {MASK}),
    ]
    asked: list[int] = []

    def losses(made: Example) -> Tensor:
        asked.append(len(made.row_R))
        network = model(1)
        hidden = network(made.ids_BL, made.layout.position_ids, network.render(made.layout, made.layout))
        return row_losses(hidden, made, network.logits)

    found = scored(batch, 1, masks=9, losses=losses)
    assert found.nats_B.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.stderr_B.tolist() == [0, 0]
    assert asked == [12]  # one version of each row is enough
    assert not is_bound(model(1))
    assert is_bound(model(2))
    assert not summed(found, is_bound(model(1))).is_bound


# --- what it must not depend on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_length", [1, 4, 16])
def test_a_row_scores_alike_in_every_batch(block_length: int) -> None:
    rows = [[Document(1, 8)], [Document(0, 3)], [Document(2, 4, 2), Document(0, 5)], [Document(0, 13, 3)]]
    batch = dataclasses.replace(batch_of(rows), uid_B=torch.tensor([5, 0, 9, 2]))
    together = scored(batch, block_length, batch_size=32)
    for size in (1, 3):
        assert scored(batch, block_length, batch_size=size).nats_B.tolist() == pytest.approx(
            together.nats_B.tolist(), rel=1e-9
        )
    for row in range(4):
        # Another place in the global batch and another step are not another text.
        alone = dataclasses.replace(batch_of([rows[row]]), uid_B=batch.uid_B[row : row + 1], step=7, global_rows=50)
        alone = dataclasses.replace(alone, ids_BL=batch.ids_BL[row : row + 1, : alone.ids_BL.shape[1]])
        found = scored(alone, block_length)
        assert float(found.nats_B) == pytest.approx(float(together.nats_B[row]), rel=1e-9)
        assert float(found.stderr_B) == pytest.approx(float(together.stderr_B[row]), rel=1e-6)
        assert int(found.tokens_B) == int(together.tokens_B[row])


@pytest.mark.parametrize("fill", [1, 3, 5, 9])
def test_what_fills_a_row_up_neither_costs_nor_tells(fill: int) -> None:
    """Filled for this block length, for a longer one or by hand: the nats are those of the text alone."""
    plain, filled = Batch.of_rows([TEXT]), Batch.of_rows([TEXT + [EOS] * fill])
    filled = dataclasses.replace(filled, fill_BL=torch.arange(9 + fill)[None] >= 9)
    padded = Batch.of_rows([TEXT, [0] * (9 + fill)]).rows(0, 1)
    expected = scored(plain, 4)
    for batch in (filled, padded):
        found = scored(batch, 4)
        assert float(found.nats_B) == pytest.approx(float(expected.nats_B), rel=1e-9)
        assert float(found.stderr_B) == pytest.approx(float(expected.stderr_B), rel=1e-6)
        assert found.tokens_B.tolist() == [9]


def test_seeds_and_uids_draw_differently() -> None:
    batch = Batch.of_rows([TEXT, TEXT])
    one, other = scored(batch, 4).nats_B.tolist()
    assert one != other
    assert scored(batch, 4, seed=1).nats_B.tolist() != [one, other]
    same = dataclasses.replace(batch, uid_B=torch.tensor([3, 3]))
    first, second = scored(same, 4).nats_B.tolist()
    assert first == pytest.approx(second, rel=1e-9)


def test_tokens_and_bytes_are_those_of_the_text() -> None:
    batch = batch_of([[Document(2, 3, 1)], [Document(0, 4)]])
    sizes = torch.tensor([[9, 9, 1, 2, 3, 0], [4, 1, 1, 1, 0, 0]])
    found = scored(dataclasses.replace(batch, bytes_BL=sizes), 4)
    assert found.tokens_B.tolist() == [3, 4]
    assert found.bytes_B.tolist() == [6, 7]
    whole = summed(found, bound=True)
    assert whole.bits_per_byte == pytest.approx(float(found.nats_B.sum()) / math.log(2) / 13)
    assert whole.stderr == pytest.approx(math.hypot(*found.stderr_B.tolist()))
    assert scored(batch, 4).bytes_B.tolist() == [0, 0]


# --- the versions that are evaluated ---------------------------------------------------------------------------------


def versions(batch: Batch, block_length: int, masks: int) -> list[Example]:
    """The examples that the evaluator asks about."""
    asked: list[Example] = []

    def losses(made: Example) -> Tensor:
        asked.append(made)
        return torch.ones(len(made.row_R), dtype=torch.float64)

    found = scored(batch, block_length, masks=masks, losses=losses, batch_size=7)
    # A constant cost of one nat is the number of tokens, at every draw.
    assert found.nats_B.tolist() == pytest.approx(found.tokens_B.tolist(), rel=1e-6)
    assert found.stderr_B.tolist() == pytest.approx([0] * len(found.stderr_B), abs=1e-6)
    return asked


def test_blocks_are_whole_and_what_completes_them_is_masked() -> None:
    """A text of 9 tokens in blocks of 4, filled, padded or bare, is shown with three masks behind it, and not alone."""
    filled = Batch.of_rows([TEXT + [EOS] * 3, TEXT + [EOS] * 3])
    filled = dataclasses.replace(filled, fill_BL=torch.arange(12).expand(2, -1) >= 9)
    for batch in (Batch.of_rows([TEXT] * 2), filled, Batch.of_rows([TEXT, TEXT + [0] * 6, TEXT]).rows(0, 1)):
        for made in versions(batch, 4, 5):
            width = len(made.layout) // 2
            assert width == 12
            assert (made.ids_BL[:, 9:12] == MASK).all()
            assert (made.layout.document == 0).all()
            assert (made.row_R % (2 * width) < 9).all()
            assert (made.ids_BL.flatten()[made.row_R] == MASK).all()
            assert made.ids_BL[:, width : width + 9].tolist() == [TEXT] * len(made.ids_BL)


def test_each_block_has_strata_of_its_own() -> None:
    """8 versions of 4 tokens hold each count twice, in an order that one block shares with no other."""
    batch = Batch.of_rows([[1] * 12] * 200)
    counts_RG = torch.cat([(made.ids_BL[:, :12] == MASK).view(-1, 3, 4).sum(2) for made in versions(batch, 4, 8)])
    counts_BKG = counts_RG.view(200, 8, 3)
    for count in range(1, 5):
        assert ((counts_BKG == count).sum(1) == 2).all()
    joint = torch.zeros(4, 4)
    joint.index_put_((counts_RG[:, 0] - 1, counts_RG[:, 2] - 1), torch.ones(1600), accumulate=True)
    # 100 of 1,600 pairs in each cell: standard error 10.
    assert ((joint - 100).abs() < 50).all()
    orders = {tuple(row) for row in counts_BKG[:, :, 0].tolist()}
    assert len(orders) > 150


def test_every_place_is_masked_equally_often() -> None:
    batch = Batch.of_rows([[1] * 8] * 300)
    seen = sum((made.ids_BL[:, :8] == MASK).sum(0) for made in versions(batch, 4, 8))
    # 2,400 masks at rate 5/8 for each place: standard error 24.
    assert isinstance(seen, Tensor)
    assert ((seen - 1500).abs() < 5 * 24).all()
