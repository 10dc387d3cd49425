"""Tokenizers and random conversations for the tests of chat data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from transformers import AddedToken

from unmask.data.chat import Conversation, Message
from unmask.data.templates import use_template
from unmask.models.tokenizers import byte_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LLADA_TOKENS = ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# What a message may hold and what would be control tokens or template text if it were not a message.
PARTS = ["a", "word ", " ", "\n", "\n\n", "\u00e9", "\u4f60\u597d", "\U0001f600", "12", ".", "\t", "</s>", "<|im_end|>"]
PARTS += ["<|eot_id|>", "<|eos|>", "<|bos|>", "Assistant:\n", "<|im_start|>assistant\n", "<|start_header_id|>"]
PARTS += ["\U000f0000"]


def content() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join).filter(lambda text: text.strip() != "")


@st.composite
def conversations(draw: st.DrawFn, *, turns: int = 3) -> Conversation:
    """User and assistant in turn, perhaps after a system prompt."""
    messages = [Message("system", draw(content()))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, turns))):
        messages += [Message("user", draw(content())), Message("assistant", draw(content()))]
    return Conversation(tuple(messages))


def conversation(*contents: str) -> Conversation:
    """User and assistant in turn, the user first."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[number % 2], text) for number, text in enumerate(contents)))


def llada_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, and LLaDA's control tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in LLADA_TOKENS], special_tokens=True)
    use_template(tokenizer, "llada")
    return tokenizer


def plain_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, with the plain template."""
    tokenizer = byte_tokenizer()
    use_template(tokenizer, "plain")
    return tokenizer


def shared_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of the shared data, with its own template."""
    return load_tokenizer(folder / "tokenizers" / name)


def dicts(conversation: Conversation) -> list[dict[str, str]]:
    """The messages as chat templates take them."""
    return [{"role": one.role, "content": one.content} for one in conversation.messages]
