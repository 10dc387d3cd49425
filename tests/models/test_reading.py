"""The last MLP on the read rows only: the same hidden states and gradients there, and nothing left behind."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests import tiny
from unmask import attention
from unmask.models.backbone import Backbone
from unmask.models.families import FAMILIES
from unmask.settings.model import DiffusionConfig
from unmask.training.recomputation import recompute

READ = torch.tensor([1, 2, 7, 11, 12])


def backbone(family: str) -> Backbone:
    shape = dataclasses.asdict(tiny.SHAPE)
    for name in ("from_pretrained", "family", "dtype", "rope_theta", "head_dim"):
        del shape[name]
    torch.manual_seed(0)
    config = FAMILIES[family].config(vocab_size=23, head_dim=8, **shape)
    # PyTorch has no grouped matrix product for the experts in float64.
    network = FAMILIES[family].model()(config).to(torch.float32 if family == "qwen3_moe" else torch.float64)
    return Backbone(network, DiffusionConfig(method="masked_diffusion", vocabulary_size=23, mask_token_id=22))


def rows(model: Backbone, read_R: Tensor | None) -> Tensor:
    layout = attention.bidirectional(torch.zeros(2, 8, dtype=torch.int64))
    hidden_BLD = model(tiny.random_ids(2, 8), layout.position_ids, model.render(layout, layout), read_R=read_R)
    return hidden_BLD.flatten(0, 1)[READ]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_read_rows_and_gradients_are_those_of_the_whole_network(family: str) -> None:
    model = backbone(family).train()
    whole, read = rows(model, None), rows(model, READ)
    # Rounding only: products of other heights add up in another order.
    rounding = 1e3 * torch.finfo(whole.dtype).eps
    torch.testing.assert_close(read, whole, rtol=rounding, atol=rounding)
    parameters = list(model.decoder.parameters())
    wanted = torch.autograd.grad(whole.square().sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(read.square().sum(), parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def test_the_last_mlp_runs_on_the_read_rows() -> None:
    model = tiny.backbone("masked_diffusion")
    seen: list[int] = []
    for layer in model.decoder.layers:  # type: ignore[union-attr]
        layer.mlp.down_proj.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    rows(model, READ)
    assert seen == [16, len(READ)]


def test_a_second_backbone_around_a_network_reads_the_same_rows() -> None:
    model = tiny.backbone("masked_diffusion")
    found = rows(Backbone(model.network, model.diffusion), READ)
    assert torch.equal(found, rows(model, READ))


def test_a_copy_of_a_model_reads_the_same_rows() -> None:
    model = tiny.backbone("masked_diffusion")
    assert torch.equal(rows(copy.deepcopy(model), READ), rows(model, READ))


def test_a_call_without_read_rows_remembers_none() -> None:
    model = tiny.backbone("masked_diffusion")
    before = model.network(tiny.random_ids(1, 8)).logits
    rows(model, READ)
    assert torch.equal(model.network(tiny.random_ids(1, 8)).logits, before)


@pytest.mark.parametrize("keep_products", [False, True])
def test_a_recomputation_finds_the_rows_of_its_own_pass(keep_products: bool) -> None:
    model = backbone("qwen3").train()
    wanted = torch.autograd.grad(rows(model, READ).square().sum(), list(model.decoder.parameters()))
    recompute(model.network, keep_products=keep_products)
    read = rows(model, READ)
    rows(model, READ[:2])
    rows(model, None)
    found = torch.autograd.grad(read.square().sum(), list(model.decoder.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_threads_that_share_a_model_read_their_own_rows() -> None:
    model = backbone("qwen3").eval()
    other = torch.tensor([0, 3, 5, 15])
    with torch.no_grad():
        whole = rows(model, None)

    def work(index: int) -> float:
        torch.set_num_threads(1)
        with torch.no_grad():
            if index % 2:
                layout = attention.bidirectional(torch.zeros(2, 8, dtype=torch.int64))
                model(tiny.random_ids(2, 8), layout.position_ids, None, read_R=other)
                return 0.0
            return float((rows(model, READ) - whole).abs().max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(200))) < 1e-10
