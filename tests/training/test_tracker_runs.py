"""What a tracker is told of a run when it begins: project, name, tags; wandb itself is a stand-in behind accelerate."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from tests.training import recipes
from unmask.errors import SettingsError
from unmask.settings.training import TrainingSettings
from unmask.training.run import train
from unmask.training.tracking import run_options


class Run:
    """A run of wandb."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A module in the place of wandb, which keeps what it is told."""
    told = types.SimpleNamespace(started=[], config={}, run=Run())

    def init(**options: Any) -> Run:
        told.started.append(options)
        return told.run

    module = types.ModuleType("wandb")
    vars(module).update(init=init, config=types.SimpleNamespace(update=lambda values, **_: told.config.update(values)))
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("unmask.training.distributed.require", lambda package, **_: None)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, LoggerType.WANDB])
    return told


@pytest.mark.filterwarnings("ignore")
def test_a_run_has_its_project_name_and_tags_at_wandb(tmp_path: Path, wandb: types.SimpleNamespace) -> None:
    recipes.write_text(tmp_path)
    tags = ["experiment", "diffusion"]
    made = recipes.recipe(tmp_path, steps=2, report_to=["wandb"], project="tdlm-research", run_tags=tags)
    run = train(made).run
    (told,) = wandb.started
    assert told == {"project": "tdlm-research", "name": "tiny", "tags": tags, "id": told["id"], "resume": "allow"}
    assert wandb.config["objective.method"] == "masked_diffusion"
    records = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    losses = [(one["step"], one["train/loss"]) for one in records if "train/loss" in one]
    assert [(step, values["train/loss"]) for step, values in wandb.run.logged if "train/loss" in values] == losses


@pytest.mark.filterwarnings("ignore")
def test_a_run_without_tags_has_none(tmp_path: Path, wandb: types.SimpleNamespace) -> None:
    recipes.write_text(tmp_path)
    train(recipes.recipe(tmp_path, steps=1, report_to=["wandb"]))
    assert [sorted(told) for told in wandb.started] == [["id", "name", "project", "resume"]]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_goes_on_at_wandb_and_one_that_goes_back_begins_another(
    tmp_path: Path, wandb: types.SimpleNamespace
) -> None:
    recipes.write_text(tmp_path)
    made = recipes.recipe(tmp_path, steps=4, save_steps=2, eval_steps=4, report_to=["wandb"])
    run = train(made).run
    longer = dataclasses.replace(made, training=dataclasses.replace(made.training, steps=5))
    train(longer, resume="auto")
    train(longer, resume=str(run.checkpoints / "step-2"))
    first, again, back = [told["id"] for told in wandb.started]
    assert first == again != back
    assert json.loads((run.root / "trackers.json").read_text()) == {"wandb": back}
    train(dataclasses.replace(made, name="other"))
    assert wandb.started[-1]["id"] not in (first, back)


def test_each_tracker_is_told_in_its_own_words() -> None:
    settings = TrainingSettings(report_to=("swanlab", "tensorboard", "trackio", "mlflow"), run_tags=("a",))
    assert run_options(settings, "mine", {"swanlab": "7"}) == {
        "swanlab": {"experiment_name": "mine", "id": "7", "resume": "allow", "tags": ["a"]},
        "trackio": {"name": "mine", "resume": "allow"},
        "mlflow": {"run_name": "mine"},
    }
    assert run_options(settings, "mine", {"swanlab": "7", "mlflow": "8"})["mlflow"] == {"run_id": "8"}


def test_tags_belong_to_trackers_that_have_them() -> None:
    TrainingSettings(run_tags=("a",))
    TrainingSettings(run_tags=("a",), report_to=("tensorboard", "swanlab"))
    with pytest.raises(SettingsError, match="run_tags belong to the trackers wandb and swanlab, got report_to mlflow"):
        TrainingSettings(run_tags=("a",), report_to=("mlflow",))
