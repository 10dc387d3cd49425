"""Conversations: JSON rows of any of the usual shapes -> one record.

A row holds a list of messages (`messages` or `conversations`, with `role` and `content`, or ShareGPT's `from` and
`value`), or one prompt and its answer in two fields. What cannot be read one way only is an error, never a guess, and
so is a field that would be ignored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.data.sources import Sources
from unmask.errors import DataError, nearest
from unmask.models.messages import LEARNED, PASSED, plain_value, read_message, readable, shown

_LISTS = ("messages", "conversations")
_PROMPTS = ("prompt", "question", "instruction")
_ANSWERS = ("answer", "output", "response", "completion")
_SYSTEMS = ("system", "system_prompt")
# Further material beside an instruction: Alpaca's and Dolly's names.
_MATERIAL = ("input", "context")
_ROLES = {"human": "user", "gpt": "assistant"} | {name: name for name in ("system", "user", "assistant", "tool")}
# Of a row: they would change what its template writes.
_REFUSED = ("chat_template", "chat_template_kwargs", "documents", "functions")
_MOST_MESSAGES = 500
"""Of one conversation: a template runs over all messages for each reply."""


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks: `system`, `user`, `assistant` or `tool`.
        content: what is said.
        further: `reasoning_content`, `tool_calls`, `tool_call_id` and `name`, as far as they are given.
        is_learned: whether it is to be learned, if it is a reply.
    """

    role: str
    content: str
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    is_learned: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content, **self.further}


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with a learned turn of the assistant.

    Attributes:
        messages: its turns.
        where: the file and line, or the dataset and row, that it comes from.
        tools: descriptions of what the assistant can call.
    """

    messages: tuple[Message, ...]
    where: str = ""
    tools: tuple[Any, ...] = dataclasses.field(default=(), hash=False)

    @property
    def replies(self) -> list[int]:
        """Indices of the assistant's turns."""
        return [number for number, message in enumerate(self.messages) if message.role == "assistant"]

    @property
    def learned(self) -> list[int]:
        """Indices of those that are learned."""
        return [number for number in self.replies if self.messages[number].is_learned]

    @property
    def text(self) -> str:
        """All turns as one text, for the split into training and held-out parts."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


class Conversations(Sources[Conversation]):
    """The conversations of some sources."""

    def from_row(self, row: Any, where: str) -> Iterator[Conversation]:
        """The conversation in a row."""
        if not isinstance(row, Mapping):
            raise DataError(f"expected an object with a conversation, got {shown(row)}")
        row = self._without_ignored(row)
        _check_row(row)
        if self.settings.prompt_field is not None and self.settings.answer_field is not None:
            messages = _pair(row, self.settings.prompt_field, self.settings.answer_field)
        else:
            messages = _recognised(row)
        yield Conversation(_checked([*_system(row, messages), *messages]), where, _tools(row.get("tools")))

    def words(self, document: Conversation) -> str:
        """All turns as one text."""
        return document.text

    def from_text(self, source: str) -> Iterator[Conversation]:
        """Plain text holds no conversations."""
        raise DataError(
            f"{source} holds plain text, and data.format=chat needs conversations: .jsonl or .json files or hf:NAME, "
            'for example {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        )

    def _without_ignored(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row, and the messages in it, without the fields that the settings name."""
        ignored = self.settings.ignored_fields
        kept = {name: value for name, value in row.items() if name not in ignored}
        for name in _LISTS if ignored else ():
            if isinstance(kept.get(name), list):
                kept[name] = [
                    {field: value for field, value in message.items() if field not in ignored}
                    if isinstance(message, Mapping)
                    else message
                    for message in kept[name]
                ]
        return kept


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
    return readable(value, f"the field `{name}`")


def _listed(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(f"the field `{name}` must be a list of messages, got {shown(value)}")
    if len(value) > _MOST_MESSAGES:
        raise DataError(f"the conversation has {len(value):,} messages, and at most {_MOST_MESSAGES:,} are read as one")
    return [_message(message, number) for number, message in enumerate(value, start=1)]


def _message(value: Any, number: int) -> Message:
    """A message in either spelling; datasets fill the fields that a message does not have with null."""
    if not isinstance(value, Mapping):
        raise DataError(f"message {number} must be an object with role and content, got {shown(value)}")
    shapes = [pair for pair in (("role", "content"), ("from", "value")) if value.get(pair[0]) is not None]
    if len(shapes) != 1:
        raise DataError(
            f"message {number} must have role and content, or from and value; it has "
            f"{', '.join(map(str, value)) or 'no field'}"
        )
    ((role_field, content_field),) = shapes
    role = value[role_field]
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"message {number} has the unknown role {shown(role)}. {nearest(str(role)[:40], _ROLES)}")
    others = {name: field for name, field in value.items() if name not in (role_field, content_field)}
    given = {"role": _ROLES[role], "content": value.get(content_field), **others}
    message = read_message(given, number, known=LEARNED)
    further = {name: message[name] for name in PASSED if name in message}
    return Message(message["role"], message["content"], further, _is_learned(message, number))


def _is_learned(message: Mapping[str, Any], number: int) -> bool:
    """What `weight`, `train` or `loss` of a message say.

    Raises:
        DataError: they say something that training does not do.
    """
    said = {name: message[name] for name in LEARNED if name in message}
    for name, value in said.items():
        where = f"message {number} ({message['role']}) has {name} {shown(value)}"
        if value not in (0, 1):
            raise DataError(f"{where}; a reply is learned (1 or true) or not (0 or false)")
        if value and message["role"] != "assistant":
            raise DataError(f"{where}, and only replies of the assistant are learned. Leave the field out")
    if len(set(map(bool, said.values()))) > 1:
        raise DataError(f"message {number} has {shown(said)}, which contradict each other")
    return all(said.values())


def _check_row(row: Mapping[str, Any]) -> None:
    """Refuse fields of a row that would change what is learned, and do not."""
    given = [name for name in (*_REFUSED, *LEARNED) if row.get(name) is not None]
    for name in given:
        if name in _REFUSED or row[name] not in (1, True):
            raise DataError(
                f"the row has the field `{name}` ({shown(row[name])}), which training does not honour for a whole row. "
                f"Remove it, or leave it out with data.ignored_fields=[{name}]"
            )


def _tools(value: Any) -> tuple[Any, ...]:
    """What the assistant can call: a list, or its JSON as text."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the field `tools` is not valid JSON: {error}") from None
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"the field `tools` must be a list of objects, got {shown(value)}")
    return tuple(plain_value(value, "the field `tools`"))


def _system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """A system prompt that stands in a field of its own."""
    given = [name for name in _SYSTEMS if row.get(name) is not None]
    if not given:
        return []
    if messages and messages[0].role == "system":
        if row[given[0]] not in ("", messages[0].content):
            raise DataError(f"there are two system prompts: the field `{given[0]}` and message 1. Keep one of them")
        return []
    return [Message("system", _text(row[given[0]], given[0]))]


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    """The turns up to the last learned reply, which is all that can be learned from.

    Raises:
        DataError: nobody replies, nobody is replied to, or a turn is empty.
    """
    kept = [message for message in messages if message.role != "system" or message.content.strip()]
    replies = [number for number, message in enumerate(kept) if message.role == "assistant"]
    learned = [number for number in replies if kept[number].is_learned]
    if not kept:
        raise DataError("the conversation is empty")
    if not replies:
        raise DataError("the conversation has no assistant turn, so there is nothing to learn")
    if not learned:
        raise DataError("every assistant turn of the conversation has weight 0, so there is nothing to learn")
    speakers = [message.role for message in kept if message.role != "system"]
    if speakers[0] != "user":
        raise DataError(f"the conversation begins with the {speakers[0]}; the first turn must be the user's")
    final = tuple(kept[: learned[-1] + 1])
    for message in final:
        if not message.content.strip() and message.role != "tool" and not message.further.get("tool_calls"):
            raise DataError(f"a turn of the {message.role} is empty")
    return final
