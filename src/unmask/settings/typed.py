"""Settings that are checked as they are made: every field has the type that its annotation says, or an error says why.

In: a class with annotated fields. Out: a frozen, keyword-only dataclass whose values are plain Python, whoever gave
them: NumPy and torch scalars become numbers, lists become tuples, a single value becomes a list of one. Nothing is
guessed: text is no number, a bool is no integer, 2.0 is no integer, and no number is NaN, infinite or beyond 64 bits.
The text below each field is its meaning for `help()` and for the command line alike.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import operator
import os
import reprlib
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, dataclass_transform

from unmask.errors import SettingsError, nearest

T = TypeVar("T")
MOST_ITEMS = 100_000
"""Entries of a list, at most."""
_LARGEST = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_WIDTH = 110
_PLURALS = {"an integer": "integers", "a number": "numbers"}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def settings(kind: type[T]) -> type[T]:
    """Make a class of annotated fields a settings record: a frozen dataclass that checks what it is given.

    A `__post_init__` of its own runs after the check of the types, for ranges and combinations.
    """
    own: Callable[[T], None] | None = getattr(kind, "__post_init__", None)

    def __post_init__(self: T) -> None:
        fit(self)
        if own is not None:
            own(self)

    setattr(kind, "__post_init__", __post_init__)  # noqa: B010 -- a method that the type checker need not know
    made = dataclasses.dataclass(frozen=True, kw_only=True)(kind)
    setattr(made, "__doc__", _Described(kind.__doc__ or ""))  # noqa: B010
    return made


def fit(record: Any) -> None:
    """Give every field of a record the type of its annotation.

    Raises:
        SettingsError: a value has another type, or is too large or not finite.
    """
    for name, hint, default in _fields(type(record)):
        value = getattr(record, name)
        if value is not default:
            object.__setattr__(record, name, fitted(name, hint, value))


def fitted(name: str, hint: Any, value: Any) -> Any:
    """A value as its annotation wants it; `name` is what messages call it.

    Raises:
        SettingsError: it has another type, or is too large or not finite.
    """
    return _fitted(name, hint, plain(value), type_name(hint, none="None"))


def plain(value: Any) -> Any:
    """The numbers of a NumPy or torch value as Python's own: of a scalar one, of an array lists; others as they are."""
    if hasattr(value, "ndim") and hasattr(value, "tolist") and not isinstance(value, type):
        try:
            return value.tolist()
        except (RuntimeError, TypeError, ValueError):  # a tensor without values: meta, sparse
            return value
    return value


def shown(value: object) -> str:
    """A value as messages show it: in one line, and cut if it is long."""
    if isinstance(value, int) and abs(value) >= 2**128:
        return f"{'-' if value < 0 else ''}2^{abs(value).bit_length() - 1} or more"
    return " ".join(_SHORT.repr(value).split())


def type_name(hint: Any, *, none: str = "null") -> str:
    """A type as users write it: `an integer`, `a number`, `one of a, b`, `a list of text`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join([*(type_name(each) for each in arguments if each is not type(None)), none])
    if origin is tuple:
        if ... in arguments:
            item = type_name(arguments[0])
            return f"a list of {_PLURALS.get(item, item)}"
        return f"[{', '.join(map(type_name, arguments))}]"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def descriptions(kind: type) -> dict[str, str]:
    """What each field of a settings type means: the text that stands below it in the source, in one line."""
    found: dict[str, str] = {}
    for home in reversed(kind.__mro__):
        if dataclasses.is_dataclass(home):
            found |= dict(_written(home))
    return found


@functools.cache
def _fields(kind: type) -> tuple[tuple[str, Any, Any], ...]:
    """Name, annotation and default of each field."""
    hints = typing.get_type_hints(kind)
    return tuple((field.name, hints[field.name], field.default) for field in dataclasses.fields(kind))


def _fitted(name: str, hint: Any, value: Any, words: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is dict:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(name, [each for each in arguments if each is not type(None)], value, words)
    if origin is tuple:
        return _tuple(name, arguments, value, words)
    if origin is typing.Literal:
        return _literal(name, arguments, value, words)
    if hint in _PLAIN:
        return _PLAIN[hint](name, value, words)
    if not isinstance(value, hint):
        raise _misfit(name, words, value)
    return value


def _one_of(name: str, kinds: list[Any], value: Any, words: str) -> Any:
    """None, or the first kind that fits; no settings have kinds that fit the same value differently."""
    if value is None:
        return None
    for kind in kinds[:-1]:
        try:
            return _fitted(name, kind, value, words)
        except SettingsError:
            continue
    return _fitted(name, kinds[-1], value, words)


def _tuple(name: str, arguments: tuple[Any, ...], value: Any, words: str) -> tuple[Any, ...]:
    is_list = isinstance(value, list | tuple | range)
    if ... not in arguments:
        if not is_list or len(value) != len(arguments):
            raise _misfit(name, words, value)
        pairs = enumerate(zip(arguments, value, strict=True))
        return tuple(_item(f"{name}[{index}]", kind, item) for index, (kind, item) in pairs)
    if not is_list:
        return (_fitted(name, arguments[0], value, words),)
    if len(value) > MOST_ITEMS:
        raise SettingsError(f"{name} must have at most {MOST_ITEMS:,} entries, got {len(value):,}.")
    return tuple(_item(f"{name}[{index}]", arguments[0], item) for index, item in enumerate(value))


def _item(name: str, hint: Any, value: Any) -> Any:
    return _fitted(name, hint, plain(value), type_name(hint))


def _literal(name: str, allowed: tuple[Any, ...], value: Any, words: str) -> str:
    if not isinstance(value, str):
        raise _misfit(name, words, value)
    text = str.__str__(value)
    if text not in allowed:
        near = nearest(text[:80], allowed)
        more = f" {near}" if near.startswith("Did") else ""
        raise SettingsError(f"{name} must be {words}, got {shown(text)}.{more}")
    return text


def _integer(name: str, value: Any, words: str) -> int:
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except (RuntimeError, TypeError):
        whole = None
    if whole is None:
        raise _misfit(name, words, value)
    if not -_LARGEST <= whole < _LARGEST:
        raise SettingsError(f"{name} must be an integer of 64 bits, below 2^63, got {shown(whole)}.")
    return whole


def _number(name: str, value: Any, words: str) -> float:
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise _misfit(name, words, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (RuntimeError, TypeError, ValueError):
        raise _misfit(name, words, value) from None
    if not math.isfinite(number):
        raise SettingsError(f"{name} must be a finite number, got {shown(value)}.")
    return number


def _text(name: str, value: Any, words: str) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise _misfit(name, words, value)
    return str.__str__(value)


def _truth(name: str, value: Any, words: str) -> bool:
    if not isinstance(value, bool):
        raise _misfit(name, words.replace("true or false", "True or False"), value)
    return value


_PLAIN: dict[Any, Callable[[str, Any, str], Any]] = {int: _integer, float: _number, str: _text, bool: _truth}


def _misfit(name: str, words: str, value: object) -> SettingsError:
    return SettingsError(f"{name} must be {words}, got {shown(value)}.")


class _Described:
    """The docstring of a settings type: its own words, then every field with its meaning and default.

    Fields are read from the source when somebody asks, which importing the package does not.
    """

    def __init__(self, summary: str) -> None:
        self._summary = inspect.cleandoc(summary)

    def __get__(self, _: object, kind: type) -> str:
        texts = descriptions(kind)
        lines: list[str] = []
        for name, _hint, default in _fields(kind):
            shown_default = "" if default in (None, dataclasses.MISSING) else f" Default: {default!r}."
            whole = f"{name}: {texts.get(name, '')}{shown_default}"
            lines += textwrap.wrap(whole, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8)
        return "\n".join([self._summary, "", "Attributes:", *lines])


@functools.cache
def _written(kind: type) -> tuple[tuple[str, str], ...]:
    """Field and text of a class's own fields; none where its source is not at hand."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return ()
    return tuple(_texts(ast.parse(textwrap.dedent(source)).body[0]))


def _texts(node: ast.AST) -> Iterator[tuple[str, str]]:
    assert isinstance(node, ast.ClassDef)
    for field, below in zip(node.body, node.body[1:], strict=False):
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Constant):
            yield field.target.id, " ".join(str(text.value).split())
