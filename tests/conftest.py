"""What the tests share: the folder of real data, one thread per worker, tiny models."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# With `--dist loadfile` a file is one unit of work: the longest begin first, or one process ends alone.
_LONGEST = ("test_readme.py", "test_benchmarks.py", "test_trainer.py", "test_chat.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and trained checkpoints; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("UNMASK_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"there is no shared data at {folder}; set UNMASK_SHARED_DATA")
    return folder


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without what takes longer than to train a tiny model: to time matrix products, and to draw curves."""
    monkeypatch.setattr("unmask.training.trainer.measured_peak", lambda device, dtype: 1e11)
    monkeypatch.setattr("unmask.reports.curves.loss_curves", lambda *_: None)
