"""Malformed run folders: damaged records, checkpoints and links, names, locks, and what lies where a run should."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.malformed.case import Case, Command, check, is_root, parametrized, written
from tests.training import recipes
from unmask import config
from unmask.cli.main import main
from unmask.errors import CheckpointError, SettingsError
from unmask.reports.experiments import experiments
from unmask.runs import RunFolder
from unmask.settings.pipeline import PipelineRecipe
from unmask.settings.recipe import Recipe
from unmask.training import pipeline as pipelines
from unmask.training.run import train

RUN = RunFolder(Path("runs/tiny"))
_made: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A finished run of four steps, of which each case has a copy in runs/tiny of its working folder."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr("unmask.training.trainer.measured_peak", lambda device, dtype: 1e11)
        patch.setattr("unmask.reports.curves.loss_curves", lambda *_: None)
        recipes.write_text(Path("."))
        train(_recipe())
        _made.append(folder)
        yield
    _made.clear()


def _tree() -> dict[str, Any]:
    made = recipes.tree(Path("."), steps=4, eval_steps=2, probe_rows=0)
    made["data"] |= {"cache_dir": None}
    return made | {"output_dir": "runs"}


def _recipe(**top: Any) -> Recipe:
    return config.from_tree(Recipe, _tree() | top)


def _copied(folder: Path) -> RunFolder:
    shutil.copytree(_made[0], folder, symlinks=True, dirs_exist_ok=True)
    return RunFolder(folder / "runs" / "tiny")


def _damaged(name: str, file: str, content: bytes | str | None, message: str, *words: str) -> Command:
    """A run in which a file has another content, or is gone, and that is to go on."""

    def made(folder: Path) -> list[str]:
        root = _copied(folder).root
        path = root / file
        for there in (path.parent, path):  # a file or link makes way for a folder
            if there.is_symlink() or there.is_file():
                there.unlink()
            elif there == path and there.is_dir():
                shutil.rmtree(there)
        if content is not None:
            written(path.parent, path.name, content)
        return ["train", *(words or ("--resume", "runs/tiny", "training.steps=6"))]

    return Command(name, made, message)


def _changed(name: str, change: Callable[[RunFolder], object], message: str, *words: str) -> Command:
    """A run that is changed somehow, and that is to go on."""

    def made(folder: Path) -> list[str]:
        change(_copied(folder))
        return ["train", *(words or ("--resume", "runs/tiny", "training.steps=6"))]

    return Command(name, made, message)


def _relinked(run: RunFolder, name: str, target: str) -> None:
    (run.root / name).unlink()
    (run.root / name).symlink_to(target)


# --- the recipe of the run --------------------------------------------------------------------------------------------

CONFIGS = [
    _damaged("no config.yaml", "config.yaml", None, "The recipe of the run runs/tiny cannot be read"),
    _damaged("a config.yaml of bytes", "config.yaml", b"\xff\xfe\x00", "config.yaml is not valid YAML"),
    _damaged(
        "a config.yaml that is cut", "config.yaml", "name: tiny\ntraining: {steps", "config.yaml is not valid YAML"
    ),
    _damaged("a config.yaml that is a list", "config.yaml", "- 1\n", "must hold `key: value` pairs, got [1]"),
    _damaged("a config.yaml that is a number", "config.yaml", "3\n", "must hold `key: value` pairs"),
    _damaged("a config.yaml of an unknown key", "config.yaml", "trainin: {}\n", "Unknown key `trainin`"),
    _damaged("a config.yaml of a wrong type", "config.yaml", "training: {steps: x}\n", "must be an integer or null"),
    _damaged(
        "a config.yaml of a group that is a number", "config.yaml", "training: 3\n", "must hold `key: value` pairs"
    ),
    _damaged("an empty config.yaml", "config.yaml", "", "model.hidden_size: 16 -> 256"),
    _damaged("a config.yaml with a null byte", "config.yaml", "name: 'a\0b'\n", "config.yaml is not valid YAML"),
    _damaged("a config.yaml that is a folder", "config.yaml/x", "", "runs/tiny/config.yaml must be a file"),
    _changed(
        "a config.yaml that loops",
        lambda run: (run.config.unlink(), run.config.symlink_to("config.yaml")),
        "runs/tiny/config.yaml must be a file",
    ),
    _damaged("no config.yaml, in a recipe's place", "config.yaml", None, "is a folder and no run", "runs/tiny"),
]


# --- progress.json ----------------------------------------------------------------------------------------------------

PROGRESS = "checkpoints/step-4/training/progress.json"


def _progress(name: str, message: str, **values: Any) -> Command:
    def change(run: RunFolder) -> None:
        path = run.root / PROGRESS
        entry = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in entry.items() if value != "gone"}))

    return _changed(f"progress.json: {name}", change, message)


PROGRESSES = [
    _damaged("no progress.json", PROGRESS, None, "cannot be resumed: it has no training/progress.json"),
    _damaged("progress.json is cut", PROGRESS, "{", "progress.json is damaged"),
    _damaged("progress.json is empty", PROGRESS, "", "progress.json is damaged"),
    _damaged("progress.json is bytes", PROGRESS, b"\xff\xfe", "progress.json is damaged"),
    _damaged("progress.json is a list", PROGRESS, "[]", "it is no JSON object"),
    _damaged("progress.json is null", PROGRESS, "null", "it is no JSON object"),
    _damaged("progress.json is nested deeply", PROGRESS, "[" * 100_000, "progress.json is damaged"),
    _damaged("progress.json is a folder", f"{PROGRESS}/x", "", "cannot be resumed: it has no training/progress.json"),
    _damaged(
        "progress.json has a number of 5,000 digits", PROGRESS, f'{{"step": {"9" * 5000}}}', "progress.json is damaged"
    ),
    _damaged("the training folder is a file", "checkpoints/step-4/training", "x", "cannot be resumed"),
    _progress("no step", "its `best_step` 4 is later than its `step` 0", step="gone"),
    _progress("a step of text", "its `step` must be a whole number", step="4"),
    _progress("a negative step", "its `step` must be a whole number of at least 0 and is -4", step=-4),
    _progress("a step that is true", "its `step` must be a whole number of at least 0 and is True", step=True),
    _progress("half a step", "its `step` must be a whole number of at least 0 and is 4.5", step=4.5),
    _progress("an infinite step", "its `step` must be a whole number of at least 0 and is inf", step=float("inf")),
    _progress("the step of another folder", "is of step 2, which is not that of its folder", step=2, best_step=2),
    _progress("tokens of null", "its `tokens` must be a whole number", tokens=None),
    _progress("a score of text", "its `best_score` must be a finite number", best_score="low"),
    _progress("a score of NaN", "its `best_score` must be a finite number", best_score=float("nan")),
    _progress("a score without a step", "its `best_score` must be a finite number", best_step=None),
    _progress("a best step without a score", "its `best_score` must be a finite number", best_score=None),
    _progress("a best step in the future", "its `best_step` 9 is later than its `step` 4", best_step=9),
    _progress("a best step of text", "its `best_step` must be a whole number", best_step="4"),
    _progress("no window", "progress.json is damaged: 'window'", window="gone"),
    _progress("a window that is a number", "progress.json is damaged", window=3),
    _progress("a window of three", "progress.json is damaged", window=[1.0, 2, 3]),
    _progress("a window of text", "its `window` must be a sum and a count", window=["a", "b"]),
    _progress("terms that are a list", "its `terms` must be lists of numbers", terms=[]),
    _progress("terms of text", "its `terms` must be lists of numbers", terms={"ar": ["x"]}),
    _progress("scored on a number", "its `scored_on` must be text", scored_on=3),
    _progress("an unknown key", "unexpected keyword argument 'speed'", speed=3),
]


SPLITS = [
    _damaged("split.json is cut", "split.json", "{", "split.json is damaged"),
    _damaged("split.json is empty", "split.json", "", "split.json is damaged"),
    _damaged("split.json is bytes", "split.json", b"\xff\xfe", "split.json is damaged"),
    _damaged("split.json is a list", "split.json", "[]", "it is no JSON object"),
    _damaged("split.json holds nothing", "split.json", "{}", "so it is not known what the run holds out"),
    _damaged("split.json is nested deeply", "split.json", "[" * 100_000, "split.json is damaged"),
    _damaged("split.json is a folder", "split.json/x", "", "split.json must be a file"),
]


# --- checkpoints ------------------------------------------------------------------------------------------------------

STEP = "checkpoints/step-4"


def _tensors(name: str, file: str, change: Callable[[dict[str, torch.Tensor]], object], message: str) -> Command:
    def changed(run: RunFolder) -> None:
        tensors = load_file(run.root / STEP / file)
        change(tensors)
        save_file(tensors, run.root / STEP / file)

    return _changed(name, changed, message)


def _cut(file: str) -> Callable[[RunFolder], object]:
    return lambda run: os.truncate(run.root / STEP / file, (run.root / STEP / file).stat().st_size // 2)


CHECKPOINTS = [
    _damaged("a checkpoint without weights", f"{STEP}/model.safetensors", None, "step-4"),
    _damaged("a checkpoint without a configuration", f"{STEP}/config.json", None, "step-4"),
    _damaged("a checkpoint with half a configuration", f"{STEP}/config.json", '{"model_type": "qw', "config.json"),
    _damaged(
        "a checkpoint without an optimiser", f"{STEP}/training/optimizer.safetensors", None, "optimizer.safetensors"
    ),
    _damaged(
        "an optimiser of zeros",
        f"{STEP}/training/optimizer.safetensors",
        b"\0" * 64,
        "optimizer.safetensors is damaged",
    ),
    _damaged("an empty optimiser", f"{STEP}/training/optimizer.safetensors", b"", "optimizer.safetensors is damaged"),
    _damaged("weights of zeros", f"{STEP}/model.safetensors", b"\0" * 64, "step-4/model.safetensors is damaged"),
    _damaged("a tokenizer of nothing", f"{STEP}/tokenizer.json", "{", "tokenizer"),
    _changed("weights that are cut", _cut("model.safetensors"), "it ends before its last tensor"),
    _changed("an optimiser that is cut", _cut("training/optimizer.safetensors"), "optimizer.safetensors is damaged"),
    _tensors(
        "an optimiser of another model",
        "training/optimizer.safetensors",
        lambda tensors: tensors.update({"other:exp_avg": tensors.pop(sorted(tensors)[0])}),
        "is of another model",
    ),
    _tensors(
        "an optimiser of another shape",
        "training/optimizer.safetensors",
        lambda tensors: tensors.update({name: one[..., :1].clone() for name, one in tensors.items() if one.ndim > 1}),
        "does not fit",
    ),
    _tensors(
        "an optimiser without a moment",
        "training/optimizer.safetensors",
        lambda tensors: [tensors.pop(name) for name in sorted(tensors) if name.endswith("exp_avg_sq")],
        "does not fit",
    ),
    _tensors(
        "weights of another shape",
        "model.safetensors",
        lambda tensors: tensors.update({name: one[:1].clone() for name, one in tensors.items()}),
        "do not fit",
    ),
    _tensors(
        "weights without a tensor",
        "model.safetensors",
        lambda tensors: tensors.pop("model.norm.weight"),
        "model.norm.weight",
    ),
    _damaged("checkpoints that are a file", "checkpoints", "x", "checkpoints must be a folder"),
    _damaged("a checkpoint that is a file", "checkpoints/step-9", "x", "checkpoints/step-9 must be a folder"),
    _changed(
        "a checkpoint that dangles",
        lambda run: (run.checkpoints / "step-9").symlink_to("nowhere"),
        "checkpoints/step-9 must be a folder",
    ),
    _changed(
        "a checkpoint that loops",
        lambda run: (run.checkpoints / "step-9").symlink_to("step-9"),
        "checkpoints/step-9 must be a folder",
    ),
]


# --- what lies where something of a run should ------------------------------------------------------------------------


def _links_to_itself(run: RunFolder) -> None:
    shutil.rmtree(run.root)
    run.root.symlink_to("tiny")


PLACES = [
    *(
        _damaged(f"{name} is a file", name, "x", f"runs/tiny/{name} must be a folder")
        for name in ("plots", "samples", "final", "data", "branches")
    ),
    *(
        _damaged(f"{name} is a folder", f"{name}/x", "x", f"runs/tiny/{name} must be a file")
        for name in ("metrics.jsonl", "status.json")
    ),
    *(
        _damaged(f"{name} is a folder", f"{name}/x", "x", f"runs/tiny/{name} must be a link")
        for name in ("best", "latest")
    ),
    _damaged("a branch that says nothing", "branches/after-step-2/branch.json", "", "branch.json is damaged"),
    _damaged(
        "a branch of text", "branches/b/branch.json", '{"is_moved": 0, "after_step": "x"}', "branch.json is damaged"
    ),
    _damaged(
        "a branch of an infinite step", "branches/b/branch.json", '{"is_moved": 0, "after_step": Infinity}', "damaged"
    ),
    _damaged(
        "ids of trackers that are numbers",
        "trackers.json",
        '{"wandb": 3}',
        "trackers.json is damaged",
        "--resume",
        "runs/tiny",
        "training.steps=6",
        "training.report_to=tensorboard",
    ),
    _damaged(
        "no checkpoint and a final model",
        "checkpoints",
        None,
        "final model and no checkpoint",
        "runs/tiny",
        "--resume",
        "auto",
    ),
    _changed("a lock that is a folder", lambda run: (run.root / "lock.json").mkdir(), "runs/tiny cannot be locked"),
    _changed(
        "a lock that loops", lambda run: (run.root / "lock.json").symlink_to("lock.json"), "runs/tiny cannot be locked"
    ),
    _changed("a run folder that loops", _links_to_itself, "There is no checkpoint runs/tiny"),
    _changed(
        "an existing run, started anew", lambda run: None, "exists already. Go on with it: --resume auto", "runs/tiny"
    ),
]


def _place(name: str, place: Callable[[Path], object], message: str, *words: str) -> Command:
    """Something in the place of a new run's folder."""

    def made(folder: Path) -> list[str]:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(_tree() | {"name": "new", "output_dir": "out"}))
        shutil.copy(_made[0] / "text.jsonl", folder)
        place(folder)
        return ["train", "recipe.yaml", *words]

    return Command(name, made, message)


NEW_PLACES = [
    _place("output_dir is a file", lambda folder: written(folder, "out", ""), "out is a file, not a folder"),
    _place(
        "output_dir lies below a file",
        lambda folder: written(folder, "x", ""),
        "x is a file, not a folder",
        "output_dir=x/y",
    ),
    _place("the run folder is a file", lambda folder: written(folder, "out/new", ""), "out/new is a file"),
    _place(
        "the run folder dangles",
        lambda folder: ((folder / "out").mkdir(), (folder / "out/new").symlink_to("nowhere")),
        "out/new is a file or a broken link",
    ),
    _place(
        "the run folder loops",
        lambda folder: ((folder / "out").mkdir(), (folder / "out/new").symlink_to("new")),
        "out/new is a file or a broken link",
    ),
    _place("output_dir loops", lambda folder: (folder / "out").symlink_to("out"), "Too many levels of symbolic links"),
    _place("output_dir has a name too long", lambda folder: None, "File name too long", f"output_dir={'x' * 300}"),
    _place("output_dir is somebody's home", lambda folder: None, "Write it out", "output_dir=~nobody/runs"),
    _place("output_dir has a null byte", lambda folder: None, "output_dir must be a folder", 'output_dir="a\\0b"'),
    _place("output_dir has an escape", lambda folder: None, "output_dir must be a folder", 'output_dir="a\\x1bb"'),
    _place("checkpoints is a file", lambda folder: written(folder, "out/new/checkpoints", ""), "must be a folder"),
]


# --- names ------------------------------------------------------------------------------------------------------------


def _name(name: str, value: str, message: str) -> Case:
    return Case(f"a name that {name}", lambda folder: train(_recipe(name=value)), message, SettingsError)


NAMES = [
    _name("is empty", "", "name must be that of one folder inside output_dir. It is empty"),
    _name("is a dot", ".", "is output_dir itself, or the folder above it"),
    _name("is two dots", "..", "is output_dir itself, or the folder above it"),
    _name("is absolute", "/tmp/run", "has a separator in it"),
    _name("climbs", "../run", "has a separator in it"),
    _name("climbs and comes back", "a/../../b", "has a separator in it"),
    _name("has a separator", "a/b", "has a separator in it"),
    _name("has a separator of Windows", "a\\b", "has a separator in it"),
    _name("has a null byte", "a\0b", "characters in it that cannot be printed"),
    _name("has a line break", "a\nb", "characters in it that cannot be printed"),
    _name("has an escape", "a\x1b[2Jb", "characters in it that cannot be printed"),
    _name("has half a surrogate pair", "a\ud800", "characters in it that cannot be printed"),
    _name("turns the reading direction", "a\u202eb", "characters in it that cannot be printed"),
    _name("is too long", "x" * 201, "has at most 200 bytes, got 'xxxxxxxxxxxxxxxxxxxx'... of 201"),
    _name("is too long in bytes", "\u00e4" * 101, "has at most 200 bytes"),
    _name("is a space", " ", "has spaces around it"),
    _name("ends with a space", "run ", "has spaces around it"),
    _name("is hidden", ".run", "begins with a dot, a dash or a tilde"),
    _name("looks unfinished", ".partial-run", "begins with a dot, a dash or a tilde"),
    _name("looks like an option", "-rf", "begins with a dot, a dash or a tilde"),
    _name("looks like a home", "~", "begins with a dot, a dash or a tilde"),
    Case("a pipeline's name that climbs", lambda _: PipelineRecipe(name="../p"), "has a separator", SettingsError),
]


# --- what --resume and --fork name ------------------------------------------------------------------------------------


def _named(name: str, message: str, *words: str) -> Command:
    return _changed(name, lambda run: None, message, *words)


ARGUMENTS = [
    _named("a run that is not there", "There is no checkpoint runs/none", "--resume", "runs/none"),
    _named("the folder of all runs", "There is no checkpoint", "--resume", "nowhere/at/all"),
    _named(
        "a step that is not there", "The run runs/tiny has: step-2, step-4", "--resume", "runs/tiny/checkpoints/step-3"
    ),
    _named("the final model", "is no checkpoint of", "--resume", "runs/tiny/final"),
    _named("a file of the run", "is a file, and a checkpoint is a folder", "--resume", "runs/tiny/metrics.jsonl"),
    _named("the samples of the run", "is no checkpoint of", "--resume", "runs/tiny/samples"),
    _named("a checkpoint of another run", "is no checkpoint of runs/other", "--resume", "runs/tiny/best", "name=other"),
    _named(
        "a step with too many digits", "There is no checkpoint", "--resume", f"runs/tiny/checkpoints/step-{'9' * 20}"
    ),
    _named("a folder that is no run", "runs is a folder and no run", "runs"),
    _named("a fork without a name", "name must be that of one folder", "runs/tiny", "--fork", ""),
    _named("a fork that climbs", "has a separator in it", "runs/tiny", "--fork", "../../x"),
    _named("a fork under its own name", "exists already", "runs/tiny", "--fork", "tiny"),
    _named(
        "a fork of another shape", "model.hidden_size: 16 -> 32", "runs/tiny", "--fork", "x", "model.hidden_size=32"
    ),
    _named("a fork of nothing", "There is no checkpoint runs/none", "--resume", "runs/none", "--fork", "x"),
    _named("another seed", "seed: 0 -> 1", "--resume", "runs/tiny", "seed=1"),
    _named("another method", "method: masked_diffusion -> tidar", "--resume", "runs/tiny", "objective.method=tidar"),
    _changed(
        "a best that dangles",
        lambda run: _relinked(run, "best", "nowhere"),
        "There is no checkpoint runs/tiny/best",
        "runs/tiny",
        "--resume",
        "runs/tiny/best",
        "--eval-only",
    ),
    _changed(
        "a best that loops",
        lambda run: _relinked(run, "best", "best"),
        "There is no checkpoint runs/tiny/best",
        "runs/tiny",
        "--resume",
        "runs/tiny/best",
        "--eval-only",
    ),
]

COMMANDS = [*CONFIGS, *PROGRESSES, *SPLITS, *CHECKPOINTS, *PLACES, *NEW_PLACES, *ARGUMENTS]


@parametrized(COMMANDS)
def test_a_run_folder_is_refused(case: Command, tmp_path: Path) -> None:
    check(case, tmp_path)


@parametrized(NAMES)
def test_a_name_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- what is only unusual ---------------------------------------------------------------------------------------------


def _goes_on(name: str, change: Callable[[RunFolder], object]) -> Case:
    """A run whose damage does not matter: it goes on, and its links are right."""

    def use(folder: Path) -> list[str]:
        run = _copied(folder)
        change(run)
        with contextlib.redirect_stdout(None):
            assert main(["train", "--resume", "runs/tiny", "training.steps=5"]) == 0
        steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines() if "train/loss" in line]
        assert steps == [*range(steps[0], 6)]
        return [os.readlink(run.root / "latest"), str(run.final.is_dir())]

    return Case(name, use, value=["checkpoints/step-5", "True"])


def _append(run: RunFolder, content: bytes) -> None:
    with run.metrics.open("ab") as file:
        file.write(content)


UNUSUAL = [
    _goes_on("a lock of garbage", lambda run: written(run.root, "lock.json", b"\xff\0garbage")),
    _goes_on("a lock of a killed process", lambda run: written(run.root, "lock.json", '{"pid": 1, "host": "x"}')),
    _goes_on("a lock that dangles", lambda run: (run.root / "lock.json").symlink_to("nowhere")),
    _goes_on("links that dangle", lambda run: [_relinked(run, name, "nowhere") for name in ("best", "latest")]),
    _goes_on("links that loop", lambda run: [_relinked(run, name, name) for name in ("best", "latest")]),
    _goes_on("links that are gone", lambda run: [(run.root / name).unlink() for name in ("best", "latest")]),
    _goes_on("a folder of too many digits", lambda run: (run.checkpoints / f"step-{'9' * 20}").mkdir()),
    _goes_on("a folder of a step with zeros", lambda run: (run.checkpoints / "step-007").mkdir()),
    _goes_on("a folder of a raised digit", lambda run: (run.checkpoints / "step-\u00b2").mkdir()),
    _goes_on("a folder of a negative step", lambda run: (run.checkpoints / "step--9").mkdir()),
    _goes_on("a file of notes beside", lambda run: written(run.checkpoints, "notes.txt", "mine")),
    _goes_on("records that are cut", lambda run: _append(run, b'{"step": 4, "train/lo')),
    _goes_on("records of bytes", lambda run: _append(run, b"\xff\xfe\n")),
    _goes_on("records of other things", lambda run: _append(run, b'[1]\n{"step": true}\n{"step": "x"}\n{}\n\n')),
    _goes_on("records of a number of 5,000 digits", lambda run: _append(run, b'{"step": ' + b"9" * 5000 + b"}\n")),
    _goes_on("records nested deeply", lambda run: _append(run, b"[" * 100_000 + b"\n")),
    _goes_on("no records", lambda run: run.metrics.unlink()),
    _goes_on("a damaged status", lambda run: written(run.root, "status.json", "{")),
    _goes_on("a damaged text.json", lambda run: written(run.root, "text.json", "[]")),
    _goes_on("no text.json", lambda run: (run.root / "text.json").unlink()),
    _goes_on("half a save of another machine", lambda run: (run.checkpoints / ".partial-step-9~new-0-1-1-1").mkdir()),
    _goes_on(
        "a damaged checkpoint that is not resumed",
        lambda run: written(run.root, "checkpoints/step-2/training/progress.json", ""),
    ),
]


@parametrized(UNUSUAL)
def test_a_run_goes_on(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# --- the list of runs -------------------------------------------------------------------------------------------------


def _listed(name: str, status: str, content: bytes | str | None, problem: str = "") -> Case:
    """A run with a status of its own beside a whole one: what the list says of it."""

    def use(folder: Path) -> tuple[str, bool, str]:
        run = _copied(folder)
        shutil.copytree(run.root, run.root.parent / "whole", symlinks=True)
        if content is None:
            run.status.unlink()
            run.status.symlink_to("status.json")
        else:
            run.status.write_bytes(content if isinstance(content, bytes) else content.encode())
        with contextlib.redirect_stdout(None):
            assert main(["experiments", "list"]) == 0
        found, other = experiments(run.root.parent)
        return found.status, problem in " ".join(found.problems), other.status

    return Case(f"a status that {name}", use, value=(status, True, "finished"))


LISTED = [
    _listed("is cut", "damaged", "{", "status.json is not valid JSON"),
    _listed("is empty", "damaged", "", "status.json is not valid JSON"),
    _listed("is a list", "damaged", "[]", "must hold a JSON object"),
    _listed("is null", "damaged", "null", "must hold a JSON object"),
    _listed("is text", "damaged", '"finished"', "must hold a JSON object"),
    _listed("is bytes", "damaged", b"\xff\xfe", "status.json"),
    _listed("is nested deeply", "damaged", "[" * 100_000, ""),
    _listed("has a number of 5,000 digits", "damaged", f'{{"planned_steps": {"9" * 5000}}}', ""),
    _listed("has an unknown state", "damaged", '{"state": "sleeping"}', "state 'sleeping'"),
    _listed("has a state that is a list", "damaged", '{"state": ["running"]}', "state ['running']"),
    _listed("has an error that is a number", "damaged", '{"state": "failed", "error": 3}', "error 3"),
    _listed("plans text", "damaged", '{"state": "running", "planned_steps": "x"}', "planned_steps 'x'"),
    _listed("plans less than nothing", "damaged", '{"state": "running", "planned_steps": -1}', "planned_steps -1"),
    _listed("plans a half", "damaged", '{"state": "running", "planned_steps": 1.5}', "planned_steps 1.5"),
    _listed("says nothing", "finished", "{}"),
    _listed("loops", "damaged", None, "status.json"),
]


@parametrized(LISTED)
def test_no_status_takes_the_list_down(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_what_a_status_says_is_not_obeyed_by_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _copied(tmp_path)
    run.status.write_text(json.dumps({"state": "failed", "error": "\x1b[2Jgone\nunmask\tx"}))
    shutil.rmtree(run.final)
    monkeypatch.chdir(tmp_path)
    assert main(["experiments", "list"]) == 0
    assert "\\x1b[2Jgone\\nunmask\\tx" in capsys.readouterr().out.splitlines()[1]


# --- what others hold, and may not be touched -------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"pid": [], "host": 3}', b"9" * 5000, b"[" * 9000])
def test_a_lock_that_somebody_holds_and_does_not_describe(content: bytes, tmp_path: Path) -> None:
    run = _copied(tmp_path)
    with (run.root / "lock.json").open("wb") as file:
        file.write(content)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        message = "being worked on by another process, of which its lock.json does not say more"
        with contextlib.chdir(tmp_path), pytest.raises(CheckpointError, match=message):
            train(_recipe(), resume="auto")


@pytest.mark.skipif(is_root(), reason="permissions do not bind root")
@pytest.mark.parametrize("closed", ["runs", "runs/tiny", "runs/tiny/checkpoints"])
def test_folders_without_permissions(closed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _copied(tmp_path)
    (tmp_path / closed).chmod(0)
    try:
        with contextlib.chdir(tmp_path):
            assert main(["train", "--resume", "runs/tiny"]) == 2
            main(["experiments", "list"])
    finally:
        (tmp_path / closed).chmod(0o755)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"trained_by": 3}'])
def test_a_stage_whose_start_is_damaged_is_out_of_date(content: str, tmp_path: Path) -> None:
    run = _copied(tmp_path)
    stage = {name: value for name, value in _tree().items() if name not in ("name", "output_dir")}
    tree = {"name": "p", "output_dir": str(tmp_path), "pretraining": stage}
    shutil.move(run.root, tmp_path / "p" / "pretraining")
    written(tmp_path / "p" / "pretraining", "start.json", content)
    with pytest.raises(CheckpointError, match=r"start\.json|is out of date"):
        pipelines.plan(config.from_tree(PipelineRecipe, tree), ("pretraining",))
