"""Four-bit bases: what is quantised, that gradients and numbers survive an evaluation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from tests.models.tiny import random_ids, stock
from unmask import DiffusionLM, attention
from unmask.errors import CheckpointError, MissingExtraError, SettingsError
from unmask.models import adapters
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, adapted, load, parameter_counts, save
from unmask.models.quantization import is_quantized
from unmask.settings.adapter import AdapterSettings
from unmask.settings.model import DiffusionConfig
from unmask.settings.objective import ObjectiveSettings

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "initializer_range": 0.05}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    entry = DiffusionConfig(method="autoregressive", vocabulary_size=38)
    save(Checkpoint(Backbone(stock("llama", dtype=request.param, **SHAPE), entry), None), tmp_path / "base")
    return tmp_path / "base"


def quantized(base: Path, **options: Any) -> Checkpoint:
    return load(base, device="cpu", quantize="nf4", **options)


def with_adapter(base: Path) -> Checkpoint:
    checkpoint = adapted(quantized(base), ObjectiveSettings())
    settings = AdapterSettings(rank=4, quantization="nf4")
    adapters.attach(checkpoint.backbone, settings, base=str(base), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in checkpoint.backbone.network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return checkpoint


def logits(checkpoint: Checkpoint, ids_BL: Tensor) -> Tensor:
    found = DiffusionLM(checkpoint).logits(ids_BL, layout=attention.causal(torch.zeros_like(ids_BL)))
    return found.masked_fill(found.isinf(), 0.0).float()


def test_linear_layers_are_in_four_bits_and_head_embedding_and_norms_are_not(base: Path) -> None:
    network, whole = quantized(base).backbone.network, load(base, device="cpu").backbone.network
    assert is_quantized(network) and not is_quantized(whole)
    for (name, module), (_, plain) in zip(network.named_modules(), whole.named_modules(), strict=True):
        if "layers." in name and isinstance(plain, nn.Linear):
            assert isinstance(module, Linear4bit), name
            error = functional.dequantize_4bit(module.weight.data, module.weight.quant_state) - plain.weight.detach()
            # Normal weights in blocks of 64 lose about 9 % of their norm to NF4.
            assert 0.05 < float(error.norm() / plain.weight.detach().norm()) < 0.12
        else:
            assert type(module) is type(plain), name
            for one, other in zip(module.parameters(recurse=False), plain.parameters(recurse=False), strict=True):
                assert one.equal(other) and one.dtype == other.dtype
    assert parameter_counts(network) == parameter_counts(whole)


def test_an_evaluation_leaves_gradients_and_numbers_as_they_were(base: Path) -> None:
    """bitsandbytes itself repacks the layers at an evaluation on some CPUs: coarser, and without gradient."""

    def gradients(checkpoint: Checkpoint) -> list[Tensor]:
        backbone, ids_BL = checkpoint.backbone.train(), random_ids(2, 9) % 38
        ids_BL[:, 4] = 38
        layout = attention.causal(torch.zeros_like(ids_BL))
        hidden_BLD = backbone(ids_BL, layout.position_ids.expand_as(ids_BL), backbone.render(layout, layout))
        hidden_BLD.float().square().sum().backward()
        found = [one.grad for one in backbone.network.parameters() if one.requires_grad]
        backbone.zero_grad()
        backbone.eval()
        assert all(one is not None and one.abs().max() > 0 for one in found)
        return found  # type: ignore[return-value]

    checkpoint = with_adapter(base)
    wanted = gradients(checkpoint)
    before = logits(checkpoint, random_ids(2, 9) % 38)
    assert all(one.equal(other) for one, other in zip(gradients(checkpoint), wanted, strict=True))
    assert logits(checkpoint, random_ids(2, 9) % 38).equal(before)


def test_an_adapter_comes_back_on_its_four_bit_base_and_merges_into_whole_weights(base: Path, tmp_path: Path) -> None:
    trained, ids_BL = with_adapter(base), random_ids(2, 9) % 38
    save(trained, tmp_path / "adapter")
    loaded = load(tmp_path / "adapter", device="cpu")
    assert is_quantized(loaded.backbone.network)
    assert logits(loaded, ids_BL).equal(logits(trained, ids_BL))
    with pytest.raises(CheckpointError, match="unmask merge"):
        adapters.merged(loaded)

    whole = load(tmp_path / "adapter", device="cpu", quantize=None)
    dtype = load(base, device="cpu").backbone.network.dtype
    assert not is_quantized(whole.backbone.network) and whole.backbone.network.dtype == dtype
    wanted = logits(whole, ids_BL)
    found = logits(adapters.merged(whole), ids_BL)
    # Logits of order 0.5; the merged weights are rounded to the base's type.
    assert (found - wanted).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)
    assert {one.dtype for one in whole.backbone.network.parameters()} == {dtype}
    # The update does not depend on the quantisation; what differs is NF4's rounding of the base.
    assert 0 < (found - logits(trained, ids_BL)).abs().max() < 0.5 * wanted.abs().max()


def test_what_cannot_be_quantised_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="not float64"):
        quantized(base, dtype="float64")

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(functional, "quantize_4bit", broken)
    with pytest.raises(SettingsError, match=r"does not run on cpu: no kernel image.*adapter\.quantization=null"):
        quantized(base)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "unmask\[qlora\]"'):
        quantized(base)
