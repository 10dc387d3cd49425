"""Linear layers for the CPU: the products of the stock ones, whatever happens to the weights."""

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import tiny
from unmask import DiffusionLM
from unmask.models import cpu_linear
from unmask.models.backbone import Backbone
from unmask.models.cpu_linear import CPULinear, optimize_for_inference
from unmask.models.loading import Checkpoint, adapted, create, save
from unmask.settings.objective import ObjectiveSettings
from unmask.training.optim import WeightAverage

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


# Sums of 256 products of two normal numbers pass through values of up to 90, where each step of float32 rounds by up to
# 4e-6, and may end near 0, where no relative bound helps: over 60 seeds, stock and packed products that end below 1
# were up to 2.3e-5 from float64. A wrong term is of order 1.
ROUNDING = {"rtol": 1e-5, "atol": 5e-5}


def prepared(inputs: int, outputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs)
    holder = nn.Sequential(nn.Linear(inputs, outputs, bias=bias, dtype=dtype))
    optimize_for_inference(holder)
    return holder[0]  # type: ignore[return-value]


def exact(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    bias = 0 if layer.bias is None else layer.bias.double()
    return rows.double() @ layer.weight.double().T + bias


@needs_onednn
@given(st.integers(1, 80), st.sampled_from([64, 200, 256]), st.sampled_from([96, 512]), st.booleans())
def test_products_are_those_of_float64(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    layer = prepared(inputs, outputs, bias=bias)
    values = torch.randn(2, rows, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(layer(values).double(), exact(layer, values), **ROUNDING)
    assert (layer._copies.packed is not None) == (rows >= 2 and 2 * rows * inputs * outputs >= 2**22)


@needs_onednn
def test_bfloat16_products_are_rounded_once() -> None:
    layer = prepared(256, 512, dtype=torch.bfloat16)
    values = torch.randn(1, 256, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(layer(values), exact(layer, values).bfloat16(), rtol=2**-7, atol=1e-2)


@needs_onednn
def test_changes_of_the_weight_are_seen() -> None:
    layer, values = prepared(256, 512), torch.randn(64, 256)

    def check() -> None:
        with torch.inference_mode():
            torch.testing.assert_close(layer(values).double(), exact(layer, values), **ROUNDING)

    check()
    with torch.no_grad():
        layer.weight.mul_(2)
    check()
    layer.weight.data = torch.randn(512, 256)
    check()
    layer.load_state_dict({"weight": torch.randn(512, 256)})
    check()
    layer.double()
    values = values.double()
    check()


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_made_in_inference_mode_take_the_stock_way(dtype: torch.dtype) -> None:
    """Nobody counts their changes, which a packed copy would miss."""
    with torch.inference_mode():
        layer, values = prepared(256, 512, dtype=dtype), torch.randn(64, 256).to(dtype)
        assert layer(values).equal(torch.nn.functional.linear(values, layer.weight))
        layer.weight.zero_()
        assert not layer(values).any()


@needs_onednn
def test_gradients_take_the_stock_way() -> None:
    layer, values = prepared(256, 512), torch.randn(64, 256, requires_grad=True)
    layer(values).square().sum().backward()
    stock = nn.Linear(256, 512, bias=False)
    stock.weight.data = layer.weight.detach().clone()
    again = values.detach().clone().requires_grad_()
    stock(again).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, stock.weight.grad)
    torch.testing.assert_close(values.grad, again.grad)


@needs_onednn
def test_large_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "COPIED_BYTES", 256 * 512 * 4 - 1)
    assert type(prepared(256, 512)) is nn.Linear


def used(lm: DiffusionLM) -> None:
    """Let every layer make its copies, of both kinds."""
    for rows in (1, 60):
        lm.logits(torch.ones(1, rows, dtype=torch.long))
    assert all(one._copies is not None for one in lm.backbone.modules() if isinstance(one, CPULinear))


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_nothing_but_inference_sees_the_copies(
    tmp_path: Path, tied: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved, moved, copied and pickled is what it is for a model that was only loaded."""
    monkeypatch.setattr(cpu_linear, "_LEAST_PRODUCTS", 0)
    plain = loaded(tmp_path / "plain", dtype, tied=tied)
    ready = DiffusionLM.from_pretrained(tmp_path / "plain", device="cpu")
    before = {name: (one.data_ptr(), one.stride()) for name, one in ready.backbone.named_parameters()}
    assert {type(one) for one in ready.backbone.modules() if isinstance(one, nn.Linear)} == {nn.Linear}
    assert ready.optimize_for_inference() is ready
    used(ready)
    assert before == {name: (one.data_ptr(), one.stride()) for name, one in ready.backbone.named_parameters()}
    assert ready.backbone.state_dict().keys() == plain.backbone.state_dict().keys()
    ready.save_pretrained(tmp_path / "again")
    for file in sorted((tmp_path / "plain").iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    for copied in (copy.deepcopy(ready.backbone), pickle.loads(pickle.dumps(ready.backbone.network))):
        assert {type(one) for one in copied.modules() if isinstance(one, nn.Linear)} == {nn.Linear}
        assert not any("_copies" in vars(one) for one in copied.modules())
        head = copied.network.lm_head if isinstance(copied, Backbone) else copied.lm_head
        embedding = copied.network.model.embed_tokens if isinstance(copied, Backbone) else copied.model.embed_tokens
        assert (head.weight is embedding.weight) == tied
    ready.backbone.to("meta")
    assert all(one._copies is None for one in ready.backbone.modules() if isinstance(one, CPULinear))


def loaded(folder: Path, dtype: torch.dtype, *, tied: bool) -> DiffusionLM:
    made = create(dataclasses.replace(tiny.SHAPE, tie_word_embeddings=tied), None, seed=0, size=23)
    checkpoint = adapted(made, ObjectiveSettings(method="masked_diffusion"))
    save(Checkpoint(checkpoint.backbone.to(dtype), tokenizer=None), folder)
    return DiffusionLM.from_pretrained(folder, device="cpu")


@needs_onednn
def test_a_model_goes_on_training_after_it_was_scored(tmp_path: Path) -> None:
    """The logits follow the optimiser's updates, an average that is swapped in, and weights that are loaded."""
    lm = loaded(tmp_path, torch.float32, tied=True).optimize_for_inference()
    ids = torch.arange(1, 9)[None]
    stock = copy.deepcopy(lm.backbone)

    def check() -> None:
        stock.load_state_dict(lm.backbone.state_dict())
        wanted = DiffusionLM(Checkpoint(stock, tokenizer=None)).logits(ids)
        torch.testing.assert_close(lm.logits(ids), wanted, rtol=1e-4, atol=1e-5)

    check()
    parameters = [*lm.backbone.network.named_parameters()]
    average = WeightAverage(parameters, 0.5)
    optimizer = torch.optim.AdamW([one for _, one in parameters], lr=0.1, fused=True)
    for _, one in parameters:
        one.grad = torch.ones_like(one)
    before = lm.logits(ids)
    optimizer.step()
    check()
    assert not torch.allclose(lm.logits(ids), before, atol=1e-3)
    with average.in_place(parameters):
        torch.testing.assert_close(lm.logits(ids), before, rtol=1e-4, atol=1e-5)
    check()
    lm.backbone.load_state_dict({name: one * 1.5 for name, one in stock.state_dict().items()})
    check()
    with torch.inference_mode():
        lm.backbone.network.lm_head.weight.mul_(2)
    check()
    lm.backbone.network.lm_head.weight.data.mul_(2)  # nobody counts this
    lm.optimize_for_inference()
    check()
