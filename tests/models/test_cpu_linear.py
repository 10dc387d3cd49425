"""Linear layers for the CPU: the products of the stock ones, whatever happens to the weights."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests import tiny
from unmask import DiffusionLM
from unmask.models import cpu_linear
from unmask.models.cpu_linear import CPULinear, prepare_for_inference
from unmask.models.loading import Checkpoint, load, save

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


# Sums of 256 products of two normal numbers pass through values of up to 90, where each step of float32 rounds by up to
# 4e-6, and may end near 0, where no relative bound helps: over 60 seeds, stock and packed products that end below 1
# were up to 2.3e-5 from float64. A wrong term is of order 1.
ROUNDING = {"rtol": 1e-5, "atol": 5e-5}


def prepared(inputs: int, outputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs)
    holder = nn.Sequential(nn.Linear(inputs, outputs, bias=bias, dtype=dtype))
    prepare_for_inference(holder)
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
    assert (layer.__dict__.get("_packed") is not None) == (rows >= 2 and 2 * rows * inputs * outputs >= 2**22)


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
    clone = copy.deepcopy(layer)
    assert type(clone) is CPULinear and clone.__dict__.get("_packed") is None
    with torch.no_grad():
        clone.weight.zero_()
    with torch.inference_mode():
        assert not clone(values).any()
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


def test_float32_weights_change_their_strides_and_nothing_else() -> None:
    plain = tiny.backbone("masked_diffusion").float().network
    ready = copy.deepcopy(plain)
    prepare_for_inference(ready)
    assert ready.lm_head.weight.stride() == (1, len(ready.lm_head.weight))
    assert ready.model.embed_tokens.weight.is_contiguous()
    for (name, one), (_, other) in zip(ready.named_parameters(), plain.named_parameters(), strict=True):
        assert one.equal(other), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_keep_their_strides(dtype: torch.dtype) -> None:
    network = tiny.backbone("masked_diffusion").to(dtype).network
    prepare_for_inference(network)
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_a_tied_head_stays_tied_and_a_second_call_copies_nothing() -> None:
    network = tiny.backbone("autoregressive").float().network
    network.lm_head.weight = network.model.embed_tokens.weight
    prepare_for_inference(network)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    before = [parameter.data_ptr() for parameter in network.parameters()]
    prepare_for_inference(network)
    assert before == [parameter.data_ptr() for parameter in network.parameters()]


def test_large_models_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "PACKED_BYTES", 256 * 512 * 4 - 1)
    layer = prepared(256, 512)
    assert type(layer) is nn.Linear and not layer.weight.is_contiguous()


def test_a_loaded_model_saves_what_it_was_loaded_from(tmp_path: Path) -> None:
    save(Checkpoint(tiny.backbone("masked_diffusion").float(), tokenizer=None), tmp_path / "plain")
    lm = DiffusionLM.from_pretrained(tmp_path / "plain", device="cpu")
    assert not lm.backbone.head_weight.is_contiguous()
    lm.save_pretrained(tmp_path / "again")
    again, plain = (load(tmp_path / name, device="cpu").backbone for name in ("again", "plain"))
    for (name, one), (_, other) in zip(again.named_parameters(), plain.named_parameters(), strict=True):
        assert one.equal(other) and one.is_contiguous(), name
