"""The ids of a conversation by the words of its template, one character after another; slow, and without Jinja.

A template is a list of segments here: text that it writes itself, in which tokens have their meaning, and what a
message says, in which nothing has. Text is read by the tokenizer's own model, pre-tokenizer and normalizer, put
together anew without any added token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


class Segment(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    is_said: bool


def chatml(messages: Messages, *, default_system: str = "") -> list[Segment]:
    """Qwen2.5 (with a default system prompt) and Qwen3, SDAR (without), asked for a reply."""
    found = [Segment(f"<|im_start|>system\n{default_system}<|im_end|>\n", False)] if default_system else []
    if messages[0]["role"] == "system":
        found = []
    for message in messages:
        found.append(Segment(f"<|im_start|>{message['role']}\n", False))
        found.append(Segment(message["content"], True))
        found.append(Segment("<|im_end|>\n", False))
    return [*found, Segment("<|im_start|>assistant\n", False)]


def llada(messages: Messages) -> list[Segment]:
    """LLaDA's, whose contents are trimmed."""
    found = [Segment("<|startoftext|>", False)]
    for message in messages:
        found.append(Segment(f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False))
        found.append(Segment(message["content"].strip(), True))
        found.append(Segment("<|eot_id|>", False))
    return [*found, Segment("<|start_header_id|>assistant<|end_header_id|>\n\n", False)]


def plain(messages: Messages) -> list[Segment]:
    """Lines `User:` and `Assistant:`."""
    found = [Segment("<|bos|>", False)]
    for message in messages:
        found.append(Segment(message["role"].capitalize() + ":\n", False))
        found.append(Segment(message["content"], True))
        found.append(Segment("<|eos|>\n" if message["role"] == "assistant" else "\n", False))
    return [*found, Segment("Assistant:\n", False)]


def ids_of(segments: list[Segment], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a conversation's segments."""
    names = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    ids: list[int] = []
    waiting = ""
    for text, is_said in segments:
        at = 0
        while at < len(text):
            name = None if is_said else next((name for name in names if text.startswith(name, at)), None)
            if name is None:
                waiting += text[at]
                at += 1
            else:
                ids += [*_read(waiting, tokenizer), tokenizer.convert_tokens_to_ids(name)]  # type: ignore[list-item]
                waiting = ""
                at += len(name)
    return ids + _read(waiting, tokenizer)


def _read(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    bare = Tokenizer(backend.model)
    if backend.normalizer is not None:
        bare.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        bare.pre_tokenizer = backend.pre_tokenizer
    return bare.encode(text, add_special_tokens=False).ids if text else []
