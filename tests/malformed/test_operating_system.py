"""What the operating system does to a command: full disks, paths that cannot be, closed pipes, terminals."""

import ast
import errno
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from tests.malformed.case import Case, Command, check, parametrized, written
from unmask.cli import main as command_line
from unmask.cli import output
from unmask.cli.main import main
from unmask.destinations import check_file, check_folder
from unmask.errors import SettingsError

SOURCE = Path(command_line.__file__).parent


def _file(name: str, path: str, message: str, make: Callable[[Path], object] = lambda _: None) -> Case:
    def use(folder: Path) -> None:
        make(folder)
        check_file(path, "--output")

    return Case(f"a file: {name}", use, message, SettingsError)


def _folder(name: str, path: str, message: str, make: Callable[[Path], object] = lambda _: None) -> Case:
    def use(folder: Path) -> None:
        make(folder)
        check_folder(path, "--out")

    return Case(f"a folder: {name}", use, message, SettingsError)


def _taken(folder: Path) -> Path:
    return written(folder, "taken", "")


DESTINATIONS = [
    _file("no name", "", "--output must be a path, got ''"),
    _file("a blank", "  ", "--output must be a path, got '  '"),
    _file("NUL", "a\0b", "--output must be a path, got 'a\\x00b'"),
    _file("a long name", "x" * 300, "File name too long"),
    _file("a long path", "x/" * 3000 + "x", "File name too long"),
    _file("a folder", "there", "--output must be a file, and there is a folder", lambda f: (f / "there").mkdir()),
    _file("a device", "/dev/full", "/dev/full is a device or pipe"),
    _file("a pipe", "pipe", "pipe is a device or pipe", lambda f: os.mkfifo(f / "pipe")),
    _file("below a file", "taken/x", "taken is a file, not a folder", _taken),
    _file("far below a file", "taken/x/y/z", "taken is a file, not a folder", _taken),
    _file("below a device", "/dev/null/x", "/dev/null is a file, not a folder"),
    _file(
        "in a link to nothing", "link/x", "link is a file or a broken link", lambda f: (f / "link").symlink_to("gone")
    ),
    _file("in a link to itself", "link/x", "Too many levels", lambda f: (f / "link").symlink_to("link")),
    _folder("no name", "", "--out must be a path, got ''"),
    _folder("NUL", "a\0b", "--out must be a path"),
    _folder("a file", "taken", "--out must be a folder, and taken is a file", _taken),
    _folder("a device", "/dev/null", "--out must be a folder, and /dev/null is a file"),
    _folder("below a file", "taken/x", "taken is a file, not a folder", _taken),
    _folder("a link to nothing", "link", "link is a file or a broken link", lambda f: (f / "link").symlink_to("gone")),
    Case("a file in folders that are to be made", lambda _: check_file("a/b/c.json", "--output")),
    Case("a file that is there", lambda folder: check_file(_taken(folder), "--output")),
    Case("a folder that is to be made", lambda _: check_folder("a/b", "--out")),
    Case("a folder that is there", lambda folder: check_folder(folder, "--out")),
]


@parametrized(DESTINATIONS)
def test_where_a_result_is_to_go_is_checked_before_there_is_one(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
    assert not (tmp_path / "a").exists()  # nothing is made by the check


def _words(line: str) -> Callable[[Path], list[str]]:
    def words(folder: Path) -> list[str]:
        _taken(folder)
        written(folder, "there/own.txt", "")
        return line.split()

    return words


OUTPUTS = [
    Command(line, _words(line), message)
    for line, message in {
        "evaluate gone --output there": "--output must be a file, and there is a folder",
        "evaluate gone --output taken/x": "taken is a file, not a folder",
        "evaluate gone --output /dev/full": "/dev/full is a device or pipe",
        "evaluate gone --tasks x --samples there": "--samples must be a file",
        "compare x/a x/b --save --output-dir taken": "taken is a file",
        "convert gone taken/x": "taken is a file, not a folder",
        "convert gone there": "there exists already and is not overwritten",
        "merge gone taken/x": "taken is a file, not a folder",
        "merge gone there": "there exists already",
        "tokenize --model gone --data x --out taken/x": "taken is a file, not a folder",
        "tokenize --model gone --data x --out there": "there exists already",
        "analyze attention gone --text x --output-dir taken": "--output-dir must be a folder",
        "analyze gradients gone --output-dir taken": "--output-dir must be a folder",
        "analyze schedule gone --output-dir taken": "--output-dir must be a folder",
        "analyze schedule gone --save taken/x.json": "taken is a file, not a folder",
    }.items()
]


@parametrized(OUTPUTS)
def test_a_verb_checks_its_outputs_before_it_reads_a_model(case: Command, tmp_path: Path) -> None:
    check(case, tmp_path)


def _oserror(number: int, path: str | None = "out/x.json") -> OSError:
    return OSError(number, os.strerror(number), path)


FAILURES: dict[str, tuple[BaseException, str]] = {
    "a full disk": (_oserror(errno.ENOSPC), "out/x.json: No space left on device. Free some space"),
    "a full disk without a name": (_oserror(errno.ENOSPC, None), "No space left on device. Free some space"),
    "a quota": (_oserror(errno.EDQUOT), "Free some of your quota"),
    "a limit on files": (_oserror(errno.EFBIG), "ulimit -f"),
    "no permission": (_oserror(errno.EACCES), "Permission denied. Change the permissions"),
    "not permitted": (_oserror(errno.EPERM), "Operation not permitted. Change the permissions"),
    "a read-only system": (_oserror(errno.EROFS), "Read-only file system. Name a place"),
    "a folder": (_oserror(errno.EISDIR), "Is a directory. Name a file"),
    "a file": (_oserror(errno.ENOTDIR), "Not a directory. A part of the path is a file"),
    "a long name": (_oserror(errno.ENAMETOOLONG), "File name too long. Shorten"),
    "too many files": (_oserror(errno.EMFILE), "ulimit -n"),
    "a broken disk": (_oserror(errno.EIO), "Check it"),
    "an error of a library": (OSError("Can't load\nthe  tokenizer"), "Can't load the tokenizer"),
    "no memory": (MemoryError("Unable to allocate 7 TiB"), "The memory is not enough (Unable to allocate 7 TiB)"),
    "no memory, PyTorch": (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        "The memory is not enough: [enforce fail",
    ),
    "no memory, CUDA": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB\nx"), "CUDA out of memory"),
    "depth": (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    "Latin-1": (UnicodeDecodeError("utf-8", b"ab\xe9", 2, 3, "invalid"), "A text is not utf-8: byte 2 is 0xe9"),
    "ASCII": (UnicodeEncodeError("ascii", "\xe9", 0, 1, "ordinal"), "Set PYTHONIOENCODING=utf-8"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_of_the_machine_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, message = FAILURES[name]

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("unmask.cli.info.run", fail)
    assert main(["info", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("unmask info: ") and message in captured.err


def test_a_file_of_tensors_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    def fail(_: object) -> int:
        save_file({"x": torch.zeros(2)}, tmp_path / "gone" / "x.safetensors")
        return 0

    monkeypatch.setattr("unmask.cli.info.run", fail)
    assert main(["info", "x"]) == 2
    assert "A file of tensors cannot be read or written" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("unmask.cli.info.run", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main(["info", "x"])


@pytest.mark.parametrize(("error", "code"), [(BrokenPipeError(32, "Broken pipe"), 141), (KeyboardInterrupt(), 130)])
def test_who_leaves_early_gets_no_message(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("unmask.cli.info.run", fail)
    assert main(["info", "x"]) == code
    assert capsys.readouterr().err == ""


def test_what_was_measured_is_printed_when_its_file_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = {"bits_per_byte": 1.5, "stderr": float("nan"), "model": "caf\xe9"}

    def full(path: Path, text: str) -> None:
        raise _oserror(errno.ENOSPC, str(path))

    monkeypatch.setattr("unmask.cli.evaluate.write_text", full)
    monkeypatch.setattr("unmask.cli.evaluate_text.prepare", lambda *_: lambda lm: iter([record]))
    monkeypatch.setattr("unmask.lm.DiffusionLM.from_pretrained", lambda *_, **__: MagicMock())
    assert main(["evaluate", "x", "--data", "y", "--json", "--output", str(tmp_path / "o.json")]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == record | {"stderr": None}
    assert "No space left on device" in captured.err


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    def strict(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    output.show_json({"a": [value, {"b": (value, 1.5)}], "path": Path("x")}, indent=2)
    found = json.loads(capsys.readouterr().out, parse_constant=strict)
    assert found == {"a": [None, {"b": [None, 1.5]}], "path": "x"}


@pytest.mark.parametrize("text", ["caf\xe9", "\ud800", "\x1b[31m", "\x9b31m", "a\u2028b"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_says_the_same_in_every_encoding(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    output.show_json({"text": text})
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == {"text": text}


class _Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


HOSTILE = "ok \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \r over \u202e back\tend"


def test_a_terminal_shows_what_steers_it_and_a_pipe_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, pipe = _Screen(), io.StringIO()
    for stream in (screen, pipe):
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", stream)
        output.show(HOSTILE)
        output.note(HOSTILE)
    assert pipe.getvalue() == f"{HOSTILE}\n" * 2
    line = "ok \\x1b[31mred\\x1b[0m \\x1b]0;title\\x07 \\x9b2J \\r over \\u202e back    end\n"
    assert screen.getvalue() == line * 2


def test_json_on_a_terminal_is_still_json(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen()
    monkeypatch.setattr("sys.stdout", screen)
    output.show_json({"text": HOSTILE})
    assert json.loads(screen.getvalue()) == {"text": HOSTILE}
    assert not set("\x1b\x07\x9b\r\u202e") & set(screen.getvalue())


def test_every_verb_prints_through_one_room() -> None:
    """`print` stands in cli/output.py alone, so that no verb can let a model steer a terminal."""
    for file in SOURCE.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert file.name == "output.py" or "print" not in names, file


def test_a_message_is_one_line_that_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "./a\x1b[31m\nb"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and "\\x1b[31m\\nb" in err


def test_training_goes_on_when_its_log_cannot_be_written() -> None:
    from unmask.training.console import TrainingConsole

    class _Full(io.StringIO):
        def write(self, _: str) -> int:
            raise _oserror(errno.ENOSPC, None)

    class _Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    for stream in (_Full(), _Closed()):
        console = TrainingConsole(10, start=0, enabled=True)
        console.console.file = stream
        console.message("one")
        console.message("two")
        assert console.console.quiet


def test_training_shows_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.training.console import TrainingConsole

    TrainingConsole(10, start=0, enabled=True).message("a\x1b[31mb [bold]c")
    assert capsys.readouterr().err == "a\\x1b[31mb [bold]c\n"


# --- real processes -------------------------------------------------------------------------------------------------


def _run(words: str, *, stdout: object = subprocess.PIPE, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "unmask", *words.split()]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment, check=False, timeout=60
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", ["--help", "train --help-keys", "train name=x --print-config"])
def test_a_full_disk_behind_stdout_is_one_line(words: str) -> None:
    with open("/dev/full", "wb") as full:
        done = _run(words, stdout=full)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        done = _run("train --help-keys", stdout=closed, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_of_a_terminal_loses_data(encoding: str, tmp_path: Path) -> None:
    recipe = written(tmp_path, "r.yaml", "name: 'caf\xe9-\u65e5'\n")
    done = _run(f"train {recipe} --print-config", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    shown = "name: caf\xe9-\u65e5".encode(encoding, errors="backslashreplace")
    assert shown in done.stdout and done.stderr == b""


def test_a_terminal_of_the_c_locale_loses_no_message() -> None:
    done = _run("info ./caf\xe9", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 2
    assert b"There is no folder './caf" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_is_closed_from_the_start_is_no_error(closed: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m unmask trian {closed}>&-', sys.executable], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == (1 if closed == 1 else 0)


def test_a_real_terminal_gets_escapes(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    code = "from unmask.cli.output import show; show('a\\x1b[31mb')"
    subprocess.run([sys.executable, "-c", code], stdout=follower, check=True, timeout=60)
    os.close(follower)
    assert os.read(leader, 100) == b"a\\x1b[31mb\r\n"
    os.close(leader)
