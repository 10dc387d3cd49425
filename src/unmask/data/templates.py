"""Chat templates as they are learned: a conversation -> text in pieces, each of which is a prompt or a reply to learn.

A reply is what the template writes after its own generation prompt, up to and including the token that ends the turn:
exactly what the model has to generate. Every claim about the template is checked on every conversation: the generation
prompt begins the reply's turn, and the turns before a reply stand in the row as they do when it is generated. A
template that breaks either is refused by name. How a conversation becomes text is `models/chat_templates.py`, for
training and asking alike.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.data.chat import Conversation
from unmask.errors import DataError, SettingsError, nearest
from unmask.models.chat_templates import Message, Piece, PromptTemplate
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


def use_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Give a tokenizer the template that `data.chat_template` names, which it is then saved with.

    A template that writes no generation prompt gets one, so that whoever asks the saved model writes it too.

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
        named = {**_TEMPLATES, **_own(tokenizer)}
        tokenizer.chat_template = named[name] if name in named else _read_template(name, named)
    template = ChatTemplate(tokenizer)
    _ = template.end, template.opening  # raises what is wrong with the template
    if template.missing_opening:
        tokenizer.chat_template = _opened(template)


class ChatTemplate(PromptTemplate):
    """The chat template of a tokenizer, with what it teaches.

    Raises:
        SettingsError: the tokenizer has none.
    """

    @functools.cached_property
    def opening(self) -> str:
        """What the template writes between its generation prompt and a reply, which a model learns to write.

        Raises:
            SettingsError: part of the turn's header is among it, which no model should have to write.
        """
        question = {"role": "user", "content": _QUESTION}
        try:
            closed, before = self.render([question]), self.render([question], reply=True)
            whole = self.render([question, {"role": "assistant", "content": _ANSWER}])
        except DataError:
            return ""  # `end` says why
        if not whole.startswith(before):
            return ""  # `rows` says so of each conversation
        opening = whole[len(before) :].partition(_ANSWER)[0]
        name = whole.lower().find("assistant", len(closed)) if whole.startswith(closed) else -1
        is_named_too_late = len(before) < name + len("assistant") <= len(before) + len(opening)
        if self.control.search(opening) or is_named_too_late:
            raise SettingsError(
                f"The chat template's generation prompt ends before the header of a reply does ({opening!r} is "
                "missing), so the header would be learned as part of every reply. Let it write all of the header where "
                "add_generation_prompt is set, or set data.chat_template to another template."
            )
        return opening

    def rows(self, conversation: Conversation, supervise: Supervise) -> list[list[Piece]]:
        """The rows that a conversation becomes: with `each`, one for each learned reply, which ends it; else one.

        Raises:
            DataError: the template refuses the conversation, or leaves something of it out.
            SettingsError: the template cannot be trained with in this way.
        """
        _ = self.opening
        messages, tools = self.guarded([message.fields for message in conversation.messages], conversation.tools)
        learned = conversation.learned
        if supervise == "all":
            return [self._pieces(messages, tools, learned)]
        chosen = learned[-1:] if supervise == "last" else learned
        return [self._pieces(messages[: number + 1], tools, [number]) for number in chosen]

    def _pieces(self, messages: Sequence[Message], tools: Sequence[Any] | None, replies: Sequence[int]) -> list[Piece]:
        """Prompts and replies in turn; what follows the last reply is left out."""
        text = self.render(messages, tools=tools)
        bounds = [0]
        for number in replies:
            bounds += self._span(text, messages, tools, number)
        return [
            Piece(text[start:stop], learned=index % 2 == 1, joined=self.is_text_before(text, start))
            for index, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]

    def _span(
        self, text: str, messages: Sequence[Message], tools: Sequence[Any] | None, number: int
    ) -> tuple[int, int]:
        """Where reply `number` stands in the text of all messages, with its end-of-turn token."""
        before = self.render(messages[:number], reply=True, tools=tools)
        turn = text if number + 1 == len(messages) else self.render(messages[: number + 1], tools=tools)
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


def _opened(template: ChatTemplate) -> str:
    """The template with the generation prompt that it lacks.

    Raises:
        SettingsError: it cannot be put at its end.
    """
    opening = json.dumps(template.missing_opening)
    source = template.source.removesuffix("\n") + "{% if add_generation_prompt %}{{ " + opening + " }}{% endif %}"
    tried = _copied(template.tokenizer, source)
    question = [{"role": "user", "content": _QUESTION}]
    whole = [*question, {"role": "assistant", "content": _ANSWER}]
    same = all(tried.render(some) == template.render(some) for some in (question, whole))
    if tried.missing_opening or not same or tried.render(question, reply=True) != template.render(question, reply=True):
        raise SettingsError(
            f"The chat template writes no generation prompt ({template.missing_opening!r} where add_generation_prompt "
            "is set), so the header of a reply would be learned as part of it. Add it to the template."
        )
    return source


def _copied(tokenizer: PreTrainedTokenizerBase, source: str) -> ChatTemplate:
    """The template of the same tokenizer with another text."""
    before = tokenizer.chat_template
    tokenizer.chat_template = source
    try:
        return ChatTemplate(tokenizer)
    finally:
        tokenizer.chat_template = before


def _own(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The templates of a tokenizer that have names."""
    own: object = tokenizer.chat_template
    if isinstance(own, list):
        own = {entry["name"]: entry["template"] for entry in own}
    return {str(name): str(text) for name, text in own.items()} if isinstance(own, Mapping) else {}


def _read_template(name: str, named: Mapping[str, str]) -> str:
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # nobody has that home
        path = path.expanduser()
    if not path.is_file():
        raise SettingsError(
            f"There is no chat template {name}: neither a known one nor a file. {nearest(name, named)} A Jinja "
            f"file is looked for from {Path.cwd()}."
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The chat template {path} cannot be read: {error}. It must be a text file in UTF-8."
        ) from None
