"""Distillation: the divergence by hand, the alignment of teacher and student, and logits in chunks only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from tests.block_cases import Document, batch_of
from tests.references import tidar_loss
from tests.references.llada import softmax
from tests.references.stock import MASK, stock
from tests.tidar_cases import backbone, example, settings, texts
from unmask.models.backbone import Backbone
from unmask.objectives.distillation import Lesson, divergence, lesson
from unmask.objectives.example import Example
from unmask.objectives.loss import Loss
from unmask.training.module import TrainingModule

ROWS = [[Document(2, 7), Document(0, 6, 0, 2)], [Document(0, 9)], [Document(3, 4)]]
SPLIT: dict[str, Any] = {"tidar_layout": "split", "clean_ratio": 0.4}
ONES = torch.ones(2, dtype=torch.float64)


def taught(student: Backbone, made: Example, one: Lesson, *, chunk_rows: int = 5) -> Loss:
    found = TrainingModule(student, chunk_rows=chunk_rows)(made, ONES, one)
    assert isinstance(found, Loss)
    return found


def lesson_of(teacher: Backbone, made: Example, *, weight: float = 1.0, temperature: float = 1.0) -> Lesson:
    return lesson(teacher, batch_of(ROWS), made, weight=weight, temperature=temperature)


@pytest.mark.parametrize("kind", [{}, SPLIT, {"masking": "random"}], ids=str)
def test_a_teacher_equal_to_the_student_costs_nothing_on_next_tokens(kind: dict[str, Any]) -> None:
    student, made = backbone(4), example(batch_of(ROWS), settings(**kind), 4)
    found = taught(student, made, lesson_of(backbone(4), made))
    assert found.divergence_T[0] == pytest.approx(0, abs=1e-9)
    assert found.divergence_T[1] > 1
    # One row off, the same teacher predicts other tokens.
    for shift in (-1, 1):
        source_R = torch.where(made.source_R > 0, made.source_R + shift, made.source_R)
        wrong = taught(student, made, lesson_of(backbone(4), dataclasses.replace(made, source_R=source_R)))
        assert wrong.divergence_T[0] > 1


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", [{}, SPLIT], ids=str)
def test_the_divergence_of_the_masks_by_hand(kind: dict[str, Any], temperature: float) -> None:
    """The teacher's causal row before each place against the student's row in the place, block by block."""
    made = example(batch_of(ROWS), settings(**kind), 4)
    teacher, student = stock("llama"), stock("qwen3")
    expected = 0.0
    for _, _, ids, supervised, room in texts(batch_of(ROWS)):
        with torch.no_grad():
            before = teacher(input_ids=torch.tensor([ids]), use_cache=False).logits[0].tolist()
        head = max(1, min(int(len(ids) * 0.4), len(ids) - 1)) if kind else 0
        for start in range(head, len(ids), 4):
            size = min(4, len(ids) + room - start)
            rows = tidar_loss.block_logits(student, ids[: head if kind else start], [MASK] * size, start)
            for place in range(max(start, 1), min(start + 4, len(ids))):
                if place in supervised:
                    expected += kl(before[place - 1], rows[place - start], temperature)
    found = taught(backbone(4), made, lesson_of(backbone(4, "llama"), made, weight=0.3, temperature=temperature))
    assert float(found.divergence_T[1]) == pytest.approx(0.3 * temperature**2 * expected, rel=1e-8)


def kl(teacher: list[float], student: list[float], temperature: float) -> float:
    p, q = (softmax([z / temperature for z in row[:MASK]]) for row in (teacher, student))
    return math.fsum(one * math.log(one / other) for one, other in zip(p, q, strict=True))


def test_the_gradient_is_that_of_cross_entropy_and_divergence() -> None:
    student, teacher, made = backbone(4), backbone(4, "llama"), example(batch_of(ROWS), settings(), 4)
    taught(student, made, lesson_of(teacher, made, weight=0.5, temperature=2.0)).total.backward()
    found = {name: one.grad for name, one in student.network.named_parameters()}
    assert all(one.grad is None for one in teacher.network.parameters())
    student.network.zero_grad()

    def rows_of(network: Backbone, ids: Tensor, layout: Any, row_R: Tensor) -> Tensor:
        hidden = network(ids, layout.position_ids, network.render(layout, layout))
        return network.logits(hidden.flatten(0, 1)[row_R])[:, :MASK]

    batch = batch_of(ROWS)
    logits_RV = rows_of(student, made.ids_BL, made.layout, made.row_R)
    with torch.no_grad():
        clean = teacher.clean_layout(batch.document_BL)
        teacher_RV = rows_of(teacher, batch.ids_BL, clean, made.source_R.clamp(min=0)) / 2
    log_q, log_p = (logits_RV / 2).log_softmax(-1), teacher_RV.log_softmax(-1)
    kl_R = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * 4 * (made.source_R >= 0)
    (F.cross_entropy(logits_RV, made.target_R, reduction="none") + 0.5 * kl_R).sum().backward()
    for name, wanted in student.network.named_parameters():
        torch.testing.assert_close(found[name], wanted.grad, rtol=1e-6, atol=1e-8)


def test_the_first_token_of_a_document_has_no_teacher() -> None:
    made = example(batch_of([[Document(0, 4), Document(0, 3)]]), settings(), 4)
    one = lesson(backbone(4), batch_of([[Document(0, 4), Document(0, 3)]]), made, weight=1.0, temperature=1.0)
    assert one.taught_R.tolist() == [True] * 5 + [False, True, True, True, False, True, True]
    rows = torch.zeros(len(made.row_R), MASK + 1, dtype=torch.float64)
    assert (one.divergence(rows, slice(None)) == 0).tolist() == (~one.taught_R).tolist()


def test_logits_exist_in_chunks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, made = backbone(4), backbone(4, "llama"), example(batch_of(ROWS), settings(), 4)
    whole = taught(student, made, lesson_of(teacher, made), chunk_rows=1000)
    sizes: list[int] = []
    logits = Backbone.logits

    def watched(self: Backbone, hidden_RD: Tensor) -> Tensor:
        sizes.append(len(hidden_RD))
        return logits(self, hidden_RD)

    monkeypatch.setattr(Backbone, "logits", watched)
    parts = taught(student, made, lesson_of(teacher, made), chunk_rows=3)
    assert max(sizes) == 3
    assert sum(sizes) == 2 * len(made.row_R)
    torch.testing.assert_close(parts.divergence_T, whole.divergence_T, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.sum_T, whole.sum_T, rtol=1e-12, atol=0)


def test_spare_rows_and_excluded_ids_cost_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    expected = divergence(student[:, [0, 1, 3]], teacher[:, [0, 1, 3]], 1.5)
    student, teacher = student.requires_grad_(), teacher.clone()
    hidden_student = student.index_fill(1, torch.tensor([2, 4, 5]), float("-inf"))
    teacher[:, [2, 4]] = float("-inf")
    found = divergence(hidden_student, teacher[:, :5], 1.5)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert bool((student.grad[:, [2, 4, 5]] == 0).all())
    assert float(divergence(teacher[:, :5], teacher[:, :5], 0.7).abs().max()) < 1e-12


def test_bfloat16_logits_are_compared_in_float32() -> None:
    rows = tiny.random_ids(3, 5).bfloat16()
    assert divergence(rows, rows.flip(-1), 1.0).dtype == torch.float32
