"""Recomputation keeps less for the backward pass and changes no gradient by a bit."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests import tiny
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives.methods import objective
from unmask.settings.objective import ObjectiveSettings
from unmask.training.module import TrainingModule
from unmask.training.recomputation import recompute


def gradients(model: Backbone, method: str) -> tuple[list[Tensor], int]:
    """The gradients of one example, and the bytes that its forward keeps."""
    batch = Batch.of_rows([tiny.random_ids(40, seed=row).tolist() for row in range(3)])
    made = objective(ObjectiveSettings(method=method), model.diffusion, seed=1)(batch)  # type: ignore[arg-type]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = TrainingModule(model, chunk_rows=64).train()(made, torch.ones(1)).total  # type: ignore[union-attr]
    total.backward()
    found = [parameter.grad for parameter in trained(model) if parameter.grad is not None]
    model.zero_grad()
    return found, sum(kept.values())


def trained(model: Backbone) -> Iterator[Tensor]:
    return model.network.parameters()


@pytest.mark.parametrize("keep_products", [False, True])
@pytest.mark.parametrize("method", ["autoregressive", "masked_diffusion"])
def test_gradients_are_the_same_bit_for_bit(method: str, keep_products: bool) -> None:
    model = tiny.backbone(method)
    wanted, everything = gradients(model, method)
    recompute(model.network, keep_products=keep_products)
    found, kept = gradients(model, method)
    assert len(found) == len(wanted) == len(list(trained(model)))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert kept < 0.6 * everything
