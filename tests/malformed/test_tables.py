"""Malformed Parquet files, zstd files and Hugging Face datasets: what is wrong, and what else there is."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.malformed.case import Case, check, parametrized, written
from tests.malformed.test_data import GOOD, LINES, made, read

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def table(columns: dict[str, Any], name: str = "x.parquet", **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        parquet.write_table(pyarrow.table(columns), folder / name, **options)

    return make


def changed(
    make: Callable[[Path], None], change: Callable[[bytes], bytes], name: str = "x.parquet"
) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        make(folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return both


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


def file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: written(folder, name, content) and None


def saved(*splits: str, name: str = "saved", **rows: list[Any]) -> Callable[[Path], None]:
    """A folder that `save_to_disk` wrote: of splits, each with its own text, or of none."""

    def make(folder: Path) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            if splits:
                parts = {one: datasets.Dataset.from_dict(rows or {"text": [f"{one} text"]}) for one in splits}
                datasets.DatasetDict(parts).save_to_disk(folder / name)
            else:
                datasets.Dataset.from_dict(rows or {"text": ["plain text"]}).save_to_disk(folder / name)

    return make


def of_files(folder: Path) -> None:
    written(folder, "plain/train.jsonl", '{"text": "train text"}\n')
    written(folder, "plain/validation.jsonl", '{"text": "validation text"}\n')


def damaged(folder: Path) -> None:
    saved("train", "test")(folder)
    for shard in (folder / "saved").rglob("*.arrow"):
        shard.write_bytes(b"garbage")


TEXTS = pyarrow.array(["a", "b"])
INVALID = pyarrow.Array.from_buffers(
    pyarrow.string(), 2, [None, pyarrow.array([0, 1, 2], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xff")]
)
LARGE = table({"text": ["word " * 999] * 99})

WRONG = [
    Case(
        "Parquet without the column", made(table({"body": ["a"]}), "x.parquet"), "no field `text`; the table has body"
    ),
    Case("Parquet without columns", made(table({}), "x.parquet"), "there is no field `text`; the table has none"),
    Case("numbers as text", made(table({"text": [1]}), "x.parquet"), "x.parquet, row 1: the field `text` must be text"),
    Case(
        "null as text",
        made(table({"text": ["a", None]}), "x.parquet"),
        "row 2: the field `text` must be text, got null",
    ),
    Case("lists as text", made(table({"text": [["a"]]}), "x.parquet"), 'the field `text` must be text, got ["a"]'),
    Case("structures as text", made(table({"text": [{"a": {"b": 1}}]}), "x.parquet"), 'got {"a": {"b": 1}}'),
    Case("bytes as text", made(table({"text": [b"a"]}), "x.parquet"), "the field `text` must be text, got"),
    Case("booleans as text", made(table({"text": [True]}), "x.parquet"), "must be text, got true"),
    Case(
        "deep lists as text",
        made(table({"text": pyarrow.array([[[[["a"]]]]])}), "x.parquet"),
        'must be text, got [[[["a"]]]]',
    ),
    Case("text that is not UTF-8", made(table({"text": INVALID}), "x.parquet"), "x.parquet, row 2: "),
    Case(
        "Parquet that is cut", made(changed(LARGE, lambda all_: all_[: len(all_) // 2]), "x.parquet"), "cannot be read"
    ),
    Case("Parquet without its head", made(changed(LARGE, lambda all_: all_[8:]), "x.parquet"), "x.parquet"),
    Case(
        "Parquet with a damaged page",
        made(changed(LARGE, lambda all_: all_[:20] + bytes(40) + all_[60:]), "x.parquet"),
        "x.parquet cannot be read after row",
    ),
    Case(
        "Parquet with a damaged foot",
        made(changed(LARGE, lambda all_: all_[:-60] + bytes(40) + all_[-20:]), "x.parquet"),
        "x.parquet cannot be read after row 0",
    ),
    Case(
        "zstd that is cut", made(file("x.jsonl.zst", zstd(LINES)[:-40]), "x.jsonl.zst"), "Truncated compressed stream"
    ),
    Case("garbage after zstd", made(file("x.jsonl.zst", zstd(LINES) + b"garbage"), "x.jsonl.zst"), "cannot be read"),
    Case("gz named .zst", made(file("x.txt.zst", b"\x1f\x8b" + LINES), "x.txt.zst"), "x.txt.zst cannot be read: ZSTD"),
    Case("a zstd bomb", made(file("x.txt.zst", zstd(b" " * 2**27)), "x.txt.zst"), "raise data.max_expansion"),
    Case(
        "a zstd bomb of lines",
        made(file("x.jsonl.zst", zstd((b" " * 2**20 + b"\n") * 99)), "x.jsonl.zst"),
        "unpacks to more than 67,108,864 bytes",
    ),
    Case(
        "a Parquet bomb",
        made(table({"text": [" " * 2**27]}, compression="zstd"), "x.parquet"),
        "x.parquet unpacks to more than 67,108,864 bytes: 100 times its size, or 64 MiB",
    ),
    Case("latin-1 in zstd", made(file("x.txt.zst", zstd(b"gr\xfcn")), "x.txt.zst"), "byte 0xfc at 2 is not UTF-8"),
    Case(
        "a split that is not there",
        made(saved("train", "test"), "hf:saved@validation"),
        "there is no split `validation`; it has train, test. Name one: hf:",
    ),
    Case(
        "a default split that is not there",
        made(saved("dev", "test"), "hf:saved"),
        "there is no split `train`; it has dev, test. Name one: hf:",
    ),
    Case("a split of none", made(saved(), "hf:saved@test"), "it has no splits, and `test` was asked for"),
    Case(
        "a split as a configuration",
        made(saved("train", "validation"), "hf:saved:validation"),
        "has no configurations, and hf:saved:validation names one. A split is named by @: hf:saved@validation",
    ),
    Case("a configuration of files that is not there", made(of_files, "hf:plain:validation"), "'validation' not found"),
    Case("a split of files that is not there", made(of_files, "hf:plain@test"), "no split `test`; it has train, val"),
    Case("a saved folder without the column", made(saved("train", body=["a"]), "hf:saved"), "the table has body"),
    Case("a saved folder of numbers", made(saved("train", text=[1]), "hf:saved"), "hf:saved, row 0: the field `text`"),
    Case("a damaged saved folder", made(damaged, "hf:saved"), "cannot be loaded"),
    Case("an empty folder as a dataset", made(lambda folder: (folder / "e").mkdir(), "hf:e"), "cannot be loaded"),
    Case(
        "a dataset of the hub without a network", made(lambda folder: None, "hf:nobody/nothing-zzz"), "Check the name"
    ),
]
RIGHT = [
    Case("Parquet", made(table({"id": [1, 2], "text": ["a", "b"]}), "x.parquet"), value=(["a", "b"], 0)),
    Case("packed Parquet", made(table({"text": TEXTS}, compression="zstd"), "x.parquet"), value=(["a", "b"], 0)),
    Case("an empty table", made(table({"text": pyarrow.array([], pyarrow.string())}), "x.parquet"), value=([], 0)),
    Case("large text", made(table({"text": TEXTS.cast(pyarrow.large_string())}), "x.parquet"), value=(["a", "b"], 0)),
    Case("dictionaries", made(table({"text": TEXTS.dictionary_encode()}), "x.parquet"), value=(["a", "b"], 0)),
    Case("views", made(table({"text": TEXTS.cast(pyarrow.string_view())}), "x.parquet"), value=(["a", "b"], 0)),
    Case("Parquet in a folder", made(table({"text": TEXTS}), "."), value=(["a", "b"], 0)),
    Case("zstd lines", made(file("x.jsonl.zst", zstd(GOOD.encode())), "x.jsonl.zst"), value=(["good"], 0)),
    Case("zstd text", made(file("x.txt.zst", zstd(b"a\r\nb")), "x.txt.zst"), value=(["a\nb"], 0)),
    Case("two zstd frames", made(file("x.jsonl.zst", zstd(GOOD.encode()) * 2), "x.jsonl.zst"), value=(["good"] * 2, 0)),
    Case("a zstd table", made(file("x.csv.zst", zstd(b"text\na\n")), "x.csv.zst"), value=(["a"], 0)),
    Case("an empty zstd file", made(file("x.jsonl.zst", zstd(b"")), "x.jsonl.zst"), value=([], 0)),
    Case("a saved folder", made(saved("train", "test"), "hf:saved"), value=(["train text"], 0)),
    Case("a saved folder without hf:", made(saved("train", "test"), "saved"), value=(["train text"], 0)),
    Case("a saved folder without splits", made(saved(), "saved"), value=(["plain text"], 0)),
    Case(
        "a saved folder in a folder of files",
        made(lambda folder: (saved("train", name="all/saved")(folder), written(folder, "all/a.jsonl", GOOD)), "all"),
        value=(["good", "train text"], 0),
    ),
    Case("a split", made(saved("train", "test"), "hf:saved@test"), value=(["test text"], 0)),
    Case("a split of the settings", made(saved("train", "test"), "hf:saved", split="test"), value=(["test text"], 0)),
    Case(
        "a named split first", made(saved("train", "test"), "hf:saved@train", split="test"), value=(["train text"], 0)
    ),
    Case("a folder with an @", made(saved("train", name="a@b"), "hf:a@b"), value=(["train text"], 0)),
    Case("a split of a folder with an @", made(saved("test", name="a@b"), "hf:a@b@test"), value=(["test text"], 0)),
    Case("a folder with a colon", made(saved("train", name="a:b"), "hf:a:b"), value=(["train text"], 0)),
    Case("files as a dataset", made(of_files, "hf:plain@validation"), value=(["validation text"], 0)),
    Case("a share of files", made(of_files, "hf:plain@train[:50%]+validation"), value=(["validation text"], 0)),
    Case(
        "two datasets", made(saved("train", "test"), "hf:saved,hf:saved@test"), value=(["train text", "test text"], 0)
    ),
]
SKIPS = [
    Case(
        "a row that is not UTF-8 skipped",
        made(table({"text": INVALID}), "x.parquet", malformed="skip"),
        value=(["a"], 1),
    ),
    Case(
        "null skipped",
        made(table({"text": ["a", None, "b"]}), "x.parquet", malformed="skip"),
        value=(["a", "b"], 1),
    ),
    Case(
        "a dataset without the column skipped",
        made(saved("train", body=["a"]), "hf:saved", malformed="skip"),
        value=([], 1),
    ),
]


@parametrized(WRONG)
def test_what_cannot_be_read_is_named(case: Case, tmp_path: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        check(case, tmp_path)


@parametrized(RIGHT)
def test_every_kind_of_table_is_read(case: Case, tmp_path: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        check(case, tmp_path)


@parametrized(SKIPS)
def test_rows_can_be_skipped_and_are_counted(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.zst"])
def test_what_is_not_installed_is_named_with_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf'{name}.*needs the package `pyarrow`.*pip install "unmask\[data\]"'):
        read(name)


def test_a_damaged_column_of_no_interest_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table({"text": ["a"], "other": pyarrow.array([2**62], pyarrow.timestamp("us"))})(tmp_path)
    assert read("x.parquet") == (["a"], 0)
