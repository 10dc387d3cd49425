"""A newcomer's first ten minutes, run as they are in a copy of the clone, at the tiny scale."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "first_steps.sh"
TOOLS = Path(sys.executable).parent


def run(folder: Path, scale: str) -> subprocess.CompletedProcess[str]:
    """In an environment that has `unmask` already, as after `make setup`."""
    for name in ("examples", "recipes"):
        shutil.copytree(ROOT / name, folder / name)
    environment = os.environ | {
        "FIRST_STEPS_SCALE": scale,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
    }
    words = ["bash", f"examples/{SCRIPT.name}"]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=400)


@pytest.mark.slow
def test_the_first_steps_lead_from_three_sources_to_three_models(tmp_path: Path) -> None:
    done = run(tmp_path, "tiny")
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    folder = tmp_path / "runs" / "first-steps"
    for name in ("book", "docstrings", "chat"):
        assert (folder / name / "final" / "model.safetensors").is_file(), name
        assert f"{name}\t" in done.stdout, "the list of runs has it"
    assert done.stdout.count("\tfinished") == 3
    resumed = re.search(r"resumed from .*/book/checkpoints/step-\d+ at step (\d+)", done.stderr)
    assert "Stopped and saved" in done.stderr and resumed is not None and 10 <= int(resumed[1]) < 200
    assert "The statement" in done.stdout and " is executed." in done.stdout and "Return a" in done.stdout
    assert done.stderr.count("\n$ ") >= 10, "every command is shown"


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "huge")
    assert done.returncode == 2 and done.stdout == ""
    assert "full or tiny, got huge" in done.stderr
