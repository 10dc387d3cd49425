"""Sources: files, folders, Hugging Face datasets, Python's documentation -> documents of some kind.

In: the names of sources. Out: their documents in a fixed order; malformed rows stop the reader with their file and
line, or are skipped and counted. Nothing is held in memory but the current document (or plain-text or `.json` file).
What a document is, a subclass says: a text, a conversation, or a row of tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from unmask.data import records
from unmask.data.files import PYTHON_DOCS, expanded, is_file, named
from unmask.data.hub import HUB, HubSource, stamp
from unmask.data.opening import PACKED, DamagedFileError
from unmask.data.records import Reader
from unmask.errors import DataError
from unmask.settings.data import DataSettings

T = TypeVar("T")
_ENDINGS = (".txt", ".md", *records.JSON, *records.TABLES)
_NOT_READ = frozenset(
    {
        *("train", "validation", "validation_fraction", "overlap", "weights", "split", "validation_split"),
        *("tokenizer", "vocabulary_size", "max_tokens", "context_length", "neat_packing", "chat_template"),
        *("supervise", "pad_mode", "eos_cap", "over_long", "cache_dir", "streaming", "shuffle_rows"),
    }
)
"""Settings that do not change what is read; the split stands in the names of datasets."""


class Position(NamedTuple):
    """Where a document stands.

    Attributes:
        source: number of its file or dataset among all of the sources.
        row: number of its row there; of plain text, of its part.
    """

    source: int
    row: int


class Sources(ABC, Generic[T]):
    """The documents of some sources; iterate over it as often as needed.

    Args:
        sources: their names.
        settings: how they are read.
        is_validation: whether datasets whose source names no split have that of validation text.

    Attributes:
        skipped: rows that the last complete pass left out because they were malformed.
        suffixes: endings of the files that can be read.
    """

    suffixes: ClassVar[tuple[str, ...]] = (*_ENDINGS, *(one + end for end in PACKED for one in _ENDINGS), ".parquet")
    remedy: ClassVar[str] = "Fix the row, or skip such rows: data.malformed=skip"

    def __init__(self, sources: Sequence[str], settings: DataSettings, *, is_validation: bool = False) -> None:
        self.settings = settings
        self.split = settings.validation_split if is_validation else settings.split
        self.groups = self.grouped(sources)
        self.sources = [part for group in self.groups for part in group]
        self.skipped = 0

    @classmethod
    def grouped(cls, sources: Sequence[str]) -> list[list[str]]:
        """The files that each named source stands for.

        Raises:
            DataError: a source is missing, or there is none.
        """
        names = named(sources)
        if not names:
            raise DataError(
                "No data source was given. Set data.train to files, a folder, hf:NAME or python-docs, for example "
                "data.train=stories.jsonl"
            )
        return [expanded(name, cls.suffixes) for name in names]

    @classmethod
    def found(cls, sources: Sequence[str]) -> list[str]:
        """The files that sources stand for; those of the hub and built-in ones stand for themselves.

        Raises:
            DataError: a source is missing, or there is none.
        """
        return [part for group in cls.grouped(sources) for part in group]

    @abstractmethod
    def from_row(self, row: Any, where: str) -> Iterator[T]:
        """The document of a JSON or dataset row, if it has one.

        Raises:
            DataError: the row is malformed; the message does not say where.
        """

    @abstractmethod
    def from_text(self, source: str) -> Iterator[T]:
        """The documents of a file that holds no rows, or of Python's documentation."""

    @abstractmethod
    def words(self, document: T) -> str:
        """What makes documents equal, as a text."""

    @property
    def fields(self) -> tuple[str, ...] | None:
        """The only fields of a row that are read, or None."""
        return None

    def __iter__(self) -> Iterator[T]:
        self.skipped = 0
        for group in range(len(self.groups)):
            yield from self.of_group(group)

    def of_group(self, group: int) -> Iterator[T]:
        """The documents of one named source."""
        first = sum(map(len, self.groups[:group]))
        for number in range(first, first + len(self.groups[group])):
            for _, document in self.of_source(number):
                yield document

    def of_source(self, number: int, *, start: int = 0, streamed: bool = False) -> Iterator[tuple[Position, T]]:
        """The documents of one file or dataset, from row `start` on, and where each one stands."""
        source = self.sources[number]
        try:
            if (is_file(source) and not records.has_rows(source)) or source == PYTHON_DOCS:
                for row, document in enumerate(self.from_text(source)):
                    if row >= start:
                        yield Position(number, row), document
                return
            for row, content, where in self._rows(source, start, streamed=streamed):
                try:
                    for document in self.from_row(content, where):
                        check_characters(self.words(document))
                        yield Position(number, row), document
                except DataError as error:
                    self._skip(f"{where}: {error}")
        except DamagedFileError as error:
            self._skip(str(error))

    def fingerprint(self) -> str:
        """A name that changes when a source, its size, its times or how it is read does."""
        parts: list[object] = []
        for source in self.sources:
            if source.startswith(HUB):
                parts.append(HubSource.parsed(source, self.split).identity())
            else:
                parts.append(stamp(source) if is_file(source) else [source, sys.version])
        read = {key: value for key, value in dataclasses.asdict(self.settings).items() if key not in _NOT_READ}
        return hashlib.blake2b(json.dumps([parts, read]).encode(), digest_size=8).hexdigest()

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

    def _rows(self, source: str, start: int, *, streamed: bool) -> Iterator[tuple[int, Any, str]]:
        reader = Reader(self.settings, self._skip, self.fields)
        if source.startswith(HUB):
            return HubSource.parsed(source, self.split).rows(reader, streamed=streamed, start=start)
        return records.rows_of(source, reader, start=start)


def held_out(text: str, fraction: float) -> bool:
    """Whether one of many documents belongs to the held-out share; a function of its words, so that copies stay
    together."""
    return word_hash(text) < fraction * 2.0**64


def word_hash(text: str) -> int:
    """A hash of a document's words, however they are spaced; 64 bits."""
    content = " ".join(text.split()).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def check_characters(text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer can read.

    Raises:
        DataError: the text has one.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"the text has half of a surrogate pair (\\u{code:04x}, character {error.start + 1:,}), which stands for "
            "no character"
        ) from None


def short(value: Any) -> str:
    """A value as JSON that fits into a message."""
    try:
        text = json.dumps(value, default=str, skipkeys=True)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= 60 else text[:57] + "..."


def listed(names: Any) -> str:
    """The fields of a row, as far as they fit into a message."""
    found = [str(name) for name in names]
    text = ", ".join(found)
    return text if len(text) <= 200 else f"{text[:197]}... ({len(found):,} fields)"
