"""What the verbs print: data on stdout, notes on stderr.

On a terminal whatever could steer it (escape sequences, carriage returns, text that runs backwards) is shown as an
escape, not obeyed, whoever wrote it; in a pipe or file data keeps its exact characters. What an encoding lacks becomes
a backslash escape, in JSON one of JSON's own. JSON is strict: what is not finite is null.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping
from typing import Any, TextIO


def show(data: object, *, end: str = "\n", flush: bool = False) -> None:
    """Print a text (or a path) that is data."""
    print(_harmless(str(data), sys.stdout), end=end, flush=flush)


def note(text: str) -> None:
    """Print a line that is none."""
    if sys.stderr is not None:  # else `print` would choose stdout
        print(_harmless(text, sys.stderr), file=sys.stderr)


def show_json(record: Any, *, indent: int | None = None) -> None:
    """Print a record as JSON, in one line unless `indent` is given."""
    text = as_json(record, indent=indent, encoding=getattr(sys.stdout, "encoding", None) or "utf-8")
    print(text if _harmless(text, sys.stdout) == text else as_json(record, indent=indent, encoding="ascii"))


def as_json(record: Any, *, indent: int | None = None, encoding: str = "utf-8") -> str:
    """Strict JSON of plain data that the encoding can hold: NaN and infinity are null, a path is its text."""
    finite = _finite(record)
    text = json.dumps(finite, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(finite, indent=indent, allow_nan=False, default=str)
    return text


def one_line(text: str) -> str:
    """A message in one line, without anything that steers a terminal."""
    from unmask.reports.replay import printable

    return printable(" ".join(text.split()))


def forgive_encodings() -> None:
    """Let stdout and stderr write what their encoding lacks as backslash escapes, where they would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def _harmless(text: str, stream: TextIO | None) -> str:
    if stream is None or not stream.isatty():
        return text
    from unmask.reports.replay import printable

    return printable(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
