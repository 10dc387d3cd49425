"""Whether a path can be written, found out before the work whose result it is to hold.

In: a path, and what names it (an option, a key). Out: nothing, or a `SettingsError`. Nothing is made or changed; what
happens to the disk meanwhile is not foreseen.
"""

from __future__ import annotations

import os
from pathlib import Path

from unmask.errors import SettingsError


def check_file(path: str | Path, name: str) -> None:
    """Whether a file of that path could be written, in folders that may still have to be made.

    Raises:
        SettingsError: it could not.
    """
    target = _usable(path, name)
    if target.is_dir():
        raise SettingsError(f"{name} must be a file, and {target} is a folder. Name a file in it.")
    if target.exists() and not target.is_file():
        raise SettingsError(f"{name} must be a file, and {target} is a device or pipe. Name a file.")
    if target.exists() and not os.access(target, os.W_OK):
        raise SettingsError(f"{name}: {target} may not be written. Change its permissions, or name another file.")
    _check_parent(target.parent, name)


def check_folder(path: str | Path, name: str) -> None:
    """Whether a folder of that path could be made, or written into where there is one.

    Raises:
        SettingsError: it could not.
    """
    target = _usable(path, name)
    if target.exists() and not target.is_dir():
        raise SettingsError(f"{name} must be a folder, and {target} is a file. Name another place.")
    _check_parent(target, name)


def _usable(path: str | Path, name: str) -> Path:
    """The path, if the system can have one like it."""
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise SettingsError(f"{name} must be a path, got {text[:80]!r}.")
    try:
        os.lstat(text)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        part = next(parent for parent in Path(text).parents if parent.exists())
        raise SettingsError(f"{name} cannot be {text}: {part} is a file, not a folder.") from None
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise SettingsError(f"{name} cannot be {shown!r}: {reason}.") from None
    return Path(text)


def _check_parent(folder: Path, name: str) -> None:
    """The nearest folder that exists must let things be made in it."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    if not there.is_dir():
        raise SettingsError(f"{name}: {there} is a file or a broken link, not a folder. Name another place.")
    if not os.access(there, os.W_OK | os.X_OK) or _is_read_only(there):
        raise SettingsError(f"{name}: the folder {there} may not be written. Change its permissions, or name another.")


def _is_read_only(folder: Path) -> bool:
    """Whether the file system is, which permissions do not say to the superuser."""
    if not hasattr(os, "statvfs"):
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
