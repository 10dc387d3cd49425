"""`unmask chat RUN_OR_MODEL`: talk to a model in the terminal, or answer the lines of a pipe.

Replies go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unmask.cli.options import add_sampling, parser, quiet_libraries, sampling
from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.dialogue import Dialogue, Turn

_EXAMPLES = """\
  unmask chat GSAI-ML/LLaDA-8B-Instruct --watch --max-new-tokens 64 --denoising-steps 32
  unmask chat Qwen/Qwen3-0.6B --system "Answer in one sentence." --temperature 0.7
  unmask chat runs/python-docs --plain                     # a model without chat template continues texts
  printf 'Hello\\nAnd now?\\n' | unmask chat runs/stories/sft   # one reply for each line

`/help` in the chat lists its commands.
"""
_QUOTES = '"""'


def run(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit code."""
    options = parser("chat", "Talk to a run, a model folder or a hub id, turn by turn.", _EXAMPLES)
    options.add_argument("model", metavar="RUN_OR_MODEL", help="run folder, model folder or hub id")
    options.add_argument("--watch", action="store_true", help="redraw the reply after every forward (on a terminal)")
    options.add_argument("--system", metavar="TEXT", help="message that stands before all turns")
    options.add_argument("--plain", action="store_true", help="continue each message as a text, without chat template")
    options.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... [default: the accelerator, if any]")
    options.add_argument("--dtype", metavar="DTYPE", default="auto", help="type of the weights [default: as saved]")
    add_sampling(options, skip=("n", "trace", "infill_length"))  # one reply per message, and no gaps
    parsed = options.parse_args(list(arguments))
    params = sampling(parsed)
    quiet_libraries()
    from unmask.dialogue import Dialogue
    from unmask.lm import DiffusionLM

    lm = DiffusionLM.from_pretrained(parsed.model, device=parsed.device, dtype=parsed.dtype).optimize_for_inference()
    dialogue = Dialogue(lm, params, system=parsed.system, is_plain=parsed.plain)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _Terminal(dialogue, watches=parsed.watch).talk()
    else:
        if parsed.watch:
            print("--watch needs a terminal; replies are printed when they are complete.", file=sys.stderr)
        _answer_lines(dialogue)
    return 0


def _answer_lines(dialogue: Dialogue) -> None:
    """Answer each line of stdin; the first mistake ends it."""
    for message in _messages(line.rstrip("\n") for line in sys.stdin):
        if message.startswith("/"):
            notice = dialogue.command(message)
        else:
            turn = dialogue.ask(message)
            for _ in turn:
                pass
            print(turn.text, flush=True)
            notice = turn.notice
        if notice:
            print(notice, file=sys.stderr)
        if dialogue.is_over:
            return


def _messages(lines: Iterator[str]) -> Iterator[str]:
    """Lines that are not blank; those between triple quotes are one message."""
    for line in lines:
        if line.startswith(_QUOTES):
            parts = [line.removeprefix(_QUOTES)]
            while not parts[-1].endswith(_QUOTES):
                parts.append(next(lines, _QUOTES))
            line = "\n".join(parts).removesuffix(_QUOTES).strip("\n")
        if line.strip():
            yield line


class _Terminal:
    """A person at a terminal: mistakes are told and the talk goes on, Ctrl-C stops a reply."""

    def __init__(self, dialogue: Dialogue, *, watches: bool) -> None:
        from rich.console import Console

        self.dialogue, self.watches = dialogue, watches
        self.console = Console(highlight=False)
        self.notices = Console(stderr=True, highlight=False)
        self.was_stopped = False

    def talk(self) -> None:
        """Read and answer until the end of the input, `/quit` or a second Ctrl-C."""
        with contextlib.suppress(ImportError):  # there is none on Windows
            import readline  # noqa: F401  (gives `input` editing and history)
        self._notice(f"{self.dialogue.lm!r}\n/help lists the commands, /quit leaves.")
        for message in _messages(self._lines()):
            try:
                self._answer(message)
            except UnmaskError as error:
                self._notice(str(error), style="red")
            except KeyboardInterrupt:
                self.was_stopped = True
                self._notice("\n[stopped: this turn is left out of the conversation. Ctrl-C again leaves.]")
            if self.dialogue.is_over:
                return

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = input("> ")
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
                if self.was_stopped:
                    return
                self.was_stopped = True
                self._notice("Ctrl-C again leaves, and so does /quit.")
                continue
            self.was_stopped = False
            yield line

    def _answer(self, message: str) -> None:
        if message.startswith("/"):
            self._notice(self.dialogue.command(message))
            return
        turn = self.dialogue.ask(message)
        self._notice(turn.notice)
        began = time.perf_counter()
        self._show(turn)
        self._notice(_summary(turn, time.perf_counter() - began))

    def _show(self, turn: Turn) -> None:
        """Print the reply: as it grows if it comes from left to right, else when it is complete."""
        shown = ""
        try:
            for _ in self._watched(turn):
                if turn.is_growing and not self.watches:
                    text = turn.settled
                    self._print(text[len(shown) :])
                    shown = text
        except KeyboardInterrupt:
            if turn.step is not None and not shown:
                self._print(turn.step.text)
            raise
        self._print(turn.text[len(shown) :] + "\n")

    def _watched(self, turn: Turn) -> Iterator[object]:
        """The steps of a turn while something shows that they are made."""
        from unmask.reports.replay import animate
        from unmask.reports.traces import frame

        if self.watches:
            animate((frame(step, self.dialogue.lm.tokenizer) for step in turn), console=self.console)
        elif turn.is_growing:
            yield from turn
        else:
            with self.notices.status("") as status:
                for step in turn:
                    known = sum(token is not None for token in step.canvas)
                    status.update(f"{step.forwards} forwards, {known}/{len(step.canvas)} tokens")
                    yield step

    def _print(self, text: str) -> None:
        from unmask.reports.replay import encodable, printable

        sys.stdout.write(encodable(printable(text), self.console))
        sys.stdout.flush()

    def _notice(self, text: str, style: str = "dim") -> None:
        if text:
            self.notices.print(text, style=style, markup=False, soft_wrap=True)


def _summary(turn: Turn, seconds: float) -> str:
    assert turn.step is not None, "a reply has at least one step"
    tokens, forwards = len(turn.tokens), turn.step.forwards
    line = f"{tokens} tokens, {forwards} forwards, {tokens / forwards:.2f} tokens per forward, {seconds:.1f} s"
    if not turn.text.strip():
        line += "; the reply is empty, so this turn is left out of the conversation"
    return f"{line}; cut at max_new_tokens" if turn.is_cut else line
