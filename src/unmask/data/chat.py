"""Conversations: JSON rows of any of the usual shapes -> one record.

A row holds a list of messages (`messages` or `conversations`, with `role` and `content`, or ShareGPT's `from` and
`value`), or one prompt and its answer in two fields. What cannot be read one way only is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.data.sources import Sources, short
from unmask.errors import DataError, nearest

_LISTS = ("messages", "conversations")
_PROMPTS = ("prompt", "question", "instruction")
_ANSWERS = ("answer", "output", "response", "completion")
_SYSTEMS = ("system", "system_prompt")
# Further material beside an instruction: Alpaca's and Dolly's names.
_MATERIAL = ("input", "context")
_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (`system`, `user` or `assistant`), and what."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with an assistant's turn.

    Attributes:
        messages: its turns.
        where: the file and line, or the dataset and row, that it comes from.
    """

    messages: tuple[Message, ...]
    where: str = ""

    @property
    def replies(self) -> list[int]:
        """Indices of the assistant's turns."""
        return [number for number, one in enumerate(self.messages) if one.role == "assistant"]

    @property
    def text(self) -> str:
        """All turns as one text, for the split into training and held-out parts."""
        return "\n".join(f"{one.role}: {one.content}" for one in self.messages)


class Conversations(Sources[Conversation]):
    """The conversations of some sources."""

    def from_row(self, row: Any, where: str) -> Iterator[Conversation]:
        """The conversation in a row."""
        if not isinstance(row, Mapping):
            raise DataError(f"expected an object with a conversation, got {short(row)}")
        if self.settings.prompt_field is not None and self.settings.answer_field is not None:
            messages = _pair(row, self.settings.prompt_field, self.settings.answer_field)
        else:
            messages = _recognised(row)
        yield Conversation(_checked([*_system(row, messages), *messages]), where)

    def words(self, document: Conversation) -> str:
        """All turns as one text."""
        return document.text

    def from_text(self, source: str) -> Iterator[Conversation]:
        """Plain text holds no conversations."""
        raise DataError(
            f"{source} holds plain text, and data.format=chat needs conversations: .jsonl or .json files or hf:NAME, "
            'for example {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        )


def _recognised(row: Mapping[str, Any]) -> list[Message]:
    """The turns of a row whose fields have one of the usual names."""
    lists = [name for name in _LISTS if row.get(name) is not None]
    if len(lists) == 1:
        return _listed(row[lists[0]], lists[0])
    prompts = [name for name in _PROMPTS if row.get(name) is not None]
    answers = [name for name in _ANSWERS if row.get(name) is not None]
    # Beside an instruction, `input` is known; beside a question, some further material would silently be lost.
    lost = [name for name in _MATERIAL if row.get(name) and "instruction" not in prompts]
    if not lists and len(prompts) == len(answers) == 1 and not lost:
        return _pair(row, prompts[0], answers[0])
    if not lists and not (prompts and answers):
        raise DataError(
            f"there is no conversation: the row has {', '.join(row) or 'no field'}. Known are {' or '.join(_LISTS)}, "
            f"or one of {', '.join(_PROMPTS)} with one of {', '.join(_ANSWERS)}; name other fields with "
            "data.prompt_field and data.answer_field"
        )
    raise DataError(
        f"the conversation can be read in several ways: the row has {', '.join([*lists, *prompts, *lost, *answers])}. "
        "Say which fields to use with data.prompt_field and data.answer_field"
    )


def _pair(row: Mapping[str, Any], prompt: str, answer: str) -> list[Message]:
    """A prompt and its answer; of several right answers the first one is learned."""
    for name in (prompt, answer):
        if name not in row:
            raise DataError(f"there is no field `{name}`; the row has {', '.join(row) or 'none'}")
    answered = row[answer]
    asked = [_text(row[prompt], prompt)]
    if prompt == "instruction":
        asked += [_text(row[name], name) for name in _MATERIAL if row.get(name)]
    reply = _text(answered[0] if isinstance(answered, list) and answered else answered, answer)
    return [Message("user", "\n\n".join(asked)), Message("assistant", reply)]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"the field `{name}` must be text, got {short(value)}")
    return value


def _listed(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(f"the field `{name}` must be a list of messages, got {short(value)}")
    return [_message(one, number) for number, one in enumerate(value, start=1)]


def _message(value: Any, number: int) -> Message:
    """A message in either spelling; datasets fill the fields that a message does not have with null."""
    if not isinstance(value, Mapping):
        raise DataError(f"message {number} must be an object with role and content, got {short(value)}")
    if any(value.get(name) for name in ("tool_calls", "function_call")):
        raise DataError(f"message {number} calls a tool, which is not supported")
    shapes = [pair for pair in (("role", "content"), ("from", "value")) if value.get(pair[0]) is not None]
    if len(shapes) != 1:
        raise DataError(
            f"message {number} must have role and content, or from and value; it has {', '.join(value) or 'no field'}"
        )
    role, content = (value.get(name) for name in shapes[0])
    if role not in _ROLES:
        raise DataError(f"message {number} has the unknown role {short(role)}. {nearest(str(role), _ROLES)}")
    if not isinstance(content, str):
        what = "no content" if content is None else f"content that is no text: {short(content)}"
        raise DataError(f"message {number} ({role}) has {what}")
    return Message(_ROLES[role], content)


def _system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """A system prompt that stands in a field of its own."""
    if messages and messages[0].role == "system":
        return []
    given = [row[name] for name in _SYSTEMS if isinstance(row.get(name), str)]
    return [Message("system", text) for text in given[:1]]


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    """The turns up to the last reply, which is all that can be learned from.

    Raises:
        DataError: nobody replies, nobody is replied to, or a turn is empty.
    """
    kept = [one for one in messages if one.role != "system" or one.content.strip()]
    replies = [number for number, one in enumerate(kept) if one.role == "assistant"]
    if not kept:
        raise DataError("the conversation is empty")
    if not replies:
        raise DataError("the conversation has no assistant turn, so there is nothing to learn")
    speakers = [one.role for one in kept if one.role != "system"]
    if speakers[0] != "user":
        raise DataError("the conversation begins with the assistant; the first turn must be the user's")
    final = tuple(kept[: replies[-1] + 1])
    for one in final:
        if not one.content.strip():
            raise DataError(f"a turn of the {one.role} is empty")
    return final
