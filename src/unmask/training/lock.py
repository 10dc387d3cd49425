"""One process at a time works on a folder: a lock that says who holds it, and that a kill frees.

In: a folder. Out: it is ours while the block runs. The operating system keeps the lock (flock), and gives it up when
the process that holds it ends, however that happens. The locked file only describes the holder, so garbage in it, or a
file that a killed process left, locks nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from unmask.errors import CheckpointError

LOCK = "lock.json"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LONGEST = 4096  # bytes of a description; more is none


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which exists; the processes of one launch let their main one hold it.

    Raises:
        CheckpointError: another process holds it, or there is no making a file in the folder.
    """
    path = folder / LOCK
    descriptor = _acquired(path)
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone with the file
            path.unlink()
        os.close(descriptor)


def _acquired(path: Path) -> int:
    """An open file that is locked and still has its name: its last holder removes it when it leaves."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(
                f"{path.parent} cannot be locked: {path} cannot be opened ({error.strerror}). Make it a writable file, "
                "or remove it."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, path):
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise CheckpointError(
                f"{path.parent} is being worked on by {holder}. Two at once would lose its records and checkpoints. "
                "Wait for it or stop it, or start another run: name=NEW_NAME"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            print(
                f"note: {path.parent} cannot be locked on this file system ({error.strerror}). See to it that no other "
                "process works on it.",
                file=sys.stderr,
            )
            return descriptor
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Who holds a lock, in words, by the description in its file."""
    try:
        holder = json.loads(os.pread(descriptor, _LONGEST, 0))
        host, pid, since = str(holder["host"]), int(holder["pid"]), str(holder["since"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return f"another process, of which its {LOCK} does not say more"
    return ascii(f"process {pid} on {host} since {since}")[1:-1]
