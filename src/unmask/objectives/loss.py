"""The one loss: weighted cross-entropy (and divergence from a teacher) at supervised rows, in chunks.

In: hidden states, an `Example`, the head as a callable and perhaps a teacher's `Lesson`. Out: their weighted sum,
differentiable, the sum of each loss term and each row's cross-entropy. The logits of one chunk exist at a time: its
gradients are taken in the forward pass, so that the backward pass holds none (as in cut and fused cross-entropies;
Wijmans et al., arXiv 2411.09009).
Shapes: B batch, L length, D width, R supervised rows, V vocabulary, T terms, P = 3 values of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.objectives.distillation import Lesson
from unmask.objectives.example import Example

Head = Callable[[Tensor], Tensor]


class Loss(NamedTuple):
    """What a forward is worth.

    Attributes:
        total: scalar, differentiable; the sum over terms of scale * weighted loss of the rows.
        sum_T: detached; the weighted sum of cross-entropies of each term, not scaled.
        cross_entropy_R: detached; nats of each supervised row, in float32 (float64 for a float64 model).
        divergence_T: detached; the weighted sum of divergences from a teacher, times the lesson's weight; 0 without.
        correct_T: detached; rows of each term whose likeliest token is the target, counted for several terms only.
    """

    total: Tensor
    sum_T: Tensor
    cross_entropy_R: Tensor
    divergence_T: Tensor
    correct_T: Tensor


def loss(
    hidden_BLD: Tensor,
    example: Example,
    head: Head,
    *,
    parameters: tuple[Tensor, ...],
    scale_T: Tensor,
    chunk_rows: int = 512,
    lesson: Lesson | None = None,
) -> Loss:
    """Weighted cross-entropy of an example, and its divergence from a teacher if there is one.

    Args:
        hidden_BLD: output of the network.
        example: which rows are supervised, and how.
        head: hidden states [R, D] to logits [R, V]; excluded ids at -inf.
        parameters: the tensors inside `head` that need gradients.
        scale_T: factor of each term: its share in the loss over its denominator for the whole step.
        chunk_rows: rows whose logits exist at the same time.
        lesson: of a teacher, about this example.
    """
    hidden_ND = hidden_BLD.flatten(0, 1)
    row_R, weight_R = example.row_R, example.weight_R
    if len(row_R) == 0:
        # A row of weight 0: every parameter must take part, or other processes wait for its gradient.
        row_R, weight_R, lesson = row_R.new_zeros(1), weight_R.new_zeros(1), None
        target_R, term_R = row_R + int((~head(hidden_ND[:1].detach()).isinf()).int().argmax()), row_R
    else:
        target_R, term_R = example.target_R, example.term_R
    scaled_R = weight_R * scale_T.to(weight_R.dtype)[term_R]
    rows = _Rows(target_R, lesson, counts_correct=len(example.terms) > 1)
    total, values_PR = _ChunkedLoss.apply(hidden_ND[row_R], rows, scaled_R, head, chunk_rows, *parameters)
    weighted_PR = torch.cat([values_PR[:2] * weight_R, values_PR[2:] * (weight_R > 0)])
    sum_PT = values_PR.new_zeros(len(values_PR), len(example.terms)).index_add_(1, term_R, weighted_PR)
    return Loss(total, sum_PT[0], values_PR[0, : len(example.row_R)], sum_PT[1], sum_PT[2])


def row_losses(hidden_BLD: Tensor, example: Example, head: Head, *, chunk_rows: int = 512) -> Tensor:
    """Cross-entropy of each supervised row in nats, [R]."""
    hidden_RD = hidden_BLD.flatten(0, 1)[example.row_R]
    if len(hidden_RD) == 0:
        return hidden_RD.new_zeros(0)
    chunks = zip(hidden_RD.split(chunk_rows), example.target_R.split(chunk_rows), strict=True)
    return torch.cat([_cross_entropy(head(hidden), target) for hidden, target in chunks])


class RowPredictions(NamedTuple):
    """What a model makes of supervised rows; in float32 at least.

    Attributes:
        cross_entropy_R: nats of the target.
        correct_R: bool; whether the likeliest token is the target.
        confidence_R: probability of the likeliest token.
        entropy_R: nats of the distribution.
        mass_RC: probability of each class of tokens; no columns where no classes were given.
    """

    cross_entropy_R: Tensor
    correct_R: Tensor
    confidence_R: Tensor
    entropy_R: Tensor
    mass_RC: Tensor


def row_predictions(
    hidden_BLD: Tensor, example: Example, head: Head, *, chunk_rows: int = 512, class_V: Tensor | None = None
) -> RowPredictions:
    """What a model makes of each supervised row; `class_V` numbers the class of each token, int64."""
    hidden_RD = hidden_BLD.flatten(0, 1)[example.row_R]
    chunks = zip(hidden_RD.split(chunk_rows), example.target_R.split(chunk_rows), strict=True)
    parts = [predictions(head(hidden), target, class_V) for hidden, target in chunks]
    return RowPredictions(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def predictions(logits_RV: Tensor, target_R: Tensor, class_V: Tensor | None = None) -> RowPredictions:
    """The same of logits [R, V]; an id at -inf is never predicted."""
    law_RV = (logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()).log_softmax(dim=-1)
    best_R, likeliest_R = law_RV.max(dim=-1)
    chance_RV = law_RV.exp()
    mass_RC = law_RV.new_zeros(len(law_RV), 0 if class_V is None else int(class_V.max()) + 1)
    return RowPredictions(
        cross_entropy_R=-law_RV.gather(-1, target_R[:, None])[:, 0],
        correct_R=likeliest_R == target_R,
        confidence_R=best_R.exp(),
        entropy_R=torch.special.entr(chance_RV).sum(dim=-1),
        mass_RC=mass_RC if class_V is None else mass_RC.index_add(1, class_V, chance_RV),
    )


def _cross_entropy(logits_RV: Tensor, target_R: Tensor) -> Tensor:
    """Nats of each row, in float32 at least."""
    wide_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    return F.cross_entropy(wide_RV, target_R, reduction="none")


@dataclass(frozen=True, eq=False)
class _Rows:
    """What the supervised rows are measured by.

    Attributes:
        target_R: the token that each is to predict.
        lesson: of a teacher, or None.
        counts_correct: whether it is asked which rows predict their token.
    """

    target_R: Tensor
    lesson: Lesson | None
    counts_correct: bool

    def values(self, logits_RV: Tensor, chunk: slice) -> Tensor:
        """Of the rows of a chunk: cross-entropy, weighted divergence (a row's loss is their sum), correctness."""
        cross_entropy_R = _cross_entropy(logits_RV, self.target_R[chunk])
        divergence_R = correct_R = torch.zeros_like(cross_entropy_R)
        if self.lesson is not None:
            divergence_R = self.lesson.weight * self.lesson.divergence(logits_RV, chunk)
        if self.counts_correct:
            correct_R = (logits_RV.detach().argmax(dim=-1) == self.target_R[chunk]).to(cross_entropy_R.dtype)
        return torch.stack([cross_entropy_R, divergence_R, correct_R])


class _ChunkedLoss(torch.autograd.Function):
    """sum(scale * (cross-entropy + divergence)), chunk by chunk, with its gradients taken on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        rows: _Rows,
        scale_R: Tensor,
        head: Head,
        chunk_rows: int,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        gradient_RD = torch.empty_like(hidden_RD)
        gradients: list[Tensor] = []
        values: list[Tensor] = []
        # In half precision a factor per token would vanish before a loss scaler sees it; a power of two rounds nothing.
        unit = torch.ldexp(torch.ones_like(scale_R[0]), scale_R.abs().max().frexp().exponent)
        for start in range(0, len(scale_R), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            with torch.enable_grad():
                hidden = hidden_RD[chunk].detach().requires_grad_()
                values_PR = rows.values(head(hidden), chunk)
                loss_R = values_PR[0] if rows.lesson is None else values_PR[0] + values_PR[1]
                factor_R = (scale_R[chunk] / unit).to(loss_R.dtype)
                gradient_RD[chunk], *rest = torch.autograd.grad(loss_R, [hidden, *parameters], factor_R)
            values.append(values_PR.detach())
            if gradients:
                for total, part in zip(gradients, rest, strict=True):
                    total += part
            else:
                gradients = rest
        values_PR = torch.cat(values, dim=1)
        ctx.save_for_backward(unit, gradient_RD, *gradients)
        ctx.mark_non_differentiable(values_PR)
        return ((values_PR[0] + values_PR[1]) * scale_R).sum(), values_PR

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        unit, gradient_RD, *gradients = ctx.saved_tensors
        factor = outputs[0] * unit
        return gradient_RD * factor, None, None, None, None, *(gradient * factor for gradient in gradients)
