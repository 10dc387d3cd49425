"""`unmask chat`: the lines of a pipe, and a person at a (pseudo-)terminal."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_dialogue import chatting
from unmask.cli.main import main

# Enough tokens that a reply takes seconds, so that it can be stopped.
CONTEXT, LONG = 4096, 3000
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of an autoregressive and a diffusion model that chat, and of one that cannot."""
    folder = tmp_path_factory.mktemp("models")
    chatting("autoregressive", context=CONTEXT).save_pretrained(folder / "ar")
    chatting("masked_diffusion", context=CONTEXT).save_pretrained(folder / "mdm")
    chatting("autoregressive", template=None).save_pretrained(folder / "bare")
    return folder


def piped(monkeypatch: pytest.MonkeyPatch, text: str, *words: object) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return main(["chat", *map(str, words)])


@pytest.mark.parametrize("model", ["ar", "mdm"])
def test_a_pipe_gets_one_reply_per_line_and_notices_elsewhere(
    models: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "talk.jsonl"
    script = f'hi\n\n/set max_new_tokens=5\n"""two\nlines"""\n/save {saved}\n/quit\nnever read\n'
    assert piped(monkeypatch, script, models / model, "--max-new-tokens", "3", "--ignore-eos", "--watch") == 0
    captured = capsys.readouterr()
    from unmask.dialogue import read_conversation

    _, turns = read_conversation(saved)
    assert [question for question, _ in turns] == ["hi", "two\nlines"]
    assert captured.out == "".join(f"{reply}\n" for _, reply in turns)
    first, *others = captured.err.splitlines()
    assert "--watch needs a terminal" in first
    assert others == ["max_new_tokens: 3 -> 5", f"Saved 2 turns in {saved}."]


def test_a_mistake_in_a_pipe_ends_it_with_one_line(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for script, words, message in (
        ("/claer\nhi\n", [models / "ar"], "Did you mean `/clear`"),
        ("hi\n", [models / "bare"], "no chat template"),
        ("hi\n", [models / "ar", "--max-new-tokens", CONTEXT], "Shorten it, or lower max_new_tokens"),
        ("/set n=2\n", [models / "ar"], "n must be 1, got 2"),
        ("hi\n", [models / "ar", "--wacth"], "Did you mean `--watch`"),
    ):
        assert piped(monkeypatch, script, *words) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("unmask chat: ")]
        assert len(lines) == 1 and message in lines[0] and captured.out == "", captured.err


def test_plain_texts_are_continued(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert piped(monkeypatch, "abc\n", models / "bare", "--plain", "--max-new-tokens", "6") == 0
    reply = capsys.readouterr().out
    assert main(["generate", str(models / "bare"), "abc", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out == f"abc{reply}"


class Person:
    """Someone at a pseudo-terminal that runs `unmask chat`."""

    def __init__(self, *words: object) -> None:
        self._own, theirs = pty.openpty()

        def at_the_terminal() -> None:
            os.login_tty(theirs)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which tests that run in the background ignore

        self.process = subprocess.Popen(
            [sys.executable, "-m", "unmask", "chat", *map(str, words)],
            preexec_fn=at_the_terminal,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )
        os.close(theirs)
        self._output, self._read = "", 0

    def sees(self, *texts: str, timeout: float = 120) -> None:
        """Wait until the texts have shown up, one after the other, colours aside."""
        deadline = time.monotonic() + timeout
        for text in texts:
            while (found := CODES.sub("", self._output).find(text, self._read)) < 0:
                assert time.monotonic() < deadline and self.process.poll() is None, (text, self._output[-2000:])
                if select.select([self._own], [], [], 0.2)[0]:
                    self._output += os.read(self._own, 1 << 16).decode(errors="replace")
            self._read = found + len(text)

    def types(self, text: str) -> None:
        os.write(self._own, text.encode())

    def presses_ctrl_c(self) -> None:
        """At a person's pace: readline misses a signal that comes between its prompt and its wait for a key."""
        time.sleep(0.4)
        self.types("\x03")

    def leaves(self) -> int:
        """Whatever is still printed is read, so that nothing waits for it; the exit code."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    os.read(self._own, 1 << 16)
                except OSError:  # the other end is closed
                    break
        return self.process.wait(timeout=60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@pytest.fixture(params=[("ar",), ("mdm",), ("mdm", "--watch")], ids=" ".join)
def person(request: pytest.FixtureRequest, models: Path) -> Iterator[Person]:
    model, *words = request.param
    made = Person(models / model, "--max-new-tokens", LONG, "--ignore-eos", *words)
    yield made
    made.close()


def test_ctrl_c_stops_the_reply_and_keeps_the_conversation(person: Person, request: pytest.FixtureRequest) -> None:
    person.sees("/help lists the commands", "> ")
    person.types("/set max_new_tokens=4\r")
    person.sees(f"max_new_tokens: {LONG} -> 4", "> ")
    person.types("first\r")
    person.sees("4 tokens, 4 forwards, 1.00 tokens per forward", "cut at max_new_tokens", "> ")
    person.types(f"/set max_new_tokens={LONG}\r")
    person.sees(f"max_new_tokens: 4 -> {LONG}", "> ")
    person.types("second\r")
    person.sees("second\r\n")
    person.presses_ctrl_c()
    person.sees("[stopped: this turn is left out of the conversation. Ctrl-C again leaves.]", "> ")
    person.types("/tepm\r")
    person.sees("There is no command `/tepm`", "> ")
    person.types("/clear\r")
    person.sees("Forgot 1 turn.", "> ")
    if "--watch" in request.node.callspec.id:
        person.types("\x04")
    else:
        person.presses_ctrl_c()
        person.sees("Ctrl-C again leaves", "> ")
        person.presses_ctrl_c()
    assert person.leaves() == 0
