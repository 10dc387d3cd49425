"""The names of sources -> the files that they stand for.

In: files, globs, folders, lists `a,b`, and names of datasets. Out: ordinary files that are there, sorted; datasets and
built-in text stand for themselves. Hidden files and folders (`.ipynb_checkpoints` too) are no data; a link is followed,
but never in a circle.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from unmask.data.hub import HUB, HubSource, is_saved_dataset
from unmask.errors import DataError

PYTHON_DOCS = "python-docs"
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def is_file(source: str) -> bool:
    """Whether a found source is a file, and no dataset or built-in text."""
    return source != PYTHON_DOCS and not source.startswith(HUB)


def named(sources: Sequence[str]) -> list[str]:
    """The sources that a list of names names: `a,b` are two, unless there is a file of that name."""
    names: list[str] = []
    for source in sources:
        parts = [source] if "," not in source or _exists(source) else source.split(",")
        names += [part.strip() if len(parts) > 1 else part for part in parts]
    return names


def expanded(source: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files that one source stands for.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    if not source.strip():
        raise DataError(f"A data source has no name, got {source!r}. {_allowed()}")
    if source == PYTHON_DOCS or source.startswith(HUB):
        if source.startswith(HUB):
            HubSource.parsed(source, None)
        return [source]
    path = Path(os.path.expanduser(source))
    try:
        found = _found(path, suffixes)
    except (OSError, ValueError) as error:
        raise DataError(f"No data: {source!r} cannot be searched: {error}. {_allowed()}") from None
    if not found:
        what = f"the folder {source} holds no {', '.join(suffixes)}" if os.path.isdir(path) else f"there is no {source}"
        raise DataError(f"No data: {what}. {_allowed()} (Relative paths start at {Path.cwd()}.)")
    for file in found:
        if not file.startswith(HUB):
            _check(file, suffixes)
    return found


def _found(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    if os.path.isdir(path):
        if _is_dataset(path, suffixes):
            return [f"{HUB}{path}"]
        return sorted(_walked(path, suffixes))
    if os.path.lexists(path):
        return [str(path)]
    return sorted(glob.glob(str(path), recursive=True))


def _walked(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files in a folder and in all that lie or are linked below it, each folder once."""

    def stop(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        found = os.stat(root)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        if root != str(folder) and _is_dataset(root, suffixes):
            folders.clear()
            yield f"{HUB}{root}"
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield os.path.join(root, name)


def _is_dataset(folder: str | Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder is one dataset to a reader of rows, and not many files."""
    return ".jsonl" in suffixes and is_saved_dataset(Path(folder))


def _check(file: str, suffixes: tuple[str, ...]) -> None:
    """Refuse what is no ordinary file, which might never end, and what no reader knows.

    Raises:
        DataError: it is such a one.
    """
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        link = f" is a link to {os.readlink(file)}, which" if os.path.islink(file) else ""
        raise DataError(
            f"No data: {file}{link} cannot be opened: {error.strerror}. Remove it, or name files."
        ) from None
    kind = next((name for is_kind, name in _SPECIAL if is_kind(mode)), None)
    if kind is not None:
        raise DataError(f"No data: {file} is {kind}, not a file. Name files: a glob for those in folders is */*.jsonl.")
    if not file.lower().endswith(suffixes):
        raise DataError(f"{file} has none of the endings that can be read: {', '.join(suffixes)}.")


def _allowed() -> str:
    return (
        "A source is a file, a glob, a folder, hf:NAME[:CONFIG][@SPLIT] for a Hugging Face dataset, or "
        f"{PYTHON_DOCS}; several are a,b."
    )


def _exists(source: str) -> bool:
    return os.path.lexists(os.path.expanduser(source))
