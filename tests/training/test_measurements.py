"""Metrics in training: when they are written, on which rows, and that measuring changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import recipes
from unmask import config
from unmask.errors import SettingsError
from unmask.lm import DiffusionLM
from unmask.models.backbone import Backbone
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training.measurements import Measurements
from unmask.training.run import train

METHODS = ["masked_diffusion", "block_diffusion", "tidar"]


def run_of(folder: Path, method: str = "masked_diffusion", *, name: str = "tiny", **training: Any) -> RunFolder:
    if not (folder / "text.jsonl").exists():
        recipes.write_text(folder)
    tree = recipes.tree(folder, **training) | {"name": name, "objective": {"method": method}}
    return train(config.from_tree(Recipe, tree)).run


def probed(run: RunFolder) -> list[dict[str, Any]]:
    return [one for one in recipes.every_record(run) if "probe/mask_accuracy" in one]


@pytest.mark.parametrize("method", METHODS)
def test_each_tier_is_written_when_it_is_due(tmp_path: Path, method: str) -> None:
    run = run_of(tmp_path, method, steps=6, logging_steps=2, detailed_metrics_steps=3, attention_analysis_steps=6)
    found = {one["step"]: one for one in probed(run)}
    assert list(found) == [2, 3, 4, 6]
    assert [step for step, one in found.items() if "probe/gradient/norm" in one] == [3, 6]
    assert [step for step, one in found.items() if "probe/denoising/forwards" in one] == [6]
    assert all(0 <= one["probe/mask_accuracy"] <= 1 for one in found.values())
    assert not any("probe/" in key for one in recipes.every_record(run) if "train/loss" in one for key in one)
    assert ("probe/schedule/excess_2" in found[6]) == (method == "block_diffusion")
    assert ("probe/schedule/excess_8" in found[6]) == (method == "masked_diffusion")


@pytest.mark.parametrize("method", METHODS)
def test_measuring_changes_no_weight(tmp_path: Path, method: str) -> None:
    loud = run_of(tmp_path, method, name="loud", detailed_metrics_steps=2, attention_analysis_steps=3, dropout=0.1)
    quiet = run_of(tmp_path, method, name="quiet", probe_rows=0, dropout=0.1)
    assert probed(loud) and not probed(quiet)
    losses = [recipes.records(run, "train/loss") for run in (loud, quiet)]
    assert losses[0] == losses[1]
    first, second = (DiffusionLM.from_pretrained(run.root).backbone.network.state_dict() for run in (loud, quiet))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_resumed_run_writes_each_record_once_and_the_same(tmp_path: Path) -> None:
    whole = run_of(tmp_path, name="whole", steps=6, detailed_metrics_steps=2)
    run_of(tmp_path, name="halves", steps=6, detailed_metrics_steps=2)
    tree = recipes.tree(tmp_path, steps=6, detailed_metrics_steps=2) | {"name": "halves"}
    folder = RunFolder(tmp_path / "halves")
    again = train(config.from_tree(Recipe, tree), resume=str(folder.checkpoints / "step-3")).run
    assert json.dumps(probed(again)) == json.dumps(probed(whole))


def test_micro_batches_change_no_metric(tmp_path: Path) -> None:
    one, other = (run_of(tmp_path, name=f"by-{size}", micro_batch_size=size, logging_steps=6) for size in (8, 3))
    (first,), (second,) = probed(one), probed(other)
    for key, value in first.items():
        assert second[key] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), key


def test_null_stands_where_nothing_was_measured(tmp_path: Path) -> None:
    run = run_of(tmp_path, "tidar", detailed_metrics_steps=6)
    line = run.metrics.read_text(encoding="utf-8")
    assert '"probe/gradient/low_norm": null' in line and "NaN" not in line
    assert math.isnan(probed(run)[-1]["probe/corruption/low_accuracy"])
    assert probed(run)[-1]["probe/corruption/low_count"] == 0


def test_the_weights_of_an_unweighted_loss_are_no_bound(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    found = {}
    for weighting in ("elbo", "unweighted"):
        tree = recipes.tree(tmp_path, steps=1, learning_rate=0.0) | {"name": weighting}  # one model under both
        tree["objective"] = {"method": "masked_diffusion", "weighting": weighting}
        (found[weighting],) = probed(train(config.from_tree(Recipe, tree)).run)
    assert found["elbo"]["probe/loss_weight/mean"] == pytest.approx(1)
    assert found["unweighted"]["probe/loss_weight/mean"] < 0.7  # the mean share of masked tokens
    for key in ("probe/mask_accuracy", "probe/corruption/low_count"):
        assert found["elbo"][key] == found["unweighted"][key], "the probe itself is the same"


def test_autoregression_has_no_masks_to_measure(tmp_path: Path) -> None:
    assert probed(run_of(tmp_path, "autoregressive", detailed_metrics_steps=2)) == []


def test_steps_without_rows_are_refused() -> None:
    with pytest.raises(SettingsError, match="probe_rows"):
        recipes.recipe(Path("nowhere"), probe_rows=0, detailed_metrics_steps=5)


@pytest.mark.parametrize("name", ["detailed_metrics_steps", "attention_analysis_steps"])
def test_sharded_weights_have_the_first_tier_alone(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.training.measurements.is_sharded", lambda accelerator: True)
    with pytest.raises(SettingsError, match=name):
        run_of(tmp_path, steps=1, **{name: 1})
    # A process holds nothing of the head between two forwards.
    monkeypatch.setattr(Backbone, "head_weight", property(lambda self: torch.empty(0)))
    assert probed(run_of(tmp_path, name="first", steps=1))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_single_rows_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length would take a graph of its own, and soon none were left for the training."""
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_network(self: Backbone) -> None:
        self._through_layers = torch.compile(self._through_layers, backend=keep)

    monkeypatch.setattr(Backbone, "compile_network", compile_network)
    monkeypatch.setattr(Measurements, "_predictions", lambda self, **_: {"mask_accuracy": 0.0})
    recipes.write_text(tmp_path)
    options = {"detailed_metrics_steps": 1, "attention_analysis_steps": 1, "compile": True}
    tree = recipes.tree(tmp_path, steps=1, **options)
    tree["data"]["validation_fraction"] = 0
    (found,) = probed(train(config.from_tree(Recipe, tree)).run)
    assert "probe/gradient/norm" in found and "probe/denoising/forwards" in found
    assert len(graphs) == 1, "the training's own"
