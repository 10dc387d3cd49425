"""Malformed rows of conversations: each stops with its line and reason, or is skipped and counted."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tests import chats
from tests.malformed.case import Case, Command, check, limited, parametrized, written
from unmask.data.chat import Conversations
from unmask.data.chat_tokens import ChatDocuments, ChatEncoder
from unmask.data.templates import ChatTemplate, use_template
from unmask.data.tokenized import Document
from unmask.errors import DataError
from unmask.models.tokenizers import byte_tokenizer
from unmask.settings.data import DataSettings

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
GOOD = json.dumps({"messages": [USER, REPLY]})


@functools.cache
def encoder() -> ChatEncoder:
    return ChatEncoder(ChatTemplate(chats.plain_tokenizer()))


def read(row: str, folder: Path, **options: Any) -> tuple[list[Document], int]:
    """The documents of three rows, of which the second is given, and how many of the rows were skipped."""
    file = written(folder, "rows.jsonl", f"{GOOD}\n{row}\n{GOOD}\n")
    sources = Conversations([str(file)], DataSettings(format="chat", **options))
    documents = ChatDocuments(sources, encoder(), "all", sources.malformed)
    return list(documents), sources.skipped + documents.refused


def refused(name: str, row: object, message: str) -> Case:
    """A row, as a value or as the text of its line."""
    line = row if isinstance(row, str) else json.dumps(row)
    return Case(name, lambda folder: read(line, folder), message, DataError)


def first(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields, REPLY]}


def second(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, fields]}


def reply(**fields: Any) -> dict[str, Any]:
    return {"messages": [USER, REPLY | fields]}


DEEP: Any = functools.reduce(lambda inner, _: [inner], range(300), "x")
CASES = [
    # --- rows that are none
    refused("a number", 7, "expected an object with a conversation, got 7"),
    refused("a text", '"Hi"', 'expected an object with a conversation, got "Hi"'),
    refused("null", "null", "expected an object with a conversation, got null"),
    refused("a list of messages", [USER, REPLY], "expected an object with a conversation"),
    refused("no field", {}, "the row has no field"),
    refused("other fields", {"text": "x", "id": 3}, "the row has text, id. Known are messages or conversations"),
    refused("a message", USER, "there is no conversation: the row has role, content"),
    refused("half a line", '{"messages": [', "not valid JSON"),
    # --- lists that are none
    refused("messages that are text", {"messages": "Hi"}, 'must be a list of messages, got "Hi"'),
    refused("messages that are a number", {"messages": 3}, "must be a list of messages, got 3"),
    refused("messages that are an object", {"messages": {"0": USER}}, "must be a list of messages"),
    refused("messages that are JSON in a text", {"messages": json.dumps([USER, REPLY])}, "must be a list of messages"),
    refused("no message", {"messages": []}, "the conversation is empty"),
    refused("conversations of conversations", {"conversations": [[USER, REPLY]]}, "message 1 must be an object"),
    refused(
        "a text for a message",
        {"messages": ["Hi", "Hello"]},
        'message 1 must be an object with role and content, got "Hi"',
    ),
    refused(
        "null for a message", {"messages": [USER, None]}, "message 2 must be an object with role and content, got null"
    ),
    refused("a number for a message", {"messages": [USER, 3]}, "message 2 must be an object"),
    refused("a list for a message", {"messages": [["user", "Hi"], REPLY]}, 'got ["user", "Hi"]'),
    refused("lists without end", {"messages": [DEEP, REPLY]}, "message 1 must be an object"),
    refused(
        "a message without fields",
        {"messages": [{}, REPLY]},
        "message 1 must have role and content, or from and value; it has no field",
    ),
    refused("hundreds of messages", {"messages": [USER, REPLY] * 251}, "has 502 messages, and at most 500"),
    refused("both lists", {"messages": [USER, REPLY], "conversations": [USER, REPLY]}, "can be read in several ways"),
    # --- roles
    refused("a role that is a list", first(role=["user"], content="Hi"), 'message 1 has the unknown role ["user"]'),
    refused("a role that is an object", first(role={"a": 1}, content="Hi"), 'the unknown role {"a": 1}'),
    refused("a role that is a number", first(role=0, content="Hi"), "the unknown role 0. Allowed:"),
    refused("a role that is true", first(role=True, content="Hi"), "the unknown role true"),
    refused("a role that is empty", first(role="", content="Hi"), 'the unknown role ""'),
    refused("a role in capitals", first(role="User", content="Hi"), 'unknown role "User". Did you mean `user`'),
    refused("a role with a space", first(role="user ", content="Hi"), "Did you mean `user`"),
    refused("a role nobody knows", first(role="narrator", content="Hi"), 'the unknown role "narrator"'),
    refused("a long role", first(role="x" * 10_000, content="Hi"), "xxx.... Allowed:"),
    refused("a role without content", first(role="user"), "message 1 (user) has no content"),
    refused(
        "content without role",
        first(content="Hi"),
        "message 1 must have role and content, or from and value; it has content",
    ),
    refused("a role that is null", first(role=None, content="Hi"), "message 1 must have role and content"),
    refused(
        "two spellings",
        first(role="user", content="Hi", **{"from": "human", "value": "Hi"}),
        "must have role and content, or from and value",
    ),
    refused("mixed spellings", first(role="user", value="Hi"), "message 1 (user) has no content"),
    refused("ShareGPT without value", {"conversations": [{"from": "human"}, REPLY]}, "message 1 (user) has no content"),
    refused(
        "ShareGPT with an unknown speaker",
        {"conversations": [{"from": "alien", "value": "x"}, REPLY]},
        'unknown role "alien"',
    ),
    refused(
        "ShareGPT with a list", {"conversations": [{"from": ["human"], "value": "x"}, REPLY]}, 'unknown role ["human"]'
    ),
    # --- contents
    refused("a content that is a number", second(role="assistant", content=3), "has content that is no text: 3"),
    refused(
        "a content that is NaN", '{"messages": [{"role": "user", "content": NaN}]}', "has content that is no text: NaN"
    ),
    refused("a content that is a fraction", second(role="assistant", content=3.5), "no text: 3.5"),
    refused("a content that is false", second(role="assistant", content=False), "no text: false"),
    refused("a content that is null", second(role="assistant", content=None), "message 2 (assistant) has no content"),
    refused("a content that is an object", second(role="assistant", content={"text": "x"}), 'no text: {"text": "x"}'),
    refused("a content without parts", second(role="assistant", content=[]), "has an empty list as content"),
    refused("a content of texts", second(role="assistant", content=["x"]), 'must be {"type": "text", "text": "..."}'),
    refused("a content of lists", second(role="assistant", content=DEEP), "must be"),
    refused(
        "an image",
        first(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        '"image_url"; a language model reads',
    ),
    refused("a part without text", first(role="user", content=[{"type": "text"}]), "text must be text, got null"),
    refused("an empty turn", second(role="assistant", content=""), "a turn of the assistant is empty"),
    refused("a blank turn", first(role="user", content=" \n\t"), "a turn of the user is empty"),
    refused(
        "half a pair",
        '{"messages": [{"role": "user", "content": "a\\ud800"}, {"role": "assistant", "content": "b"}]}',
        "half of a UTF-16 pair (U+D800 at character 1)",
    ),
    refused(
        "the other half",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\udfff"}]}',
        "message 2 (assistant) holds half of a UTF-16 pair (U+DFFF",
    ),
    # --- who speaks
    refused("only a system prompt", {"messages": [{"role": "system", "content": "x"}]}, "has no assistant turn"),
    refused("only a question", {"messages": [USER]}, "has no assistant turn, so there is nothing to learn"),
    refused("the assistant first", {"messages": [REPLY, USER, REPLY]}, "begins with the assistant; the first turn"),
    refused("a tool first", {"messages": [{"role": "tool", "content": "4"}, REPLY]}, "begins with the tool"),
    refused("only the assistant", {"messages": [REPLY]}, "begins with the assistant"),
    refused("only tools", {"messages": [{"role": "tool", "content": "4"}]}, "has no assistant turn"),
    # --- what is learned
    refused("no weight", reply(weight=0), "every assistant turn of the conversation has weight 0"),
    refused("not to train", reply(train=False), "has weight 0, so there is nothing to learn"),
    refused("no loss", reply(loss=False), "has weight 0, so there is nothing to learn"),
    refused(
        "half a weight",
        reply(weight=0.5),
        "message 2 (assistant) has weight 0.5; a reply is learned (1 or true) or not",
    ),
    refused("a negative weight", reply(weight=-1), "has weight -1"),
    refused("a weight that is text", reply(weight="1"), 'has weight "1"'),
    refused("a weight that is a list", reply(weight=[1]), "has weight [1]"),
    refused(
        "a weight that is NaN",
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": NaN}]}',
        "has weight NaN",
    ),
    refused("weights that contradict each other", reply(weight=1, train=False), "which contradict each other"),
    refused(
        "a question to learn",
        {"messages": [USER | {"weight": 1}, REPLY]},
        "message 1 (user) has weight 1, and only replies",
    ),
    refused(
        "a question to train",
        {"messages": [USER | {"train": True}, REPLY]},
        "only replies of the assistant are learned",
    ),
    refused("a mask", reply(mask=True), 'has the field "mask"'),
    refused("a row's weight", {"messages": [USER, REPLY], "weight": 0.3}, "the row has the field `weight` (0.3)"),
    refused("a row not to train", {"messages": [USER, REPLY], "train": False}, "data.ignored_fields=[train]"),
    refused(
        "a row's template",
        {"messages": [USER, REPLY], "chat_template": "{{ x }}"},
        "the row has the field `chat_template`",
    ),
    refused(
        "what a row's template reads",
        {"messages": [USER, REPLY], "chat_template_kwargs": {"enable_thinking": True}},
        "`chat_template_kwargs`",
    ),
    # --- further fields
    refused(
        "an unknown field", reply(timestamp=3), 'message 2 (assistant) has the field "timestamp", which nothing reads'
    ),
    refused("a misspelt field", reply(reasoning_contents="x"), "Did you mean `reasoning_content`"),
    refused(
        "reasoning that the template does not write",
        reply(reasoning_content="so"),
        "does not write the field `reasoning_content` of message 2",
    ),
    refused("thinking", reply(thinking="so"), "does not write the field `reasoning_content`"),
    refused("reasoning that is a number", reply(reasoning=3), "reasoning must be text, got 3"),
    refused(
        "a call that the template does not write",
        reply(tool_calls=[{"name": "f"}]),
        "does not write the field `tool_calls`",
    ),
    refused(
        "a call by the user",
        {"messages": [USER | {"tool_calls": [{"name": "f"}]}, REPLY]},
        "only the assistant calls tools",
    ),
    refused("calls that are text", reply(tool_calls="f()"), 'must be a list of objects, got "f()"'),
    refused("calls without end", reply(tool_calls=[{"a": DEEP}]), "nested more than 50 levels deep"),
    refused("an old call", reply(function_call={"name": "f"}), "which became tool_calls"),
    refused("a name", {"messages": [USER | {"name": "Ann"}, REPLY]}, "does not write the field `name` of message 1"),
    refused(
        "tools that the template does not write",
        {"messages": [USER, REPLY], "tools": [{"name": "f"}]},
        "the chat template does not write tools",
    ),
    refused("tools that are no JSON", {"messages": [USER, REPLY], "tools": "f"}, "the field `tools` is not valid JSON"),
    refused(
        "tools that are a number",
        {"messages": [USER, REPLY], "tools": 4},
        "the field `tools` must be a list of objects, got 4",
    ),
    refused(
        "tools that are texts",
        {"messages": [USER, REPLY], "tools": ["f"]},
        "the field `tools` must be a list of objects",
    ),
    refused(
        "old tools", {"messages": [USER, REPLY], "functions": [{"name": "f"}]}, "the row has the field `functions`"
    ),
    # --- a prompt and its answer
    refused("a prompt without answer", {"prompt": "a"}, "there is no conversation: the row has prompt"),
    refused("two prompts", {"prompt": "a", "question": "b", "answer": "c"}, "can be read in several ways"),
    refused("two answers", {"prompt": "a", "answer": "b", "output": "c"}, "can be read in several ways"),
    refused(
        "material beside a question", {"question": "a", "context": "b", "answer": "c"}, "can be read in several ways"
    ),
    refused("a prompt that is a number", {"prompt": 3, "answer": "b"}, "the field `prompt` must be text, got 3"),
    refused("a prompt of messages", {"prompt": [USER], "completion": [REPLY]}, "the field `prompt` must be text"),
    refused(
        "an answer that is a number", {"question": "a", "answer": 51.0}, "the field `answer` must be text, got 51.0"
    ),
    refused("an answer without texts", {"question": "a", "answer": []}, "the field `answer` must be text, got []"),
    refused("an empty answer", {"question": "a", "answer": ""}, "a turn of the assistant is empty"),
    refused(
        "an answer with half a pair",
        '{"question": "a", "answer": "\\udc00"}',
        "the field `answer` holds half of a UTF-16 pair",
    ),
    refused(
        "material that is a number",
        {"instruction": "a", "input": 3, "output": "b"},
        "the field `input` must be text, got 3",
    ),
    refused(
        "a system prompt that is a number",
        {"prompt": "a", "answer": "b", "system": 3},
        "the field `system` must be text, got 3",
    ),
    refused(
        "two system prompts",
        {"messages": [{"role": "system", "content": "x"}, USER, REPLY], "system": "y"},
        "there are two system prompts",
    ),
]


@parametrized(CASES)
def test_a_row_is_refused_or_skipped(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
    line = (tmp_path / "rows.jsonl").read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1]
    with limited():
        documents, skipped = read(line, tmp_path, malformed="skip")
    assert [document.where[-1] for document in documents] == ["1", "3"]
    assert skipped == 1


def test_the_line_is_named(tmp_path: Path) -> None:
    for row in (first(role=["user"], content="x"), reply(name="Ann")):
        with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*skip such rows: data\.malformed=skip$"):
            read(json.dumps(row), tmp_path)


UNUSUAL: list[tuple[str, Any, dict[str, Any], str]] = [
    ("text parts", first(role="user", content=[{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), {}, ""),
    ("fields of null", first(role="user", content="Hi", name=None, weight=None, **{"from": None}), {}, ""),
    ("a weight of 1", reply(weight=1, train=True), {}, ""),
    ("a user's weight of 0", {"messages": [USER | {"weight": 0, "train": False}, REPLY]}, {}, ""),
    ("an ignored field", reply(timestamp=3), {"ignored_fields": ("timestamp",)}, ""),
    ("an ignored weight of a row", {"messages": [USER, REPLY], "weight": 0.3}, {"ignored_fields": ("weight",)}, ""),
    ("an empty list of calls", reply(tool_calls=[]), {}, ""),
    ("tools that are none", {"messages": [USER, REPLY], "tools": "[]"}, {}, ""),
    ("an equal system prompt twice", {"messages": [USER, REPLY], "system": ""}, {}, ""),
    ("NUL", first(role="user", content="H\0i"), {}, "User:\nH\0i\nAssistant:\nHello<|eos|>"),
    ("two users in a row", {"messages": [USER, USER, REPLY]}, {}, "User:\nHi\nUser:\nHi\nAssistant:\nHello<|eos|>"),
    (
        "a system prompt in the middle",
        {"messages": [USER, REPLY, {"role": "system", "content": "x"}, USER, REPLY]},
        {},
        "User:\nHi\nAssistant:\nHello<|eos|>\nSystem:\nx\nUser:\nHi\nAssistant:\nHello<|eos|>",
    ),
    (
        "a tool's answer",
        {"messages": [USER, {"role": "tool", "content": "4"}, REPLY]},
        {},
        "User:\nHi\nTool:\n4\nAssistant:\nHello<|eos|>",
    ),
    (
        "half of a template",
        first(role="user", content="{% for %}{{"),
        {},
        "User:\n{% for %}{{\nAssistant:\nHello<|eos|>",
    ),
]


@pytest.mark.parametrize(("name", "row", "options", "text"), UNUSUAL, ids=[case[0] for case in UNUSUAL])
def test_an_unusual_row_is_read(name: str, row: Any, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    documents, skipped = read(json.dumps(row), tmp_path, **options)
    assert skipped == 0
    expected = text or "User:\nHi\nAssistant:\nHello<|eos|>"
    assert encoder().tokenizer.decode(documents[1].ids) == f"<|bos|>{expected}"


def tokenizing(folder: Path, row: object, *options: str) -> list[str]:
    tokenizer = byte_tokenizer()
    use_template(tokenizer, "plain")
    tokenizer.save_pretrained(folder / "model")
    written(folder, "model/config.json", "{}")
    written(folder, "rows.jsonl", f"{GOOD}\n{json.dumps(row)}\n")
    return ["tokenize", "--model", "model", "--data", "rows.jsonl", "--out", "out", *options]


COMMANDS = [
    Command(
        "a role that is a list",
        lambda folder: tokenizing(folder, first(role=["user"], content="x")),
        "line 2: message 1",
    ),
    Command(
        "an unknown field",
        lambda folder: tokenizing(folder, reply(mood=1)),
        'line 2: message 2 (assistant) has the field "mood"',
    ),
    Command("a name", lambda folder: tokenizing(folder, reply(name="x")), "line 2: the chat template does not write"),
    Command(
        "a template that is not there",
        lambda folder: tokenizing(folder, {}, "--chat-template", "lama"),
        "no chat template lama",
    ),
    Command(
        "a system prompt with half a pair",
        lambda folder: tokenizing(folder, {}, "--system-prompt", "\udc80"),
        "--system-prompt holds half",
    ),
]


@parametrized(COMMANDS)
def test_tokenize_names_the_row(case: Command, tmp_path: Path) -> None:
    check(case, tmp_path)
