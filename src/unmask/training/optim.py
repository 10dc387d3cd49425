"""Optimiser, learning-rate course and weight average, all functions of the step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from unmask.settings.training import TrainingSettings


def optimizer(module: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) that decays matrices only: no norms, biases or embeddings."""
    embeddings = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    decayed, spared = [], []
    for parameter in module.parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if is_matrix else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.adam_betas,
        eps=settings.adam_epsilon,
        fused=True,
    )


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total`.

    Warm-up rises linearly and reaches the peak at its last step; the last step of a falling course ends at the floor.
    """
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = max(1, math.floor(settings.warmup_ratio * total + 1e-9))  # 0.29 * 100 is just below 29
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step + 1 - warmup) / max(1, total - warmup))
    if settings.lr_schedule == "constant":
        share = 1.0
    elif settings.lr_schedule == "linear":
        share = 1 - progress
    elif settings.lr_schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        decay = max(1, round(settings.decay_fraction * total))
        share = min(1.0, (total - 1 - step) / decay)
    return settings.learning_rate * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * share)


class WeightAverage:
    """Exponential moving average of the weights, in float32 or, for weights in it, float64.

    The first steps use min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decay: float) -> None:
        self.decay = decay
        self.weights = {name: _precise(parameter).clone() for name, parameter in parameters}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Move the average towards the weights after optimiser step `step` (from 0)."""
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters:
            self.weights[name].lerp_(_precise(parameter), rate)

    @contextlib.contextmanager
    def in_place(self, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Let the weights be the average, rounded to their type as a checkpoint holds it, inside the block."""
        named = dict(parameters)
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        try:
            _copy(self.weights, named)
            yield
        finally:
            _copy(before, named)


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _precise(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
