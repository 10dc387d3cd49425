"""TensorBoard's files under the names and in the folder of the first TiDAR port, read back from the disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.training import recipes
from unmask.training.run import train
from unmask.training.tracking import PORT_TAGS, OwnTags, PortTags

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in the event files below a folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.rglob("events.out.tfevents.*"):
        events = event_accumulator.EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((one.step, one.value) for one in events.Scalars(tag))
    return found


def run_of(folder: Path, tags: str) -> tuple[dict[str, list[tuple[int, float]]], list[dict[str, float]]]:
    """Scalars and records of a run of three epochs of 5 steps."""
    recipes.write_text(folder, documents=40)
    made = recipes.recipe(folder, steps=15, report_to=["tensorboard"], tracker_tags=tags)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, neat_packing=False))
    run = train(made).run
    records = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return scalars(folder), records


@pytest.mark.filterwarnings("ignore")
def test_the_ports_tags_are_in_the_event_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOG_PATH", str(tmp_path / "boards"))
    found, records = run_of(tmp_path, "tidar_port")
    assert list((tmp_path / "boards").rglob("events.out.tfevents.*")), "in the folder that the port's variable names"
    trained = [one for one in records if "train/loss" in one]
    assert [step for step, _ in found["train/batch_loss"]] == list(range(1, 16))
    for name, tag in (("train/loss", "train/batch_loss"), ("train/learning_rate", "train/lr")):
        assert [value for _, value in found[tag]] == pytest.approx([one[name] for one in trained], rel=1e-6)
        assert name not in found
    assert "train/epoch_loss" in found and "eval/bits_per_byte" in found


@pytest.mark.filterwarnings("ignore")
def test_our_tags_are_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOG_PATH", raising=False)
    found, records = run_of(tmp_path, "unmask")
    assert list((tmp_path / "tiny").rglob("events.out.tfevents.*")), "in the run folder"
    assert [value for _, value in found["train/loss"]] == pytest.approx(
        [one["train/loss"] for one in records if "train/loss" in one], rel=1e-6
    )
    assert not any(tag in found for tag in PORT_TAGS.values())


def test_epochs_are_averaged_over_their_steps() -> None:
    """Eight rows in steps of four: two steps an epoch; the third record covers two steps."""
    tags = PortTags(rows=8, batch_size=4, start=0)
    losses = {1: 5.0, 2: 3.0, 4: 2.5, 5: 1.0}
    logged = [one for step, loss in losses.items() for one in tags({"step": step, "train/loss": loss})]
    assert logged == [
        (1, {"train/batch_loss": 5.0}),
        (2, {"train/batch_loss": 3.0}),
        (0, {"train/epoch_loss": 4.0}),
        (4, {"train/batch_loss": 2.5}),
        (1, {"train/epoch_loss": 2.5}),
        (5, {"train/batch_loss": 1.0}),
    ]


def test_steps_that_cross_an_epoch_end_it() -> None:
    """Ten rows in steps of four: the third step is the first one whose last row lies in the second epoch."""
    tags = PortTags(rows=10, batch_size=4, start=1)
    terms = {
        "train/ar_loss": 1.0,
        "train/diffusion_loss": 3.0,
        "train/ar_accuracy": 0.5,
        "train/diffusion_accuracy": 0.25,
    }
    logged = [one for step in (2, 3, 4, 5) for one in tags({"step": step, "train/loss": float(step)} | terms)]
    assert [one for one in logged if "train/epoch_loss" in one[1]] == [
        (0, {"train/epoch_loss": 2.0, "train/epoch_ar_loss": 1.0, "train/epoch_diffusion_loss": 3.0}),
        (1, {"train/epoch_loss": 4.0, "train/epoch_ar_loss": 1.0, "train/epoch_diffusion_loss": 3.0}),
    ]
    assert logged[0] == (
        2,
        {
            "train/batch_loss": 2.0,
            "train/batch_ar_loss": 1.0,
            "train/batch_diffusion_loss": 3.0,
            "train/batch_accuracy": 0.5,
            "train/batch_accuracy_diff": 0.25,
        },
    )
    assert list(OwnTags()({"step": 3, "train/loss": 1.0})) == [(3, {"train/loss": 1.0})]
