"""Chat templates: a conversation -> text in pieces, each of which is a prompt or a reply to learn.

A reply is what the template writes after its own generation prompt, up to and including the token that ends the turn:
exactly what the model has to generate. Every claim about the template is checked on every conversation: the generation
prompt begins the reply's turn, and the turns before a reply stand in the row as they do when it is generated. A
template that breaks either is refused by name.

Text in a message that spells a control token stays text: stand-ins take its place while the template runs.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from unmask.data.chat import Conversation
from unmask.errors import DataError, SettingsError, nearest
from unmask.settings.data import Supervise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LLADA = r"""{{- '<|startoftext|>' -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim -}}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""
# The reply begins on a line of its own, so that its first word is a token without a leading space.
_PLAIN = r"""{{- bos_token | default('') -}}
{%- for message in messages -%}
    {{- message['role'] | capitalize + ':\n' + message['content'] -}}
    {{- eos_token if message['role'] == 'assistant' -}}
    {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}
"""
_TEMPLATES = {"llada": _LLADA, "plain": _PLAIN}
_LLADA_TOKENS = ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QUESTION, _ANSWER = "What is a probe?", "Something like this."
# Stand-ins come from the two private planes of Unicode, where no text has a character.
_PRIVATE = range(0xF0000, 0x10FFFE)


class Piece(NamedTuple):
    """A part of a conversation's text.

    Attributes:
        text: with stand-ins for the control tokens that a message spells.
        learned: whether it is a reply, with its end-of-turn token.
        joined: whether it goes on after text, rather than after a control token or at the start.
        spelled: the spelling that each stand-in stands for.
    """

    text: str
    learned: bool
    joined: bool
    spelled: Mapping[str, str]


def use_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Give a tokenizer the template that `data.chat_template` names, which it is then saved with.

    Raises:
        SettingsError: there is no such template, it cannot be trained with, or the tokenizer lacks what it needs.
    """
    if name == "llada":
        missing = [token for token in _LLADA_TOKENS if token not in tokenizer.get_vocab()]
        if missing:
            raise SettingsError(
                f"data.chat_template `llada` needs the tokens {', '.join(missing)}, which this tokenizer lacks. Use "
                "`plain`, the tokenizer's own template, or a Jinja file."
            )
    if name == "plain" and tokenizer.eos_token is None:
        raise SettingsError(
            "data.chat_template `plain` ends each reply with the end-of-text token, and this tokenizer has none."
        )
    if name is not None:
        tokenizer.chat_template = _TEMPLATES[name] if name in _TEMPLATES else _read_template(name)
    _ = ChatTemplate(tokenizer).end  # raises what is wrong with the template


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        SettingsError: the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        _require_template(tokenizer)
        self.tokenizer = tokenizer
        special = {str(one) for one in tokenizer.added_tokens_decoder.values() if one.special}
        longest_first = sorted(special | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))
        self.control_tokens = tuple(longest_first)
        self.control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

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
        _, found, behind = whole.rpartition(_ANSWER)
        token = self.control.search(behind) if found else None
        if token is None:
            raise SettingsError(
                "The chat template writes no special token of this tokenizer after a reply, so the model would not "
                f"learn to stop; it writes {behind[:40]!r}. Set data.chat_template to llada, plain or a Jinja file "
                "that ends an assistant's turn with a special token."
            )
        return behind[: token.end()]

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        token = self.control.findall(self.end)[-1]
        return cast(int, self.tokenizer.convert_tokens_to_ids(token))

    def render(self, messages: Sequence[Mapping[str, str]], *, reply: bool = False) -> str:
        """The text of some messages, with the opening of an assistant's turn behind them if `reply`.

        Raises:
            DataError: the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [dict(one) for one in messages], tokenize=False, add_generation_prompt=reply
            )
        except TemplateError as error:
            raise DataError(f"the chat template refuses these messages: {error}") from None
        return cast(str, text)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> Piece:
        """The text that is to be continued by a reply to the messages."""
        guarded, spelled = self._guarded(messages)
        return Piece(self.render(guarded, reply=True), learned=False, joined=False, spelled=spelled)

    def rows(self, conversation: Conversation, supervise: Supervise) -> list[list[Piece]]:
        """The rows that a conversation becomes: with `each`, one for each reply, which ends it; else one.

        Raises:
            DataError: the template refuses the conversation.
            SettingsError: the template cannot be trained with in this way.
        """
        messages = [{"role": one.role, "content": one.content} for one in conversation.messages]
        messages, spelled = self._guarded(messages)
        replies = conversation.replies
        if supervise == "all":
            return [self._pieces(messages, replies, spelled)]
        chosen = replies[-1:] if supervise == "last" else replies
        return [self._pieces(messages[: number + 1], [number], spelled) for number in chosen]

    def _pieces(
        self, messages: Sequence[Mapping[str, str]], replies: Sequence[int], spelled: Mapping[str, str]
    ) -> list[Piece]:
        """Prompts and replies in turn; what follows the last reply is left out."""
        text = self.render(messages)
        bounds = [0]
        for number in replies:
            bounds += self._span(text, messages, number)
        pieces: list[Piece] = []
        for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
            joined = start > 0 and not text.endswith(self.control_tokens, 0, start)
            pieces.append(Piece(text[start:stop], learned=index % 2 == 1, joined=joined, spelled=spelled))
        return pieces

    def _span(self, text: str, messages: Sequence[Mapping[str, str]], number: int) -> tuple[int, int]:
        """Where reply `number` stands in the text of all messages, with its end-of-turn token."""
        before = self.render(messages[:number], reply=True)
        turn = text if number + 1 == len(messages) else self.render(messages[: number + 1])
        if not turn.startswith(before):
            raise SettingsError(
                "The chat template does not begin a reply as its generation prompt does "
                f"({before[-40:]!r}), so a model trained with it would be asked in another form than it learned. Set "
                "data.chat_template to another template."
            )
        stop = turn.find(self.end, len(before))
        if stop < 0:
            raise SettingsError(
                f"The chat template ends some replies otherwise than with {self.end!r}, so where they end is unknown. "
                "Set data.chat_template to another template."
            )
        stop += len(self.end)
        if not text.startswith(turn[:stop]):
            raise SettingsError(
                "The chat template rewrites earlier turns when later ones follow (Qwen3's drops their thinking), so "
                "only the last reply of a row stands in it as it is generated. Set data.supervise=each (a row for "
                "each reply) or last, or another data.chat_template."
            )
        return len(before), stop

    def _guarded(self, messages: Sequence[Mapping[str, str]]) -> tuple[Sequence[Mapping[str, str]], Mapping[str, str]]:
        """The messages with stand-ins for the control tokens that they spell, and what those stand for."""
        contents = "\n".join(one["content"] for one in messages)
        found = sorted(set(self.control.findall(contents)))
        if not found:
            return messages, {}
        free = (chr(code) for code in _PRIVATE if chr(code) not in contents)
        stand_ins = dict(zip(found, free, strict=False))
        guarded = [
            {**one, "content": self.control.sub(lambda match: stand_ins[match[0]], one["content"])} for one in messages
        ]
        return guarded, {stand_in: token for token, stand_in in stand_ins.items()}


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise SettingsError(
            "This tokenizer has no chat template. Set data.chat_template to llada, plain (User: and Assistant: lines, "
            "for tokenizers without role tokens) or a Jinja file."
        )


def _read_template(name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"There is no chat template {name}: neither a known one nor a file. {nearest(name, _TEMPLATES)} A Jinja "
            f"file is looked for from {Path.cwd()}."
        )
    return path.read_text(encoding="utf-8")
