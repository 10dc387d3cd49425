"""Messages: what each field of one may hold, whoever hands it in (a row to learn from, or a prompt).

Out come messages as chat templates take them: texts and plain values only, and no field that means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from unmask.errors import DataError, nearest

ROLES = ("system", "user", "assistant", "tool")
PASSED = ("reasoning_content", "tool_calls", "tool_call_id", "name")
"""Fields beside role and content that templates can write."""
LEARNED = ("weight", "train", "loss")
"""Fields that say whether a reply is learned: 1 or true, 0 or false."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PART = {"type", "text"}
_DEPTH = 50  # of a tool call's arguments


def read_message(value: object, number: int, *, known: Iterable[str] = ()) -> dict[str, Any]:
    """Role, content and further fields of a message, with those in `known` as they are.

    Raises:
        DataError: it is no message, or a field of it would be ignored.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"message {number} must be an object with role and content, got {shown(value)}")
    fields = {name: field for name, field in value.items() if field is not None}  # as if they were not there
    role = fields.pop("role", None)
    if not isinstance(role, str) or not role.strip():
        given = "no role" if role is None else f"the role {shown(role)}"
        raise DataError(f"message {number} has {given}. A role is a text: {', '.join(ROLES)}")
    where = f"message {number} ({readable(role, 'a role')})"
    message: dict[str, Any] = {"role": role}
    content = fields.pop("content", None)
    is_call = content is None and bool(fields.get("tool_calls"))
    message["content"] = "" if is_call else read_content(content, where)
    for name in _REASONING:
        if name in fields:
            _add_reasoning(message, fields.pop(name), f"{where}: {name}")
    for name in ("tool_call_id", "name"):
        if name in fields:
            message[name] = readable(fields.pop(name), f"{where}: {name}")
    if fields.get("tool_calls"):
        message["tool_calls"] = _read_calls(fields["tool_calls"], where, role)
    message |= {name: fields[name] for name in known if name in fields}
    # An empty list or text says nothing that could be lost.
    lost = [name for name, field in fields.items() if name not in {"tool_calls", *known} and field not in ("", [], {})]
    if lost:
        raise DataError(f"{where} has the field {shown(lost[0])}, {_why_not(lost[0])}")
    return message


def read_content(content: object, where: str) -> str:
    """The text of a content: itself, or the text parts of a list (OpenAI's form) after one another.

    Raises:
        DataError: it is neither, or holds something that is no text.
    """
    if content is None:
        raise DataError(f"{where} has no content")
    if isinstance(content, list | tuple):
        if not content:
            raise DataError(f"{where} has an empty list as content. Give a text, or parts of type `text`")
        return "".join(_part(part, f"{where}: part {number}") for number, part in enumerate(content, start=1))
    if not isinstance(content, str):
        raise DataError(f"{where} has content that is no text: {shown(content)}")
    return readable(content, where)


def readable(text: object, where: str) -> str:
    """A text that a tokenizer can read, as plain `str`.

    Raises:
        DataError: it is none.
    """
    if not isinstance(text, str):
        raise DataError(f"{where} must be text, got {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a UTF-16 pair (U+{ord(text[error.start]):04X} at character {error.start}), which "
            "is no character. Write the whole one, or U+FFFD in its place"
        ) from None
    return str.__str__(text)


def plain_value(value: object, where: str, *, depth: int = _DEPTH) -> Any:
    """A value of JSON: texts that can be read, numbers, lists and objects of them.

    Raises:
        DataError: it holds something else, or is too deep.
    """
    if depth == 0:
        raise DataError(f"{where} is nested more than {_DEPTH} levels deep")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain_value(item, where, depth=depth - 1) for item in value]
    if isinstance(value, Mapping):
        return {readable(name, where): plain_value(item, where, depth=depth - 1) for name, item in value.items()}
    return readable(value, where)


def shown(value: object) -> str:
    """A value as JSON that fits into a message."""
    try:
        text = json.dumps(value, default=lambda other: f"<{type(other).__name__}>")
    except (RecursionError, TypeError, ValueError):  # too deep, odd keys, numbers of thousands of digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


def _add_reasoning(message: dict[str, Any], value: object, where: str) -> None:
    text = readable(value, where)
    if message.setdefault("reasoning_content", text) != text:
        raise DataError(f"{where} differs from another field of the message for the same. Keep one of them")


def _part(part: object, where: str) -> str:
    if not isinstance(part, Mapping):
        raise DataError(f'{where} of the content must be {{"type": "text", "text": "..."}}, got {shown(part)}')
    kind = part.get("type")
    if kind != "text":
        raise DataError(
            f"{where} of the content has the type {shown(kind)}; a language model reads parts of type `text` only. "
            "Leave images, sound and files out"
        )
    lost = [name for name, value in part.items() if name not in _TEXT_PART and value is not None]
    if lost:
        raise DataError(f"{where} of the content has the field {shown(lost[0])}, which nothing reads. Leave it out")
    return readable(part.get("text"), f"{where}: text")


def _read_calls(calls: object, where: str, role: str) -> list[dict[str, Any]]:
    if role != "assistant":
        raise DataError(f"{where} has tool_calls, and only the assistant calls tools")
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"{where}: tool_calls must be a list of objects, got {shown(calls)}")
    return plain_value(calls, f"{where}: tool_calls")


def _why_not(name: object) -> str:
    if name in LEARNED or name == "mask":
        return "which says what is learned, and nothing is learned here. Leave it out"
    if name in ("from", "value"):
        return "and a message here has role and content"
    if name == "function_call":
        return "which became tool_calls. Write it as such"
    hint = nearest(str(name), ("role", "content", *PASSED))
    return f"which nothing reads, so it would be lost. Leave it out. {hint}"
