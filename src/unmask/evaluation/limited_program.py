"""One program under limits, in a process of its own: `python -I limited_program.py < job.json`, see `programs`.

It imports nothing but the standard library. What the program prints goes nowhere; the job's password is written to
standard output only after the program has run to its end, so that leaving early does not count as passing.
"""

import contextlib
import json
import os
import resource
import sys


def main() -> None:
    """Set the limits, run the program, write the password."""
    job = json.load(sys.stdin)
    answer, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    _limit(resource.RLIMIT_CPU, job["seconds"])
    _limit(resource.RLIMIT_AS, job["memory_bytes"])
    _limit(resource.RLIMIT_FSIZE, job["file_bytes"])
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_CORE, 0)
    exec(compile(job["program"], "program.py", "exec"), {"__name__": "__main__"})
    os.write(answer, job["password"].encode())


def _limit(kind: int, value: int) -> None:
    """Lower a limit; some systems do not have all of them."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
