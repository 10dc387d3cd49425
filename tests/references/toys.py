"""A small made-up denoiser for the checks of the sampler references: every logit depends on every id."""

import math
import random

import torch
from torch import Tensor

VOCABULARY = 6
MASK = 5


def toy_logits(ids: list[int]) -> Tensor:
    """Logits [L, 6]: a bounded, bumpy function of position, id and the whole canvas."""
    rows: list[list[float]] = []
    for i in range(len(ids)):
        pull = sum((token + 1) * math.cos(1.3 * (i - j)) for j, token in enumerate(ids))
        rows.append([3.0 * math.sin(pull + 2.1 * i + 1.7 * token * token) for token in range(VOCABULARY)])
    return torch.tensor(rows, dtype=torch.float64)


def hashed(*keys: int) -> float:
    """A uniform number in (0, 1), the same for the same keys."""
    return (random.Random(repr(keys)).getrandbits(52) + 0.5) / 2**52


def uniform(step: int, position: int) -> float:
    return hashed(7, step, position)


def gumbel_noise(step: int, position: int, size: int) -> list[float]:
    return [hashed(11, step, position, token) for token in range(size)]


def inverse_noise(step: int, position: int, size: int) -> list[float]:
    return [hashed(13, step, position)]
