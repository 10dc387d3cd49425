"""Going on, going back and forking on the command line, with nothing but the run's folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.cli.test_checkpoints import failed
from tests.training import recipes
from tests.training.test_opening import files_of
from unmask.cli.main import main
from unmask.runs import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe file in the working folder, of a run in runs/."""
    monkeypatch.chdir(tmp_path)
    recipes.write_text(tmp_path)
    tree = recipes.tree(tmp_path, steps=4, eval_steps=2) | {"name": "tiny", "output_dir": "runs"}
    Path("tiny.yaml").write_text(yaml.safe_dump(tree))
    return "tiny.yaml"


def steps(run: RunFolder) -> list[int]:
    return [step for step, _ in recipes.records(run, "train/loss")]


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "runs/tiny"],
        ["--resume", "runs/tiny/latest"],
        ["--resume", "runs/tiny/checkpoints/step-4"],
        ["runs/tiny", "--resume", "auto"],
        ["runs/tiny/", "--resume", "runs/tiny"],
        ["tiny.yaml", "--resume", "auto"],
        ["tiny.yaml", "--resume", "runs/tiny"],
        ["runs/tiny/config.yaml", "--resume", "auto"],
    ],
)
def test_a_run_goes_on(recipe: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    capsys.readouterr()
    assert main(["train", *words, "training.steps=5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["runs/tiny"] and "at step 4" in captured.err
    assert steps(RunFolder(Path("runs/tiny"))) == [1, 2, 3, 4, 5]
    assert [path.name for path in Path("runs").iterdir()] == ["tiny"]


def test_a_run_that_was_moved_goes_on_where_it_lies(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", recipe]) == 0
    Path("elsewhere").mkdir()
    Path("runs/tiny").rename("elsewhere/other name")
    assert main(["train", "--resume", "elsewhere/other name", "training.steps=5"]) == 0
    run = RunFolder(Path("elsewhere/other name"))
    assert steps(run) == [1, 2, 3, 4, 5] and not list(Path("runs").iterdir())
    assert yaml.safe_load(run.config.read_text())["name"] == "other name"
    monkeypatch.chdir(run.root)
    assert main(["train", "--resume", ".", "training.steps=6"]) == 0
    assert steps(RunFolder(Path("."))) == [1, 2, 3, 4, 5, 6]


def test_going_back_on_the_command_line(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    assert main(["train", "--resume", "runs/tiny/checkpoints/step-2"]) == 0
    assert "went back to step 2: what the run had done after it lies in runs/tiny/branches/after-step-2 now" in (
        capsys.readouterr().err
    )
    assert RunFolder(Path("runs/tiny")).saved_steps() == [2, 4]
    branch = "runs/tiny/branches/after-step-2"
    message = failed(capsys, "train", "runs/tiny", "--resume", f"{branch}/checkpoints/step-4", "name=tiny")
    assert "is no checkpoint of runs/tiny" in message and "--fork NEW_NAME" in message
    # The branch is a run of its own, for those who want to go on with it after all.
    assert main(["train", "--resume", branch, "training.steps=5"]) == 0
    assert steps(RunFolder(Path(branch))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["runs/tiny"], "step-4"),
        (["tiny.yaml"], "step-4"),
        (["--resume", "runs/tiny/checkpoints/step-2"], "step-2"),
        (["tiny.yaml", "--resume", "runs/tiny/checkpoints/step-2"], "step-2"),
    ],
)
def test_a_fork(recipe: str, words: list[str], source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    before = files_of(Path("runs/tiny"))
    capsys.readouterr()
    assert main(["train", *words, "--fork", "new", "training.steps=1", "objective.schedule=cosine"]) == 0
    assert capsys.readouterr().out.split() == ["runs/new"]
    assert files_of(Path("runs/tiny")) == before
    written = yaml.safe_load(Path("runs/new/config.yaml").read_text())
    assert Path(written["model"]["from_pretrained"]).name == source
    assert steps(RunFolder(Path("runs/new"))) == [1]
    assert main(["train", "--resume", "runs/new", "training.steps=2"]) == 0
    capsys.readouterr()
    assert "exists already" in failed(capsys, "train", *words, "--fork", "new")


def test_a_dry_run_of_a_resume_and_of_a_fork_leaves_nothing(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    before = files_of(Path("."))
    capsys.readouterr()
    assert main(["train", "runs/tiny", "--resume", "auto", "--dry-run", "training.steps=9"]) == 0
    assert "# changed: training.steps: 4 -> 9" in capsys.readouterr().out
    assert main(["train", "runs/tiny", "--fork", "new", "--dry-run"]) == 0
    capsys.readouterr()
    assert "seed: 0 -> 1" in failed(capsys, "train", "runs/tiny", "--resume", "auto", "--dry-run", "seed=1")
    assert files_of(Path(".")) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_that_a_stopped_run_prints_goes_on(recipe: str, number: signal.Signals) -> None:
    words = ["train", recipe, "training.steps=4000", "training.eval_steps=4000", "name=a run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask", *words], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    run = RunFolder(Path("runs/a run"))
    deadline = time.monotonic() + 120
    while not run.metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    (line,) = [line for line in errors.splitlines() if "Go on with: " in line]
    command = shlex.split(line.partition("Go on with: ")[2])
    assert command == ["unmask", "train", "--resume", "runs/a run"]
    done = len(steps(run))
    with contextlib.redirect_stdout(None):
        assert main([*command[1:], f"training.steps={done + 2}"]) == 0
    assert steps(run) == [*range(1, done + 3)]
