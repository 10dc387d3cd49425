"""The small files of a checkpoint, read so that whatever lies in their place is an error that names it.

In: a folder and a name. Out: the object in the JSON file, or None where nothing has that name. Without PyTorch.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError

LARGEST_JSON = 64 * 2**20
"""No configuration or index comes near it; a file that does would only take memory."""
_POINTER = b"version https://git-lfs"


def read_json(folder: Path, file: str, *, largest: int = LARGEST_JSON) -> dict[str, Any] | None:
    """The object in a JSON file of a folder, or None where nothing has that name.

    Raises:
        CheckpointError: it is no file, cannot be read, or holds no JSON object.
    """
    path = folder / file
    if not is_plain_file(path):
        return None
    size = path.stat().st_size
    if size > largest:
        raise CheckpointError(f"{path} has {size:,} bytes; such a file has at most {largest:,}. Copy it again.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Give yourself the permission.") from None
    check_pointer(path, content)
    try:
        found = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text in UTF-8 (byte {error.start}). Copy the checkpoint again.") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not valid: its JSON is nested too deeply. Copy it again.") from None
    except ValueError as error:  # also of numbers with too many digits
        raise CheckpointError(f"{path} is not valid JSON: {error}. Copy the checkpoint again.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(found).__name__}. Copy it again.")
    return found


def is_plain_file(path: Path) -> bool:
    """Whether there is a file of that name; False where nothing is.

    Raises:
        CheckpointError: something else is, as a folder, a pipe or a link that leads nowhere.
    """
    if not _is_there(path):
        return False
    try:
        mode = path.stat().st_mode
    except OSError as error:
        target = os.readlink(path) if path.is_symlink() else path
        raise CheckpointError(
            f"{path} leads to {target}, which cannot be opened: {error.strerror}. Copy the checkpoint again, with what "
            "its links name (cp -rL)."
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file (a pipe, socket or device)"
        raise CheckpointError(f"{path} is {kind}, and a file belongs there. Copy the checkpoint again.")
    return True


def _is_there(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a name with a null character
        return False


def check_pointer(path: Path, beginning: bytes) -> None:
    """Refuse what Git leaves in the place of a large file that was not fetched."""
    if beginning.startswith(_POINTER):
        raise CheckpointError(
            f"{path} is a Git-LFS pointer, not the file that it stands for. Fetch it: git lfs pull, in {path.parent}. "
            "Or download the checkpoint again."
        )
