"""`status.json`: how a run stands, and how it ended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training import recipes
from unmask.errors import DataError, NonFiniteError
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training import run as runs
from unmask.training.run import train
from unmask.training.trainer import Trainer


def status(folder: Path) -> dict[str, Any]:
    return json.loads(RunFolder(folder / "tiny").status.read_text(encoding="utf-8"))


def test_a_run_says_how_far_it_goes_and_that_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes.write_text(tmp_path)
    seen = []
    monkeypatch.setattr(Trainer, "_log", lambda self, step, result: seen.append(status(tmp_path)))
    made = recipes.recipe(tmp_path, steps=None, epochs=1, eval_steps=None)
    outcome = train(made)
    planned = seen[0]["planned_steps"]
    assert seen == [{"state": "running", "planned_steps": planned, "error": None}] * planned, "epochs are counted"
    assert status(tmp_path) == {"state": "finished", "planned_steps": planned, "error": None}
    assert outcome.run.saved_steps()[-1] == planned


def test_a_damaged_record_costs_a_run_its_curves_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes.write_text(tmp_path)
    card = runs.model_card

    def damaged(recipe: Recipe, run: RunFolder) -> str:
        with run.metrics.open("a", encoding="utf-8") as file:
            file.write('{"step": 6, "train/lo\n')
        return card(recipe, run)

    monkeypatch.undo()
    monkeypatch.setattr(runs, "model_card", damaged)
    run = train(recipes.recipe(tmp_path, probe_rows=0)).run
    assert status(tmp_path)["state"] == "finished" and (run.samples / "final.md").is_file()
    assert "Damaged records were passed over" in (run.final / "README.md").read_text(encoding="utf-8")
    assert "The curves were not drawn" in capsys.readouterr().err


def test_a_failure_is_kept_until_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes.write_text(tmp_path)
    made = recipes.recipe(tmp_path)

    def fail(self: Trainer) -> int | None:
        raise NonFiniteError("Step 4 has loss nan.")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", fail)
        with pytest.raises(NonFiniteError):
            train(made)
    assert status(tmp_path) == {
        "state": "failed",
        "planned_steps": 6,
        "error": "NonFiniteError: Step 4 has loss nan.",
    }
    train(made, resume="auto")
    assert status(tmp_path)["state"] == "finished"


def test_a_start_that_fails_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    made = dataclasses.replace(recipes.recipe(tmp_path), output_dir=str(tmp_path / "new" / "runs"))
    with pytest.raises(DataError, match="No data"):
        train(made)
    assert not (tmp_path / "new").exists(), "the folders above it were made for it"
    recipes.write_text(tmp_path)
    train(made)  # the name is free


@pytest.mark.parametrize("how", ["signal", "twice"])
def test_a_run_that_is_stopped_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    recipes.write_text(tmp_path)
    made = recipes.recipe(tmp_path)
    step = Trainer._step

    def stopped(self: Trainer, number: int) -> Any:
        if how == "twice":
            raise KeyboardInterrupt
        self._signal = 15
        return step(self, number)

    monkeypatch.setattr(Trainer, "_step", stopped)
    if how == "twice":
        with pytest.raises(KeyboardInterrupt):
            train(made)
    else:
        assert train(made).signal == 15
    assert status(tmp_path) == {"state": "interrupted", "planned_steps": 6, "error": None}
