"""A model is written beside what a folder holds, and nothing that is not ours is ever removed or replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.malformed.checkpoint_folders import SHAPE, copied
from tests.training import recipes
from unmask import DiffusionLM
from unmask.cli.main import main
from unmask.errors import CheckpointError
from unmask.models import loading
from unmask.models.folders import written_model
from unmask.models.loading import Checkpoint
from unmask.models.tokenizers import byte_tokenizer
from unmask.runs import RunFolder
from unmask.settings.recipe import Recipe
from unmask.training.checkpoint import write_final
from unmask.training.run import train

Files = dict[str, bytes]


def contents(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def filled(folder: Path) -> Files:
    """Put what others keep in a folder into it; returns it."""
    for name in ("notes.txt", "README.md", "a/deep/file.bin", ".git/config", "weights.npz", "data.json", "model.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("notes.txt")
    return contents(folder)


def lm(*, tokenizer: bool = True, seed: int = 0) -> DiffusionLM:
    made = loading.create(SHAPE, byte_tokenizer(), seed=seed)
    return DiffusionLM(made if tokenizer else Checkpoint(made.backbone, None))


def same_weights(folder: Path, model: DiffusionLM) -> bool:
    found = DiffusionLM.from_pretrained(folder, device="cpu").backbone.state_dict()
    return all(found[name].equal(one) for name, one in model.backbone.state_dict().items())


def test_saving_adds_to_a_folder_of_other_things(tmp_path: Path) -> None:
    before = filled(tmp_path)
    lm().save_pretrained(tmp_path)
    assert contents(tmp_path).items() >= before.items()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty").is_dir()
    assert same_weights(tmp_path, lm()) and not list(tmp_path.glob(".partial-*"))


def test_a_model_of_ours_makes_way_whole(tmp_path: Path) -> None:
    """Shards, index, adapter and tokenizer of the earlier one would be taken for the later one's."""
    folder = copied(tmp_path, "sharded")
    before = filled(folder)
    assert len([name for name in before if name.startswith("model-")]) > 1
    lm(tokenizer=False, seed=3).save_pretrained(folder)
    after = contents(folder)
    assert same_weights(folder, lm(seed=3)) and "model.safetensors.index.json" not in after
    assert not [name for name in after if name.startswith(("model-", "tokenizer"))]
    assert all(after[name] == before[name] for name in ("notes.txt", "README.md", "a/deep/file.bin", "model.py"))


def test_an_adapter_and_a_whole_model_never_mix(tmp_path: Path) -> None:
    folder = copied(tmp_path, "adapter")
    adapter = DiffusionLM.from_pretrained(folder, device="cpu")
    lm(seed=2).save_pretrained(folder)
    assert same_weights(folder, lm(seed=2)) and not list(folder.glob("adapter*"))
    adapter.save_pretrained(folder)
    again = DiffusionLM.from_pretrained(folder, device="cpu")
    assert again.backbone.adapter is not None and not (folder / "config.json").exists()


def config_of_others(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen3"}')


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a model of others": config_of_others,
    "a damaged configuration": lambda folder: (folder / "config.json").write_text("{"),
    "weights alone": lambda folder: (folder / "model.safetensors").write_bytes(b"precious"),
    "a shard": lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"precious"),
    "pickled weights": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"precious"),
    "an adapter of others": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "a tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "a folder called config.json": lambda folder: (folder / "config.json").mkdir(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_models_of_others_are_not_replaced(tmp_path: Path, kind: str) -> None:
    filled(tmp_path)
    FOREIGN[kind](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="which Unmask did not write"):
        lm().save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    before = contents(tmp_path)

    def write() -> None:
        with written_model(tmp_path) as partial:
            (partial / "config.json").write_text("{}")
            (partial / "README.md").write_text("ours")

    with pytest.raises(CheckpointError, match=r"README\.md"):
        write()
    assert contents(tmp_path) == before and not list(tmp_path.glob(".partial-*"))


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError, match="is a file"):
        lm().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_an_error_on_the_way_changes_nothing(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    filled(folder)
    before = contents(folder)

    def broken() -> None:
        with written_model(folder) as partial:
            (partial / "config.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert contents(folder) == before


def test_links_and_the_working_folder_are_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    there.mkdir()
    before = filled(there)
    link.symlink_to(there)
    lm().save_pretrained(link)
    assert link.is_symlink() and contents(there).items() >= before.items() and same_weights(there, lm())
    monkeypatch.chdir(there)
    lm(seed=1).save_pretrained(".")
    assert contents(there).items() >= before.items() and same_weights(there, lm(seed=1))


def test_a_model_can_be_saved_where_it_was_loaded_from(tmp_path: Path) -> None:
    """Its weights are a mapping of the file that is replaced."""
    folder = copied(tmp_path)
    before = contents(folder)
    DiffusionLM.from_pretrained(folder, device="cpu").save_pretrained(folder)
    assert contents(folder)["model.safetensors"] == before["model.safetensors"]
    assert same_weights(folder, DiffusionLM.from_pretrained(folder, device="cpu"))


def test_a_kill_between_two_renames_leaves_no_mixture(tmp_path: Path) -> None:
    """At every point, the folder holds the old model, the new one, or none that opens; and what was there besides."""
    code = (
        "import os, signal, sys, pathlib\nsys.path.insert(0, sys.argv[3])\n"
        "from unmask.models.folders import written_model\n"
        "folder, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "rename, unlink = os.replace, pathlib.Path.unlink\n"
        "def count():\n    global left\n    left -= 1\n    left < 0 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "def replace(*paths):\n    count()\n    rename(*paths)\n"
        "def remove(self, **options):\n    count()\n    unlink(self, **options)\n"
        "os.replace, pathlib.Path.unlink = replace, remove\n"
        "with written_model(folder) as partial:\n"
        "    for name in ('config.json', 'model.safetensors', 'tokenizer.json'):\n"
        "        (partial / name).write_text('new')\n"
    )
    ended = False
    for point in range(40):
        folder = copied(tmp_path / str(point), "sharded")
        before = filled(folder)
        done = subprocess.run([sys.executable, "-c", code, str(folder), str(point), os.getcwd()], check=False)
        after = contents(folder)
        assert after["notes.txt"] == before["notes.txt"] and after["a/deep/file.bin"] == before["a/deep/file.bin"]
        if "config.json" in after and after["config.json"] != b"new":
            assert after.items() >= before.items(), "the old model is whole"
        if after.get("config.json") == b"new":
            assert after["model.safetensors"] == b"new" and "model.safetensors.index.json" not in after
        if done.returncode == 0:
            ended = True
            break
    assert ended and point > 8
    with written_model(tmp_path / "0" / "m") as partial:  # what the kill left is taken away by the next one
        (partial / "config.json").write_text("{}")
    assert not list((tmp_path / "0" / "m").glob(".partial-*"))


@pytest.mark.parametrize("verb", ["convert", "merge"])
def test_the_verbs_that_write_models_refuse_folders_with_content(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copied(tmp_path, "adapter" if verb == "merge" else "model")
    out = tmp_path / "out"
    out.mkdir()
    before = filled(out)
    assert main([verb, str(source), str(out)]) == 2
    assert "exists already and is not overwritten" in capsys.readouterr().err and "rm -r" not in capsys.readouterr().err
    assert contents(out) == before
    (tmp_path / "empty").mkdir()
    assert main([verb, str(source), str(tmp_path / "empty")]) == 0
    assert DiffusionLM.from_pretrained(tmp_path / "empty", device="cpu").tokenizer is not None


def test_the_final_folder_of_a_run_keeps_what_others_put_there(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    made: Recipe = dataclasses.replace(recipes.recipe(tmp_path, steps=2, eval_steps=1))
    run: RunFolder = train(made).run
    (run.final / "notes.txt").write_text("mine")
    (run.final / "training").mkdir()
    write_final(run, "the card")
    assert (run.final / "notes.txt").read_text() == "mine" and (run.final / "README.md").read_text() == "the card"
    assert (run.final / "training").is_dir() and json.loads((run.final / "config.json").read_text())["diffusion"]
