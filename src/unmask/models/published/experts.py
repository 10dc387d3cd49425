"""Experts in published mixtures (SDAR-MoE): a tensor for each matrix of each expert there, one for a whole layer here.

The stock class lays the gates of all experts over their up projections in one tensor [E, 2F, D] and their down
projections in another, [E, D, F]; `from_pretrained` puts them together itself, but cannot say which one it missed.
Shapes: E experts, F width of an expert's MLP, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unmask.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BOTH, _DOWN = "experts.gate_up_proj", "experts.down_proj"


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a stock mixture with every expert's matrices by themselves, as views."""
    return dict(_split(tensors.items()))


def _split(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if name.endswith(_BOTH):
            for expert, both_ED in enumerate(tensor):
                place = f"{name.removesuffix('gate_up_proj')}{expert}"
                for projection, matrix_FD in zip(("gate_proj", "up_proj"), both_ED.chunk(2), strict=True):
                    yield f"{place}.{projection}.weight", matrix_FD
        elif name.endswith(_DOWN):
            for expert, matrix_DF in enumerate(tensor):
                yield f"{name.removesuffix('down_proj')}{expert}.down_proj.weight", matrix_DF
        else:
            yield name, tensor


def check(slices: Mapping[str, Any], config: PreTrainedConfig, source: str) -> None:
    """See that the files hold every expert of a mixture, in its shape, and no other.

    Args:
        slices: of mapped files, by published name.
        config: of the stock class.
        source: the checkpoint's name in messages.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; it names them.
    """
    narrow, wide = config.moe_intermediate_size, config.hidden_size
    shapes = {"gate_proj": [narrow, wide], "up_proj": [narrow, wide], "down_proj": [wide, narrow]}
    expected = {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight": shape
        for layer in range(config.num_hidden_layers)
        for expert in range(config.num_experts)
        for projection, shape in shapes.items()
    }
    missing = [name for name in expected if name not in slices]
    unexpected = [name for name in slices if ".mlp.experts." in name and name not in expected]
    others = [
        f"{name} (file {tuple(found)}, model {tuple(shape)})"
        for name, shape in expected.items()
        if name in slices and (found := slices[name].get_shape()) != shape
    ]
    if missing or unexpected or others:
        lists = (("missing_keys", missing), ("unexpected_keys", unexpected), ("mismatched_keys", others))
        problems = "; ".join(f"{label}: {', '.join(names[:8])}" for label, names in lists if names)
        raise CheckpointError(
            f"The tensors in {source} do not fit its configuration. {problems}. The checkpoint is of another shape, or "
            "incomplete; copy or convert it again."
        )
