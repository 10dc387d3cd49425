"""Adapters on published checkpoints, whole and in 4 bits: the base stays in its authors' format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.published import tiny
from unmask.models.adapters import attach, merged
from unmask.models.backbone import Backbone
from unmask.models.loading import Checkpoint, load, save
from unmask.models.published.registry import FORMATS
from unmask.models.published.writing import save_published
from unmask.settings.adapter import AdapterSettings, Quantization

CONFIGS = {
    "llada": tiny.llada(d_model=64, mlp_hidden_size=128, torch_dtype="float32"),
    "dream": tiny.dream(hidden_size=64, intermediate_size=128, torch_dtype="float32"),
}


def logits(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone(torch.tensor([[3, tiny.MASK, 5, 9]]), torch.arange(4)[None], None))


def trained(base: Path, config: dict[str, Any], quantization: Quantization | None) -> Checkpoint:
    """The base with an adapter whose every tensor is away from where it began."""
    tiny.write(base, config, {name: value.float() for name, value in tiny.random_tensors(config).items()}, shards=2)
    checkpoint = load(base, device="cpu", quantize=quantization)
    attach(checkpoint.backbone, AdapterSettings(rank=4, quantization=quantization), base=str(base), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in checkpoint.backbone.network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return checkpoint


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_saved_and_loaded_over_its_published_base(
    tmp_path: Path, name: str, quantization: Quantization | None
) -> None:
    checkpoint = trained(tmp_path / "base", CONFIGS[name], quantization)
    before = logits(load(tmp_path / "base", device="cpu", quantize=quantization).backbone)
    save(checkpoint, tmp_path / "adapter")
    found = load(tmp_path / "adapter", device="cpu").backbone
    assert found.diffusion == checkpoint.backbone.diffusion and found.diffusion.logit_shift is (name == "dream")
    assert logits(found).equal(logits(checkpoint.backbone)) and not logits(found).equal(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_merged_adapter_goes_back_into_the_published_format(tmp_path: Path, name: str) -> None:
    checkpoint = trained(tmp_path / "base", CONFIGS[name], None)
    expected = logits(checkpoint.backbone)
    (tmp_path / "out").mkdir()
    save_published(merged(checkpoint), tmp_path / "out", FORMATS[name])
    found = logits(load(tmp_path / "out", device="cpu").backbone)
    allowed_V = torch.arange(tiny.ROWS) != tiny.MASK
    # Logits of order 5 in float32: a few units in the last place.
    assert (found - expected)[..., allowed_V].abs().max() < 5e-5
