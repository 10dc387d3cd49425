"""The gradient of the bound, split by how much of a sequence is masked.

In: examples of one sequence each, and their loss. Out: the norm of each bucket's share of the gradient, and how much
the sequences in it agree. A bucket's gradient is that of the summed contribution of its tokens to the loss of the whole
probe: the buckets' vectors add up to the gradient of the whole, which the ratio of two norms does not hang on counting
sequences. Norms are L2 over everything that is trained.
Shapes: K buckets; a gradient is one tensor for each parameter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.analysis.metrics import BUCKETS, bucket_of
from unmask.objectives.example import Example

Total = Callable[[Example], Tensor]
"""The loss of an example: the weighted sum of its rows over what the whole probe is divided by; differentiable."""
Reduce = Callable[[Tensor], Tensor]


class Bucket(NamedTuple):
    """The gradient of one bucket of corruption.

    Attributes:
        sequences: that have masked tokens in it.
        norm: of its share of the whole gradient.
        squares: sum over its sequences of the squared norms of their shares.
    """

    sequences: int
    norm: float
    squares: float

    @property
    def noise_ratio(self) -> float:
        """Signal to noise of a sequence's gradient g: |E g|^2 / E|g - E g|^2, both estimated without bias.

        So it is below 0 where the mean gradient drowns in the noise, and NaN for fewer than two sequences.
        """
        if self.sequences < 2:
            return math.nan
        mean_square = (self.norm / self.sequences) ** 2
        noise = (self.squares - self.sequences * mean_square) / (self.sequences - 1)
        return (mean_square - noise / self.sequences) / noise if noise > 0 else math.nan


def bucket_gradients(
    examples: Callable[[], Iterable[Example]],
    total: Total,
    parameters: Sequence[Tensor],
    *,
    reduce: Reduce = lambda values: values,
) -> tuple[tuple[Bucket, ...], float]:
    """Each bucket, and the norm of the gradient of the whole.

    Takes a backward pass for each sequence and bucket that it has tokens in, and memory for two more gradients, in
    float32 at least.

    Args:
        examples: makes the examples anew, of one sequence each; this process's share of them.
        total: their loss.
        parameters: that are trained.
        reduce: adds values up over processes.
    """
    whole = _zeros(parameters)
    buckets = []
    for number in range(len(BUCKETS)):
        share = _zeros(parameters)
        facts_2 = torch.zeros(2, dtype=torch.float64, device=parameters[0].device)
        for gradient in _gradients(examples(), number, total, parameters):
            facts_2 += torch.stack([torch.ones_like(facts_2[0]), _square(gradient)])
            torch._foreach_add_(share, gradient)
        share = [reduce(one) for one in share]
        sequences, squares = reduce(facts_2).tolist()
        buckets.append(Bucket(round(sequences), math.sqrt(float(_square(share))), squares))
        torch._foreach_add_(whole, share)
    return tuple(buckets), math.sqrt(float(_square(whole)))


def gradient_figures(buckets: Sequence[Bucket], whole: float) -> dict[str, float]:
    """The numbers by name: gradient/norm of the whole; of each bucket gradient/{low,medium,high}_norm, _sequences,
    _norm_per_sequence and _snr; the ratios gradient/high_to_low, medium_to_low, high_to_medium of norms. NaN where a
    bucket is empty."""
    made = {"gradient/norm": whole}
    norms = {}
    for name, one in zip(BUCKETS, buckets, strict=True):
        norms[name] = one.norm if one.sequences else math.nan
        made[f"gradient/{name}_norm"] = norms[name]
        made[f"gradient/{name}_sequences"] = float(one.sequences)
        made[f"gradient/{name}_norm_per_sequence"] = norms[name] / one.sequences if one.sequences else math.nan
        made[f"gradient/{name}_snr"] = one.noise_ratio
    for below, above in itertools.combinations(BUCKETS, 2):
        made[f"gradient/{above}_to_{below}"] = norms[above] / norms[below] if norms[below] else math.nan
    return made


def _gradients(
    examples: Iterable[Example], bucket: int, total: Total, parameters: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    for example in examples:
        chosen_R = bucket_of(example.ratio_R) == bucket
        if bool(chosen_R.any()):
            yield torch.autograd.grad(total(example.only(chosen_R)), parameters, materialize_grads=True)


def _zeros(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Where gradients add up: a sum in bfloat16 loses each addend below a 256th of it."""
    return [torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in parameters]


def _square(gradient: Iterable[Tensor]) -> Tensor:
    """The squared norm, float64."""
    return torch.stack([one.double().square().sum() for one in gradient]).sum()
