"""A conversation in progress: turns, settings, and the commands that change them; nothing here is a terminal's.

In: what a person types. Out: a `Turn`, whose reply comes step by step, or a command's answer.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from unmask import config
from unmask.decoding.step import Step
from unmask.errors import DataError, PromptError, SettingsError, nearest
from unmask.lm import DiffusionLM
from unmask.models.messages import read_message
from unmask.settings import aliases
from unmask.settings.checks import is_true
from unmask.settings.decoding import SamplingParams
from unmask.writing import write_text

# Each is the method of its name.
COMMANDS = {
    "/clear": "forget the turns; the system message and the settings stay",
    "/system": "TEXT tells the model who it is, `off` removes that, nothing shows it",
    "/set": "KEY=VALUE ... changes sampling parameters, nothing shows them",
    "/save": "FILE writes the conversation as one JSON line of messages",
    "/load": "FILE goes on with a saved conversation",
    "/help": "shows this",
    "/quit": "leaves, as does the end of the input",
}
_HELP = '''\
A message of several lines stands between """ and """.
A message that begins with / needs a space before it.
Ctrl-C stops a reply, and its turn is left out of the conversation. Another Ctrl-C leaves.'''
_PLAIN_SYSTEM = "With --plain each message is a text to continue, and there is no system message. Leave --plain out."


class Dialogue:
    """Turns with one model.

    Args:
        lm: the model, with a tokenizer.
        params: of the replies.
        system: message that stands before all turns.
        is_plain: each message is a text to continue by itself: no chat template, no earlier turns.

    Attributes:
        turns: questions and their complete replies.
        forgotten: how many of the oldest turns the model no longer sees.
        is_over: whether `/quit` was given.

    Raises:
        PromptError: the model cannot chat.
        SettingsError: the parameters do not fit the model.
    """

    def __init__(
        self,
        lm: DiffusionLM,
        params: SamplingParams | None = None,
        *,
        system: str | None = None,
        is_plain: bool = False,
    ) -> None:
        self.lm, self.is_plain = lm, is_plain
        _check_template(lm, is_plain=is_plain)
        self.params = self._checked(params or SamplingParams())
        self.system: str | None = None
        self.turns: list[tuple[str, str]] = []
        self.is_over = False
        self.forgotten = 0
        self._file: Path | None = None
        if system:
            self._system(system)

    def ask(self, question: str) -> Turn:
        """Begin a turn; it joins the conversation when its reply is complete, and not empty.

        If the context has no room for all turns and the reply, the model no longer sees the oldest turns.

        Raises:
            PromptError: the message alone does not fit, or the chat template refuses the conversation.
        """
        room = self.lm.backbone.context_length - self.params.max_new_tokens
        forgotten = self.forgotten
        while len(prompt := self._encoded(question, forgotten)) > room:
            if self.is_plain or forgotten == len(self.turns):
                raise PromptError(
                    f"The message has {len(prompt)} tokens with all that goes with it, which with "
                    f"max_new_tokens={self.params.max_new_tokens} exceed the model's context of "
                    f"{self.lm.backbone.context_length}. Shorten it, or lower max_new_tokens."
                )
            forgotten += 1
        return Turn(self, question, prompt, forgotten)

    def keep(self, turn: Turn) -> None:
        """Let a complete turn join the conversation, unless its reply is empty."""
        if turn.text.strip():
            self.turns.append((turn.question, turn.text))
        self.forgotten = turn.forgotten

    def command(self, line: str) -> str:
        """Obey a line that begins with `/`; what to tell its author.

        Raises:
            SettingsError: there is no such command, or its argument is wrong.
            DataError: a file cannot be written, or not be read as a conversation.
        """
        name, _, rest = line.strip().partition(" ")
        if name not in COMMANDS:
            raise SettingsError(f"There is no command `{name}`. {nearest(name, COMMANDS)}")
        return getattr(self, f"_{name.removeprefix('/')}")(rest.strip())

    def messages(self, *, start: int = 0) -> list[dict[str, str]]:
        """The system message and the turns from `start` on, as chat messages."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for question, reply in self.turns[start:]:
            found += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        return found

    def _encoded(self, question: str, forgotten: int) -> list[int]:
        """The ids that the model continues."""
        if self.is_plain:
            return self.lm.codec.encode(question)
        return self.lm.codec.encode([*self.messages(start=forgotten), {"role": "user", "content": question}])

    def _checked(self, params: SamplingParams) -> SamplingParams:
        is_true(params.n == 1, f"A chat has one reply per message: n must be 1, got {params.n}.")
        is_true(params.infill_length == (), "A chat fills no gaps: leave infill_length out.")
        self.lm.resolved(params)
        return params

    # --- commands -------------------------------------------------------------------------------------------------

    def _clear(self, _: str) -> str:
        count = len(self.turns)
        self.turns, self.forgotten = [], 0
        return f"Forgot {_counted(count)}."

    def _system(self, text: str) -> str:
        if not text:
            return self.system or "There is no system message."
        is_true(not self.is_plain, _PLAIN_SYSTEM)
        self.system = None if text == "off" else text
        self.forgotten = 0
        return "There is no system message now." if self.system is None else "The system message is set."

    def _set(self, text: str) -> str:
        if not text:
            return _shown(self.lm.resolved(self.params))
        words = re.split(r"\s+(?=[\w-]+=)", text) if "=" in text else [text.replace(" ", "=", 1)]
        before = self.params
        self.params = self._checked(config.changed(before, _ours(words, before)))
        self.forgotten = 0
        return "\n".join(config.differences(before, self.params)) or "That is what it was."

    def _save(self, name: str) -> str:
        path = _path(name, "/save")
        is_true(
            not path.exists() or path == self._file, f"{path} exists already. Take another name, or remove it first."
        )
        try:
            write_text(path, json.dumps({"messages": self.messages()}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}. Take another name.") from None
        self._file = path
        return f"Saved {_counted(len(self.turns))} in {path}."

    def _load(self, name: str) -> str:
        path = _path(name, "/load")
        system, turns = read_conversation(path)
        is_true(system is None or not self.is_plain, _PLAIN_SYSTEM)
        self.system, self.turns, self.forgotten, self._file = system, turns, 0, path
        return f"Loaded {_counted(len(turns))} from {path}."

    def _help(self, _: str) -> str:
        width = max(map(len, COMMANDS))
        return "\n".join([*(f"{name:<{width}}  {text}" for name, text in COMMANDS.items()), _HELP])

    def _quit(self, _: str) -> str:
        self.is_over = True
        return ""


class Turn:
    """One message and its reply; iterate over it, once, to make the reply.

    Attributes:
        forgotten: how many of the oldest turns the model does not see.
        notice: what the author should know about it, or nothing.
        is_growing: whether the reply comes from left to right, so that its known beginning can be shown for good.
        step: the newest one.
    """

    def __init__(self, dialogue: Dialogue, question: str, prompt: list[int], forgotten: int) -> None:
        self.dialogue, self.question, self.prompt, self.forgotten = dialogue, question, prompt, forgotten
        self.notice = "" if forgotten == dialogue.forgotten else self._notice()
        self.params = dialogue.lm.resolved(dialogue.params)
        self.is_growing = self.params.decoding != "canvas"
        self.step: Step | None = None
        self._reader = dialogue.lm.codec.reader(prompt)

    def __iter__(self) -> Iterator[Step]:
        for step in self.dialogue.lm.stream(self.prompt, self.params):
            self.step = step
            yield step
        self.dialogue.keep(self)

    @property
    def tokens(self) -> list[int]:
        """The reply's tokens up to the first place that is still masked."""
        canvas = self.step.canvas if self.step is not None else ()
        end = canvas.index(None) if None in canvas else len(canvas)
        return cast("list[int]", list(canvas[:end]))

    @property
    def text(self) -> str:
        """The reply as far as it is known, up to a stop text; without the space around it unless plain."""
        text = self._reader.until(self.tokens, self.params.stop)[0]
        return text if self.dialogue.is_plain else text.strip()

    @property
    def settled(self) -> str:
        """The beginning of `text` that further steps cannot change: it ends in no part of a character or stop text."""
        known = () if self.step is None else self.step.canvas[: self.step.settled]
        text = self._reader.settled(cast("Sequence[int]", known), self.params.stop)
        return (text if self.dialogue.is_plain else text.lstrip()).rstrip()

    @property
    def is_cut(self) -> bool:
        """Whether the reply ended only because it had `max_new_tokens`."""
        tokens, codec = self.tokens, self.dialogue.lm.codec
        ends = {*self.params.stop_token_ids, *(() if self.params.ignore_eos else codec.end_ids())}
        has_ended = bool(tokens) and (tokens[-1] in ends or self._reader.until(tokens, self.params.stop)[1])
        return len(tokens) == self.params.max_new_tokens and not has_ended

    def _notice(self) -> str:
        context = self.dialogue.lm.backbone.context_length
        oldest = "oldest turn" if self.forgotten == 1 else f"{self.forgotten} oldest turns"
        return f"The context of {context} tokens is full: the model no longer sees the {oldest}."


def read_conversation(path: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """System message and turns of a file with one JSON line of `messages`.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        found = list(json.loads(path.read_text(encoding="utf-8-sig"))["messages"])
        _ = [(message["role"], message["content"]) for message in found]
        messages = [read_message(message, number) for number, message in enumerate(found, start=1)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror} (in {Path.cwd()}).") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is no conversation ({error}). Its messages must be texts of user and assistant in turn, as "
            '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        ) from None
    kept = [name for message in messages for name in message if name not in ("role", "content")]
    is_true(not kept, f"The messages in {path} have the field `{', '.join(kept[:1])}`, which a chat does not keep.")
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    roles, texts = [message["role"] for message in messages], [message["content"] for message in messages]
    if roles != ["user", "assistant"] * (len(messages) // 2):
        raise DataError(f"The messages in {path} must be texts of user and assistant in turn, got {roles[:8]}.")
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _check_template(lm: DiffusionLM, *, is_plain: bool) -> None:
    if lm.tokenizer is None:
        raise PromptError(
            "This checkpoint has no tokenizer, so it cannot chat. Decode token ids in Python: lm.generate"
        )
    if not is_plain and not lm.tokenizer.chat_template:
        raise PromptError(
            "This model's tokenizer has no chat template, so nothing tells it where a message ends. Let it continue "
            "texts instead: --plain. Or fine-tune it on chats (data.format=chat) first."
        )


def _ours(words: Sequence[str], current: SamplingParams) -> list[str]:
    """`key=value` words whose keys may be those of LLaDA, Fast-dLLM and Dream, under our names."""
    for word in words:
        is_true("=" in word, f"/set takes KEY=VALUE, got `{word}`. Example: /set temperature=0.7")
    given = {key.strip().replace("-", "_"): value for key, _, value in (word.partition("=") for word in words)}
    # How long a block is says what a total of steps means.
    told = {aliases.RENAMED.get(name, name) for name in given}
    sizes = {name: getattr(current, name) for name in ("max_new_tokens", "block_length") if name not in told}
    known = {name: value for name, value in sizes.items() if value is not None} | given
    return [f"{name}={value}" for name, value in aliases.translated(known).items()]


def _shown(params: SamplingParams) -> str:
    """The parameters that matter, as `/set` reads them."""
    fields = (field.name for field in dataclasses.fields(params) if field.name not in ("n", "trace", "infill_length"))
    values = ((name, getattr(params, name)) for name in fields)
    return "\n".join(f"{name}={json.dumps(value)}" for name, value in values if value is not None)


def _path(name: str, command: str) -> Path:
    is_true(name != "", f"{command} needs the name of a file, for example: {command} talk.jsonl")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"There is no home folder for {name}. Give the path without `~`.") from None


def _counted(turns: int) -> str:
    return "1 turn" if turns == 1 else f"{turns} turns"
