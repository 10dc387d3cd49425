"""Chat templates as bounded programs: Jinja text and messages -> rendered text, or one sentence about what is wrong.

A template is code of whoever published the checkpoint. It runs in Jinja's sandbox with the names that `transformers`
gives it, and within three bounds: steps (turns of loops, calls, pieces of output), seconds of work, and characters.
They are counted inside the program, so they hold in every thread and on every system.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, cast

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from unmask.errors import DataError

TEMPLATE_STEPS = 1_000_000
"""Turns of loops, calls and pieces of output in one rendering."""
TEMPLATE_SECONDS = 2.0
"""Seconds of this thread's work in one rendering; waiting does not count."""
TEMPLATE_CHARACTERS = 1 << 20
"""Characters that one rendering may write, besides `TEMPLATE_GROWTH` times those of its messages."""
TEMPLATE_GROWTH = 8
_STEPS_BETWEEN_LOOKS = 32  # at the clock
_ROLES_SHOWN = 6
_WIDTH, _BITS = 10_000, 4_096
# What a template's own code, or data that it did not expect, can raise.
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\d{5,}|\*)|:[^{}]*(\d{5,}|\{)")
_WIDE_FILTERS = ("batch", "center", "indent", "slice", "tojson", "wordwrap")
_WIDE_METHODS = ("center", "expandtabs", "ljust", "rjust", "zfill")


# In front of the names of filters that no template can spell.
_HIDDEN = "(counted) "


class LimitError(TemplateError):
    """A template goes beyond one of its bounds."""


class RefusalError(DataError):
    """A template refuses messages, or fails on them.

    Attributes:
        reason: what it says.
    """

    def __init__(self, reason: str, messages: object) -> None:
        roles = [str(message.get("role")) for message in messages] if isinstance(messages, list) else []
        shown = ", ".join(roles[:_ROLES_SHOWN]) + (", ..." if len(roles) > _ROLES_SHOWN else "")
        super().__init__(f"the chat template refuses the messages {shown}: {reason}")
        self.reason = reason


class _Budget(threading.local):
    """What is left to the rendering of this thread."""

    steps = 0
    characters = 0
    size = 0
    deadline = 0.0

    def start(self, characters: int) -> None:
        self.steps, self.characters, self.size = TEMPLATE_STEPS, characters, characters
        self.deadline = time.thread_time() + TEMPLATE_SECONDS


class _Generation(Extension):
    """`{% generation %}`, with which templates mark replies for others; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (Jinja reads it from the class)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _PlainNamespace(Namespace):
    """A namespace whose attributes cannot reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be an attribute's name
        for name in dict(*args[1:], **kwargs):
            _check_attribute(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


class _Counting(NodeTransformer):
    """Lets a program count what it does."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _counted("counted", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_counted("written", part) for part in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _counted("joined", nodes.List(node.nodes))


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of `transformers`, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # Without the optimizer, which evaluates constant expressions before anything is counted.
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols])
        self.budget = _Budget()
        self.filters["tojson"] = _tojson
        del self.filters["random"], self.globals["lipsum"]  # a prompt must be the same whenever it is written
        self.filters = {name: self._bounded(name, run) for name, run in self.filters.items()}
        for counter in (self.counted, self.written, self.joined):
            self.filters[_HIDDEN + counter.__name__] = _as_filter(counter)
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _PlainNamespace,
        }

    def tick(self) -> None:
        """Count a step."""
        budget = self.budget
        budget.steps -= 1
        if budget.steps < 0:
            raise LimitError(f"it takes more than {TEMPLATE_STEPS:,} steps")
        if budget.steps % _STEPS_BETWEEN_LOOKS == 0 and time.thread_time() > budget.deadline:
            raise LimitError(f"it works for more than {TEMPLATE_SECONDS:g} s")

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each of them a step."""
        for item in items:
            self.tick()
            yield item

    def written(self, value: Any) -> str:
        """A piece of output as text."""
        text = str(value)
        self.budget.characters -= len(text)
        if self.budget.characters < 0:
            raise LimitError(f"it writes more than {self.budget.size:,} characters")
        return text

    def joined(self, parts: Iterable[Any]) -> str:
        """What `~` makes of its parts."""
        texts = [str(part) for part in parts]
        self._fits(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        if operator == "+" and _sized(left) and _sized(right):
            self._fits(len(left) + len(right))
        elif operator == "*" and (_sized(left) or _sized(right)):
            sized, times = (left, right) if _sized(left) else (right, left)
            self._fits(len(sized) * times if isinstance(times, int) else 0)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise LimitError("it makes a number of more than a thousand digits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call something for the template; the odd names leave all others to its keywords."""
        __self.tick()
        if isinstance(__obj, LoopContext) and args:  # a loop that calls itself
            args = (__self.counted(args[0]), *args[1:])
        # The sandbox wraps `str.format`.
        text, method = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(text, str):
            __self._check_method(text, method, args, kwargs)
        found = super().call(__context, __obj, *args, **kwargs)
        if _sized(found):
            __self._fits(len(found))
        return found

    def _check_method(self, text: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if method in _WIDE_METHODS:
            _check_widths([*args, *kwargs.values()])
        elif method in ("format", "format_map"):
            _check_format(text)
        elif method == "replace" and len(args) >= 2 and all(isinstance(part, str) for part in args[:2]):
            self._fits_replaced(text, args[0], args[1])
        elif method == "join" and args and _sized(args[0]):
            self._fits(len(text) * len(args[0]))

    def _bounded(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose result cannot be huge."""

        @functools.wraps(run)  # keeps what Jinja notes at it
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            values = args[1:] if hasattr(run, "jinja_pass_arg") else args
            if name in _WIDE_FILTERS:
                _check_widths([*values[1:], *kwargs.values()])
            elif name == "format" and values and isinstance(values[0], str):
                _check_format(values[0])
            elif name == "replace" and len(values) >= 3:
                self._fits_replaced(*(str(part) for part in values[:3]))
            elif name == "join" and values and _sized(values[0]):
                self._fits(len(str(values[1])) * len(values[0]) if len(values) > 1 else 0)
            found = run(*args, **kwargs)
            if _sized(found):
                self._fits(len(found))
            return found

        return bounded

    def _fits_replaced(self, text: str, old: str, new: str) -> None:
        self._fits(len(text) + text.count(old) * len(new))

    def _fits(self, size: int) -> None:
        if size > self.budget.size:
            raise LimitError(f"it makes something of more than {self.budget.size:,} characters or items")


@functools.cache
def _environment() -> _Environment:
    return _Environment()


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> Template:
    """A template's program.

    Raises:
        DataError: it is not a template.
    """
    try:
        environment = _environment()
        tree = _Counting().visit(environment.parse(source))
        code = environment.compile(cast("nodes.Template", tree))
        return Template.from_code(environment, code, environment.make_globals(None))
    except _FAULTS as error:
        raise DataError(f"the chat template is not valid: {_described(error)}") from None


@functools.lru_cache(maxsize=32)
def names_in(source: str) -> frozenset[str]:
    """Every name, attribute and text that a template's program mentions."""
    tree = _environment().parse(source)
    found: set[str] = {node.attr for node in tree.find_all(nodes.Getattr)}
    found |= {node.name for node in tree.find_all(nodes.Name)}
    return frozenset(found | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


def rendered(source: str, variables: Mapping[str, Any], *, characters: int) -> str:
    """What a template writes.

    Args:
        source: the template.
        variables: what it reads.
        characters: how many they hold; what may be written grows with them.

    Raises:
        DataError: the template refuses them, fails, or goes beyond a bound.
    """
    template = compiled(source)
    _environment().budget.start(TEMPLATE_CHARACTERS + TEMPLATE_GROWTH * characters)
    try:
        return template.render(**variables)
    except LimitError as error:
        raise DataError(f"the chat template does not come to an end within bounds: {error}") from None
    except _FAULTS as error:
        raise RefusalError(_described(error), variables.get("messages")) from None


def _counted(name: str, node: nodes.Node) -> nodes.Filter:
    """What one of the environment's counters makes of a node: a filter, since calls pass through the sandbox."""
    return nodes.Filter(cast("nodes.Expr", node), _HIDDEN + name, [], [], None, None)


def _as_filter(counter: Callable[[Any], Any]) -> Callable[[Context, Any], Any]:
    @pass_context  # which keeps Jinja from evaluating it when it compiles
    def run(context: Context, value: Any) -> Any:
        return counter(value)

    return run


def _described(error: BaseException) -> str:
    """One line; what a template says itself needs no kind in front of it."""
    text = " ".join(str(error).split())[:300]
    if type(error) is TemplateError:
        return text or "it gives no reason"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _sized(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and value > _WIDTH for value in values):
        raise LimitError(f"it asks for a width or number above {_WIDTH:,}")


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise LimitError("it formats with a width that is huge or computed")


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def _raise(message: object) -> None:
    raise TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as `transformers` writes it: without the escapes of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
