"""The one loss: weighted cross-entropy at supervised rows, in chunks.

In: hidden states, an `Example` and the head as a callable. Out: one weighted sum per loss term, differentiable, and
each row's cross-entropy. The logits of one chunk exist at a time: its gradients are taken in the forward pass, so
that the backward pass holds none (as in cut and fused cross-entropies; Wijmans et al., arXiv 2411.09009).
Shapes: B batch, L length, D width, R supervised rows, V vocabulary, T terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.objectives.example import Example

Head = Callable[[Tensor], Tensor]


class Loss(NamedTuple):
    """What a forward is worth.

    Attributes:
        total: scalar, differentiable; the sum over terms of scale * weighted cross-entropy.
        sum_T: detached; the weighted sum of cross-entropies of each term, not scaled.
        cross_entropy_R: detached; nats of each supervised row, in float32 (float64 for a float64 model).
    """

    total: Tensor
    sum_T: Tensor
    cross_entropy_R: Tensor


def loss(
    hidden_BLD: Tensor,
    example: Example,
    head: Head,
    *,
    parameters: tuple[Tensor, ...],
    scale_T: Tensor,
    chunk_rows: int = 512,
) -> Loss:
    """Weighted cross-entropy of an example.

    Args:
        hidden_BLD: output of the network.
        example: which rows are supervised, and how.
        head: hidden states [R, D] to logits [R, V]; excluded ids at -inf.
        parameters: the tensors inside `head` that need gradients.
        scale_T: factor of each term: its share in the loss over its denominator for the whole step.
        chunk_rows: rows whose logits exist at the same time.
    """
    hidden_ND = hidden_BLD.flatten(0, 1)
    row_R, weight_R = example.row_R, example.weight_R
    if len(row_R) == 0:
        # A row of weight 0: every parameter must take part, or other processes wait for its gradient.
        row_R, weight_R = row_R.new_zeros(1), weight_R.new_zeros(1)
        target_R, term_R = row_R + int((~head(hidden_ND[:1].detach()).isinf()).int().argmax()), row_R
    else:
        target_R, term_R = example.target_R, example.term_R
    scaled_R = weight_R * scale_T.to(weight_R.dtype)[term_R]
    total, cross_entropy_R = _ChunkedCrossEntropy.apply(
        hidden_ND[row_R], target_R, scaled_R, head, chunk_rows, *parameters
    )
    sum_T = torch.zeros(len(example.terms), device=weight_R.device, dtype=cross_entropy_R.dtype)
    sum_T.index_add_(0, term_R, weight_R * cross_entropy_R)
    return Loss(total, sum_T, cross_entropy_R[: len(example.row_R)])


def row_losses(hidden_BLD: Tensor, example: Example, head: Head, *, chunk_rows: int = 512) -> Tensor:
    """Cross-entropy of each supervised row in nats, [R]."""
    hidden_RD = hidden_BLD.flatten(0, 1)[example.row_R]
    if len(hidden_RD) == 0:
        return hidden_RD.new_zeros(0)
    chunks = zip(hidden_RD.split(chunk_rows), example.target_R.split(chunk_rows), strict=True)
    return torch.cat([_cross_entropy(head(hidden), target) for hidden, target in chunks])


def _cross_entropy(logits_RV: Tensor, target_R: Tensor) -> Tensor:
    """Nats of each row, in float32 at least."""
    wide_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    return F.cross_entropy(wide_RV, target_R, reduction="none")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum(scale * cross-entropy), chunk by chunk, with its gradients taken on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        target_R: Tensor,
        scale_R: Tensor,
        head: Head,
        chunk_rows: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        gradient_RD = torch.empty_like(hidden_RD)
        gradients: list[Tensor] = []
        losses: list[Tensor] = []
        for start in range(0, len(target_R), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            with torch.enable_grad():
                hidden = hidden_RD[chunk].detach().requires_grad_()
                losses.append(_cross_entropy(head(hidden), target_R[chunk]))
                factor_R = scale_R[chunk].to(losses[-1].dtype)
                gradient_RD[chunk], *rest = torch.autograd.grad(losses[-1], [hidden, *parameters], factor_R)
            if gradients:
                for total, part in zip(gradients, rest, strict=True):
                    total += part
            else:
                gradients = rest
        cross_entropy_R = torch.cat([one.detach() for one in losses])
        ctx.save_for_backward(gradient_RD, *gradients)
        ctx.mark_non_differentiable(cross_entropy_R)
        return (cross_entropy_R * scale_R).sum(), cross_entropy_R

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient_RD, *gradients = ctx.saved_tensors
        factor = outputs[0]
        return gradient_RD * factor, None, None, None, None, *(gradient * factor for gradient in gradients)
