"""What goes wrong outside of Unmask, in one line: the disk, permissions, paths, memory, encodings.

In: an error. Out: what is wrong and what to do, or None for an error that is a fault of ours.
"""

from __future__ import annotations

import errno
import os
import re
import sys

_REMEDIES = {
    errno.ENOSPC: "Free some space on the disk and run the command again.",
    errno.EDQUOT: "Free some of your quota and run the command again.",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`), or write to another file system.",
    errno.EACCES: "Change the permissions, or name another place.",
    errno.EPERM: "Change the permissions, or name another place.",
    errno.EROFS: "Name a place on a file system that can be written.",
    errno.EISDIR: "Name a file.",
    errno.ENOTDIR: "A part of the path is a file. Name another place.",
    errno.ENAMETOOLONG: "Shorten the name.",
    errno.ENOENT: "Check the path.",
    errno.ELOOP: "A link there leads back to itself. Remove it.",
    errno.EMFILE: "Raise the number of files that may be open (`ulimit -n`).",
    errno.EIO: "The disk or network file system fails. Check it.",
}
_MOST_CHARACTERS = 500
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)
_LESS = "Lower the batch (batch_size, micro_batch_size), the length or the size of the model."


def machine_errors() -> tuple[type[BaseException], ...]:
    """The classes of errors that may come from outside; those of libraries only where they are loaded."""
    found: list[type[BaseException]] = [OSError, UnicodeError, RecursionError, MemoryError, RuntimeError]
    if "safetensors" in sys.modules:
        from safetensors import SafetensorError

        found.append(SafetensorError)
    return tuple(found)


def explained(error: BaseException) -> str | None:
    """What is wrong and what to do; None where it is our fault."""
    if isinstance(error, MemoryError):
        return f"The memory is not enough{f' ({error})' if str(error) else ''}. {_LESS}"
    if isinstance(error, RecursionError):
        return "Something in the input is nested too deeply to be read."
    if isinstance(error, RuntimeError):
        first = str(error).partition("\n")[0]
        return f"The memory is not enough: {first} {_LESS}" if _OUT_OF_MEMORY.search(str(error)) else None
    if isinstance(error, UnicodeDecodeError):
        given = bytes(error.object[error.start : error.start + 1])
        return f"A text is not {error.encoding}: byte {error.start} is 0x{given.hex()}. Save the file as UTF-8."
    if isinstance(error, UnicodeError):
        return f"A text cannot be written in this encoding: {error}. Set PYTHONIOENCODING=utf-8."
    if isinstance(error, OSError):
        return _of_system(error)
    return _cut(f"A file of tensors cannot be read or written: {error}")


def _of_system(error: OSError) -> str:
    if error.errno is None:
        return _cut(str(error) or type(error).__name__)
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    reason = error.strerror or os.strerror(error.errno)
    return _cut(f"{where}{reason}. {_REMEDIES.get(error.errno, '')}".strip())


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
