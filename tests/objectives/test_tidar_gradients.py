"""TiDAR: no row sees its target, incompressible text stays incompressible, and gradients reach what they should."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from tests.block_cases import Document, batch_of
from tests.objectives.test_tidar import KINDS, SPLIT
from tests.references.stock import MASK
from tests.tidar_cases import backbone, example, settings
from unmask.attention import EVERYTHING
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives.example import Example
from unmask.training.module import TrainingModule
from unmask.training.recomputation import recompute

ROWS = [[Document(2, 7), Document(0, 6, 0, 2)], [Document(0, 9)], [Document(3, 4)]]


# --- leaks -----------------------------------------------------------------------------------------------------------


def logits_at_rows(network: Backbone, made: Example) -> Tensor:
    with torch.no_grad():
        hidden = network(made.ids_BL, made.layout.position_ids, network.render(made.layout, made.layout))
        return network.logits(hidden.flatten(0, 1)[made.row_R])


@pytest.mark.parametrize("kind", [{}, {"masking": "random"}, {"masking": "block"}, SPLIT], ids=str)
def test_no_row_depends_on_the_token_that_it_predicts(kind: dict[str, Any]) -> None:
    """Nor on any behind it, nor on one in a block that is all masks; on the clean token before the block it does."""
    network, batch = backbone(4), batch_of(ROWS)
    made = example(batch, settings(**kind), 4, seed=1)
    before, width, length = logits_at_rows(network, made), len(made.layout), batch.ids_BL.shape[1]
    layout, depends = made.layout, 0
    for column in range(length):
        ids_BL = batch.ids_BL.clone()
        ids_BL[:, column] = (ids_BL[:, column] + 1) % MASK
        moved = example(dataclasses.replace(batch, ids_BL=ids_BL), settings(**kind), 4, seed=1)
        assert torch.equal(moved.row_R, made.row_R)
        changed_R = (logits_at_rows(network, moved) != before).any(dim=-1)
        for changed, row, term in zip(changed_R.tolist(), made.row_R.tolist(), made.term_R.tolist(), strict=True):
            at, own = divmod(row, width)
            target = own + 1 if term == 0 else own % length
            together = (layout.block[at] == layout.block[at, own]) & (layout.document[at] == layout.document[at, own])
            first = target if term == 0 else int(together.nonzero()[0, 0]) % length
            if column == target or (column >= first and kind.get("masking") != "random"):
                assert not changed, (row, column)
            last_seen = layout.position_ids[at, own] - (0 if term == 0 else target - first + 1)
            if column == first - 1 and layout.limit[at, own] == last_seen >= 0:
                assert changed, (row, column)
                depends += 1
    assert depends > 20


def leaking(made: Example) -> Example:
    """The port's "full attention": masks see every clean token, their own one included."""
    layout = made.layout
    return dataclasses.replace(
        made, layout=dataclasses.replace(layout, limit=torch.where(layout.block >= 0, EVERYTHING, layout.limit))
    )


@pytest.mark.parametrize("leaks", [False, True], ids=["doubled", "full attention"])
def test_incompressible_text_costs_log_v_unless_the_mask_leaks(leaks: bool) -> None:
    vocabulary, steps = 7, 220
    network = tiny.backbone("tidar", vocabulary=vocabulary, block_length=4).float().train()
    module = TrainingModule(network, chunk_rows=4096)
    adam = torch.optim.AdamW(module.parameters(), lr=5e-3, betas=(0.9, 0.95))
    generator, losses = torch.Generator().manual_seed(1), list[Tensor]()
    for step in range(steps):
        rows = torch.randint(0, vocabulary, (24, 12), generator=generator)
        made = example(Batch.of_rows(rows.tolist(), step=step), settings(), 4, mask=vocabulary)
        made = leaking(made) if leaks else made
        found = module(made, 0.5 / made.denominator_T)
        found.total.backward()
        adam.step()
        adam.zero_grad()
        losses.append(found.sum_T.double() / made.denominator_T)
    ar, diffusion = torch.stack(losses[-40:]).mean(dim=0).tolist()
    assert ar == pytest.approx(math.log(vocabulary), abs=0.03)
    if leaks:
        assert diffusion < 0.1
    else:
        assert diffusion == pytest.approx(math.log(vocabulary), abs=0.03)


# --- gradients -------------------------------------------------------------------------------------------------------


def gradients(network: Backbone, made: Example) -> dict[str, Tensor]:
    scale_T = torch.tensor(made.shares, dtype=torch.float64) / made.denominator_T
    TrainingModule(network, chunk_rows=5).train()(made, scale_T).total.backward()  # type: ignore[union-attr]
    found = {name: one.grad for name, one in network.network.named_parameters() if one.grad is not None}
    network.network.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_gradient_is_that_of_the_formula_and_reaches_every_parameter(kind: dict[str, Any]) -> None:
    options = settings(**kind, ar_loss_weight=0.7)
    network, made = backbone(4), example(batch_of(ROWS), options, 4)
    found = gradients(network, made)
    assert found.keys() == {name for name, _ in network.network.named_parameters()}
    assert all(bool(one.abs().max() > 0) for one in found.values())
    assert bool(found["model.embed_tokens.weight"][MASK].abs().max() > 0)

    hidden = network(made.ids_BL, made.layout.position_ids, network.render(made.layout, made.layout))
    nats_R = F.cross_entropy(network.logits(hidden.flatten(0, 1)[made.row_R]), made.target_R, reduction="none")
    factor_T = torch.tensor([0.7 / 1.7, 1 / 1.7]) / made.denominator_T.float()
    (nats_R * (made.weight_R * factor_T[made.term_R])).sum().backward()
    for name, wanted in network.network.named_parameters():
        torch.testing.assert_close(found[name], wanted.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("keep_products", [False, True])
def test_recomputation_changes_no_gradient_by_a_bit(keep_products: bool) -> None:
    for kind in ({}, SPLIT):
        network, made = backbone(4), example(batch_of(ROWS), settings(**kind), 4)
        wanted = gradients(network, made)
        recompute(network.network, keep_products=keep_products)
        for name, found in gradients(network, made).items():
            assert torch.equal(found, wanted[name])


def test_accuracies_are_counted_by_term() -> None:
    network, made = backbone(4), example(batch_of(ROWS), settings(), 4)
    found = TrainingModule(network, chunk_rows=5)(made, torch.ones(2, dtype=torch.float64))
    correct_R = logits_at_rows(network, made).argmax(dim=-1) == made.target_R
    assert found.correct_T.tolist() == [int(correct_R[made.term_R == term].sum()) for term in (0, 1)]
    assert found.divergence_T.tolist() == [0, 0]
    assert made.denominator_T.tolist() == torch.bincount(made.term_R).tolist()
