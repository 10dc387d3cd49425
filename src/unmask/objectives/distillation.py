"""Distillation: how far a student's predictions are from a teacher's, row by row and in chunks.

In: a clean batch and its example; out: a `Lesson`, with which the one loss adds to each row's cross-entropy the
divergence KL(teacher || student) of the two predictions of the row's token, at temperature T and scaled by T^2
(Hinton, Vinyals, Dean, arXiv 1503.02531). The teacher reads the clean text causally, so it predicts a token one row
before the token's place: `Example.source_R` says where, for next-token rows and for masks alike.
Shapes: B rows, L length, R supervised rows, D width of the teacher, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask import attention
from unmask.data.batch import Batch
from unmask.models.backbone import Backbone
from unmask.objectives.example import Example


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a teacher has to say about the rows of an example.

    Attributes:
        hidden_RD: its hidden state where it predicts each row's token; any where it does not.
        taught_R: bool; whether it predicts the row's token (not that of a document's first one).
        head: its hidden states to logits, the ids that it never predicts at -inf.
        weight: of the divergence, beside the cross-entropy.
        temperature: at which both are compared.
    """

    hidden_RD: Tensor
    taught_R: Tensor
    head: Callable[[Tensor], Tensor]
    weight: float
    temperature: float

    def divergence(self, logits_RV: Tensor, rows: slice) -> Tensor:
        """T^2 KL(teacher || student) in nats of some rows, from the student's logits of these; 0 where not taught."""
        with torch.no_grad():
            teacher_RV = self.head(self.hidden_RD[rows])
        return divergence(logits_RV, teacher_RV, self.temperature) * self.taught_R[rows]


@torch.no_grad()
def lesson(teacher: Backbone, batch: Batch, example: Example, *, weight: float, temperature: float) -> Lesson:
    """What the teacher says about an example of a batch, at the example's device.

    Args:
        teacher: a causal model in evaluation mode, on the example's device.
        batch: the clean rows that the example was made of.
        example: whose `source_R` points into them.
        weight: of the divergence.
        temperature: at which the predictions are compared.
    """
    batch = batch.to(example.ids_BL.device)
    taught_R = example.source_R >= 0
    source_R = example.source_R.clamp(min=0)
    layout = attention.causal(batch.document_BL)
    mask = teacher.render(layout, layout)
    read_R = source_R.unique() if len(source_R) else None
    hidden_BLD = teacher(batch.ids_BL, layout.position_ids, mask, read_R=read_R)
    return Lesson(hidden_BLD.flatten(0, 1)[source_R], taught_R, teacher.logits, weight, temperature)


def divergence(student_RV: Tensor, teacher_RV: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each row in nats, in float32 at least; differentiable in the student.

    The two may have unequal numbers of spare rows behind their vocabulary; ids at -inf in both cost nothing.
    """
    shared = min(student_RV.shape[-1], teacher_RV.shape[-1])
    wide = torch.float64 if student_RV.dtype == torch.float64 else torch.float32
    student_RV = (student_RV[:, :shared].to(wide) / temperature).log_softmax(dim=-1)
    teacher_RV = (teacher_RV[:, :shared].to(wide) / temperature).log_softmax(dim=-1)
    excess_RV = (teacher_RV - student_RV).masked_fill(teacher_RV == float("-inf"), 0.0)
    return (teacher_RV.exp() * excess_RV).sum(dim=-1) * temperature**2
