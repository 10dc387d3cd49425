"""Prompts from the command line, a file or stdin, read before a model is.

In: words and a file's name. Out: texts, None where there is to be no prompt. What cannot be read is a `PromptError`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from unmask.errors import PromptError

LARGEST_FILE = 64 * 2**20
"""Bytes of a file of prompts, at most."""


def read_prompts(words: Sequence[str], file: str | None) -> list[str | None]:
    """The prompts: each word, what stdin holds for a `-`, each line of the file; None alone if there is none of them.

    Raises:
        PromptError: the file or stdin cannot be read, or holds nothing.
    """
    if list(words).count("-") > 1:
        raise PromptError("`-` reads all of stdin, so it can stand once among the prompts.")
    prompts: list[str | None] = [_stdin() if word == "-" else word for word in words]
    if file is not None:
        lines = [line for line in _content(file).splitlines() if line.strip()]
        if not lines:
            raise PromptError(f"The prompt file {file} is empty. It holds one prompt per line.")
        prompts += lines
    return prompts or [None]


def check_stdin() -> None:
    """Whether there is an input at all.

    Raises:
        PromptError: it was closed.
    """
    if sys.stdin is None:
        raise PromptError("stdin is closed, so there is nothing to read. Pipe text in, or run it in a terminal.")


def _stdin() -> str:
    check_stdin()
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(_not_utf8("stdin", error)) from None
    if not text:
        raise PromptError(
            "stdin is empty, and `-` reads the prompt from it. Pipe text in, or give the prompt as a word."
        )
    return text


def _content(file: str) -> str:
    try:
        path = Path(file).expanduser()
        with path.open("rb") as stream:  # also of a pipe, which has no size
            content = stream.read(LARGEST_FILE + 1)
    except IsADirectoryError:
        raise PromptError(f"The prompt file {file} is a folder. Name a file with one prompt per line.") from None
    except FileNotFoundError:
        raise PromptError(f"There is no prompt file {file} (in {Path.cwd()}).") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~nobody; ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PromptError(f"The prompt file {file[:80]} cannot be read: {reason}.") from None
    if len(content) > LARGEST_FILE:
        raise PromptError(f"The prompt file {file} has more than {LARGEST_FILE:,} bytes. Split it.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(_not_utf8(f"The prompt file {file}", error)) from None


def _not_utf8(name: str, error: UnicodeDecodeError) -> str:
    line = error.object[: error.start].count(b"\n") + 1
    return f"{name} is not UTF-8 text: line {line} has the byte 0x{error.object[error.start]:02x}. Save it as UTF-8."
