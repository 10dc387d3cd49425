"""How fast training could be: floating-point work per token, and what this machine reaches on plain matrix products."""

from __future__ import annotations

import time

import torch

from unmask.models.backbone import Backbone
from unmask.models.loading import parameter_counts


def flops_per_token(backbone: Backbone, context_length: int, *, head_share: float) -> float:
    """Floating-point operations of one forward and backward per input token.

    6 per weight of a matrix (2 forward, 4 backward; 4 in all where it is frozen), the head counted for the share of
    rows that reach it, and 12 * layers * width * length for the attention scores and values (Chowdhery et al., arXiv
    2204.02311, appendix B).
    """
    config = backbone.network.config
    _, body = parameter_counts(backbone.network)
    head = backbone.head_weight.numel() * head_share
    width = config.num_attention_heads * config.head_dim
    per_weight = 6 if backbone.adapter is None else 4
    return per_weight * (body + head) + 12 * config.num_hidden_layers * width * context_length


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products here, the best of 25: other work disturbs some."""
    size = 1024 if device.type == "cpu" else 8192
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(25):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, left)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: on the accelerator, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # there is no such module on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
