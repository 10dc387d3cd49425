"""Prompts and texts of one checkpoint: to token ids, and generated token ids back to text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from unmask.errors import DataError, PromptError, SettingsError
from unmask.models.chat_templates import PromptTemplate
from unmask.models.chat_tokens import PromptEncoder
from unmask.models.continuations import Continuation
from unmask.models.loading import Checkpoint
from unmask.models.messages import read_message, readable, shown
from unmask.models.rendering import RefusalError
from unmask.models.spelling import ESCAPE, MARK
from unmask.models.tokenizers import encode, encode_prompt, start_id

Message = Mapping[str, Any]
Ids = Sequence[int] | Tensor | np.ndarray[Any, Any]
Prompt = str | Ids | Sequence[Message]
# Text in front of a piece that is not the first, so that tokenizers that put a space before a text put it there.
_ANCHOR = "\n"
_KINDS = "A prompt is a text, token ids (a list, or a tensor or array of one dimension), or a list of chat messages"


class PromptCodec:
    """What a checkpoint's tokenizer (or its lack) makes of prompts and of generated tokens.

    Args:
        checkpoint: its tokenizer, vocabulary and method decide.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer, self.backbone = checkpoint.tokenizer, checkpoint.backbone
        self._encoder: tuple[object, PromptEncoder] | None = None

    @property
    def num_ids(self) -> int:
        """Rows of the embedding: what a token id lies below."""
        return int(self.backbone.network.config.vocab_size)

    def encode_all(self, prompts: Prompt | Sequence[Prompt] | None) -> list[list[int]]:
        """Token ids of one prompt or of several; a tensor or array of two dimensions holds a prompt in each row.

        Raises:
            PromptError: a prompt is empty, of no such kind, holds ids that do not exist, or needs a tokenizer or
                template that is not there.
        """
        if isinstance(prompts, Tensor | np.ndarray) and prompts.ndim == 2:
            return [self.encode(row) for row in prompts]
        if not _is_list(prompts) or is_ids(prompts) or _is_chat(prompts):
            return [self.encode(cast("Prompt | None", prompts))]
        if not prompts:
            raise PromptError("The list of prompts is empty. Give at least one, or None to generate without a prompt.")
        return [self.encode(prompt) for prompt in cast("Sequence[Prompt]", prompts)]

    def encode(self, prompt: Prompt | None) -> list[int]:
        """Token ids of one prompt; BOS alone (or nothing, for diffusion without BOS) for none.

        Of messages, the ids are those of training (`models/chat_templates.py`); a last message of the assistant is
        continued.
        """
        if prompt is None or (isinstance(prompt, str) and prompt == ""):
            return self._start_of_text()
        if isinstance(prompt, Tensor | np.ndarray) or is_ids(prompt):
            return self.checked(cast("Ids", prompt))
        if not isinstance(prompt, str) and not _is_chat(prompt):
            raise PromptError(_not_a_prompt(prompt))
        if self.tokenizer is None:
            raise PromptError("This checkpoint has no tokenizer: give prompts as lists of token ids.")
        if isinstance(prompt, str):
            return self.checked(self._encode_text(prompt))
        return self.checked(self._encode_chat(cast("Sequence[Message]", prompt)))

    def read(self, text: str) -> list[int]:
        """Token ids of a text to be continued, after one BOS, or of what `chat_text` made, perhaps with text after it.

        Raises:
            PromptError: the text holds what is no character.
        """
        if ESCAPE not in text or self.tokenizer is None or not self.tokenizer.chat_template:
            return self._encode_text(text)
        try:
            return self._chat_encoder.read(readable(text, "The prompt").removeprefix(MARK))
        except DataError as error:
            raise PromptError(f"{error}.") from None

    def _encode_text(self, text: str) -> list[int]:
        assert self.tokenizer is not None
        return encode_prompt(self.tokenizer, _readable(text))

    def chat_text(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """Messages as a text that `read` turns into the ids that they have as a prompt; for callers that take texts.

        What they spell of control tokens stands in it as characters of the private planes of Unicode. Without `reply`
        the last message is continued, whoever speaks.

        Raises:
            PromptError: there is no chat template, or it refuses them.
        """
        encoder = self._chat_encoder
        try:
            text = encoder.template.asked_text(self._messages(messages), reply=reply)
            # A mark where it would be taken for a text that gets a BOS.
            return text if self.read(text) == encoder.read(text) else MARK + text
        except DataError as error:
            raise PromptError(_refused(error)) from None

    def _encode_chat(self, messages: Sequence[Message]) -> list[int]:
        encoder = self._chat_encoder
        try:
            return encoder.prompt(self._messages(messages))
        except RefusalError as error:
            raise PromptError(f"The model's chat template refuses this conversation: {error.reason}") from None
        except DataError as error:
            raise PromptError(_refused(error)) from None

    def _messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [read_message(message, number) for number, message in enumerate(messages, start=1)]

    @property
    def _chat_encoder(self) -> PromptEncoder:
        """That of the template which the tokenizer has now.

        Raises:
            PromptError: it has none.
        """
        tokenizer = self.tokenizer
        if tokenizer is None or not tokenizer.chat_template:
            raise PromptError("This model's tokenizer has no chat template. Give the prompt as plain text.")
        key = (tokenizer.chat_template, len(tokenizer), tokenizer.special_tokens_map)
        if self._encoder is None or self._encoder[0] != key:
            try:
                self._encoder = copy.deepcopy(key), PromptEncoder(PromptTemplate(tokenizer))
            except SettingsError as error:
                raise PromptError(str(error)) from None
        return self._encoder[1]

    def encode_pieces(self, pieces: Sequence[str]) -> list[list[int]]:
        """Token ids of the pieces of one text with gaps between them; BOS stands in front of the first."""
        if self.tokenizer is None:
            raise PromptError("This checkpoint has no tokenizer, so it cannot fill gaps in a text.")
        if isinstance(pieces, str) or len(pieces) < 2:
            raise PromptError(
                f"A text to fill is a list of at least two pieces, with the gaps between them, got {pieces!r}. "
                'Example: lm.infill([["The cat ", " the mat."]], SamplingParams(infill_length=2))'
            )
        first = self._encode_text(pieces[0]) if pieces[0] else self._start_of_text()
        found = [self.checked(first), *(self._behind(_readable(piece)) for piece in pieces[1:])]
        for ids in found[1:]:
            self._check_ids(ids)
        return found

    def checked(self, ids: Ids) -> list[int]:
        """The ids as a list, or the start of a text for none.

        Raises:
            PromptError: they are no ids, one does not exist, or is the mask token.
        """
        found = _integers(ids)
        self._check_ids(found)
        return found or self._start_of_text()

    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text: the tokenizer's end of text first, then those of the generation config."""
        configured = getattr(self.backbone.network.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        if self.tokenizer is not None:
            ids = [self.tokenizer.eos_token_id, *ids]
        return tuple(dict.fromkeys(one for one in ids if one is not None))

    def reader(self, prompt: Sequence[int]) -> Continuation:
        """Reads what is generated after a prompt; it needs a tokenizer."""
        assert self.tokenizer is not None, "the caller checks it"
        return Continuation(self.tokenizer, prompt)

    def _behind(self, piece: str) -> list[int]:
        """Token ids of a piece that other text stands before."""
        assert self.tokenizer is not None
        anchor = encode(self.tokenizer, _ANCHOR, special=False)
        both = encode(self.tokenizer, _ANCHOR + piece, special=False)
        if both[: len(anchor)] == anchor:
            return both[len(anchor) :]
        return encode(self.tokenizer, piece, special=False)

    def _start_of_text(self) -> list[int]:
        start = None if self.tokenizer is None else start_id(self.tokenizer)
        entry = self.backbone.diffusion
        needs_start = entry.is_causal or entry.logit_shift
        if start is None and needs_start:
            start = next(iter(self.end_ids()), None)
        if start is None and needs_start:
            raise PromptError(
                "A model that predicts each token from the one before it needs a prompt where it has no BOS or "
                "end-of-text token. Give one."
            )
        return [] if start is None else [start]

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = [token for token in ids if not 0 <= token < self.num_ids]
        if wrong:
            raise PromptError(f"Token ids must lie between 0 and {self.num_ids - 1}, got {wrong[0]}.")
        if self.backbone.diffusion.mask_token_id in ids:
            raise PromptError("The prompt holds the mask token, which only the places to generate may hold. Remove it.")


def is_ids(prompt: object) -> bool:
    """Whether a prompt is one list (or tensor or array of one dimension) of token ids."""
    if isinstance(prompt, Tensor | np.ndarray):
        return prompt.ndim == 1
    return _is_list(prompt) and len(prompt) > 0 and _is_integer(prompt[0])


def _is_list(prompt: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)


def _is_chat(prompt: object) -> bool:
    return _is_list(prompt) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _integers(ids: Ids) -> list[int]:
    """Token ids of any kind as numbers.

    Raises:
        PromptError: they are something else.
    """
    if isinstance(ids, Tensor | np.ndarray):
        if ids.ndim != 1:
            raise PromptError(
                f"Token ids of one prompt have one dimension, got a {type(ids).__name__} of the shape "
                f"{list(ids.shape)}. Give one row of it."
            )
        is_whole = ids.dtype.kind in "iu" if isinstance(ids, np.ndarray) else _is_whole(ids.dtype)
        if not is_whole:
            raise PromptError(f"Token ids must be integers, got a {type(ids).__name__} of {ids.dtype}.")
        return [int(token) for token in ids.tolist()]
    wrong = next((number for number, token in enumerate(ids) if not _is_integer(token)), None)
    if wrong is not None:
        raise PromptError(f"Token ids must be integers, got {shown(ids[wrong])} after {wrong} of them. {_KINDS}.")
    return [int(token) for token in ids]


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def _readable(text: str) -> str:
    try:
        return readable(text, "The prompt")
    except DataError as error:
        raise PromptError(f"{error}.") from None


def _refused(error: DataError) -> str:
    text = str(error).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _not_a_prompt(prompt: object) -> str:
    """What is wrong with a prompt of another kind."""
    if isinstance(prompt, Mapping):
        if "role" in prompt or "content" in prompt:
            return "A chat is a list of messages, got one message by itself. Put it into a list: [message]."
        for name, what in (("input_ids", "token ids"), ("messages", "messages")):
            if name in prompt:
                return f'{_KINDS}, got a {type(prompt).__name__} that holds {what}. Give these: prompt["{name}"].'
        given = f"a {type(prompt).__name__} with {', '.join(map(str, list(prompt)[:5])) or 'nothing in it'}"
    elif _is_list(prompt):
        given = f"a list that begins with {shown(prompt[0])}" if len(prompt) else "an empty list"
    elif isinstance(prompt, bytes | bytearray):
        return f"{_KINDS}, got {type(prompt).__name__}. Decode them first: prompt.decode()."
    else:
        given = f"{shown(prompt)} ({type(prompt).__name__})"
    return f"{_KINDS}, got {given}."
