"""How files and folders reach the disk: written aside, flushed, renamed, so that a reader never sees a part of one.

In: a path and its content. Out: the path holds all of it, or what it held before. What a kill leaves behind begins with
`PARTIAL` and is nobody's data.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial-"
"""How the names of unfinished files and folders begin."""


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name, whole and flushed to disk, when the block ends.

    A reader sees the old folder, the new one or none, never a part. On an error nothing takes the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named after the process: two that make the same folder at once must not write into one another's.
    temporary = path.parent / f"{PARTIAL}{path.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for file in [*temporary.rglob("*"), temporary]:
        _flush(file)
    if path.exists():
        replaced = path.parent / f"{PARTIAL}replaced-{path.name}-{os.getpid()}"
        os.replace(path, replaced)
        os.replace(temporary, path)
        shutil.rmtree(replaced)
    else:
        os.replace(temporary, path)
    _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{PARTIAL}{path.name}"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
