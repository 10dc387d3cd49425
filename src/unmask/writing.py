"""How files and folders reach the disk: written aside, flushed, renamed, so that a reader never sees a part of one.

In: a path and its content. Out: the path holds all of it, or what it held before. Every file that the library writes
goes through here, but for lines that are appended. What a kill leaves behind has a name that begins with `PARTIAL` and
says which process made it, so that `remove_leftovers` takes away what no living process is writing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial-"
"""How the names of unfinished files and folders begin."""
ABANDONED_SECONDS = 24 * 60 * 60
"""What another machine began, or an unknown process, is abandoned when nothing in it has changed for this long."""
_NAME = re.compile(
    re.escape(PARTIAL) + r"(?P<name>.*)~(?P<kind>new|old)-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-\d+(\.\w+)?"
)
_LONGEST_NAME = 100  # bytes of the 255 that a file system allows
_numbers = itertools.count()


# --- files ------------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with written_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    r"""Write a file in UTF-8, whole or not at all; half of a surrogate pair, which UTF-8 has not, becomes `\udXXX`."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, content: object, *, indent: int | None = 2) -> None:
    """Write a file of JSON, which may hold any text and no NaN, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, to be written in the block, that takes the name `path` when it ends.

    It has the same ending, from which some libraries take the format. A link stays one: what it names is replaced. What
    is no ordinary file (`/dev/stdout`, a pipe) is written as it is. On an error nothing takes the name.

    Raises:
        OSError: the file cannot be written, which names `path`.
    """
    if _is_stream(path):
        yield path
        return
    named, path = path, Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(named))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(named))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        flush(temporary)
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(named)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """Whether a path means a device, a pipe or an open file, which no rename may replace."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.absolute().parts[1:2] in (("dev",), ("proc",))


# --- folders ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its name, whole and flushed to disk, when the block ends.

    A folder of that name is removed with all that is in it, so this is for folders in which nobody but us writes. A
    reader sees the old folder, the new one or none, never a part. On an error nothing takes the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        flush_folder(temporary)
        if path.exists():
            replaced = temporary_beside(path, kind="old")
            os.replace(path, replaced)
            os.replace(temporary, path)
            shutil.rmtree(replaced)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)


def flush_folder(folder: Path) -> None:
    """Put a folder with all that is in it onto the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            flush(path)


def flush(path: Path) -> None:
    """Put a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- what is left behind ----------------------------------------------------------------------------------------------


def temporary_beside(path: Path, *, kind: str = "new") -> Path:
    """A name beside `path` that no other process uses, and from which `remove_leftovers` knows this one.

    `kind` is `new` for what is being written, `old` for what makes way for it.
    """
    name = os.fsencode(path.name)[:_LONGEST_NAME].decode(errors="ignore")
    ending = path.suffix if re.fullmatch(r"\.\w+", path.suffix) and len(path.suffix) <= 16 else ""
    pid = os.getpid()
    return path.parent / f"{PARTIAL}{name}~{kind}-{_host()}-{pid}-{_started(pid)}-{next(_numbers)}{ending}"


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what processes that are gone left unfinished in `folder` (not below it); the paths that were removed.

    A folder that had made way for a new one that never took its place goes back to it.
    """
    removed = []
    for path in leftovers(folder):
        found = _NAME.fullmatch(path.name)
        if found is not None and found["kind"] == "old" and len(os.fsencode(found["name"])) < _LONGEST_NAME:
            place = path.parent / found["name"]
            if not os.path.lexists(place):
                os.replace(path, place)
                continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def leftovers(folder: Path) -> list[Path]:
    """Unfinished files and folders in `folder` (not below it) that no living process is writing, sorted."""
    return sorted(path for path in folder.glob(f"{PARTIAL}*") if _is_abandoned(path))


def _is_abandoned(path: Path) -> bool:
    found = _NAME.fullmatch(path.name)
    if found is None or found["host"] != _host():
        parts = [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]
        changed = [one.lstat().st_mtime for one in parts if os.path.lexists(one)]
        return bool(changed) and max(changed) < time.time() - ABANDONED_SECONDS
    pid = int(found["pid"])
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return _started(pid) != int(found["start"])


@functools.cache
def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def _started(pid: int) -> int:
    """When a process began, in ticks since the machine did, as process ids come round again; 0 where nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0
