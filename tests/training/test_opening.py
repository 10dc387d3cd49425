"""Run folders: one process at a time, links that follow the records, branches that are closed, starts that fail."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training import recipes
from unmask import config
from unmask.errors import CheckpointError, DataError, SettingsError
from unmask.runs import RunFolder
from unmask.settings.pipeline import PipelineRecipe
from unmask.settings.recipe import Recipe
from unmask.training import pipeline as pipelines
from unmask.training import run as runs
from unmask.training.checkpoint import read_progress
from unmask.training.lock import LOCK, held
from unmask.training.run import dry_run, train
from unmask.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recipes.write_text(tmp_path)
    return tmp_path


def changed(made: Recipe, **training: Any) -> Recipe:
    return dataclasses.replace(made, training=dataclasses.replace(made.training, **training))


def files_of(root: Path) -> dict[str, bytes | str]:
    """Everything below a folder: files with their bytes, links with their targets."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def tensors_of(root: Path) -> dict[str, bytes | str]:
    """The tensors below a folder, and what belongs to them; a tokenizer that was loaded is written otherwise."""
    return {path: one for path, one in files_of(root).items() if path.endswith((".safetensors", "progress.json"))}


# --- one process at a time --------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_told_who_holds_the_run(folder: Path) -> None:
    made = recipes.recipe(folder)
    seen: list[str] = []

    def meanwhile(self: Trainer, step: int, result: Any) -> None:
        before = files_of(folder / "tiny")
        for resume in (None, "auto", str(folder / "tiny" / "latest")):
            with pytest.raises(CheckpointError) as caught:
                train(made, resume=resume)
            seen.append(str(caught.value))
        assert files_of(folder / "tiny") == before, "the refused ones touched nothing"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_log", meanwhile)
        train(made)
    assert len(seen) == 18
    for message in seen:
        assert f"is being worked on by process {os.getpid()} on " in message and " since 20" in message
        assert "name=NEW_NAME" in message
    assert not (folder / "tiny" / LOCK).exists()


_HOLDER = """
import sys, time
from pathlib import Path
from unmask.training.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_holder_holds_nothing(folder: Path) -> None:
    (folder / "tiny").mkdir()
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(folder / "tiny")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(CheckpointError, match=f"worked on by process {process.pid} on"):
        train(recipes.recipe(folder))
    process.kill()
    process.wait()
    process.stdout.close()
    assert json.loads((folder / "tiny" / LOCK).read_text())["pid"] == process.pid, "what it wrote is still there"
    train(recipes.recipe(folder))


def test_a_lock_whose_file_its_last_holder_removes_is_taken_anew(tmp_path: Path) -> None:
    """Who opened the file before it was removed must not hold a lock that nobody else sees."""
    taken: list[int] = []
    lock = fcntl.flock

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        lock(descriptor, operation)
        if not taken:
            (tmp_path / LOCK).unlink()
        taken.append(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcntl.flock", removed_meanwhile)
        with held(tmp_path):
            assert (tmp_path / LOCK).is_file() and len(taken) == 2
            with pytest.raises(CheckpointError, match="is being worked on"), held(tmp_path):
                pass


def test_a_pipeline_is_held_as_a_whole(folder: Path) -> None:
    stage = {name: value for name, value in recipes.tree(folder).items() if name not in ("name", "output_dir")}
    tree = {"name": "p", "output_dir": str(folder), "pretraining": stage}
    pipeline = config.from_tree(PipelineRecipe, tree)
    planned = pipelines.plan(pipeline, ("pretraining",))
    (folder / "p").mkdir()
    with held(folder / "p"), pytest.raises(CheckpointError, match="p is being worked on by process"):
        pipelines.run(planned)
    assert not (folder / "p" / "pretraining").exists()
    assert pipelines.run(planned) is None
    again = pipelines.plan(pipeline, ("pretraining",), restart="pretraining")
    with held(folder / "p" / "pretraining"), pytest.raises(CheckpointError, match="is being worked on by process"):
        pipelines.run(again)
    assert (folder / "p" / "pretraining" / "final").is_dir()


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", ["older", "none", "dangling", "looping", "swapped"])
def test_links_follow_from_the_records_of_the_checkpoints(folder: Path, links: str) -> None:
    made = recipes.recipe(folder, save_steps=1, eval_steps=2)
    run = train(made).run
    best = min(recipes.records(run, "eval/bits_per_byte"), key=lambda one: one[1])[0]
    final = files_of(run.final)
    shutil.rmtree(run.final)
    targets = {"older": ("step-1", "step-1"), "swapped": ("step-6", f"step-{best}"), "dangling": ("step-77", "step-78")}
    for name, target in zip(("best", "latest"), targets.get(links, ("", "")), strict=True):
        (run.root / name).unlink()
        if links == "looping":
            (run.root / name).symlink_to(name)
        elif target:
            (run.root / name).symlink_to(Path("checkpoints") / target)
    train(made, resume="auto")
    assert [os.readlink(run.root / name) for name in ("best", "latest")] == [
        f"checkpoints/step-{best}",
        "checkpoints/step-6",
    ]
    assert files_of(run.final) == final


def test_a_best_score_whose_checkpoint_is_gone_counts_no_more(folder: Path) -> None:
    """Else nothing would be the best any more, and the final model would stand under the score of another."""
    made = recipes.recipe(folder, steps=4, save_steps=1, eval_steps=2)
    run = train(made).run
    progress = run.checkpoints / "step-4" / "training" / "progress.json"
    entry = json.loads(progress.read_text())
    progress.write_text(json.dumps(entry | {"best_score": 1e-9, "best_step": 1}))
    shutil.rmtree(run.checkpoints / "step-1")
    train(changed(made, steps=6), resume="auto")
    assert run.checkpoint("best") == (run.checkpoints / "step-6").resolve()
    score = dict(recipes.records(run, "eval/bits_per_byte"))[6]
    assert f"| 6 | {score:.4f} |" in (run.final / "README.md").read_text()


# --- going back -------------------------------------------------------------------------------------------------------


def worse(folder: Path, **training: Any) -> Recipe:
    """A run whose second evaluation is its best."""
    return recipes.recipe(
        folder, **{"learning_rate": 1.0, "lr_schedule": "constant", "eval_steps": 2, "steps": 8, **training}
    )


def test_going_back_closes_the_branch_and_keeps_what_is_written_then(folder: Path, capsys: Any) -> None:
    run = train(worse(folder, keep_checkpoints=1)).run
    best = run.checkpoint("best")
    assert best is not None and best.name != "step-8"
    step = int(best.name.removeprefix("step-"))
    abandoned = {
        name: one for name, one in files_of(run.root).items() if name.startswith(("checkpoints/step-8", "final"))
    }
    lines = run.metrics.read_text().splitlines()
    capsys.readouterr()
    slower = worse(folder, keep_checkpoints=1, learning_rate=0.001)
    there: list[list[int]] = []
    save = Trainer._save

    def watched(self: Trainer, step: int) -> None:
        save(self, step)
        there.append(run.saved_steps())
        assert os.readlink(run.root / "latest") == f"checkpoints/step-{step}" and (run.root / "latest").is_dir()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_save", watched)
        train(slower, resume=str(run.root / "best"))
    assert [steps[-1] for steps in there] == list(range(step + 2, 9, 2)), "each one stays until the next one is there"
    branch = run.branches / f"after-step-{step}"
    assert f"went back to step {step}: what the run had done after it lies in {branch} now" in capsys.readouterr().err
    kept = files_of(branch)
    assert {name: kept[name] for name in abandoned} == abandoned
    assert kept["metrics.jsonl"].decode().splitlines() == lines  # type: ignore[union-attr]
    assert json.loads(kept["branch.json"]) == {"after_step": step, "checkpoints": [8], "is_moved": True}
    # auto goes on from the new branch, whose steps are the same ones.
    train(changed(slower, steps=10), resume="auto")
    assert run.saved_steps()[-1] == 10 and len(recipes.records(run, "train/loss")) == 10
    train(changed(slower, steps=10), resume=str(run.root / "best"))
    assert {one.name for one in run.branches.iterdir()} >= {f"after-step-{step}"}


def test_two_branches_after_one_step_have_names_of_their_own(folder: Path) -> None:
    made = recipes.recipe(folder)
    run = train(made).run
    for _ in range(3):
        train(made, resume=str(run.checkpoints / "step-3"))
    assert sorted(one.name for one in run.branches.iterdir()) == ["after-step-3", "after-step-3-2", "after-step-3-3"]
    whole = recipes.weights(run, 6)
    for branch in run.branches.iterdir():
        theirs = recipes.weights(RunFolder(branch), 6)
        assert all(theirs[name].equal(value) for name, value in whole.items())


@pytest.mark.parametrize("number", range(1, 9))
def test_a_kill_while_a_branch_is_closed_is_made_up_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    made = recipes.recipe(folder, save_steps=1, steps=4, eval_steps=2)
    run = train(made).run
    expected = tensors_of(run.checkpoints)
    replace, calls = os.replace, []

    def cut(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == number:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", cut)
    with pytest.raises(KeyboardInterrupt):
        train(made, resume=str(run.checkpoints / "step-2"))
    monkeypatch.undo()
    train(made, resume="auto")
    assert run.saved_steps() == [1, 2, 3, 4] and len(recipes.records(run, "train/loss")) == 4
    assert tensors_of(run.checkpoints) == expected
    is_closed = number > 1  # the first one says what is to be moved
    assert [one.name for one in run.branches.glob("*")] == ["after-step-2"] * is_closed
    if is_closed:
        branch = RunFolder(run.branches / "after-step-2")
        assert branch.saved_steps() == [3, 4] and branch.final.is_dir()
        assert [step for step, _ in recipes.records(branch, "train/loss")] == [1, 2, 3, 4]
        assert set(run.root.rglob("final")) == {run.final, branch.final}


def test_a_refused_or_failing_resume_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipes.recipe(folder)
    run = train(made).run
    before = files_of(run.root)
    back = str(run.checkpoints / "step-3")
    with pytest.raises(SettingsError, match="seed: 0 -> 1"):
        train(dataclasses.replace(made, seed=1), resume=back)
    assert files_of(run.root) == before
    monkeypatch.setattr(runs, "prepare_text", lambda *_, **__: exec("raise OSError(28, 'no space')"))
    with pytest.raises(OSError, match="no space"):
        train(changed(made, steps=9), resume=back)
    assert files_of(run.root) == before, "also its status and its recipe"


def test_a_checkpoint_of_another_run_is_refused(folder: Path) -> None:
    made = recipes.recipe(folder)
    run = train(made).run
    other = dataclasses.replace(made, name="other")
    for path in (run.root, run.root / "best", run.checkpoints / "step-3"):
        with pytest.raises(
            CheckpointError, match=r"is no checkpoint of .*other, the run that the recipe names.*--fork"
        ):
            train(other, resume=str(path))
    assert not (folder / "other").exists()


# --- starts that come to nothing --------------------------------------------------------------------------------------


def test_a_start_that_fails_keeps_what_was_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tiny").mkdir()
    (folder / "tiny" / "notes.txt").write_text("mine")
    (folder / "text.jsonl").rename(folder / "away.jsonl")
    with pytest.raises(DataError):
        train(recipes.recipe(folder))
    assert files_of(folder / "tiny") == {"notes.txt": b"mine"}
    (folder / "away.jsonl").rename(folder / "text.jsonl")
    monkeypatch.setattr(Trainer, "__init__", lambda *_, **__: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(recipes.recipe(folder), name="other"))
    assert not (folder / "other").exists()


def test_a_start_that_was_killed_burns_no_name(folder: Path) -> None:
    run = RunFolder(folder / "tiny")
    for leftover in (run.root / ".partial-final", run.data / ".partial-text-1", run.checkpoints / ".partial-step-3"):
        leftover.mkdir(parents=True)
    run.config.write_text(config.to_yaml(dataclasses.replace(recipes.recipe(folder), seed=7)))
    run.status.write_text('{"state": "running"}')
    train(recipes.recipe(folder))
    assert not list(run.root.rglob(".partial-*"))
    assert yaml.safe_load(run.config.read_text())["seed"] == 0


def test_a_term_signal_while_tokenising_leaves_nothing(folder: Path) -> None:
    tree = recipes.tree(folder) | {"name": "stopped", "output_dir": str(folder / "runs")}
    del tree["data"]["cache_dir"]
    recipes.write_text(folder, documents=60000)
    (folder / "stopped.yaml").write_text(yaml.safe_dump(tree))
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask", "train", str(folder / "stopped.yaml")],
        cwd=ROOT, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "runs" / "stopped" / "data").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert not (folder / "runs").exists()


# --- dry runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_a_dry_run_leaves_nothing_behind(folder: Path, cached: bool) -> None:
    tree = recipes.tree(folder)
    tree["data"] |= {"tokenizer": "bpe", "vocabulary_size": 300, "cache_dir": str(folder / "cache") if cached else None}
    made = config.from_tree(Recipe, tree)
    before = files_of(folder)
    lines = list(dry_run(made))
    assert any("300 ids" in line or "301 ids" in line for line in lines)
    assert files_of(folder) == before and sorted(one.name for one in folder.iterdir()) == ["text.jsonl"]
    run = train(made).run
    before = files_of(folder)
    assert list(dry_run(dataclasses.replace(made, name="other"))) == lines
    assert list(dry_run(made, resume="auto"))[-1] == lines[-1]
    with pytest.raises(SettingsError, match=r"data\.context_length: 24 -> 20"):
        list(dry_run(dataclasses.replace(made, data=dataclasses.replace(made.data, context_length=20)), resume="auto"))
    assert files_of(folder) == before and read_progress(run.root / "latest").step == 6


def test_a_dry_run_reads_the_cache_that_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipes.recipe(folder)
    train(made)
    monkeypatch.setattr("unmask.training.preparation.TokenizedText.build", None)
    assert list(dry_run(dataclasses.replace(made, name="other")))
