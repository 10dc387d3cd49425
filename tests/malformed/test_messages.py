"""Malformed prompts: chat messages, and what else a caller may hand to a model's codec in place of a text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from tests import tiny
from tests.malformed.case import Case, check, parametrized
from unmask import DiffusionLM
from unmask.data.templates import use_template
from unmask.errors import PromptError
from unmask.models.loading import Checkpoint, adapted, create
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.objective import ObjectiveSettings

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
# Roles that it does not know are left out, as Qwen's does.
SELECTIVE = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}[{{ m.role }}]{{ m.content }}<|eos|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}<|eos|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@functools.cache
def model() -> DiffusionLM:
    """A random model over bytes, with the plain template."""
    shape = dataclasses.replace(tiny.SHAPE, max_position_embeddings=256)
    made = adapted(create(shape, byte_tokenizer(), seed=0), ObjectiveSettings(method="masked_diffusion"))
    assert made.tokenizer is not None
    use_template(made.tokenizer, "plain")
    return DiffusionLM(Checkpoint(made.backbone.eval(), made.tokenizer))


def encode(prompt: Any, template: str | None = "") -> list[list[int]]:
    """The ids of a prompt, under another chat template if one is given."""
    lm = model()
    assert lm.tokenizer is not None
    kept = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = kept if template == "" else template
    try:
        return lm.codec.encode_all(prompt)
    finally:
        lm.tokenizer.chat_template = kept


def refused(name: str, prompt: Callable[[], Any], message: str, template: str | None = "") -> Case:
    return Case(name, lambda _: encode(prompt(), template), message, PromptError)


def message(**fields: Any) -> Callable[[], Any]:
    return lambda: [USER, fields]


def part(**fields: Any) -> Callable[[], Any]:
    return lambda: [{"role": "user", "content": [{"type": "text", "text": "see"}, fields]}]


CASES = [
    # --- one message's role
    refused("no role", message(content="x"), "Message 2 has no role. A role is a text: system, user, assistant, tool"),
    refused("a role that is null", message(role=None, content="x"), "Message 2 has no role"),
    refused("a role that is a list", message(role=["user"], content="x"), 'the role ["user"]. A role is a text'),
    refused("a role that is a number", message(role=1, content="x"), "the role 1"),
    refused("a role that is an object", message(role={"a": 1}, content="x"), 'the role {"a": 1}'),
    refused("a role that is empty", message(role="", content="x"), 'the role "". A role is a text'),
    refused("a role that is blank", message(role=" ", content="x"), 'the role " "'),
    refused("a role that is true", message(role=True, content="x"), "the role true"),
    refused("a role of half a pair", message(role="us\ud800er", content="x"), "U+D800 at character 2"),
    refused(
        "a role that the template leaves out",
        message(role="narrator", content="x"),
        "does not write the content of message 2 (narrator), so it would be lost. Roles that templates know: "
        "assistant, system, user",
        SELECTIVE,
    ),
    refused(
        "a role that the template leaves out, whose text stands elsewhere",
        message(role="narrator", content="user"),
        "does not write the content of message 2",
        SELECTIVE,
    ),
    refused(
        "a role that the template refuses",
        lambda: [{"role": "system", "content": "x"}, USER],
        "The model's chat template refuses this conversation: System role not supported",
        STRICT,
    ),
    # --- its content
    refused("no content", message(role="user"), "Message 2 (user) has no content"),
    refused("a content that is null", message(role="user", content=None), "Message 2 (user) has no content"),
    refused("a content that is a number", message(role="user", content=7), "has content that is no text: 7"),
    refused("a content that is true", message(role="user", content=True), "has content that is no text: true"),
    refused("a content that is NaN", message(role="user", content=float("nan")), "content that is no text: NaN"),
    refused("a content that is an object", message(role="user", content={"a": "b"}), 'no text: {"a": "b"}'),
    refused("a content of bytes", message(role="user", content=b"x"), 'no text: "<bytes>"'),
    refused("a content that is a tensor", message(role="user", content=torch.ones(2)), 'no text: "<Tensor>"'),
    refused("an empty list", message(role="user", content=[]), "has an empty list as content"),
    refused("a list of texts", message(role="user", content=["x"]), 'must be {"type": "text", "text": "..."}, got "x"'),
    refused("a list of null", message(role="user", content=[None]), "got null"),
    refused("a list in a list", message(role="user", content=[[]]), "got []"),
    refused("a content with half a pair", message(role="user", content="a\udc80"), "half of a UTF-16 pair (U+DC80"),
    refused(
        "an image", part(type="image_url", image_url={"url": "x"}), 'part 2 of the content has the type "image_url"'
    ),
    refused("another image", part(type="image", image="x"), "reads parts of type `text` only. Leave images"),
    refused("sound", part(type="input_audio", input_audio={}), 'the type "input_audio"'),
    refused("a file", part(type="file", file={}), 'the type "file"'),
    refused("a part without type", part(text="x"), "has the type null"),
    refused("a part without text", part(type="text"), "part 2: text must be text, got null"),
    refused("a part with a number", part(type="text", text=3), "text must be text, got 3"),
    refused("a part with half a pair", part(type="text", text="\ud83d"), "U+D83D at character 0"),
    refused("a part with more", part(type="text", text="x", cache_control={"a": 1}), 'the field "cache_control"'),
    # --- its further fields
    refused("ShareGPT's names", lambda: [{"from": "human", "value": "x"}], "Message 1 has no role"),
    refused(
        "both pairs of names",
        message(role="user", content="x", value="y"),
        'has the field "value", and a message here has role and content',
    ),
    refused("an unknown field", message(role="user", content="x", mood="glad"), 'has the field "mood", which nothing'),
    refused("a misspelt field", message(role="user", content="x", contents="y"), "Did you mean `content`"),
    refused("a field that is a number", message(role="user", content="x", **{"3": 4}), 'has the field "3"'),
    refused("a weight", message(role="assistant", content="x", weight=0), '"weight", which says what is learned'),
    refused("train", message(role="assistant", content="x", train=False), '"train", which says what is learned'),
    refused("loss", message(role="assistant", content="x", loss=True), '"loss", which says what is learned'),
    refused("a mask", message(role="assistant", content="x", mask=1), '"mask", which says what is learned'),
    refused(
        "reasoning that the template does not write",
        message(role="assistant", content="x", reasoning_content="so"),
        "does not write the field `reasoning_content` of message 2 (assistant)",
    ),
    refused("thinking", message(role="assistant", content="x", thinking="so"), "the field `reasoning_content`"),
    refused(
        "two reasonings",
        message(role="assistant", content="x", thinking="so", reasoning="no"),
        "thinking differs from another field of the message",
    ),
    refused(
        "reasoning that is a list", message(role="assistant", content="x", reasoning=["so"]), "reasoning must be text"
    ),
    refused("a name", message(role="user", content="x", name="Ann"), "does not write the field `name` of message 2"),
    refused("a name that is a number", message(role="user", content="x", name=3), "name must be text, got 3"),
    refused(
        "a tool's call",
        message(role="assistant", content="x", tool_calls=[{"function": {"name": "f"}}]),
        "does not write the field `tool_calls` of message 2",
    ),
    refused("a call by the user", message(role="user", content="x", tool_calls=[{"a": 1}]), "only the assistant calls"),
    refused(
        "calls that are text", message(role="assistant", content="x", tool_calls="f()"), "must be a list of objects"
    ),
    refused(
        "calls without end",
        message(role="assistant", content="x", tool_calls=[functools.reduce(lambda a, _: {"a": a}, range(99), {})]),
        "nested more than 50 levels deep",
    ),
    refused("an old call", message(role="assistant", content="x", function_call={"a": 1}), "which became tool_calls"),
    refused("a call to continue", message(role="assistant", tool_calls=[{"id": "1"}]), "tool_calls"),
    # --- the list
    refused("a text among messages", lambda: [USER, "x"], 'Message 2 must be an object with role and content, got "x"'),
    refused("a list among messages", lambda: [USER, ["x"]], "Message 2 must be an object"),
    refused("null among messages", lambda: [USER, None], "Message 2 must be an object with role and content, got null"),
    refused("a message after a text", lambda: ["x", USER], "A chat is a list of messages, got one message by itself"),
    refused("a message by itself", lambda: USER, "got one message by itself. Put it into a list: [message]"),
    refused("a message in its list", lambda: [[[USER]]], "a list that begins with"),
    refused("no chat template", lambda: [USER], "has no chat template. Give the prompt as plain text", None),
    refused("a chat template that is a number", lambda: [USER], "chat template must be text, got 5", 5),  # type: ignore[arg-type]
    # --- other prompts
    refused("nothing in a list", lambda: [], "The list of prompts is empty"),
    refused("an empty list in a list", lambda: [[]], "got an empty list"),
    refused("an empty mapping", dict, "got a dict with nothing in it"),
    refused("a mapping", lambda: {"text": "x"}, "A prompt is a text, token ids"),
    refused("a row with messages", lambda: {"messages": [USER]}, 'Give these: prompt["messages"]'),
    refused(
        "what a tokenizer returns",
        lambda: BatchEncoding({"input_ids": [3, 4], "attention_mask": [1, 1]}),
        'got a BatchEncoding that holds token ids. Give these: prompt["input_ids"]',
    ),
    refused("what a tokenizer returns, in a list", lambda: [{"input_ids": [3]}], "Message 1 has no role"),
    refused("a number", lambda: 7, "got 7 (int)"),
    refused("true", lambda: True, "got true (bool)"),
    refused("a fraction", lambda: 1.5, "got 1.5 (float)"),
    refused("bytes", lambda: b"abc", "got bytes. Decode them first"),
    refused("a bytearray", lambda: bytearray(b"abc"), "got bytearray. Decode them first"),
    refused("a set", lambda: {3, 4}, "(set)"),
    refused("a path", lambda: Path("x.txt"), "(PosixPath)"),
    refused("a generator", lambda: (n for n in (3, 4)), "(generator)"),
    refused("an object like a message", lambda: [SimpleNamespace(role="user", content="x")], "(SimpleNamespace)"),
    refused("truths", lambda: [True, False], "got true (bool)"),
    refused("fractions", lambda: [1.5, 2.5], "got 1.5 (float)"),
    refused("ids with a fraction", lambda: [3, 1.5], "Token ids must be integers, got 1.5 after 1 of them"),
    refused("ids with null", lambda: [3, 4, None], "got null after 2 of them"),
    refused("ids with a text", lambda: [3, "x"], 'got "x" after 1 of them'),
    refused("ids with a list", lambda: [3, [4]], "got [4] after 1 of them"),
    refused("ids in lists in lists", lambda: [[[3, 4]]], "a list that begins with [3, 4]"),
    refused("a negative id", lambda: [3, -1], "Token ids must lie between 0 and"),
    refused("an id beyond the vocabulary", lambda: [10**30], "Token ids must lie between 0 and"),
    refused("a tensor of fractions", lambda: torch.ones(3), "must be integers, got a Tensor of torch.float32"),
    refused("a tensor of truths", lambda: torch.ones(3, dtype=torch.bool), "got a Tensor of torch.bool"),
    refused("a tensor of complex numbers", lambda: torch.ones(3, dtype=torch.complex64), "Tensor of torch.complex64"),
    refused("a tensor of three dimensions", lambda: torch.ones(1, 1, 2, dtype=torch.long), "of the shape [1, 1, 2]"),
    refused("a tensor without dimensions", lambda: torch.tensor(3), "of the shape []"),
    refused("an array of fractions", lambda: np.ones(3), "got a ndarray of float64"),
    refused("an array of texts", lambda: np.array(["a"]), "got a ndarray of <U1"),
    refused("an array of objects", lambda: np.array([None, 1]), "got a ndarray of object"),
    refused("an array of negative ids", lambda: np.array([-1]), "Token ids must lie between 0 and"),
    refused(
        "a text with half a pair", lambda: "a\ud800b", "The prompt holds half of a UTF-16 pair (U+D800 at character 1)"
    ),
    refused("a text among fractions", lambda: ["x", 1.5], "got 1.5 (float)"),
]


@parametrized(CASES)
def test_a_prompt_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


IDS = [5, 9, 33]
SAME = [
    ("a tuple", lambda: tuple(IDS)),
    ("a tensor", lambda: torch.tensor(IDS)),
    ("a tensor of int32", lambda: torch.tensor(IDS, dtype=torch.int32)),
    ("an array", lambda: np.array(IDS)),
    ("an array of uint16", lambda: np.array(IDS, dtype=np.uint16)),
    ("NumPy's integers", lambda: [np.int64(token) for token in IDS]),
    ("a range", lambda: range(5, 8)),
    ("a tensor of one row", lambda: torch.tensor([IDS])),
    ("an array in a list", lambda: [np.array(IDS)]),
]


@pytest.mark.parametrize(("name", "prompt"), SAME, ids=[name for name, _ in SAME])
def test_ids_of_every_kind_are_the_same_prompt(name: str, prompt: Callable[[], Any]) -> None:
    expected = list(range(5, 8)) if name == "a range" else IDS
    assert model().codec.encode_all(prompt()) == [expected]


def test_unusual_messages_are_read_as_what_they_say() -> None:
    encode = model().codec.encode
    expected = encode([USER])
    assert (
        encode([{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}])
        == expected
    )
    assert encode([USER | {"name": None, "tool_calls": None, "weight": None}]) == expected
    assert encode([USER | {"tool_calls": []}]) == expected
    assert encode((USER,)) == expected
    assert len(encode([{"role": "user", "content": ""}])) == len(expected) - 2
    assert encode([{"role": "user", "content": "a\0b"}])
