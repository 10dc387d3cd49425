"""What the tests share: the folder of real data, one thread per worker, tiny models."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text and trained checkpoints; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("UNMASK_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"there is no shared data at {folder}; set UNMASK_SHARED_DATA")
    return folder
