"""What a run learns from and is scored on: own text at once, splits by name, no document on both sides, caches."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.training import recipes
from unmask.cli.main import main
from unmask.data.rows import Mixture, rows_of_step
from unmask.data.tokenized import TokenizedText
from unmask.errors import DataError, SettingsError
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.data import DataSettings
from unmask.settings.recipe import Recipe
from unmask.training.parts import tokenizer_key, tokens_of
from unmask.training.preparation import (
    TrainingText,
    held_out_texts,
    prepare_text,
    prepare_tokenizer,
    trained_texts,
)
from unmask.training.run import train
from unmask.writing import temporary_beside

BYTES = byte_tokenizer()


def recipe(folder: Path, **data: Any) -> Recipe:
    made = recipes.config.from_tree(Recipe, recipes.tree(folder))
    return dataclasses.replace(made, data=dataclasses.replace(made.data, **data))


def prepared(made: Recipe, folder: Path) -> TrainingText:
    return prepare_text(made, prepare_tokenizer(made, folder), folder)


def texts_of(text: TokenizedText) -> list[str]:
    bounds = itertools.pairwise(text.starts.tolist())
    return [BYTES.decode(text.tokens[start:stop], skip_special_tokens=True) for start, stop in bounds]


def lines(folder: Path, name: str, texts: list[str]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def saved(folder: Path, **splits: list[str]) -> str:
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    with contextlib.redirect_stderr(io.StringIO()):
        datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return f"hf:{folder / 'saved'}"


# --- own text at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tinyshakespeare", "names"])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_one_text_file_trains_as_it_is(shared_data: Path, tmp_path: Path, name: str, tokenizer: str) -> None:
    content = gzip.decompress((shared_data / "text" / f"{name}.txt.gz").read_bytes())[:120_000]
    (tmp_path / "input.txt").write_bytes(content)
    made = recipe(
        tmp_path,
        train=(str(tmp_path / "input.txt"),),
        validation_fraction=0.1,
        tokenizer=tokenizer,
        vocabulary_size=400,
    )
    text = prepared(made, tmp_path)
    assert text.held_out is not None
    trained, held = text.train.text, text.held_out.text  # type: ignore[attr-defined]
    assert int(trained.bytes.sum()) + int(held.bytes.sum()) == len(content)
    assert int(held.bytes.sum()) / len(content) == pytest.approx(0.1, rel=0.05)
    assert "".join([*trained_texts(made.data), *held_out_texts(made.data)]).encode() == content


def test_a_run_learns_from_one_text_file(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(" ".join(f"word{number % 7}" for number in range(300)))
    run = train(recipe(tmp_path, train=(str(tmp_path / "input.txt"),))).run
    assert recipes.records(run, "eval/bits_per_byte")


@pytest.mark.parametrize("number", [2, 5, 12])
def test_a_dozen_text_files_train_as_they_are(tmp_path: Path, number: int) -> None:
    for file in range(number):
        (tmp_path / f"{file}.txt").write_text(f"file {file} says something. " * (10 + file))
    text = prepared(recipe(tmp_path, train=(str(tmp_path / "*.txt"),), validation_fraction=0.05), tmp_path / "cache")
    assert text.held_out is not None and len(text.train) > len(text.held_out) > 0


def test_objectives_are_compared_on_the_same_split(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("some words of a text " * 50)
    held = {}
    for method in ("autoregressive", "masked_diffusion"):
        made = recipe(tmp_path, train=(str(tmp_path / "input.txt"),))
        made = dataclasses.replace(made, objective=dataclasses.replace(made.objective, method=method))
        held[method] = texts_of(prepared(made, tmp_path / method).held_out.text)  # type: ignore[union-attr]
    assert held["autoregressive"] == held["masked_diffusion"] == held_out_texts(made.data)


def test_nothing_to_read_says_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("no\nrows\n")
    with pytest.raises(DataError, match=r"The text is empty: .*bad\.jsonl has a token, and 2 malformed rows were sk"):
        prepared(recipe(tmp_path, train=(str(tmp_path / "bad.jsonl"),), malformed="skip"), tmp_path)


def test_malformed_rows_count_once_however_often_the_text_is_read(tmp_path: Path) -> None:
    source = lines(tmp_path, "a.jsonl", ["one text", "two texts", "three texts"])
    with open(source, "a") as file:
        file.write("no JSON\n[]\n")
    made = recipe(tmp_path, train=(source,), malformed="skip", tokenizer="bpe", vocabulary_size=300)
    for _ in range(2):
        text = prepared(made, tmp_path / "cache")
        assert text.skipped == 2
        assert len(texts_of(text.train.text)) + len(texts_of(text.held_out.text)) >= 3  # type: ignore


# --- validation text --------------------------------------------------------------------------------------------------


def test_validation_reads_the_validation_split(tmp_path: Path) -> None:
    name = saved(tmp_path, train=["one", "two"], validation=["three"], test=["four"])
    for validation, options, held in (
        (name, {}, ["three"]),
        (f"{name}@test", {}, ["four"]),
        (name, {"validation_split": "test"}, ["four"]),
        (f"{name}@validation", {"validation_split": "test"}, ["three"]),
    ):
        made = recipe(tmp_path, train=(name,), validation=(validation,), **options)
        text = prepared(made, tmp_path / "cache")
        assert texts_of(text.train.text) == ["one", "two"]  # type: ignore[attr-defined]
        assert texts_of(text.held_out.text) == held  # type: ignore[union-attr]
        assert held_out_texts(made.data) == held
    with pytest.raises(DataError, match="there is no split `dev`; it has train, validation, test"):
        prepared(recipe(tmp_path, train=(name,), validation=(name,), validation_split="dev"), tmp_path / "cache")


def test_the_same_split_twice_is_refused(tmp_path: Path) -> None:
    name = saved(tmp_path, train=["one", "two", "three"])
    with pytest.raises(DataError, match=r"3 of 3 validation documents are training documents too.*hf:NAME@SPLIT"):
        prepared(recipe(tmp_path, train=(name,), validation=(name,)), tmp_path / "cache")


@pytest.mark.parametrize("neat", [False, True])
def test_documents_on_both_sides_are_counted_across_files(tmp_path: Path, neat: bool) -> None:
    train_file = lines(tmp_path, "a.jsonl", ["one text", "two texts", "three texts", "two texts"])
    (tmp_path / "b.txt").write_text("three texts")
    validation = (lines(tmp_path, "c.jsonl", ["two texts", "other", "three texts"]),)
    options = {"train": (train_file, str(tmp_path / "b.txt")), "validation": validation, "neat_packing": neat}
    with pytest.raises(DataError, match=r"2 of 3 validation documents are training documents too"):
        prepared(recipe(tmp_path, **options), tmp_path / "cache")
    made = recipe(tmp_path, **options, overlap="drop")
    text = prepared(made, tmp_path / "cache")
    assert texts_of(text.train.text) == ["one text"]  # type: ignore[attr-defined]
    assert list(trained_texts(made.data)) == ["one text"]
    assert texts_of(text.held_out.text) == ["two texts", "other", "three texts"]  # type: ignore[union-attr]


def test_conversations_on_both_sides_are_counted(tmp_path: Path) -> None:
    source = str(recipes.write_chats(tmp_path))
    chat = {"format": "chat", "chat_template": "plain", "context_length": 64}
    with pytest.raises(DataError, match="40 of 40 validation documents are training documents too"):
        prepared(recipe(tmp_path, train=(source,), validation=(source,), **chat), tmp_path / "cache")


def test_a_changed_validation_source_is_left_out_anew(tmp_path: Path) -> None:
    options = {"train": (lines(tmp_path, "a.jsonl", ["one", "two", "three"]),), "overlap": "drop"}
    made = recipe(tmp_path, validation=(lines(tmp_path, "b.jsonl", ["two"]),), **options)
    assert texts_of(prepared(made, tmp_path / "c").train.text) == ["one", "three"]  # type: ignore[attr-defined]
    lines(tmp_path, "b.jsonl", ["three"])
    assert texts_of(prepared(made, tmp_path / "c").train.text) == ["one", "two"]  # type: ignore[attr-defined]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.1), (5.0, 1.0, 1.0)])
def test_every_source_has_its_share_and_goes_through_its_rows(weights: tuple[float, ...]) -> None:
    first, batch = (0, 10, 40, 100), 7
    mixture = Mixture.of(first, weights)
    assert sum(mixture.counts) == 100
    drawn = np.concatenate(
        [rows_of_step(step, batch_size=batch, num_rows=100, seed=1, mixture=mixture) for step in range(600)]
    )
    for number, count in enumerate(mixture.counts):
        own = drawn[(drawn >= first[number]) & (drawn < first[number + 1])]
        assert count == pytest.approx(100 * weights[number] / sum(weights), abs=1)
        assert len(own) == pytest.approx(len(drawn) * count / 100, abs=count)
        # After whole epochs each row of a source was read as often as the others, give or take once.
        whole = drawn[: 40 * 100]
        times = np.bincount(whole, minlength=100)[first[number] : first[number + 1]]
        assert times.sum() == 40 * count
        assert times.max() - times.min() <= 1
        assert own[:10].tolist() != sorted(own[:10].tolist())
    again = rows_of_step(33, batch_size=batch, num_rows=100, seed=1, mixture=mixture)
    assert again.tolist() == drawn[33 * batch : 34 * batch].tolist()


@pytest.mark.parametrize("neat", [False, True])
def test_rows_of_sources_with_weights_are_of_one_source(tmp_path: Path, neat: bool) -> None:
    names = [lines(tmp_path, f"{letter}.jsonl", [letter * (5 + n % 15) for n in range(20)]) for letter in "abc"]
    made = recipe(
        tmp_path, train=(",".join(names),), weights=(6.0, 1.0, 1.0), neat_packing=neat, validation_fraction=0.0
    )
    text = prepared(made, tmp_path / "cache")
    assert text.mixture is not None
    rows = text.rows_of_step(0, batch_size=len(text.train), seed=0)
    batch = text.batch(rows, 0, len(rows), step=0)
    found = [set(BYTES.decode(row[row > 1])) for row in batch.ids_BL.numpy()]
    assert all(len(letters) == 1 for letters in found)
    share = sum(letters == {"a"} for letters in found) / len(found)
    assert share == pytest.approx(0.75, abs=0.03)


def test_weights_of_conversations(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        recipes.write_chats(tmp_path / name)
    sources = tuple(str(tmp_path / name / "chats.jsonl") for name in ("one", "two"))
    chat = {"format": "chat", "chat_template": "plain", "context_length": 64, "validation_fraction": 0.0}
    text = prepared(recipe(tmp_path, train=sources, weights=(3.0, 1.0), **chat), tmp_path / "cache")
    rows = text.rows_of_step(0, batch_size=80, seed=0)
    assert (rows < 40).sum() == 60


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"a weight for each source of data\.train, of which there are 2, got 1"),
        ((1.0, 1.0, 1.0), "of which there are 2, got 3"),
        ((1.0, 1e-9), "Source 2 of data.train has less than one of 2 rows by its weight"),
    ],
)
def test_weights_that_cannot_be_are_refused(tmp_path: Path, weights: tuple[float, ...], message: str) -> None:
    sources = (lines(tmp_path, "a.jsonl", ["one"]), lines(tmp_path, "b.jsonl", ["two"]))
    with pytest.raises(DataError, match=message):
        prepared(recipe(tmp_path, train=sources, weights=weights, validation_fraction=0.0), tmp_path / "cache")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(SettingsError, match=r"weights.* must be (numbers above 0|a finite number)"):
        DataSettings(train=("a", "b"), weights=(1.0, weight))


# --- streams ----------------------------------------------------------------------------------------------------------


def streamed(folder: Path, **training: Any) -> Recipe:
    recipes.write_text(folder)
    held = lines(folder, "held.jsonl", ["fresh words that nobody has seen", "and some more of them"])
    tree = recipes.tree(folder, **training)
    tree["data"] |= {"streaming": True, "shuffle_rows": 16, "validation": [held]}
    return recipes.config.from_tree(Recipe, tree)


def test_a_stopped_stream_goes_on_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = {"save_steps": 2, "eval_steps": 5}
    whole = train(streamed(tmp_path / "a", steps=12, **options)).run
    part = streamed(tmp_path / "b", steps=12, **options)
    train(part)
    run = train(part, resume=str(tmp_path / "b" / "tiny" / "checkpoints" / "step-6")).run
    assert recipes.records(run, "train/loss") == recipes.records(whole, "train/loss")
    assert recipes.records(run, "eval/bits_per_byte") == recipes.records(whole, "eval/bits_per_byte")
    left, right = (recipes.weights(one, 12) for one in (run, whole))
    assert all((left[name] == right[name]).all() for name in right)


def test_a_stream_has_no_epochs(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"training\.epochs counts passes over the text.*Set training\.steps"):
        streamed(tmp_path, steps=None, epochs=2.0)


def test_a_stream_keeps_no_tokens_of_training_text(tmp_path: Path) -> None:
    made = streamed(tmp_path)
    prepared(made, tmp_path / "cache")
    kept = [folder for folder in (tmp_path / "cache").iterdir() if TokenizedText.is_in(folder)]
    assert [texts_of(TokenizedText.open(one))[0] for one in kept] == ["fresh words that nobody has seen"]


# --- what is kept on the disk -----------------------------------------------------------------------------------------


def test_tokens_are_made_again_when_anything_changes(tmp_path: Path) -> None:
    source = lines(tmp_path, "a.jsonl", [f"text number {number}" for number in range(30)])
    made, folder = recipe(tmp_path, train=(source,)).data, tmp_path / "kept"

    def made_new(data: DataSettings, tokenizer: Any = BYTES) -> bool:
        before = set(folder.iterdir()) if folder.is_dir() else set()
        tokens_of(data, tokenizer, folder, is_held_out=False)
        return set(folder.iterdir()) != before

    assert made_new(made)
    for change in (
        {"context_length": 99},
        {"cache_dir": "elsewhere"},
        {"neat_packing": True},
        {"vocabulary_size": 999},
        {"tokenizer": None},
    ):
        assert not made_new(dataclasses.replace(made, **change)), change
    for change in (
        {"validation_fraction": 0.3},
        {"malformed": "skip"},
        {"max_line_bytes": 10**6},
        {"max_expansion": 7},
        {"separator": "x"},
    ):
        assert made_new(dataclasses.replace(made, **change)), change
    times = os.stat(source)
    content = Path(source).read_bytes()
    Path(source).write_bytes(content.replace(b"text number 7", b"text NUMBER 7"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long, and as old, as before
    assert made_new(made)


def test_the_key_of_a_tokenizer_covers_all_that_its_ids_depend_on(tmp_path: Path) -> None:
    from tokenizers import AddedToken, normalizers

    def changed(change: Any) -> str:
        tokenizer = byte_tokenizer()
        change(tokenizer)
        return tokenizer_key(tokenizer)

    def lower(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()

    def digits(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )

    plain = tokenizer_key(BYTES)
    assert changed(lambda tokenizer: tokenizer.add_special_tokens({"mask_token": "<|mask|>"})) == plain
    for change in (
        lower,
        digits,
        lambda tokenizer: tokenizer.add_tokens(["word"]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("word", lstrip=True)]),
        lambda tokenizer: setattr(tokenizer, "eos_token", None),
    ):
        assert changed(change) != plain
    keys = {
        changed(lambda tokenizer, strip=strip: tokenizer.add_tokens([AddedToken("w", rstrip=strip)]))
        for strip in (True, False)
    }
    assert len(keys) == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    cache = tmp_path / "cache"
    made = recipe(tmp_path, vocabulary_size=300)
    cache.mkdir()
    killed = Path(str(temporary_beside(cache / "text-abc")).replace(f"-{os.getpid()}-", "-999999999-"))
    killed.mkdir()
    (killed / "tokens.bin").write_bytes(b"part")
    living = temporary_beside(cache / "text-def")
    living.mkdir()
    prepared(made, cache)
    assert not killed.exists()
    assert living.exists()


@pytest.mark.parametrize("name", ["facts.json", "starts.npy", "tokens.bin", "bytes.bin"])
@pytest.mark.parametrize("content", [b"", b"{}", b"damage"])
def test_damaged_tokens_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    recipes.write_text(tmp_path)
    made = recipe(tmp_path)
    prepared(made, tmp_path / "cache")
    for folder in (tmp_path / "cache").iterdir():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged\. Remove the folder; it will be made again"):
        prepared(made, tmp_path / "cache")


def test_a_tokenizer_can_be_inherited(tmp_path: Path) -> None:
    recipes.write_text(tmp_path)
    made = recipe(tmp_path, tokenizer="bpe", vocabulary_size=300)
    assert prepare_tokenizer(made, tmp_path / "cache", inherited=BYTES) is BYTES
    assert not (tmp_path / "cache").exists()


def test_a_token_may_stand_for_any_number_of_bytes(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    long = "x" * 70_000
    text = TokenizedText.build([f"a {long} a", "\u6f22" * 200_000], tokenizer, tmp_path / "tokens")
    assert text.bytes.tolist() == [1, 70_001, 2, 600_000]
    assert int(text.bytes.sum()) == len(f"a {long} a") + 600_000


# --- the command line -------------------------------------------------------------------------------------------------


def test_evaluation_reads_the_same_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes.write_text(tmp_path)
    run = train(recipe(tmp_path)).run
    capsys.readouterr()
    texts = ["fresh words", "some more"]
    table = tmp_path / "table.csv"
    table.write_text("id,text\n" + "".join(f"{number},{text}\n" for number, text in enumerate(texts)))
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join(texts), encoding="utf-8-sig")
    for words in ([str(table)], [str(plain), "--separator", r"\n\n"], [saved(tmp_path, test=texts) + "@test"]):
        assert main(["evaluate", str(run.root), "--data", *words, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["bytes"] == sum(map(len, texts)), words
    assert main(["evaluate", str(run.root), "--data", "~nouser-zzz/x.txt"]) == 2
    assert "there is no ~nouser-zzz/x.txt" in capsys.readouterr().err
