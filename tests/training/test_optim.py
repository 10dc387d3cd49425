"""The course of the learning rate."""

from __future__ import annotations

import math

import pytest

from unmask.errors import SettingsError
from unmask.settings.training import TrainingSettings
from unmask.training.optim import learning_rate


@pytest.mark.parametrize(("ratio", "total", "warmup"), [(0.29, 100, 29), (0.01, 2999, 29), (0.005, 100, 1), (0, 50, 1)])
def test_a_share_of_the_steps_is_warm_up(ratio: float, total: int, warmup: int) -> None:
    by_ratio = TrainingSettings(learning_rate=2e-4, warmup_ratio=ratio)
    by_steps = TrainingSettings(learning_rate=2e-4, warmup_steps=warmup)
    for step in range(total):
        assert learning_rate(step, total, by_ratio) == learning_rate(step, total, by_steps)
    assert learning_rate(warmup - 1, total, by_ratio) == 2e-4
    assert learning_rate(0, total, by_ratio) == pytest.approx(2e-4 / warmup)


def test_tdlms_course_falls_by_a_cosine_to_its_lowest_rate() -> None:
    """CosineAnnealingLR(T_max = 90, eta_min) behind ten steps of warm-up, written out."""
    settings = TrainingSettings(learning_rate=2e-4, warmup_ratio=0.1, min_lr_ratio=0.1)
    for step in (9, 10, 50, 98):
        done = step - 9
        expected = 2e-5 + (2e-4 - 2e-5) * (1 + math.cos(math.pi * done / 90)) / 2
        assert learning_rate(step, 100, settings) == pytest.approx(expected)


def test_steps_and_share_of_the_warm_up_are_not_both_given() -> None:
    with pytest.raises(SettingsError, match="Set either warmup_steps or warmup_ratio, got 10 and "):
        TrainingSettings(warmup_steps=10, warmup_ratio=0.05)
