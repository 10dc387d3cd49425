"""The teacher of a distillation: loaded beside the student, frozen, and asked for a lesson about every example.

Every process holds it whole; it is no part of what is trained, saved or resumed.
"""

from __future__ import annotations

import torch

from unmask.data.batch import Batch
from unmask.errors import SettingsError
from unmask.models import loading
from unmask.models.backbone import AttentionBackend, Backbone
from unmask.models.loading import Checkpoint
from unmask.objectives.distillation import Lesson, lesson
from unmask.objectives.example import Example
from unmask.runs import locate
from unmask.settings.objective import ObjectiveSettings


class Teacher:
    """A frozen causal model with the student's vocabulary.

    Args:
        settings: name the teacher, the weight of its lessons and their temperature.
        student: whose vocabulary it must have.
        device: where it works.
        attention_backend: as of the student.

    Raises:
        SettingsError: the model does not read text causally, or has another vocabulary.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        student: Checkpoint,
        *,
        device: torch.device,
        attention_backend: AttentionBackend,
    ) -> None:
        assert settings.teacher is not None, "a distillation names its teacher"
        checkpoint = loading.load(locate(settings.teacher), device=device, attention_backend=attention_backend)
        _check(settings.teacher, checkpoint, student)
        self.settings = settings
        self.backbone = checkpoint.backbone.eval().requires_grad_(False)

    def lesson(self, batch: Batch, example: Example) -> Lesson:
        """What it says about an example of a batch."""
        weight, temperature = self.settings.distillation_weight, self.settings.distillation_temperature
        return lesson(self.backbone, batch, example, weight=weight, temperature=temperature)


def _check(name: str, teacher: Checkpoint, student: Checkpoint) -> None:
    entry = teacher.backbone.diffusion
    if not entry.is_causal:
        raise SettingsError(
            f"objective.teacher {name} is a {entry.method} model, and a teacher predicts each token from the text "
            "before it. Give an autoregressive or TiDAR model."
        )
    ours, theirs = (_predicted(one.backbone) for one in (student, teacher))
    if ours != theirs:
        raise SettingsError(
            f"objective.teacher {name} predicts {len(theirs):,} token ids and the student {len(ours):,}; "
            f"{len(ours ^ theirs):,} of them belong to one of the two only. A teacher needs the student's vocabulary."
        )
    if teacher.tokenizer is None or student.tokenizer is None:
        return
    words = [
        {token: number for token, number in one.tokenizer.get_vocab().items() if number in ours}  # type: ignore[union-attr]
        for one in (student, teacher)
    ]
    different = sorted(
        token for token in words[0].keys() | words[1].keys() if words[0].get(token) != words[1].get(token)
    )
    if different:
        raise SettingsError(
            f"The tokenizer of objective.teacher {name} is not the student's: {len(different):,} tokens have other ids "
            f"there, such as {', '.join(map(repr, different[:3]))}. A teacher needs the student's vocabulary."
        )


def _predicted(backbone: Backbone) -> set[int]:
    """The ids that a model may predict."""
    return set(range(backbone.diffusion.vocabulary_size)) - {backbone.diffusion.mask_token_id}
