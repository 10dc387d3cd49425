"""What the training tests share."""

import pytest


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing this machine's matrix products takes longer than a tiny run."""
    monkeypatch.setattr("unmask.training.trainer.measured_peak", lambda device, dtype: 1e11)
