"""The tables of `docs/migration.md` on TDLM: its own words mean what the middle column says, a run has the metrics that
are named, and every flag, key, file and call of its description has a row."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.settings.test_tdlm_aliases import EXAMPLE
from tests.test_migration import COMMANDS, METRIC, RECIPE_KEY, ROWS, SPAN, Row, blocks, described, has_row, port_files
from tests.test_migration_port import leaf, means, of, paths_of, said
from tests.training import recipes
from unmask import config
from unmask.cli.main import main
from unmask.settings.recipe import Recipe
from unmask.settings.tdlm_aliases import RENAMED, TRANSLATED, UNUSED, recipe_of
from unmask.training.run import train

__all__ = ["port_files"]
KEYS, METRICS, FILES, PYTHON = "YAML of TDLM", "Metrics of TDLM", "Files of TDLM", "Python of TDLM"
MAIN, COMPARE = "`main.py` of TDLM", "`compare_models.py` of TDLM"
HEATMAPS, VALIDATOR = "`gradient_heatmap_generator.py` of TDLM", "`cosine_schedule_validator.py` of TDLM"


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("row", of(KEYS), ids=str)
def test_every_key_means_what_its_row_says(row: Row) -> None:
    key, value = said(row)
    tree, notes = recipe_of(nested(key, value), source="example_config.yaml", alone=True)
    recipe = config.load(Recipe, over=tree)
    if row.ours != "refused":
        assert all("drops the outputs" in note for note in notes)
        means(recipe, row)
        return
    assert key in UNUSED
    (note,) = notes
    assert note.startswith(f"example_config.yaml: `{key}` is not used: ")
    assert recipe == config.load(Recipe, over=recipe_of({}, source="example_config.yaml", alone=True)[0])
    said_there = re.sub(r"\W+", " ", note.partition("is not used: ")[2])
    assert re.sub(r"\W+", " ", row.note)[:25] == said_there[:25], "the table gives the reason that the program gives"


@pytest.mark.parametrize("row", of(MAIN), ids=str)
def test_every_flag_means_what_its_row_says(
    row: Row, port_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(port_files)
    if any(RECIPE_KEY.match(span) for span in SPAN.findall(row.ours)):
        words = shlex.split(f"{COMMANDS[MAIN]} {SPAN.findall(row.original)[0]}")[1:]
        assert main([*words, "--print-config"]) == 0
        Path("resolved.yaml").write_text(capsys.readouterr().out)
        means(config.load(Recipe, file="resolved.yaml"), row)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name in the metrics of a run with all three tiers."""
    folder = tmp_path_factory.mktemp("metrics")
    recipes.write_text(folder)
    every = {"detailed_metrics_steps": 2, "attention_analysis_steps": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unmask.training.trainer.measured_peak", lambda device, dtype: 1e11)
        run = train(recipes.recipe(folder, steps=2, **every)).run
    return {name for line in run.metrics.read_text(encoding="utf-8").splitlines() for name in json.loads(line)}


@pytest.mark.parametrize("row", of(METRICS), ids=str)
def test_a_run_has_the_metrics_of_every_row(row: Row, recorded: set[str]) -> None:
    named = [span for cell in (row.ours, row.note) for span in SPAN.findall(cell) if METRIC.match(span)]
    assert [name for name in named if name not in recorded] == []
    assert row.ours == "refused" or named or row.ours.startswith("`unmask ")


# --- nothing is left out ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme() -> str:
    return described("tdlm.md")


def test_every_flag_of_the_description_has_a_row(readme: str) -> None:
    code = "\n".join(blocks(readme, "bash"))
    commands = re.findall(r"^#? ?python (\w+\.py)([^\n]*)", code, re.MULTILINE)
    assert {script for script, _ in commands} == {
        "main.py",
        "compare_models.py",
        "gradient_heatmap_generator.py",
        "cosine_schedule_validator.py",
    }
    flags = {(script, flag) for script, rest in commands for flag in re.findall(r"--[\w-]+", rest)}
    assert len(flags) == 17
    assert [(script, flag) for script, flag in sorted(flags) if not has_row(f"`{script}` of TDLM", flag)] == []
    assert has_row(HEATMAPS, "run-20250811_123519-fh5nsj6z")


def test_every_key_of_the_description_has_a_row(readme: str) -> None:
    shown = [key for block in blocks(readme, "yaml") for key in paths_of(yaml.safe_load(block))]
    assert len(shown) == 32
    every = [re.sub(r"(metric_groups)\..*", r"\1", key) for key in paths_of(yaml.safe_load(EXAMPLE))]
    assert [key for key in {*shown, *every, *RENAMED, *TRANSLATED, *UNUSED} if not has_row(KEYS, key)] == []
    choices = (
        "model.training_mode: diffusion",
        "model.training_mode: autoregressive",
        "sampling.schedule_type: linear",
    )
    assert all(has_row(KEYS, choice) for choice in choices)


@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_the_example_of_the_description_loads_whole(
    readme: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = [block for block in blocks(readme, "yaml") if block.startswith("model:")]
    file = tmp_path / "example_config.yaml"
    file.write_text(example.replace('training_mode: "diffusion"', f'training_mode: "{mode}"'))
    assert main(["train", "--config", str(file), "--print-config"]) == 0
    captured = capsys.readouterr()
    (tmp_path / "resolved.yaml").write_text(captured.out)
    recipe = config.load(Recipe, file=tmp_path / "resolved.yaml")
    assert recipe.objective.method == ("masked_diffusion" if mode == "diffusion" else "autoregressive")
    expected = {
        "model.hidden_size": 128,
        "model.num_hidden_layers": 3,
        "data.context_length": 256,
        "training.batch_size": 16,
        "training.learning_rate": 2e-4,
        "training.epochs": 100,
        "training.logging_steps": 100,
        "training.detailed_metrics_steps": 500,
        "training.attention_analysis_steps": 2000,
        "training.save_steps": 1000,
        "training.keep_checkpoints": None,
        "training.report_to": (),
        "training.project": "tdlm-research",
        "evaluation.max_rows": None,
        "sampling.denoising_steps": 20 if mode == "diffusion" else None,
        "sampling.reveal_schedule": "cosine_squared" if mode == "diffusion" else None,
        "objective.t_granularity": "sequence" if mode == "diffusion" else None,
    }
    if mode == "autoregressive":
        expected["objective.t_granularity"] = Recipe().objective.t_granularity
    assert {path: leaf(recipe, path) for path in expected} == expected
    told = re.findall(r"`([\w.]+)` is not used", captured.err)
    assert sorted(told) == [
        "enhanced_evaluation.include_downstream",
        "sampling.confidence_threshold",
        "training.checkpoint_map_location",
    ]
    assert "unknown key" not in captured.err


def test_every_file_of_the_description_has_a_row(readme: str) -> None:
    (tree,) = re.findall(r"^```\n(tdlm/.*?)^```", readme, re.DOTALL | re.MULTILINE)
    names = [name for name in re.findall(r"[├└]── ([\w./]+)", tree) if name not in ("src/", "config/", "docs/")]
    assert len(names) == 22
    known = {row.original.strip("`") for row in of(FILES)}
    missing = [name for name in names if not any(one == name or one.endswith(f"/{name}") for one in known)]
    assert missing == []
    named = set(re.findall(r"(?:config|docs|src|checkpoints)/\w+\.(?:py|yaml|md|pt)", readme))
    assert "config/quick_test_ar.yaml" in named and sorted(name for name in named if name not in known) == []
    assert has_row(FILES, "research/heatmaps/run-id/") and "research/heatmaps/run-id/" in readme


def test_every_call_of_the_description_has_a_row(readme: str) -> None:
    (code,) = [block for block in blocks(readme, "python") if "DiffusionSampler" in block]
    spelled = "\n".join(row.original for row in of(PYTHON))
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
    assert names == {
        "load_config",
        "TinyDiffusionTransformer",
        "DiscreteDiffusion",
        "load",
        "load_state_dict",
        "DiffusionSampler",
        "generate",
    }
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    imported = {one.name for node in imports for one in node.names}
    words = {str(one.arg) for call in calls for one in call.keywords}
    assert words == {"batch_size", "max_length", "show_progress"}
    assert [name for name in names | imported if not re.search(rf"\b{name}\b", spelled)] == []
    assert [word for word in words if f"generate({word}=" not in spelled] == []
    assert "DiffusionTrainer" in spelled and "DiffusionTrainer" in readme


def test_every_metric_of_the_description_has_a_row(readme: str) -> None:
    tiers = readme.partition("## Metrics System")[2].partition("## Expected")[0]
    named = re.findall(r"^- \*\*(.+?)\*\*", tiers, re.MULTILINE)
    assert len(named) == 9
    spelled = [row.original for row in of(METRICS)]
    assert [name for name in named if not any(line.startswith(f"{name}:") for line in spelled)] == []


def test_the_tables_are_of_tdlm() -> None:
    assert len([row for row in ROWS if "TDLM" in row.section]) > 130
