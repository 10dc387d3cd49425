"""Chat templates as they are asked: messages -> the text that a reply continues.

One path for every caller, training included (`data/templates.py` adds what is learned). What a message says is always
text; the control tokens of the rendered text are the template's own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from unmask.errors import DataError, SettingsError
from unmask.models.messages import PASSED, ROLES, shown
from unmask.models.rendering import names_in, rendered
from unmask.models.spelling import MARK, Spelling, longest_first, pattern_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
_QUESTION, _ANSWER = "What is a probe?", "Something like this."
_DEFAULT = "default"
# What this file, and `chat_tokens.py`, make of the same template and the same messages; part of the keys of caches.
_EDITION = 2
_MOST_CHECKED = 4096


class Piece(NamedTuple):
    """A part of a conversation's text.

    Attributes:
        text: with stand-ins for what its messages spell.
        learned: whether it is a reply, with its end-of-turn token.
        joined: whether it goes on after text, rather than after a control token or at the start.
    """

    text: str
    learned: bool = False
    joined: bool = False


class PromptTemplate:
    """The chat template of a tokenizer.

    Attributes:
        control_tokens: the tokenizer's special tokens, longest first.
        live_tokens: these and the other tokens with a meaning (`<think>`), longest first.

    Raises:
        SettingsError: the tokenizer has none, or several of which none is the default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.source = template_of(tokenizer)
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = {token for token, is_special in added.items() if is_special} | set(tokenizer.all_special_tokens)
        others = {token for token in added if token not in special and _is_marker(token)}
        special.discard("")
        self.control_tokens = longest_first(special)
        self.live_tokens = longest_first(special | others)
        self.control = pattern_of(self.control_tokens)
        self.spelling = Spelling(special, others)
        self._checked: set[tuple[tuple[str, ...], ...]] = set()

    # --- what is asked ------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> list[Piece]:
        """The text that is to be continued: by a reply, or, if the last message is the assistant's, by the rest of it.

        Raises:
            DataError: the template refuses the messages, or leaves something of them out.
        """
        guarded, guarded_tools = self.guarded(messages, tools)
        if messages[-1]["role"] == "assistant":
            return self._continued(guarded, guarded_tools)
        return [Piece(self.render(guarded, tools=guarded_tools, reply=True))]

    def asked_text(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """That text as one, with stand-ins (which `PromptEncoder.read` reads), for callers that take texts only.

        Without `reply` the last message is continued, whoever speaks.
        """
        if reply:
            return self.render(self.guarded(messages)[0], reply=True)
        return "".join(piece.text for piece in self._continued(*self.guarded(messages)))

    def guarded(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None
    ) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """Messages and tools with stand-ins for what they spell, after checking that the template writes all of them.

        Raises:
            DataError: it leaves a message or a field out.
        """
        found = [self._guarded(message) for message in messages]
        given = self.spelling.guarded_value(list(tools), by_assistant=False) if tools else None
        self._check_whole(found, given)
        return found, given

    def render(self, messages: Sequence[Message], *, reply: bool = False, tools: Sequence[Any] | None = None) -> str:
        """The text of messages, with the opening of an assistant's turn after them if `reply`.

        Raises:
            DataError: the template refuses the messages.
        """
        text = self._rendered(messages, reply=reply, tools=tools)
        return text + self.missing_opening if reply else text

    # --- what the template is -----------------------------------------------------------------------------------

    @functools.cached_property
    def missing_opening(self) -> str:
        """What begins a reply's turn, of a template that does not write it when it is asked to; else nothing."""
        question = {"role": "user", "content": _QUESTION}
        try:
            closed, asked = (self._rendered([question], reply=reply) for reply in (False, True))
            whole = self._rendered([question, {"role": "assistant", "content": _ANSWER}])
        except DataError:
            return ""  # such a template is refused elsewhere, with its own reason
        if closed != asked or not whole.startswith(closed):
            return ""
        opening = whole[len(closed) :].partition(_ANSWER)[0]
        return opening if opening.strip() else ""

    @functools.cached_property
    def end(self) -> str:
        """What the template writes after a reply, up to the token that ends the turn.

        Raises:
            SettingsError: there is no such token, so a model could not learn to stop.
        """
        question = {"role": "user", "content": _QUESTION}
        try:
            whole = self.render([question, {"role": "assistant", "content": _ANSWER}])
        except DataError as error:
            raise SettingsError(
                f"A question and its answer cannot be written: {error}. See data.chat_template."
            ) from None
        _, found, after = whole.rpartition(_ANSWER)
        token = self.control.search(after) if found else None
        if token is None:
            raise SettingsError(
                "The chat template writes no special token of this tokenizer after a reply, so the model would not "
                f"learn to stop; it writes {after[:40]!r}. Set data.chat_template to llada, plain or a Jinja file "
                "that ends an assistant's turn with a special token."
            )
        return after[: token.end()]

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        token = self.control.findall(self.end)[-1]
        return cast(int, self.tokenizer.convert_tokens_to_ids(token))

    def fingerprint(self) -> str:
        """A name that changes with everything that decides which ids a conversation gets, the mask token left out.

        (No conversation ever encodes to the mask token, and a tokenizer gains it between two runs.)
        """
        tokenizer = self.tokenizer
        backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        backend["added_tokens"] = [
            token for token in backend["added_tokens"] if token["content"] != tokenizer.mask_token
        ]
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "mask_token"}
        today = datetime.now().strftime("%Y-%m-%d") if "strftime_now" in names_in(self.source) else ""
        parts = [_EDITION, self.source, special, today, {**backend, "truncation": None, "padding": None}]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()

    # --- within -------------------------------------------------------------------------------------------------

    def _rendered(self, messages: Sequence[Message], *, reply: bool = False, tools: Sequence[Any] | None = None) -> str:
        if not messages:
            raise DataError("there is no message")
        variables = {
            **self.tokenizer.special_tokens_map,
            "messages": list(messages),
            "tools": tools,
            "documents": None,
            "add_generation_prompt": reply,
        }
        return rendered(self.source, variables, characters=_characters([messages, tools]))

    def _guarded(self, message: Message) -> dict[str, Any]:
        role = message["role"]
        found = {
            name: self.spelling.guarded_value(field, by_assistant=role == "assistant")
            for name, field in message.items()
            if name != "role" and field is not None
        }
        if "reasoning_content" in found and "thinking" in names_in(self.source):
            found["thinking"] = found["reasoning_content"]  # gpt-oss's name for it
        return {"role": self.spelling.guarded(role) if role not in ROLES else role, **found}

    def _continued(self, guarded: Sequence[Message], tools: Sequence[Any] | None) -> list[Piece]:
        """The text up to the end of the last content, as `continue_final_message` of `transformers` has it."""
        *before, last = guarded
        content = last.get("content")
        if content is None or last.get("tool_calls"):
            raise DataError("the last message is the assistant's and calls a tool, so there is no text to continue")
        text = self.render([*before, {**last, "content": f"{content}{MARK} "}], tools=tools)
        at = text.rfind(MARK)
        if at < 0 or content.strip() not in text:
            raise DataError(
                "the chat template does not write the whole of the last message, so that it cannot be continued"
            )
        # A template that trims contents also trims what is to be continued.
        text = text[:at] if text.startswith(" ", at + len(MARK)) else text[:at].rstrip()
        opening = self.render(before, reply=True, tools=tools) if before else ""
        if not before or not text.startswith(opening):
            return [Piece(text)]
        # A reply begins with a token of its own, as it is learned.
        return [Piece(opening), Piece(text[len(opening) :], joined=self.is_text_before(text, len(opening)))]

    def is_text_before(self, text: str, at: int) -> bool:
        """Whether text stands right before a position, rather than a control token or nothing."""
        return at > 0 and not text.endswith(self.live_tokens, 0, at)

    def _check_whole(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """No message, and no field that could matter, is left out; checked once for each form of conversation."""
        shape = (*((message["role"], *message) for message in messages), ("tools",) if tools else ())
        if shape in self._checked:
            return
        text = self._rendered(messages, tools=tools)
        for number, message in enumerate(messages):
            for name, field in message.items():
                if name not in ("role", "tool_call_id", "thinking") and field:
                    self._check_written(text, messages, number, name, tools)
        if tools and self._rendered(messages) == text:
            raise DataError("the chat template does not write tools, so they would be lost. Leave `tools` out")
        if len(self._checked) < _MOST_CHECKED:
            self._checked.add(shape)

    def _check_written(
        self, text: str, messages: Sequence[Message], number: int, name: str, tools: Sequence[Any] | None
    ) -> None:
        message = messages[number]
        where = f"message {number + 1} ({message['role']})"
        if name == "reasoning_content":
            # Templates write the reasoning of the last turns only.
            if {"reasoning_content", "thinking"} & names_in(self.source):
                return
        elif name == "content":
            if not str(message["content"]).strip():
                return
            changed = {**message, "content": f"{message['content']}{MARK}"}
            if MARK in self._rendered([*messages[:number], changed, *messages[number + 1 :]], tools=tools):
                return
            roles = ", ".join(sorted({"system", "user", "assistant"} | ({"tool"} & names_in(self.source))))
            raise DataError(
                f"the chat template does not write the content of {where}, so it would be lost. Roles that templates "
                f"know: {roles}"
            )
        else:
            changed = {field: value for field, value in message.items() if field != name}
            if name == "tool_calls":
                changed.setdefault("content", "")
            if self._rendered([*messages[:number], changed, *messages[number + 1 :]], tools=tools) != text:
                return
        raise DataError(
            f"the chat template does not write the field `{name}` of {where}, so it would be lost. Leave it out; of "
            f"such fields the template mentions {shown(sorted(set(PASSED) & names_in(self.source)))}"
        )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a tokenizer's chat template; of several named ones, the default.

    Raises:
        SettingsError: there is none.
    """
    template: object = tokenizer.chat_template
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, Mapping) and template:
        if _DEFAULT not in template:
            raise SettingsError(
                f"This tokenizer has the chat templates {', '.join(map(str, template))} and none of them is called "
                f"`{_DEFAULT}`. Set data.chat_template to one of these names, llada, plain or a Jinja file."
            )
        template = template[_DEFAULT]
    if not template:
        raise SettingsError(
            "This tokenizer has no chat template. Set data.chat_template to llada, plain (User: and Assistant: lines, "
            "for tokenizers without role tokens) or a Jinja file."
        )
    if not isinstance(template, str):
        raise SettingsError(f"This tokenizer's chat template must be text, got {shown(template)}.")
    return template


def _is_marker(token: str) -> bool:
    """Whether a token that is not called special still has a meaning: words and runs of spaces are ordinary text."""
    return len(token) > 1 and not any(end.isalnum() or end.isspace() for end in (token[0], token[-1]))


def _characters(value: Any) -> int:
    """Characters of all texts in a value of JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0
