"""Hugging Face datasets as sources: `hf:NAME[:CONFIG][@SPLIT]`, of the hub or of a folder.

In: the name of a source and the splits of the settings. Out: its rows. A split that nobody named and that is not there
is an error that lists those which are, never another split. No code of a dataset is run.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.records import Reader, wanted
from unmask.errors import DataError, require
from unmask.models.reach import silence

HUB = "hf:"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_VALIDATION = "validation"


@dataclass(frozen=True)
class HubSource:
    """What the name of a source says.

    Attributes:
        source: as it is named.
        name: of a dataset of the hub, or its folder.
        config: which of its configurations, or None.
        split: the split that the source names, or None.
        default: the split otherwise; None: `validation`, or the only one.
    """

    source: str
    name: str
    config: str | None
    split: str | None
    default: str | None

    @staticmethod
    def parsed(source: str, default: str | None) -> HubSource:
        """The parts of `hf:NAME[:CONFIG][@SPLIT]`.

        Raises:
            DataError: it has another form.
        """
        name, config, split = source.removeprefix(HUB), None, None
        if not os.path.isdir(_expanded(name)):
            before, mark, after = name.rpartition("@")
            if mark and "/" not in after:
                name, split = before, after
                if not split.strip():
                    raise _unlike(source, "it names no split after @")
        if not os.path.isdir(_expanded(name)):
            name, mark, after = name.partition(":")
            if mark:
                config = after
                if not config.strip():
                    raise _unlike(source, "it names no configuration after :")
        folder = _expanded(name)
        if os.path.isdir(folder):
            return HubSource(source, folder, config, split, default)
        if name != name.strip() or not _NAME.fullmatch(name):
            if os.sep in name or name.startswith("~"):
                raise DataError(
                    f"No data: there is no folder {name!r} for the source {source!r}, and the hub has no such names. "
                    f"(Relative paths start at {Path.cwd()}.)"
                )
            raise _unlike(source, "it names no dataset")
        return HubSource(source, name, config, split, default)

    @property
    def is_saved(self) -> bool:
        """Whether it is a folder written by `save_to_disk`."""
        return is_saved_dataset(Path(self.name))

    def identity(self) -> object:
        """What changes when the dataset does: of a folder all files with their sizes and times, else its commit."""
        parts = [self.name, self.config, self.split or self.default or ""]
        if os.path.isdir(self.name):
            return [*parts, sorted(stamp(str(one)) for one in Path(self.name).rglob("*") if one.is_file())]
        if _commit(self.name) is None:
            self._opened(streamed=False)  # which fetches it
        return [*parts, _commit(self.name)]

    def rows(self, reader: Reader, *, streamed: bool = False, start: int = 0) -> Iterator[tuple[int, Any, str]]:
        """The rows from number `start` on: each one's number, the row, and where it stands.

        Raises:
            DataError: the dataset cannot be loaded.
        """
        table = self._opened(streamed=streamed)
        names = getattr(table, "column_names", None)
        if names is not None:
            table = table.select_columns(wanted(names, reader, str(self)))
        number = start
        rows: Iterable[Any] = table.skip(start) if start else table
        iterator = iter(rows)
        while True:
            where = f"{self}, row {number}"
            try:
                row = next(iterator, None)
            except _failures() as error:
                reader.refuse(f"{where} cannot be read: {' '.join(str(error).split())[:200]}")
                return
            if row is None:
                return
            yield number, dict(row), where
            number += 1

    def __str__(self) -> str:
        return self.source

    def _opened(self, *, streamed: bool) -> Any:
        """The rows of the split.

        Raises:
            DataError: the dataset cannot be loaded.
        """
        require("datasets", extra="data", purpose=f"The source {self}")
        silent = None if os.path.isdir(self.name) else silence()
        try:
            with _cache_alone(silent):
                return self._split_of(self._loaded(streamed=streamed))
        except _failures() as error:
            if isinstance(error, DataError):
                raise
            reason = " ".join(str(error).split())[:300].removesuffix(".")
            if silent:
                reason = f"it is not in the local cache, and {silent}"
            asked = self.split or self.default or _VALIDATION
            raise DataError(
                f"The dataset {self} (split `{asked}`) cannot be loaded: {reason}. Check the name, the split and the "
                "network; hf:FOLDER reads a local dataset."
            ) from None

    def _loaded(self, *, streamed: bool) -> Any:
        """All splits as a mapping, or a dataset without splits."""
        import datasets

        if self.is_saved:
            if self.config is not None:
                raise DataError(
                    f"A folder that save_to_disk wrote has no configurations, and {HUB}{self.name}:{self.config} names "
                    f"one. A split is named by @: {HUB}{self.name}@{self.config}"
                )
            return datasets.load_from_disk(self.name)
        asked = self.split or self.default
        if streamed:
            return datasets.load_dataset(self.name, self.config, split=asked, streaming=True)
        if asked is not None and not asked.isidentifier():
            return datasets.load_dataset(self.name, self.config, split=asked)
        return datasets.load_dataset(self.name, self.config)

    def _split_of(self, loaded: Any) -> Any:
        if not isinstance(loaded, dict):
            own = None if getattr(loaded, "split", None) is None else str(loaded.split)
            # What `save_to_disk` wrote without splits has no name, or that of the split which it was.
            if self.split is not None and own != self.split and self.is_saved:
                has = "no splits" if own is None else f"the split {own} only"
                raise DataError(
                    f"The dataset {HUB}{self.name} cannot be loaded: it has {has}, and `{self.split}` was asked for"
                )
            return loaded
        asked = self.split or self.default or (next(iter(loaded)) if len(loaded) == 1 else _VALIDATION)
        if asked not in loaded:
            key = "data.validation_split" if self.default is None else "data.split"
            raise DataError(
                f"The dataset {self} cannot be loaded: there is no split `{asked}`; it has "
                f"{', '.join(map(str, loaded))}. Name one: {HUB}{self.name}@SPLIT, or {key}"
            )
        return loaded[asked]


@contextlib.contextmanager
def _cache_alone(silent: str | None) -> Iterator[None]:
    """Let `datasets` look into its cache alone while the hub is silent, which it would ask for half a minute."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    if silent:
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _failures() -> tuple[type[Exception], ...]:
    """What goes wrong when a dataset is loaded or read."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    return (
        *(OSError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, ImportError),
        *(DatasetsError, pyarrow.ArrowException),
    )


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def stamp(file: str) -> str:
    """A file's name, size and times: what changes when its content does."""
    found = os.stat(file)
    return f"{file}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _commit(name: str) -> str | None:
    """The commit of a dataset of the hub that was fetched last, or None before the first time."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / "main"
    return folder.read_text(encoding="utf-8").strip() if folder.is_file() else None


def _expanded(name: str) -> str:
    return os.path.expanduser(name)


def _unlike(source: str, fault: str) -> DataError:
    return DataError(
        f"{source!r} is no source: {fault}. A dataset is hf:NAME[:CONFIG][@SPLIT], for example "
        "hf:roneneldan/TinyStories@validation, or hf:FOLDER."
    )
