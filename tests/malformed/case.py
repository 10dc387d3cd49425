"""What a malformed input must come to, and the runner that every table of this folder shares.

A case is one wrong input and the answer to it: an error of Unmask whose message holds a given piece, raised within
`CPU_SECONDS` of work, with no traceback for the user of a command. An input that is only unusual has a value instead,
the right one. Tables are lists of cases, by the kind of input (`data.py`, `recipes.py`, ...); each names itself and its
cases, so that a failure reads as a sentence.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from unmask.cli.main import main
from unmask.errors import UnmaskError

CPU_SECONDS, WALL_SECONDS = 5, 60
"""An answer takes at most this much work; the second bound is for what waits without working."""


@dataclass(frozen=True)
class Case:
    """One input in Python and what must come of it.

    Attributes:
        name: the input, as a few words.
        use: makes the input in an empty folder and hands it to the library.
        message: a piece of the error's message; None where the input is right.
        error: the class of the error.
        value: what `use` returns where `message` is None.
    """

    name: str
    use: Callable[[Path], object]
    message: str | None = None
    error: type[UnmaskError] = UnmaskError
    value: object = None


@dataclass(frozen=True)
class Command:
    """One command line and what must come of it.

    Attributes:
        name: what is wrong, as a few words.
        words: makes the files that the command needs in an empty folder, and returns its words.
        message: a piece of the one line on stderr.
        code: the exit code.
    """

    name: str
    words: Callable[[Path], list[str]]
    message: str
    code: int = 2


class Hung(Exception):
    """An input took longer than it may."""


def parametrized(cases: list[Case] | list[Command]) -> pytest.MarkDecorator:
    """The cases of a table as parameters of a test that calls `check`."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have one name"
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


def check(case: Case | Command, folder: Path) -> None:
    """Use the input of a case in `folder`, which is also the working folder meanwhile, and compare the answer."""
    with contextlib.chdir(folder), limited():
        if isinstance(case, Command):
            _check_command(case, folder)
        elif case.message is None:
            assert case.use(folder) == case.value
        else:
            with pytest.raises(case.error) as caught:
                case.use(folder)
            text = str(caught.value)
            assert case.message in text, text


def _check_command(case: Command, folder: Path) -> None:
    words = case.words(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    lines = err.getvalue().splitlines()
    assert code == case.code, err.getvalue()
    assert lines and lines[-1].startswith(f"unmask {words[0]}: ") and case.message in lines[-1], err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert out.getvalue() == ""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `Hung` inside the block once it has worked for too long, or waited."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hung(f"stopped by {signal.Signals(number).name} after {CPU_SECONDS} s of work or {WALL_SECONDS} s")

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def written(folder: Path, name: str, content: bytes | str) -> Path:
    """A file of a case."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return file


def is_root() -> bool:
    """Whether permissions do not bind this process, so that cases about them mean nothing."""
    return os.geteuid() == 0
