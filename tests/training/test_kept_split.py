"""A run keeps its split: however its sources grow, what it holds out is never learned, nor the other way round."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training import recipes
from tests.training.test_lineage import append_rows
from tests.training.test_opening import changed
from tests.training.test_sources import texts_of
from unmask.cli import compare_text
from unmask.cli.main import main
from unmask.data.sources import held_out
from unmask.data.tokenized import TokenizedText, beginning
from unmask.errors import CheckpointError, DataError
from unmask.models.tokenizers import byte_tokenizer
from unmask.runs import RunFolder, append_record, metrics_lines
from unmask.settings.recipe import Recipe
from unmask.training import kept_split, parts
from unmask.training.preparation import TrainingText, held_out_texts, trained_texts
from unmask.training.run import dry_run, prepare, train

BYTES = byte_tokenizer()


def recipe(folder: Path, source: Path, **data: Any) -> Recipe:
    made = recipes.recipe(folder)
    return dataclasses.replace(made, data=dataclasses.replace(made.data, train=(str(source),), **data))


def one_file(folder: Path) -> tuple[Recipe, Path]:
    path = folder / "input.txt"
    path.write_text(" ".join(f"word{number}" for number in range(200)))
    return recipe(folder, path), path


def few_files(folder: Path) -> tuple[Recipe, Path]:
    """Eight files, of which a fifth of the bytes is held out: too few for a hash of each to decide."""
    path = folder / "notes"
    path.mkdir()
    for number in range(8):
        (path / f"{number}.txt").write_text(" ".join(f"n{number}w{word}" for word in range(30 + 5 * number)))
    return recipe(folder, path), path


def add_files(path: Path) -> None:
    """New files, with which a rule that is made anew chooses others."""
    for number in range(3):
        (path / f"new{number}.txt").write_text(" ".join(f"new{number}w{word}" for word in range(150)))


def sides(text: TrainingText) -> tuple[list[str], list[str]]:
    """The documents whose tokens are learned, and those whose are scored."""
    assert text.held_out is not None
    return texts_of(text.train.text), texts_of(text.held_out.text)  # type: ignore[attr-defined]


def resumed(made: Recipe, run: RunFolder) -> TrainingText:
    return prepare(made, run, run.checkpoint("latest"))[0]


# --- one text ---------------------------------------------------------------------------------------------------------


def test_a_text_that_was_appended_to_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, path = one_file(folder)
    run = train(made).run
    before = run.metrics.read_bytes()
    with path.open("a") as file:
        file.write(" and more words" * 50)
    for go_on in (
        lambda: train(changed(made, steps=9), resume="auto"),
        lambda: list(dry_run(changed(made, steps=9), resume="auto")),
    ):
        with pytest.raises(DataError) as caught:
            go_on()
        for piece in (str(path), str(run.root), "a file of its own (a folder or glob", "--fork NEW_NAME"):
            assert piece in str(caught.value)
    assert run.metrics.read_bytes() == before
    capsys.readouterr()
    assert main(["train", "--resume", str(run.root), "training.steps=9"]) == 2
    assert str(path) in capsys.readouterr().err
    assert main(["train", str(run.root), "--fork", "new", "training.steps=2"]) == 0
    assert (folder / "new" / "split.json").is_file(), "a run of its own, with its own split"
    assert main(["train", "--resume", str(folder / "new"), "training.steps=3"]) == 0


def test_a_held_out_text_that_is_gone_is_no_score(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, path = one_file(folder)
    run = train(made).run
    with path.open("a") as file:
        file.write(" and more words" * 50)
    shutil.copytree(run.root, folder / "other", symlinks=True)
    capsys.readouterr()
    for words in (["evaluate", str(run.root)], ["compare", str(run.root), str(folder / "other")]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "The held-out text of the run is gone" in error and error.count("--data FILE") == 1, error
        assert str(path) in error and "Traceback" not in error
    assert main(["evaluate", str(run.root), "--data", str(path), "--json"]) == 0


def test_the_text_that_was_cut_stays_cut_where_another_file_comes(folder: Path) -> None:
    (folder / "notes").mkdir()
    first = folder / "notes" / "a.txt"
    first.write_text(" ".join(f"word{number}" for number in range(200)))
    made = recipe(folder, folder / "notes")
    run = train(made).run
    learned, held = sides(resumed(made, run))
    (folder / "notes" / "b.txt").write_text("another text " * 100)
    assert sides(resumed(made, run)) == ([*learned, "another text " * 100], held)
    assert learned[0] + held[0] == first.read_text()


# --- few documents ----------------------------------------------------------------------------------------------------


def test_new_files_are_learned_from_and_nothing_changes_sides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, path = few_files(folder)
    run = train(made).run
    learned, held = sides(resumed(made, run))
    assert held and learned
    scores = []
    for grow in (lambda: None, lambda: add_files(path)):
        grow()
        capsys.readouterr()
        assert main(["evaluate", str(run.root), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        scores.append({name: found[name] for name in ("tokens", "bytes", "bits_per_byte", "tokenizer")})
    assert scores[0] == scores[1]
    assert sorted(held_out_texts(made.data)) != sorted(held), "a rule that is made anew would choose others"
    train(changed(made, steps=9), resume="auto")
    noted = capsys.readouterr().err
    assert "changed: the training text: " in noted and "changed: the held-out text" not in noted
    now, still = sides(resumed(made, run))
    assert still == held
    assert sorted(now) == sorted([*learned, *(file.read_text() for file in path.glob("new*.txt"))])
    kept = kept_split.of_run(run, made.data, None, purpose="evaluate")
    assert kept is not None
    assert held_out_texts(made.data, kept) == held and sorted(trained_texts(made.data, kept)) == sorted(now)


def test_no_row_to_learn_from_has_a_token_that_is_held_out(folder: Path) -> None:
    made, path = few_files(folder)
    run = train(made).run
    _, held = sides(resumed(made, run))
    add_files(path)
    text = resumed(made, run)
    rows = text.rows_of_step(0, batch_size=len(text.train), seed=0)
    batch = text.batch(rows, 0, len(rows), step=0)
    learned = BYTES.decode(batch.ids_BL[batch.supervised_BL], skip_special_tokens=True)
    names = {one.split("w")[0] for document in held for one in document.split()}
    assert names and not [name for name in names if f"{name}w" in learned]


def test_compare_scores_what_the_run_holds_out_and_knows_what_it_has_learned(folder: Path) -> None:
    made, path = few_files(folder)
    run = train(made).run
    learned, held = sides(resumed(made, run))
    add_files(path)
    models = [str(run.root)]
    text = compare_text.shared_text(models, compare_text.recipes(models), argparse.Namespace())
    assert text.documents == held and text.notes == []
    (folder / "seen.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in [*learned, *held]))
    given = argparse.Namespace(data=[str(folder / "seen.jsonl")])
    (note,) = compare_text.shared_text(models, compare_text.recipes(models), given).notes
    assert f"was trained on {len(learned)} of the {len(learned) + len(held)} documents" in note


def test_a_text_that_was_learned_may_be_edited_and_one_that_is_held_out_not(folder: Path) -> None:
    made, path = few_files(folder)
    run = train(made).run
    learned, held = sides(resumed(made, run))
    ours, theirs = (
        next(file for file in sorted(path.iterdir()) if file.read_text() in side) for side in (learned, held)
    )
    ours.write_text("edited " + ours.read_text())
    now, still = sides(resumed(made, run))
    assert still == held and "edited " + learned[0] in now
    kept = theirs.read_text()
    theirs.write_text(kept.replace(" ", "\n\n"))
    assert [" ".join(one.split()) for one in sides(resumed(made, run))[1]] == held, "white space is not the text"
    for spoil in (lambda: theirs.write_text("edited " + kept), theirs.unlink):
        spoil()
        with pytest.raises(DataError, match=rf"{theirs.name}: text that the run .* holds out is not there as it was"):
            resumed(made, run)


def test_conversations_are_kept_apart(folder: Path) -> None:
    chats = recipes.write_chats(folder, number=6)
    made = recipe(folder, chats, format="chat", chat_template="plain", context_length=64, validation_fraction=0.3)
    run = train(made).run
    learned, held = sides(resumed(made, run))
    with chats.open("a") as file:
        for number in range(30):
            turns = [{"role": "user", "content": f"new {number}?"}, {"role": "assistant", "content": "yes yes"}]
            file.write(json.dumps({"messages": turns}) + "\n")
    now, still = sides(resumed(made, run))
    assert still == held and len(now) == len(learned) + 30


def test_a_branch_that_a_run_went_back_from_keeps_the_split(folder: Path) -> None:
    made, path = few_files(folder)
    run = train(made).run
    _, held = sides(resumed(made, run))
    train(changed(made, steps=5), resume=str(run.checkpoints / "step-3"))
    branch = RunFolder(run.branches / "after-step-3")
    add_files(path)
    kept = kept_split.of_run(branch, made.data, None, purpose="evaluate")
    assert held_out_texts(made.data, kept) == held


# --- many documents, other runs ---------------------------------------------------------------------------------------


def test_many_documents_are_split_by_their_hashes_also_where_few_remain(folder: Path) -> None:
    rows = recipes.write_text(folder)
    made = recipe(folder, rows)
    run = train(made).run
    learned, held = sides(resumed(made, run))
    append_rows(folder)
    now, still = sides(resumed(made, run))
    assert set(learned) < set(now) and set(held) < set(still)
    assert all(held_out(one, 0.2) for one in still) and not any(held_out(one, 0.2) for one in now)
    documents = [*learned[:3], *held[:1]]
    rows.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    assert sides(resumed(made, run)) == (learned[:3], held[:1])


def test_a_run_that_has_kept_no_split_goes_on_and_keeps_one(folder: Path) -> None:
    made, path = few_files(folder)
    run = train(made).run
    before = run.split.read_bytes()
    run.split.unlink()
    _, held = sides(resumed(made, run))
    train(changed(made, steps=9), resume="auto")
    assert run.split.read_bytes() == before
    add_files(path)
    train(changed(made, steps=12), resume="auto")
    assert run.split.read_bytes() == before, "the one of its start"
    assert sides(resumed(made, run))[1] == held


@pytest.mark.parametrize("data", [{"validation_fraction": 0.0}, {"validation": True}])
def test_nothing_is_kept_where_no_training_text_is_held_out(folder: Path, data: dict[str, Any]) -> None:
    made, _ = few_files(folder)
    if "validation" in data:
        (folder / "held.txt").write_text("held out words")
        data = {"validation": (str(folder / "held.txt"),)}
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, **data))
    run = train(made).run
    assert not run.split.exists()
    train(changed(made, steps=9), resume="auto")


def test_unchanged_sources_find_their_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, path = few_files(folder)
    run = train(made).run
    cache = folder / "cache"
    written = {one.name for one in cache.iterdir()}
    monkeypatch.setattr(parts, "_write", lambda *_: pytest.fail("tokenised again"))
    monkeypatch.setattr(parts, "_split_of", lambda *_: pytest.fail("split again"))
    resumed(made, run)
    monkeypatch.undo()
    for number in range(2):
        os.utime(path / "0.txt", (number, number))
        resumed(made, run)
    assert len({one.name for one in cache.iterdir()} - written) == 4, "two sides for each state of the sources"
    monkeypatch.setattr(parts, "_write", lambda *_: pytest.fail("tokenised again"))
    resumed(made, run)


def test_tokens_of_a_kept_split_are_not_those_of_a_new_one(folder: Path) -> None:
    made, path = few_files(folder)
    run = train(made).run
    add_files(path)
    held = sides(resumed(made, run))[1]
    other = train(dataclasses.replace(made, name="other")).run
    assert sides(resumed(made, other))[1] != held
    assert sides(resumed(made, run))[1] == held
    assert all(TokenizedText.is_in(one) for one in (folder / "cache").glob("text-*"))


# --- a damaged file ---------------------------------------------------------------------------------------------------

HASH = "0123456789abcdef"
WHOLE = {"train": ["a.txt"], "basis": "x", "fraction": 0.1, "chosen": [HASH], "cut": None, "share": 0.0}
WHOLE |= {"files": {HASH: "a.txt"}}
DAMAGED = {
    "cut": ("{", "is damaged"),
    "empty": ("", "is damaged"),
    "bytes": ("\udcff", "is damaged"),
    "list": ("[]", "it is no JSON object"),
    "null": ("null", "it is no JSON object"),
    "deep": ("[" * 100_000, "is damaged"),
    "no rule": ("{}", "is damaged"),
    "train": ({"train": "a.txt"}, "`train` must be a list of sources"),
    "basis": ({"basis": 3}, "`basis` text"),
    "fraction of text": ({"fraction": "0.1"}, "`fraction` must be a finite number and is '0.1'"),
    "fraction": ({"fraction": 1.5}, "`fraction` must lie between 0 and 1"),
    "fraction NaN": ({"fraction": math.nan}, "`fraction` must be a finite number and is nan"),
    "share": ({"share": -0.5}, "`share` must be at least 0"),
    "share true": ({"share": True}, "`share` must be a finite number and is True"),
    "chosen": ({"chosen": 3}, "`chosen` must be null or a list of hashes"),
    "chosen numbers": ({"chosen": [3]}, "`chosen` must be null or a list of hashes"),
    "short hash": ({"chosen": ["abc"]}, "a hash must have 16 hexadecimal digits and is 'abc'"),
    "cut hash": ({"cut": 7}, "a hash must have 16 hexadecimal digits and is 7"),
    "files": ({"files": []}, "`files` name the file of each"),
    "no file": ({"files": {}}, "`files` must name the file of each document"),
    "file of nothing": ({"chosen": None}, "`files` must name the file of each document"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_split_is_one_error(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    text = content if isinstance(content, str) else json.dumps(WHOLE | content)
    run = RunFolder(tmp_path)
    run.split.write_bytes(text.encode(errors="surrogateescape"))
    data = dataclasses.replace(recipes.recipe(tmp_path).data, train=("a.txt",))
    with pytest.raises(CheckpointError) as caught:
        kept_split.of_run(run, data, None, purpose="resume")
    assert message in str(caught.value) and str(run.split) in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_with_a_damaged_split_neither_goes_on_nor_is_scored(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    made, _ = few_files(folder)
    run = train(made).run
    run.split.unlink()
    run.split.write_text("{") if kind == "file" else run.split.mkdir()
    for words in (["train", "--resume", str(run.root), "training.steps=9"], ["evaluate", str(run.root)]):
        capsys.readouterr()
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "split.json" in error and "Traceback" not in error


# --- text is read as text, figures that JSON has not ------------------------------------------------------------------


def test_the_beginning_of_a_text_counts_the_tokens_that_are_learned(bpe: Any) -> None:
    end = bpe.eos_token
    text = f"some {end} words {end}{end} and more"
    ids = bpe(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert len(ids) > len(bpe(text, add_special_tokens=False)["input_ids"]), "the spelling is one token elsewhere"
    for tokens in range(1, len(ids) + 1):
        (found,) = beginning([text], bpe, tokens)
        assert found == text[: len(found)]
        assert len(found) == len(bpe.decode(ids[:tokens], clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_figure_that_is_not_finite_is_not_known(tmp_path: Path, value: float) -> None:
    append_record(tmp_path / "metrics.jsonl", {"step": 1, "train/grad_norm": value, "train/loss": 2.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/grad_norm": null, "train/loss": 2.5}\n'
    (line,) = metrics_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(line.values["train/grad_norm"]) and line.values["train/loss"] == 2.5


@pytest.fixture
def bpe() -> Any:
    from unmask.models.tokenizers import train_bpe

    return train_bpe(["some words and more words"] * 4, 300)


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    with contextlib.chdir(tmp_path):
        yield tmp_path
