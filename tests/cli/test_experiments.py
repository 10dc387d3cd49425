"""`unmask experiments list` on real runs: finished, interrupted, failed, damaged, a pipeline's stages."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from tests.cli.test_checkpoints import failed
from tests.training import recipes
from unmask import config
from unmask.cli.main import main
from unmask.reports.experiments import experiments
from unmask.runs import RunFolder
from unmask.settings.pipeline import PipelineRecipe
from unmask.settings.recipe import Recipe
from unmask.training.pipeline import plan, run
from unmask.training.run import train
from unmask.training.trainer import Trainer

LONG_AGO = time.time() - 3600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text beside it, and no run yet."""
    monkeypatch.chdir(tmp_path)
    recipes.write_text(tmp_path)
    return tmp_path / "runs"


def trained(folder: Path, name: str, *, method: str = "masked_diffusion", **training: Any) -> RunFolder:
    """A run of a one-layer model."""
    tree = recipes.tree(folder.parent, **{"keep_checkpoints": 1, "probe_rows": 0, **training})
    tree |= {"name": name, "output_dir": str(folder), "objective": {"method": method}}
    return train(config.from_tree(Recipe, tree)).run


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["experiments", "list", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[str]]:
    """The plain lines, by the name of the run."""
    assert main(["experiments", "list", *words]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["run", "method", "parameters", "steps", "bits/byte", "status"]
    return {name: cells for name, *cells in rows}


def numbers(run: RunFolder) -> int:
    """The weights of the final model, counted."""
    return sum(one.numel() for one in load_file(run.final / "model.safetensors").values())


def grow_old(run: RunFolder) -> None:
    """As if nobody had written into the run for an hour."""
    for file in (run.metrics, run.status, run.config):
        if file.exists():
            os.utime(file, (LONG_AGO, LONG_AGO))


def stopped(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, at: int, error: BaseException | None) -> None:
    """A run that ends before step `at`: by a signal, or by an error."""
    step = Trainer._step

    def ending(self: Trainer, number: int) -> Any:
        if number == at - 1 and error is not None:
            raise error
        self._signal = 15 if number == at - 1 else None
        return step(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", ending)
        if error is None:
            trained(folder, name)
            return
        with pytest.raises(type(error)):
            trained(folder, name, save_steps=2)


def test_runs_of_every_kind_beside_each_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    causal = trained(folder, "causal", method="autoregressive", steps=None, epochs=1)
    masked = trained(folder, "masked")
    stopped(monkeypatch, folder, "stopped", 4, None)
    stopped(monkeypatch, folder, "broken", 4, FloatingPointError("too large"))
    (folder / "comparisons").mkdir()
    capsys.readouterr()
    found = {one["name"]: one for one in listed(capsys)}
    assert list(found) == ["broken", "causal", "masked", "stopped"]
    planned = causal.saved_steps()[-1]
    scores = dict(recipes.records(causal, "eval/bits_per_byte"))
    assert found["causal"] == {
        "name": "causal",
        "path": "runs/causal",
        "status": "finished",
        "method": "autoregressive",
        "block_length": None,
        "parameters": numbers(causal),
        "is_adapter": False,
        "steps": planned,
        "saved_step": planned,
        "planned_steps": planned,
        "epochs": 1,
        "bits_per_byte": min(scores.values()),
        "stderr": 0.0,
        "best_step": min(scores, key=lambda step: scores[step]),
        "is_bound": False,
        "error": None,
        "problems": [],
    }
    score, step = min((value, step) for step, value in recipes.records(masked, "eval/bits_per_byte"))
    stderr = dict(recipes.records(masked, "eval/stderr"))[step]
    shown = lines(capsys)
    assert shown["causal"] == [
        "autoregressive",
        f"{numbers(causal):,}",
        f"{planned}/{planned}",
        f"{min(scores.values()):.4f}",
        "finished",
    ]
    assert shown["masked"] == [
        "masked_diffusion",
        f"{numbers(masked):,}",
        "6/6",
        f"<= {score:.4f} +- {stderr:.4f}",
        "finished",
    ]
    assert shown["stopped"][2] == "4/6" and shown["stopped"][4:] == ["interrupted", "saved at step 4"]
    assert shown["broken"][2] == "3/6"
    assert shown["broken"][4:] == ["failed", "FloatingPointError: too large"]
    assert (found["broken"]["steps"], found["broken"]["saved_step"]) == (3, 3), "eval_steps is 3, and improved"


def test_a_run_that_says_nothing_is_interrupted_after_a_while(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trained(folder, "killed", epochs=0.5, steps=None)
    made.status.write_text(json.dumps({"state": "running", "planned_steps": 40, "error": None}))
    assert [(one.status, one.planned_steps) for one in experiments(folder)] == [("running?", 40)]
    grow_old(made)
    assert [one.status for one in experiments(folder)] == ["interrupted"]
    # Runs from before there was a status: a final model is a finished run.
    made.status.unlink()
    (one,) = experiments(folder)
    assert (one.status, one.planned_steps, one.epochs) == ("finished", one.steps, 0.5)
    made.final.rename(folder / "elsewhere")
    (one,) = experiments(folder)
    assert (one.status, one.planned_steps, one.epochs) == ("interrupted", None, 0.5)
    capsys.readouterr()
    assert lines(capsys)["killed"][2] == f"{one.steps} of 0.5 epochs"


def test_a_run_that_has_not_saved_yet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    young = RunFolder(folder / "young")
    young.checkpoints.mkdir(parents=True)
    young.config.write_text(config.to_yaml(recipes.recipe(folder.parent)))
    assert [one.status for one in experiments(folder)] == ["running?"]
    young.metrics.write_text('{"step": 1, "train/loss": 3.0}\n{"step": 2, "train/lo')
    grow_old(young)
    assert lines(capsys)["young"] == ["masked_diffusion", "-", "1/6", "-", "interrupted", "nothing saved"]


def test_damage_is_told_and_keeps_no_other_run_from_the_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(folder, "whole", steps=2)
    capsys.readouterr()
    damages = {
        "binary": ("config.yaml", b"\xff\xfe", "is not valid YAML"),
        "cut": (
            "config.yaml",
            b"name: x\ntraining:\n  ste",
            "`training` in runs/cut/config.yaml must hold",
        ),
        "key": ("config.yaml", b"objectiv: {}", "Unknown key `objectiv`"),
        "no-config": ("config.yaml", None, "runs/no-config/config.yaml is missing"),
        "no-metrics": ("metrics.jsonl", None, "runs/no-metrics/metrics.jsonl is missing"),
        "line": ("metrics.jsonl", b'{"step": 1}\nnonsense\n{"step": 2}\n', "metrics.jsonl:2: not JSON"),
        "type": ("metrics.jsonl", b'{"step": "one"}\n', "metrics.jsonl:1: its `step` must be"),
        "no-final": ("final", None, "runs/no-final/final is missing"),
        "progress": ("checkpoints/step-2/training/progress.json", b"{", "progress.json is not valid JSON"),
        "no-progress": ("checkpoints/step-2/training/progress.json", None, "so it cannot be resumed"),
        "header": ("checkpoints/step-2/model.safetensors", b"12345678{}", "is damaged"),
        "tensor": (
            "checkpoints/step-2/model.safetensors",
            (8).to_bytes(8, "little") + b'{"a": 3}',
            "is damaged",
        ),
        "weights": ("checkpoints/step-2/model.safetensors", "half", "ends before its last tensor (model.safetensors)"),
        "no-weights": ("checkpoints/step-2/model.safetensors", None, "has no model.safetensors"),
        "model": ("checkpoints/step-2/config.json", b"[]", "must hold a JSON object"),
        "entry": ("checkpoints/step-2/config.json", b'{"diffusion": 3}', "must be an object"),
        "status": ("status.json", b"3", "must hold a JSON object"),
    }
    for name, (file, content, _) in damages.items():
        subprocess.run(["cp", "-r", str(whole.root), str(folder / name)], check=True)
        path = folder / name / file
        if content is None:
            subprocess.run(["rm", "-r", str(path)], check=True)
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    found = lines(capsys)
    assert found["whole"][4] == "finished" and len(found["whole"]) == 5
    assert len(found) == len(damages) + 1
    for name, (_, _, message) in damages.items():
        assert found[name][4] == "damaged", name
        assert message in found[name][5], name
    assert found["no-metrics"][3] == found["whole"][3].partition(" +-")[0], "the best score is kept in checkpoints too"
    assert found["no-config"][2] == "2/2", "what there is, is told"


def test_a_pipelines_stages_and_a_single_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = recipes.tree(folder.parent, steps=2)
    stage = {name: tree[name] for name in ("model", "data", "objective", "training", "evaluation", "sampling")}
    made = {"name": "both", "output_dir": str(folder), "pretraining": stage, "sft": stage}
    pipeline = config.from_tree(PipelineRecipe, made)
    assert run(plan(pipeline, ["pretraining", "sft"])) is None
    capsys.readouterr()
    found = lines(capsys)
    assert list(found) == ["both/pretraining", "both/sft"]
    assert all(cells[2] == "2/2" and cells[4] == "finished" for cells in found.values())
    assert list(lines(capsys, "runs/both")) == ["pretraining", "sft"]
    assert list(lines(capsys, "runs/both/sft")) == ["sft"]


def test_blocks_and_their_length(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(folder, "blocks", method="block_diffusion", steps=1)
    (one,) = experiments(folder)
    assert (one.block_length, one.is_bound) == (4, True)
    entry = json.loads((folder / "blocks/checkpoints/step-1/config.json").read_text())
    entry["diffusion"]["block_length"] = 1
    (folder / "blocks/checkpoints/step-1/config.json").write_text(json.dumps(entry))
    assert experiments(folder)[0].is_bound is False, "blocks of one token are predicted exactly"


def test_a_terminal_gets_a_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained(folder, "[bold]name", steps=1)
    (made.root / "config.yaml").write_text("[")
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=160, color_system=None, highlight=False)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    assert main(["experiments", "list"]) == 0
    text = written.getvalue()
    assert "[bold]name" in text and "damaged" in text and "is not valid YAML" in text
    assert text.splitlines()[0].split() == ["run", "method", "parameters", "steps", "bits/byte", "status"]


def test_the_commands_of_the_page_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    text = (root / "docs" / "experiments.md").read_text(encoding="utf-8")
    found = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^unmask train .+", text, re.MULTILINE)]
    assert len(found) == 10
    of_runs = [words for words in found if any(word.startswith("runs/") for word in words)]
    assert all(main([*words, "--print-config"]) == 0 for words in found if words not in of_runs)
    monkeypatch.chdir(tmp_path)
    RunFolder(Path("runs/NAME")).root.mkdir(parents=True)
    RunFolder(Path("runs/NAME")).config.write_text(config.to_yaml(recipes.recipe(tmp_path)))
    assert len(of_runs) == 4 and all(main([*words, "--print-config"]) == 0 for words in of_runs)


def test_nothing_to_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no folder runs. Name one that holds runs" in failed(capsys, "experiments", "list")
    folder.mkdir()
    assert main(["experiments", "list"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "There are no runs in runs.\n"
    assert listed(capsys) == []
    assert "nothing to do called `lst`. Did you mean `list`?" in failed(capsys, "experiments", "lst")


def test_no_framework_is_loaded(folder: Path) -> None:
    trained(folder, "one", steps=1)
    code = (
        "import sys\nfrom unmask.cli.main import main\nassert main(['experiments', 'list']) == 0\n"
        "print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert done.stdout.splitlines()[1].startswith("one\tmasked_diffusion\t")
