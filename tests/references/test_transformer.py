"""The hand-written transformer against the stock classes, and its keys and values against a stock cache."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.references import canvas, transformer
from tests.references.candidates import Rules, left_padded
from tests.references.stock import FAMILIES, IDS, MASK, stock

# Fixed inputs: no difference of 1e-15 happens to cross a float32 border of the stock norms.
SAME = 1e-9


def everything(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(1, 1, rows, columns, dtype=torch.bool)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_stock_class(family: str) -> None:
    model = stock(family)
    positions = [0, 1, 2, 3, 4, 5, 6, 30, 31]
    expected = model(
        torch.tensor([IDS]), attention_mask=everything(9, 9), position_ids=torch.tensor([positions]), use_cache=False
    ).logits[0]
    state, shape = model.state_dict(), transformer.shape_of(model.config)
    ours = transformer.forward(state, shape, IDS, positions).logits
    assert expected.std() > 0.5 and (ours - expected).abs().max() < SAME
    exact = transformer.forward(state, shape, IDS, positions, rounding=torch.float64).logits
    assert 0 < (exact - expected).abs().max() < 1e-4
    causal = model(torch.tensor([IDS]), use_cache=False).logits[0]
    assert (causal - expected).abs().max() > 1e-2  # the mask is what makes it bidirectional


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_stale_keys_equal_a_stock_cache(family: str) -> None:
    model = stock(family)
    network = transformer.network_of(model)
    full = DynamicCache(config=model.config)
    model(torch.tensor([IDS]), everything(9, 9), None, full, use_cache=True)
    prefix = DynamicCache(config=model.config)
    stored: list[Any] = list(full.layers)
    for index, layer in enumerate(stored):
        prefix.update(layer.keys[:, :, :4], layer.values[:, :, :4], index)
    changed = [2, 2, 12, 0, 6]
    positions = torch.arange(4, 9)[None]
    expected = model(torch.tensor([changed]), everything(5, 9), positions, prefix, use_cache=True).logits[0]
    layers = network(IDS, list(range(9)), None).layers
    for (key, value), layer in zip(layers, stored, strict=True):
        assert (key - layer.keys[0].transpose(0, 1)).abs().max() < SAME
        assert (value - layer.values[0].transpose(0, 1)).abs().max() < SAME
    ours = network(changed, list(range(4, 9)), transformer.picked(layers, [0, 1, 2, 3])).logits
    assert (ours - expected).abs().max() < SAME
    fresh = network(IDS[:4] + changed, list(range(9)), None).logits[4:]
    assert (ours - fresh).abs().max() > 1e-2  # stale is not fresh


@torch.no_grad()
def test_fresh_keys_are_exact_wherever_they_lie() -> None:
    network = transformer.network_of(stock("qwen2"))
    whole = network(IDS, list(range(9)), None)
    for span in ([0], [4, 5], [2, 7], list(range(9))):
        rest = [i for i in range(9) if i not in span]
        part = network([IDS[i] for i in span], span, transformer.picked(whole.layers, rest))
        assert (part.logits - whole.logits[span]).abs().max() < SAME


@torch.no_grad()
def test_left_padding_changes_nothing() -> None:
    model = stock("llama")
    state, shape = model.state_dict(), transformer.shape_of(model.config)

    def plain(ids: list[int]) -> torch.Tensor:
        return transformer.forward(state, shape, ids, list(range(len(ids))), rounding=torch.float64).logits

    def masked(ids: list[int], visible: list[bool]) -> torch.Tensor:
        positions = list(range(len(ids)))
        return transformer.forward(state, shape, ids, positions, visible=visible, rounding=torch.float64).logits

    padded = left_padded(masked, 3, 4)
    assert (padded(IDS) - plain(IDS)).abs().max() < 1e-11
    assert (masked([4] * 3 + IDS, [True] * 12)[3:] - plain(IDS)).abs().max() > 1e-2
    runs = [canvas.decode(fn, IDS[:3], 6, 3, 6, MASK, Rules(excluded=(MASK,)), cfg_scale=0.7) for fn in (plain, padded)]
    assert runs[0] == runs[1]
