"""One name for each weight, also where several modules share it (embedding and head of a tied network).

A state dict lists a shared weight under each of its names. Whoever changes, averages or saves tensors by name must know
one alone, or two of them drift apart: it is the first one, which `named_parameters` gives as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def named_once(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of a network's state dict, those of shared weights under their first name alone."""
    first: dict[int, str] = {}
    names = {
        name: first.setdefault(id(parameter), name)
        for name, parameter in network.named_parameters(remove_duplicate=False)
    }
    once: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        known = names.get(name, name)
        if known == name or known not in tensors:
            once[known] = tensor
    return once
