"""What the tests of the command line share."""

import pytest


@pytest.fixture(autouse=True)
def quick(quick_runs: None) -> None:
    """Every run is a tiny one."""
