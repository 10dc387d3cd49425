"""Linear layers of a model that decodes or scores on the CPU: copies of their weights, in the order that products want.

A forward of decoding has few rows, so its time goes into reading weights, and `nn.Linear` keeps them for training.
Two things help, each where it was measured to (`benchmarks/linear.py`):
- MKL reads float32 weights that lie input by input up to 1.4 times as fast for few rows (but for 4 to 32 of them more
  slowly at width 1024, where packed copies serve);
- oneDNN multiplies weights that are packed for it, as those of a graph that `torch.compile` freezes, up to 1.9 times as
  fast from a few rows on, in bfloat16 from one row.
A copy is made at a layer's first use of it, held beside the parameters, which stay as they are, and made again when
the weight has changed. So whatever saves, moves, copies, pickles or averages a model sees nothing of this. Only
inference mode does: gradients and other devices take the stock way.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

COPIED_BYTES = 4 * 2**30
"""The layers of larger models get no copies: those would not be small beside the machine's memory."""
# Below this, calling oneDNN takes longer than it saves in float32.
_FEWEST_ROWS, _LEAST_PRODUCTS = 4, 2**22
_ROWS_HINT = 32
_steps_taken = 0


@dataclass
class _Copies:
    """Copies of one weight as it was at one time.

    Attributes:
        weight: shares memory with the weight, so that no other takes its address.
        made: how many changes it had seen then, and how many steps the optimisers of this process had taken: a fused
            step changes weights without counting that.
    """

    weight: Tensor
    made: tuple[int, int]
    by_input: Tensor | None = None
    packed: Tensor | None = None


class CPULinear(nn.Linear):
    """A linear layer with copies of its weight; a deep copy or pickle of it is an `nn.Linear` again."""

    _copies: _Copies | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = cast(Tensor, self._parameters["weight"])  # looked up as an attribute, it takes a while
        if not torch.is_inference_mode_enabled() or input.dtype != weight.dtype or not _is_served(weight):
            return super().forward(input)
        copies, now = self._copies, (weight._version, _steps_taken)
        if copies is None or copies.made != now or copies.weight.data_ptr() != weight.data_ptr():
            self._copies = copies = _Copies(weight.detach(), now)
        rows = input.numel() // self.in_features
        is_float32 = weight.dtype == torch.float32
        if is_float32 and (rows < _FEWEST_ROWS or rows * weight.numel() < _LEAST_PRODUCTS):
            if copies.by_input is None:
                copies.by_input = copies.weight.t().contiguous().t()
            return F.linear(input, copies.by_input, self.bias)
        if copies.packed is None:
            copies.packed = torch.ops.mkldnn._reorder_linear_weight(copies.weight.contiguous(), _ROWS_HINT)
        return torch.ops.mkldnn._linear_pointwise(input, copies.packed, self.bias, "none", [], "")

    def _apply(self, fn: Any, recurse: bool = True) -> CPULinear:
        """Move or convert the layer, as every `to` does; what was copied is of no more use."""
        self._copies = None
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "_copies"}
        return nn.Linear.__new__, (nn.Linear,), state


def optimize_for_inference(network: nn.Module) -> None:
    """Let the linear layers on the CPU use copies of their weights in inference mode; the weights stay as they are.

    A float32 model of at most `COPIED_BYTES` takes up to three times its memory once it has run, one in bfloat16
    twice; a larger one is left alone. Changes of the weights are noticed, but for those made through `weight.data[...]`
    in place: call this again after them.
    """
    linear = [one for one in network.modules() if isinstance(one, nn.Linear) and one.weight.is_cpu]
    layers = [one for one in linear if type(one) in (nn.Linear, CPULinear)]
    if not torch.backends.mkldnn.is_available() or sum(layer.weight.nbytes for layer in layers) > COPIED_BYTES:
        return
    _count_steps()
    for layer in layers:
        if _has_products(layer.weight.dtype):
            layer.__class__ = CPULinear
            layer._copies = None  # type: ignore[assignment]


@functools.cache
def _count_steps() -> None:
    """Count the steps of every optimiser from now on."""

    def count(*_: object) -> None:
        global _steps_taken
        _steps_taken += 1

    register_optimizer_step_post_hook(count)


def _is_served(weight: Tensor) -> bool:
    """Whether copies serve a weight as it is now. Nobody counts the changes of one that was made in inference mode."""
    return weight.is_cpu and not weight.is_inference() and _has_products(weight.dtype)


@functools.cache
def _has_products(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
