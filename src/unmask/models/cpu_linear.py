"""Linear layers of a model that decodes or scores on the CPU: the same weights, in the order that products want.

A forward of decoding has few rows, so its time goes into reading weights, and `nn.Linear` keeps them for training.
Two things help, each where it was measured to (`benchmarks/linear.py`):
- float32 weights lie input by input (`order_by_input`), in place, which MKL reads up to 1.3 times as fast for few rows
  (but for 4 to 32 of them more slowly at width 1024, where packed copies serve);
- oneDNN multiplies weights that are packed for it, as those of a graph that `torch.compile` freezes, up to 1.9 times as
  fast from a few rows on, in bfloat16 from one row. The packed copy is made at a layer's first use.
The choice itself takes two microseconds a layer, which a network of width 128 notices at few rows. Only inference mode
sees any of it: gradients, training mode and other devices take the stock way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PACKED_BYTES = 4 * 2**30
"""Larger models are not packed: their copies would not be small beside them."""
# Below this, calling oneDNN takes longer than it saves in float32.
_FEWEST_ROWS, _LEAST_PRODUCTS = 4, 2**22
_ROWS_HINT = 32


class CPULinear(nn.Linear):
    """A linear layer with a packed copy of its weight, which follows changes of the weight."""

    _packed: Tensor | None = None
    _packed_from: tuple[int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self._is_packable(input):
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self._packed_weight(), self.bias, "none", [], "")

    def _is_packable(self, values: Tensor) -> bool:
        weight = self.weight
        if not torch.is_inference_mode_enabled() or weight.device.type != "cpu" or values.dtype != weight.dtype:
            return False
        if weight.is_inference():  # nobody counts its changes
            return False
        if weight.dtype == torch.bfloat16:
            return True
        rows = values.numel() // self.in_features
        return weight.dtype == torch.float32 and rows >= _FEWEST_ROWS and rows * weight.numel() >= _LEAST_PRODUCTS

    def _packed_weight(self) -> Tensor:
        now = self.weight.data_ptr(), self.weight._version
        packed = self._packed if self._packed_from == now else None
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().contiguous(), _ROWS_HINT)
            self._packed, self._packed_from = packed, now
        return packed

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed copy, which is opaque; a copy of the layer packs its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_packed_from")}


def prepare_for_inference(network: nn.Module) -> None:
    """Make the linear layers on the CPU fast for few rows; values, names and shapes of the weights stay.

    A model of at most `PACKED_BYTES` takes up to twice its memory once it has run.
    """
    layers = [layer for layer in network.modules() if type(layer) is nn.Linear and layer.weight.device.type == "cpu"]
    packs = torch.backends.mkldnn.is_available() and sum(layer.weight.nbytes for layer in layers) <= PACKED_BYTES
    for layer in layers:
        order_by_input(layer)
        if packs and _has_products(layer.weight.dtype):
            layer.__class__ = CPULinear


def order_by_input(layer: nn.Linear) -> None:
    """Lay a float32 weight out input by input; one that lies so already is left alone."""
    weight = layer.weight
    if weight.dtype == torch.float32 and not weight.t().is_contiguous():
        weight.data = weight.data.t().contiguous().t()


def _has_products(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
