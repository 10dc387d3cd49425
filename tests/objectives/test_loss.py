"""The chunked loss against full logits and plain autograd, in value and in every gradient."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives.example import Example
from unmask.objectives.loss import loss, row_losses
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings
from unmask.training.module import TrainingModule


def example_of(model: Backbone, method: str) -> Example:
    batch = Batch.of_rows([tiny.random_ids(11, seed=row).tolist() for row in range(3)] + [[4, 5, 6]])
    return objective(ObjectiveSettings(method=method), model.diffusion, seed=2)(batch)  # type: ignore[arg-type]


def plain(model: Backbone, made: Example, scale: float) -> Tensor:
    """Full logits, excluded ids at -inf, one softmax."""
    hidden = model(made.ids_BL, made.layout.position_ids, model.render(made.layout, made.layout))
    logits = model.network.get_output_embeddings()(hidden).flatten(0, 1)
    allowed = [one for one in range(model.diffusion.vocabulary_size) if one != model.diffusion.mask_token_id]
    index = {token: place for place, token in enumerate(allowed)}
    targets = torch.tensor([index[token] for token in made.target_R.tolist()])
    nats = F.cross_entropy(logits[made.row_R][:, allowed], targets, reduction="none")
    return (nats * made.weight_R).sum() * scale


def gradients(model: Backbone) -> dict[str, Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion"])
@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
def test_loss_and_every_gradient_equal_full_logits(method: str, chunk_rows: int) -> None:
    model = tiny.backbone(method)
    made = example_of(model, method)
    expected = plain(model, made, 0.25)
    (3 * expected).backward()
    wanted = gradients(model)
    found = TrainingModule(model, chunk_rows=chunk_rows)(made, torch.tensor([0.25]))
    (3 * found.total).backward()
    got = gradients(model)
    # float64 throughout; the float32 weights of the example are shared by both sides.
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-12)


def test_row_losses_equal_the_losses_that_are_trained() -> None:
    model = tiny.backbone("masked_diffusion")
    made = example_of(model, "masked_diffusion")
    trained = TrainingModule(model, chunk_rows=5)(made, torch.ones(1))
    with torch.no_grad():
        scored = TrainingModule(model, chunk_rows=3)(made)
    torch.testing.assert_close(scored, trained.cross_entropy_R)
    assert float(trained.sum_T) == pytest.approx(float((scored * made.weight_R).sum()), rel=1e-6)


@pytest.mark.parametrize("mask_token_id", [23, 0])
def test_an_example_without_supervised_rows_gives_zero_and_reaches_every_parameter(mask_token_id: int) -> None:
    """Also where the first id, at -inf, is none that the phantom row could predict."""
    model = tiny.backbone("masked_diffusion")
    model.configure(dataclasses.replace(model.diffusion, mask_token_id=mask_token_id))
    made = example_of(model, "masked_diffusion")
    none = {
        name: getattr(made, name)[:0]
        for name in ("row_R", "target_R", "weight_R", "term_R", "group_R", "ratio_R", "source_R")
    }
    empty = dataclasses.replace(made, **none)
    found = TrainingModule(model, chunk_rows=8)(empty, torch.ones(1))
    found.total.backward()
    assert float(found.total.detach()) == 0
    assert len(found.cross_entropy_R) == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad == 0).all()), name


def test_terms_are_scaled_apart() -> None:
    model = tiny.backbone("masked_diffusion")
    made = example_of(model, "masked_diffusion")
    term_R = torch.arange(len(made.row_R)) % 2
    two = dataclasses.replace(made, term_R=term_R, terms=("even", "odd"))
    hidden = torch.randn(*made.ids_BL.shape, 32, dtype=torch.float64)
    head = tuple(model.network.get_output_embeddings().parameters())
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    found = loss(hidden, two, model.logits, parameters=head, scale_T=scale, chunk_rows=3)
    with torch.no_grad():
        weighted = row_losses(hidden, two, model.logits) * made.weight_R
    expected = 0.5 * weighted[term_R == 0].sum() + 2.0 * weighted[term_R == 1].sum()
    assert float(found.total.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert found.sum_T.tolist() == pytest.approx([float(weighted[term_R == one].sum()) for one in (0, 1)], rel=1e-5)


def test_half_precision_keeps_the_gradients_of_a_loss_per_token() -> None:
    """At four million tokens a step the factor of a row lies below what float16 holds, whatever a scaler does later."""
    scale, scaler = torch.tensor([1 / 4e6]), 2.0**16
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 16, 32, generator=generator)
    weight = (0.2 * torch.randn(500, 32, generator=generator)).requires_grad_()
    ids = torch.randint(0, 500, (4, 16), generator=generator)
    made = objective(ObjectiveSettings(method="autoregressive"), tiny.backbone("autoregressive").diffusion, seed=0)(
        Batch.of_rows(ids.tolist())
    )

    def found(dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            total = loss(hidden, made, lambda rows: F.linear(rows, weight), parameters=(weight,), scale_T=scale).total
        (scaler * total).backward()
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        return gradient

    exact, half = found(torch.float32), found(torch.float16)
    assert float((half - exact).norm() / exact.norm()) < 0.005
