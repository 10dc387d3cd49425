"""Schedules against closed forms, finite differences and their own inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.references import likelihood as reference
from unmask.diffusion.schedules import Schedule

SCHEDULES = [
    Schedule("linear"),
    Schedule("cosine"),
    Schedule("cosine_squared"),
    Schedule("polynomial", 2.0),
    Schedule("polynomial", 0.7),
]
any_schedule = st.sampled_from(SCHEDULES)


@given(any_schedule, st.floats(1e-3, 1 - 1e-3))
def test_values_equal_the_closed_forms(schedule: Schedule, t: float) -> None:
    point = torch.tensor(t, dtype=torch.float64)
    assert float(schedule.alpha(point)) == pytest.approx(reference.alpha(schedule.name, t, schedule.power), abs=1e-12)
    assert float(schedule.weight(point)) == pytest.approx(reference.weight(schedule.name, t, schedule.power), rel=1e-9)


@given(any_schedule, st.floats(0.01, 0.99))
def test_rate_is_the_derivative(schedule: Schedule, t: float) -> None:
    step = 1e-6
    either_side = torch.tensor([t - step, t + step], dtype=torch.float64)
    below, above = schedule.alpha(either_side).tolist()
    # Central differences in float64: truncation ~ step^2, rounding ~ 1e-16 / step.
    assert float(schedule.rate(torch.tensor(t, dtype=torch.float64))) == pytest.approx(
        (below - above) / 2 / step, rel=1e-6
    )


@given(any_schedule, st.floats(1e-6, 1 - 1e-6))
def test_time_inverts_the_masking_probability(schedule: Schedule, masked: float) -> None:
    share = torch.tensor(masked, dtype=torch.float64)
    # acos near its ends loses half of the digits.
    assert float(schedule.masked(schedule.time(share))) == pytest.approx(masked, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_is_visible_at_0_and_masked_at_1_and_falls_between(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == pytest.approx(1, abs=1e-15)
    assert float(alpha[-1]) == pytest.approx(0, abs=1e-15)
    assert bool((alpha.diff() < 0).all())
