"""Sources: files, folders, Hugging Face datasets, Python's documentation -> documents of some kind.

In: the names of sources. Out: their documents in a fixed order; malformed rows stop the reader with their file and
line, or are skipped and counted. Nothing is held in memory but the current document (or plain-text or `.json` file).
What a document is, a subclass says: a text, a conversation, or a row of tokens.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from unmask.errors import DataError, require
from unmask.settings.data import DataSettings

T = TypeVar("T")
PYTHON_DOCS = "python-docs"
_HUB = "hf:"


class Sources(ABC, Generic[T]):
    """The documents of some sources; iterate over it as often as needed.

    Attributes:
        skipped: rows that the last complete pass left out because they were malformed.
        suffixes: endings of the files that can be read.
    """

    suffixes: tuple[str, ...] = (".txt", ".md", ".jsonl", ".json", ".txt.gz", ".jsonl.gz", ".json.gz")
    remedy = "Mend the row, or skip such rows: data.malformed=skip"

    def __init__(self, sources: Sequence[str], settings: DataSettings) -> None:
        self.settings = settings
        self.sources = self.found(sources)
        self.skipped = 0

    @classmethod
    def found(cls, sources: Sequence[str]) -> list[str]:
        """The files that sources stand for; those of the hub and built-in ones stand for themselves.

        Raises:
            DataError: a source is missing, or there is none.
        """
        if not sources:
            raise DataError(
                "No data source was given. Set data.train to files, a folder, hf:NAME or python-docs, for example "
                "data.train=stories.jsonl"
            )
        return [part for source in sources for part in _expand(source, cls.suffixes)]

    @abstractmethod
    def from_row(self, row: Any, where: str) -> Iterator[T]:
        """The document of a JSON or dataset row, if it has one.

        Raises:
            DataError: the row is malformed; the message does not say where.
        """

    @abstractmethod
    def from_text(self, source: str) -> Iterator[T]:
        """The documents of a file that holds no JSON, or of Python's documentation."""

    def __iter__(self) -> Iterator[T]:
        self.skipped = 0
        for source in self.sources:
            if source.startswith(_HUB):
                rows = self._dataset_rows(source)
            elif source != PYTHON_DOCS and ".json" in Path(source).name:
                rows = self._json_rows(source)
            else:
                yield from self.from_text(source)
                continue
            for row, where in rows:
                try:
                    yield from self.from_row(row, where)
                except DataError as error:
                    self._skip(f"{where}: {error}")

    def fingerprint(self) -> str:
        """A name that changes when a source, its size or its time of change does."""
        parts = [
            f"{source}:{Path(source).stat().st_size}:{Path(source).stat().st_mtime_ns}" if _is_file(source) else source
            for source in self.sources
        ]
        names = ("format", "text_field", "separator", "prompt_field", "answer_field", "split", "malformed")
        settings = [getattr(self.settings, name) for name in names]
        return hashlib.blake2b(json.dumps([parts, settings]).encode(), digest_size=8).hexdigest()

    def malformed(self, message: str) -> None:
        """Stop at a malformed row, unless the settings say to skip it.

        Raises:
            DataError: the message and what to do about it.
        """
        if self.settings.malformed == "error":
            raise DataError(f"{message.rstrip('.')}. {self.remedy}")

    def _skip(self, message: str) -> None:
        self.malformed(message)
        self.skipped += 1

    def _json_rows(self, source: str) -> Iterator[tuple[Any, str]]:
        """Rows of JSON lines, or of a `.json` file that holds one list."""
        number = 0
        try:
            with open_text(source) as file:
                if ".jsonl" not in Path(source).name and file.read(64).lstrip().startswith("["):
                    file.seek(0)
                    yield from _listed_rows(file.read(), source)
                    return
                file.seek(0)
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield from self._parsed(line, f"{source}, line {number}")
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(
                f"{source} cannot be read after line {number}: {error}. Is it UTF-8 and complete?"
            ) from None

    def _parsed(self, line: str, where: str) -> Iterator[tuple[Any, str]]:
        try:
            yield json.loads(line), where
        except json.JSONDecodeError as error:
            self._skip(f"{where}: not valid JSON ({error.msg}, column {error.colno})")

    def _dataset_rows(self, source: str) -> Iterator[tuple[Any, str]]:
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
            yield dict(row), f"{source}, row {number}"


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to the held-out share; a function of its words, so that copies stay together."""
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def open_text(source: str) -> TextIO:
    """A UTF-8 file, unpacked if its name ends in .gz."""
    if source.endswith(".gz"):
        return gzip.open(source, "rt", encoding="utf-8")
    return open(source, encoding="utf-8")


def read_file(source: str) -> str:
    """The text of a file.

    Raises:
        DataError: it is damaged or not UTF-8.
    """
    try:
        with open_text(source) as file:
            return file.read()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{source} cannot be read: {error}. Is it UTF-8 text and complete?") from None


def short(value: Any) -> str:
    """A value as JSON that fits into a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed_rows(text: str, source: str) -> Iterator[tuple[Any, str]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source} begins like a JSON list and is not valid JSON: {error.msg}, line {error.lineno}, column "
            f"{error.colno}. Rows that stand one in each line belong into a .jsonl file."
        ) from None
    for number, row in enumerate(rows, start=1):
        yield row, f"{source}, row {number}"


def _expand(source: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files that a source stands for; hub and built-in sources stand for themselves."""
    if source == PYTHON_DOCS or source.startswith(_HUB):
        return [source]
    path = Path(source).expanduser()
    if path.is_file():
        found = [str(path)]
    elif path.is_dir():
        found = sorted(str(one) for one in path.rglob("*") if one.name.endswith(suffixes))
    else:
        found = sorted(glob.glob(str(path), recursive=True))
    if not found:
        what = f"the folder {source} holds no {', '.join(suffixes)}" if path.is_dir() else f"there is no {source}"
        raise DataError(
            f"No data: {what}. A source is a file, a glob, a folder, hf:NAME for a Hugging Face dataset, or "
            f"{PYTHON_DOCS}. (Relative paths start at {Path.cwd()}.)"
        )
    wrong = [one for one in found if not one.endswith(suffixes)]
    if wrong:
        raise DataError(f"{wrong[0]} has none of the endings that can be read: {', '.join(suffixes)}.")
    return found


def _is_file(source: str) -> bool:
    return source != PYTHON_DOCS and not source.startswith(_HUB)


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
