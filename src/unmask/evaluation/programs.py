"""Programs that a model wrote, run against their tests.

Each runs in a process of its own, in an empty temporary folder, without the caller's environment, with limits on time,
memory, files and child processes. That guards against accidents, not against malice: it is no sandbox, and whoever
evaluates code from a model that they do not trust does so inside a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unmask.errors import SettingsError

_RUNNER = Path(__file__).with_name("limited_program.py")
_MEMORY_BYTES = 2**30
_FILE_BYTES = 2**20


def passes(program: str, *, timeout_s: float = 10.0) -> bool:
    """Whether a program runs to its end within the limits."""
    if sys.platform == "win32":
        raise SettingsError(
            "Generated code is run under POSIX limits, which Windows does not have. Use Linux or macOS."
        )
    password = secrets.token_hex(16)
    job = {
        "program": program,
        "password": password,
        "seconds": int(timeout_s) + 1,
        "memory_bytes": _MEMORY_BYTES,
        "file_bytes": _FILE_BYTES,
    }
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_RUNNER)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            written, _ = process.communicate(json.dumps(job).encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return written == password.encode()


def each_passes(programs: Sequence[str], *, timeout_s: float = 10.0) -> list[bool]:
    """`passes` for many programs, as many at once as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: passes(program, timeout_s=timeout_s), programs))
