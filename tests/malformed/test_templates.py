"""Malformed chat templates: those that are none, that fail, that never end, and that cannot be trained with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.malformed.case import Case, Command, check, parametrized, written
from tests.malformed.test_chats import GOOD
from unmask.data.chat import Conversation, Message
from unmask.data.chat_tokens import ChatEncoder
from unmask.data.templates import ChatTemplate, use_template
from unmask.errors import DataError, SettingsError
from unmask.models.chat_templates import PromptTemplate
from unmask.models.chat_tokens import PromptEncoder
from unmask.models.rendering import rendered
from unmask.models.tokenizers import byte_tokenizer

BODY = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|eos|>{% endfor %}"
ASKED = "{% if add_generation_prompt %}assistant:{% endif %}"
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def ask(source: Any) -> list[int]:
    """The ids of a question under a template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    return PromptEncoder(PromptTemplate(tokenizer)).prompt(MESSAGES[:1])


def learn(source: str, *messages: Message) -> object:
    """The rows of a conversation under a template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    encoder = ChatEncoder(ChatTemplate(tokenizer))
    turns = messages or (Message("user", "Hi"), Message("assistant", "Hello"))
    return encoder.documents(encoder.template.rows(Conversation(turns), "all"))


def use(folder: Path, source: bytes | str) -> None:
    use_template(byte_tokenizer(), str(written(folder, "mine.jinja", source)))


def fails(name: str, source: str, reason: str) -> Case:
    message = f"the chat template refuses the messages user: {reason}"
    return Case(name, lambda _: ask(source), message, DataError)


def invalid(name: str, source: str, reason: str) -> Case:
    return Case(name, lambda _: ask(source), f"the chat template is not valid: {reason}", DataError)


def endless(name: str, source: str, bound: str) -> Case:
    message = f"the chat template does not come to an end within bounds: it {bound}"
    return Case(name, lambda _: ask(source), message, DataError)


def untrainable(name: str, source: str, message: str) -> Case:
    return Case(name, lambda folder: use(folder, source), message, SettingsError)


LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
GROWING = "{% set ns = namespace(s='aaaa') %}{% for i in range(99) %}{% set ns.s = ns.s OP ns.s %}{% endfor %}"
CASES = [
    # --- what is no template
    Case("none", lambda _: ask(None), "This tokenizer has no chat template", SettingsError),
    Case("an empty one", lambda _: ask(""), "This tokenizer has no chat template", SettingsError),
    Case("a number", lambda _: ask(3), "chat template must be text, got 3", SettingsError),
    Case(
        "named ones without default",
        lambda _: ask({"rag": "x", "tool_use": "y"}),
        "rag, tool_use and none",
        SettingsError,
    ),
    Case("a default that is a number", lambda _: ask({"default": 3}), "must be text, got 3", SettingsError),
    invalid("a tag without end", "{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template"),
    invalid(
        "a tag that is none",
        "{% fro m in messages %}{% endfro %}",
        "TemplateSyntaxError: Encountered unknown tag 'fro'",
    ),
    invalid("a half expression", "{{ messages[0] ", "TemplateSyntaxError: unexpected end of template"),
    invalid("Python", "{{ [m for m in messages] }}", "TemplateSyntaxError: expected token ','"),
    invalid("an unknown filter", "{{ messages | shout }}", "TemplateAssertionError: No filter named 'shout'"),
    invalid("an unknown test", "{{ messages is loud }}", "TemplateAssertionError: No test named 'loud'"),
    invalid("chance", "{{ messages | random }}", "TemplateAssertionError: No filter named 'random'"),
    invalid("a break outside a loop", "{% break %}", "SyntaxError: 'break' outside loop"),
    invalid(
        "brackets without end", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError: maximum recursion depth"
    ),
    invalid(
        "loops without end", "{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "SyntaxError: too many statically nested"
    ),
    # --- what fails
    fails("a refusal", "{{ raise_exception('only poems') }}", "only poems"),
    fails("a refusal without reason", "{{ raise_exception('') }}", "it gives no reason"),
    fails("a refusal of several lines", "{{ raise_exception('a\nb') }}", "a b"),
    fails("a division by zero", "{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    fails("a remainder by zero", "{{ 1 % 0 }}", "ZeroDivisionError"),
    fails("an unknown name", "{{ history.first }}", "UndefinedError: 'history' is undefined"),
    fails("an unknown function", "{{ shout('x') }}", "UndefinedError: 'shout' is undefined"),
    fails("an unknown method", "{{ messages.shout() }}", "UndefinedError: 'list object' has no attribute 'shout'"),
    fails("an index too far", "{{ messages[9].role }}", "UndefinedError: list object has no element 9"),
    fails("text and number", "{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
    fails("a call of a text", "{{ messages[0].content() }}", "TypeError: 'str' object is not callable"),
    fails("a comparison of kinds", "{{ 'a' < 1 }}", "TypeError: '<' not supported"),
    fails("a loop over a number", "{% for i in 3 %}{% endfor %}", "TypeError: 'int' object is not iterable"),
    fails("unpacking", "{% for a, b in messages[0].content %}{% endfor %}", "ValueError: not enough values"),
    fails("JSON of a function", "{{ range | tojson }}", "TypeError: Object of type"),
    fails("a sum of texts", "{{ ['a', 'b'] | sum }}", "TypeError: unsupported operand"),
    fails("a missing key", "{{ '{a}'.format(b=1) }}", "KeyError: 'a'"),
    fails("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    fails("a loop that calls itself", "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}", "RecursionError"),
    fails("a block that calls itself", "{% block b %}{{ self.b() }}{% endblock %}", "RecursionError"),
    fails("another file", "{% include 'x.jinja' %}", "TypeError: no loader for this environment"),
    fails("a file to extend", "{% extends '/etc/passwd' %}", "TypeError: no loader for this environment"),
    fails("a file to import", "{% import 'os' as os %}", "TypeError: no loader for this environment"),
    fails("a way out", "{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
    fails("a way out by a namespace", "{% set ns = namespace(_x=1) %}", "SecurityError: a namespace cannot have"),
    fails("a changed message", "{{ messages.append(1) }}", "SecurityError"),
    fails("filling text", "{{ lipsum() }}", "UndefinedError: 'lipsum' is undefined"),
    fails("a range too long", "{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
    fails("a date that is none", "{{ strftime_now(3) }}", "TypeError"),
    # --- what does not end
    endless("loops in loops", LOOP, ""),
    endless(
        "loops that choose nothing", LOOP.replace("%}{% endfor %}{% endfor", "if false %}{% endfor %}{% endfor"), ""
    ),
    endless(
        "macros that call twice",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "",
    ),
    endless("texts that double by ~", GROWING.replace("OP", "~"), "makes something of more than"),
    endless("texts that double by +", GROWING.replace("OP", "+"), "makes something of more than"),
    endless(
        "numbers that square",
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "makes a number",
    ),
    endless("a power", "{{ 9 ** (9 ** 9) }}", "makes a number of more than a thousand digits"),
    endless("a long text", "{{ 'a' * 10 ** 12 }}", "makes something of more than 1,048,"),
    endless("a long list", "{{ [1] * 10 ** 12 }}", "makes something of more than"),
    endless("a long text the other way", "{{ 10 ** 9 * 'a' }}", "makes something of more than"),
    endless("much output", "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than 1,048,"),
    endless("much fixed text", "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}", "writes more than 1,048,"),
    endless(
        "much text in blocks",
        "{% for i in range(99999) %}{% set x %}" + "a" * 1000 + "{% endset %}{% endfor %}",
        "writes more than",
    ),
    endless("a wide text", "{{ 'a'.center(10 ** 9) }}", "asks for a width or number above 10,000"),
    endless("a text of zeros", "{{ 'a'.zfill(10 ** 9) }}", "asks for a width"),
    endless("a wide filter", "{{ 'a' | center(10 ** 9) }}", "asks for a width"),
    endless("an indent", "{{ messages | tojson(indent=10 ** 9) }}", "asks for a width"),
    endless("a batch", "{{ [1] | batch(10 ** 9, 0) | list }}", "asks for a width"),
    endless("a wide format", "{{ '%1000000000d' % 1 }}", "formats with a width"),
    endless("a computed width", "{{ '%*d' % (10 ** 9, 1) }}", "formats with a width that is huge or computed"),
    endless("a wide format of the other kind", "{{ '{:>999999999}'.format(1) }}", "formats with a width"),
    endless("a nested width", "{{ '{:{w}}'.format(1, w=10 ** 9) }}", "formats with a width"),
    endless("a wide format filter", "{{ '%1000000000d' | format(1) }}", "formats with a width"),
    endless("replacements", "{{ ('a' * 9999).replace('a', 'b' * 9999) }}", "makes something of more than"),
    endless(
        "replacements by a filter", "{{ ('a' * 9999) | replace('a', 'b' * 9999) }}", "makes something of more than"
    ),
    endless("joined texts", "{{ ('a' * 99999).join(['b'] * 99999) }}", "makes something of more than"),
    endless("joined by a filter", "{{ (['b'] * 99999) | join('a' * 99999) }}", "makes something of more than"),
    # --- what leaves messages out
    Case("no message", lambda _: ask("Hello<|eos|>"), "does not write the content of message 1 (user)", DataError),
    Case(
        "the last message only",
        lambda _: learn("{{ messages[-1].content }}<|eos|>"),
        "does not write the content of message 1",
        DataError,
    ),
    Case("an empty conversation", lambda _: PromptTemplate(_plain()).render([]), "there is no message", DataError),
    # --- what cannot be trained with
    Case(
        "a name that is none", lambda _: use_template(byte_tokenizer(), "plian"), "Did you mean `plain`?", SettingsError
    ),
    Case(
        "a folder",
        lambda folder: use_template(byte_tokenizer(), str(folder)),
        "neither a known one nor a file",
        SettingsError,
    ),
    Case(
        "an unknown home",
        lambda _: use_template(byte_tokenizer(), "~nobody-here/x.jinja"),
        "no chat template ~nobody-here",
        SettingsError,
    ),
    Case("an empty name", lambda _: use_template(byte_tokenizer(), ""), "There is no chat template", SettingsError),
    Case(
        "a name with NUL", lambda _: use_template(byte_tokenizer(), "a\0b"), "There is no chat template", SettingsError
    ),
    Case(
        "a file of bytes", lambda folder: use(folder, b"\xff\xfe\x00x"), "must be a text file in UTF-8", SettingsError
    ),
    untrainable("an empty file", "", "This tokenizer has no chat template"),
    untrainable(
        "a file with a mistake",
        "{% for %}",
        "A question and its answer cannot be written: the chat template is not valid",
    ),
    untrainable(
        "a file that fails",
        "{{ 1 / 0 }}",
        "cannot be written: the chat template refuses the messages user, assistant: ZeroDivisionError",
    ),
    untrainable("a file that does not end", LOOP, "cannot be written: the chat template does not come to an end"),
    untrainable(
        "no end of a turn",
        BODY.replace("<|eos|>", ";") + ASKED,
        "writes no special token of this tokenizer after a reply",
    ),
    untrainable(
        "half of a header",
        BODY + "{% if add_generation_prompt %}assi{% endif %}",
        "generation prompt ends before the header of a reply does ('stant:' is missing)",
    ),
    untrainable(
        "a header without its token",
        BODY.replace("{{ m.role", "<|bos|>{{ m.role") + "{% if add_generation_prompt %}<|bos|>{% endif %}",
        "('assistant:' is missing)",
    ),
    Case(
        "another generation prompt",
        lambda _: learn(BODY + "{% if add_generation_prompt %}assistant: <plan>{% endif %}"),
        "does not begin a reply as its generation prompt does",
        SettingsError,
    ),
    Case(
        "a reply that ends in another way",
        lambda _: learn(BODY.replace("<|eos|>", "{{ ';' if m.content == 'Hello' else '<|eos|>' }}") + ASKED),
        "ends some replies otherwise than with '<|eos|>'",
        SettingsError,
    ),
    Case(
        "earlier turns that change",
        lambda _: learn(
            BODY.replace("{{ m.content", "{{ '!' if loop.last and m.role == 'assistant' }}{{ m.content") + ASKED,
            *(Message(role, "x") for role in ("user", "assistant", "user", "assistant")),
        ),
        "rewrites earlier turns when later ones follow",
        SettingsError,
    ),
]


def _plain() -> Any:
    tokenizer = byte_tokenizer()
    use_template(tokenizer, "plain")
    return tokenizer


@parametrized(CASES)
def test_a_template_is_refused(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def tokenizing(folder: Path, source: str) -> list[str]:
    byte_tokenizer().save_pretrained(folder / "model")
    written(folder, "model/config.json", "{}")
    written(folder, "rows.jsonl", f"{GOOD}\n")
    written(folder, "mine.jinja", source)
    return ["tokenize", "--model", "model", "--data", "rows.jsonl", "--out", "out", "--chat-template", "mine.jinja"]


COMMANDS = [
    Command("a mistake", lambda folder: tokenizing(folder, "{% for %}"), "the chat template is not valid"),
    Command("a failure", lambda folder: tokenizing(folder, "{{ 1 / 0 }}"), "ZeroDivisionError"),
    Command("no end", lambda folder: tokenizing(folder, LOOP), "does not come to an end within bounds"),
    Command(
        "no end of a turn", lambda folder: tokenizing(folder, BODY.replace("<|eos|>", ";")), "writes no special token"
    ),
    Command(
        "half of a header",
        lambda folder: tokenizing(folder, BODY + "{% if add_generation_prompt %}assi{% endif %}"),
        "header of a reply",
    ),
]


@parametrized(COMMANDS)
def test_a_command_names_the_template_s_fault(case: Command, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_bounds_hold_in_every_thread() -> None:
    found: list[str] = []

    def run() -> None:
        try:
            ask(LOOP)
        except DataError as error:
            found.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2 and all("does not come to an end within bounds" in text for text in found)


def test_what_may_be_written_grows_with_the_messages() -> None:
    long = "x" * 3_000_000
    assert rendered("{{ messages[0].content }}", {"messages": [{"content": long}]}, characters=len(long)) == long


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}<|eos|>", "a{% generation %}{{ messages[0].content }}{% endgeneration %}"]
)
def test_marks_of_replies_for_others_change_nothing(source: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    expected = tokenizer.apply_chat_template(MESSAGES[:1], tokenize=False)
    assert PromptTemplate(tokenizer).render(MESSAGES[:1]) == expected
