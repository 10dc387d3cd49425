"""Sources of text: files, folders, Hugging Face datasets, Python's documentation -> documents.

In: the names of sources. Out: one string per document, in a fixed order; malformed rows stop the reader with their
file and line, or are skipped and counted. Nothing is held in memory but the current document (or plain-text file).
"""

from __future__ import annotations

import functools
import glob
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from unmask.data import python_docs
from unmask.errors import DataError, require
from unmask.settings.data import DataSettings

PYTHON_DOCS = "python-docs"
_HUB = "hf:"
_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".txt.gz", ".jsonl.gz", ".json.gz")


class Corpus:
    """The documents of some sources; iterate over it as often as needed.

    Attributes:
        skipped: rows that the last complete pass left out because they were malformed.
    """

    def __init__(self, sources: Sequence[str], settings: DataSettings) -> None:
        if not sources:
            raise DataError(
                "No data source was given. Set data.train to files, a folder, hf:NAME or python-docs, for example "
                "data.train=stories.jsonl"
            )
        self.settings = settings
        self.sources = [part for source in sources for part in _expand(source)]
        self.skipped = 0

    def __iter__(self) -> Iterator[str]:
        self.skipped = 0
        for source in self.sources:
            for text in self._read(source):
                if text.strip():
                    yield text

    def fingerprint(self) -> str:
        """A name that changes when a source, its size or its time of change does."""
        parts = [
            f"{source}:{Path(source).stat().st_size}:{Path(source).stat().st_mtime_ns}" if _is_file(source) else source
            for source in self.sources
        ]
        settings = (self.settings.text_field, self.settings.separator, self.settings.split, self.settings.malformed)
        return hashlib.blake2b(json.dumps([parts, settings]).encode(), digest_size=8).hexdigest()

    def _read(self, source: str) -> Iterator[str]:
        if source == PYTHON_DOCS:
            yield from _python_docs()
        elif source.startswith(_HUB):
            yield from self._read_dataset(source)
        elif ".json" in Path(source).name:
            yield from self._read_json_lines(source)
        else:
            text = _read_file(source)
            yield from (text.split(self.settings.separator) if self.settings.separator else [text])

    def _read_json_lines(self, source: str) -> Iterator[str]:
        number = 0
        try:
            with _open(source) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield from self._row_text(line, f"{source}, line {number}")
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(
                f"{source} cannot be read after line {number}: {error}. Is it UTF-8 and complete?"
            ) from None

    def _row_text(self, line: str, where: str) -> Iterator[str]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield from self._malformed(f"{where}: not valid JSON ({error.msg}, column {error.colno})")
            return
        yield from self._field(row, where)

    def _field(self, row: Any, where: str) -> Iterator[str]:
        name = self.settings.text_field
        if isinstance(row, dict) and isinstance(row.get(name), str):
            yield row[name]
        elif not isinstance(row, dict):
            yield from self._malformed(f"{where}: expected an object with the field `{name}`, got {_short(row)}")
        elif name not in row:
            yield from self._malformed(f"{where}: there is no field `{name}`; the row has {', '.join(row) or 'none'}")
        else:
            yield from self._malformed(f"{where}: the field `{name}` must be text, got {_short(row[name])}")

    def _malformed(self, message: str) -> Iterator[str]:
        if self.settings.malformed == "error":
            raise DataError(f"{message}. Mend the row, set data.text_field, or skip such rows: data.malformed=skip")
        self.skipped += 1
        yield from ()

    def _read_dataset(self, source: str) -> Iterator[str]:
        require("datasets", extra="data", purpose=f"The source {source}")
        import datasets

        name, _, config = source.removeprefix(_HUB).partition(":")
        split = self.settings.split
        try:
            if _is_saved_dataset(Path(name)):
                loaded = datasets.load_from_disk(name)
                rows = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
            else:
                rows = datasets.load_dataset(name, config or None, split=split)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"The dataset {source} (split `{split}`) cannot be loaded: {error}. Check the name, data.split and "
                "the network; hf:FOLDER reads a local dataset."
            ) from None
        for number, row in enumerate(rows):
            yield from self._field(dict(row), f"{source}, row {number}")


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out share; a function of its words, so that copies stay together."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def _expand(source: str) -> list[str]:
    """The files that a source stands for; hub and built-in sources stand for themselves."""
    if source == PYTHON_DOCS or source.startswith(_HUB):
        return [source]
    path = Path(source).expanduser()
    if path.is_file():
        found = [str(path)]
    elif path.is_dir():
        found = sorted(str(one) for one in path.rglob("*") if one.name.endswith(_SUFFIXES))
    else:
        found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        what = f"the folder {source} holds no {', '.join(_SUFFIXES)}" if path.is_dir() else f"there is no {source}"
        raise DataError(
            f"No data: {what}. A source is a file, a glob, a folder, hf:NAME for a Hugging Face dataset, or "
            f"{PYTHON_DOCS}. (Relative paths start at {Path.cwd()}.)"
        )
    wrong = [one for one in found if not one.endswith(_SUFFIXES)]
    if wrong:
        raise DataError(f"{wrong[0]} has none of the endings that can be read: {', '.join(_SUFFIXES)}.")
    return found


@functools.cache
def _python_docs() -> tuple[str, ...]:
    """Python's documentation, 2.6 MB that take two seconds to collect."""
    return tuple(text for _, text in python_docs.documents())


def _is_file(source: str) -> bool:
    return source != PYTHON_DOCS and not source.startswith(_HUB)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _open(source: str) -> TextIO:
    if source.endswith(".gz"):
        return gzip.open(source, "rt", encoding="utf-8")
    return open(source, encoding="utf-8")


def _read_file(source: str) -> str:
    try:
        with _open(source) as file:
            return file.read()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{source} cannot be read: {error}. Is it UTF-8 text and complete?") from None


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
