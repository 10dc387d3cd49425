"""Typed settings from YAML files and `key=value` overrides; this module knows no setting by name.

In: a frozen dataclass type, a file, overrides. Out: an instance, or a `SettingsError` that names the key, the value,
what is allowed and the nearest known name. Precedence: defaults < files in their order < overrides. `jsonargparse` does
the typing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from unmask.errors import SettingsError, nearest
from unmask.settings.typed import descriptions, type_name
from unmask.settings.yaml_files import Dumper, read_value, read_yaml, shown

T = TypeVar("T")
set_parsing_settings(docstring_parse_attribute_docstrings=True)
_MOST_DIGITS = 100
_NUMBERS = {
    int: re.compile(r"[-+]?(?:0|[1-9][0-9_]*)", re.ASCII),
    float: re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII),
}
"""How numbers may be written as text: on the command line, or in quotes."""


def load(
    kind: type[T],
    *,
    file: str | Path | Sequence[str | Path] | None = None,
    over: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    read: Callable[[Path], dict[str, Any]] | None = None,
) -> T:
    """Read settings of type `kind` from a YAML file, with a tree over it and `key.path=value` overrides on top.

    Of several files each one goes over those before it. `read` makes the tree of a file where its words are not all our
    own.

    Raises:
        SettingsError: the file is missing or not YAML, or a key or value is wrong.
    """
    files = [file] if isinstance(file, str | Path) else [*(file or ())]
    tree: dict[str, Any] = {}
    for one in files:
        found = (read or read_yaml)(Path(one))
        check_keys(kind, found, source=str(one))
        tree = merged(tree, found)
    tree = merged(tree, over or {})
    for override in overrides:
        _apply(kind, tree, override)
    return from_tree(kind, tree)


def changed(settings: T, overrides: Sequence[str]) -> T:
    """The settings with `key=value` overrides on top.

    Raises:
        SettingsError: the key or value is wrong.
    """
    tree = _plain(dataclasses.asdict(settings))  # type: ignore[call-overload]
    for override in overrides:
        _apply(type(settings), tree, override)
    return from_tree(type(settings), tree)


def from_tree(kind: type[T], tree: Mapping[str, Any]) -> T:
    """Build settings of type `kind` from nested plain data whose keys are known."""
    parser = _parser(kind)
    try:
        parsed = parser.instantiate(parser.parse_object(_fitted(kind, tree)))
    except argparse.ArgumentError as error:
        raise SettingsError(_type_message(kind, tree, str(error))) from None
    return kind(**vars(parsed))


@functools.cache
def _parser(kind: type) -> ArgumentParser:
    """The parser of a settings type; making one takes longer than using it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser


def to_yaml(settings: Any) -> str:
    """The settings as YAML that `load` reads back."""
    return yaml.dump(_plain(dataclasses.asdict(settings)), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def differences(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    """Where two settings of one type differ: `key: old value -> new value` for each."""
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if dataclasses.is_dataclass(old):
            yield from differences(old, new, f"{prefix}{field.name}.")
        elif old != new:
            yield f"{prefix}{field.name}: {_plain(old)} -> {_plain(new)}"


def check_keys(kind: type, tree: Any, *, source: str, path: str = "", root: type | None = None) -> None:
    """Refuse keys that are not fields of `kind`, naming the nearest one; `path` leads from `root` to `kind`."""
    root = root or kind
    if not isinstance(tree, Mapping):
        where = f"`{path}` in {source}" if path else source
        raise SettingsError(f"{where} must hold `key: value` pairs, got {shown(tree)}. See `unmask train --help-keys`.")
    hints = typing.get_type_hints(kind)
    for key, value in tree.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in hints:
            is_path = "." in key and full in _paths(root)
            advice = f"Write it as `{key.replace('.', ': {')}: ...}}`." if is_path else _nearest_key(root, full)
            raise SettingsError(f"Unknown key `{full}` in {source}. {advice}")
        if dataclasses.is_dataclass(hints[key]):
            check_keys(typing.cast(type, hints[key]), value, source=source, path=full, root=root)


def documented(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every leaf setting of `kind`: its key path, type, default and description."""
    hints, texts = typing.get_type_hints(kind), descriptions(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from documented(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            default = "" if field.default is None else _plain(field.default)
            yield f"{prefix}{field.name}", type_name(hint), str(default), texts.get(field.name, "")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of settings as one new tree, in which the second one wins."""
    found = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(found.get(key, {}), Mapping)
        found[key] = merged(found.get(key, {}), value) if nested else value
    return found


def _apply(kind: type, tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.removeprefix("--")
    if not equals or not key:
        raise SettingsError(f"An override has the form key=value, got `{override}`. Example: training.steps=100")
    *parents, leaf = key.split(".")
    _check_path(kind, parents, key)
    value = read_value(text)
    check_keys(kind, _nested(parents, {leaf: value}), source="the command line")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _check_path(kind: type, parents: Sequence[str], key: str) -> None:
    """Refuse keys below a setting that is a value and no group; unknown keys are found by `check_keys`."""
    for depth, name in enumerate(parents, start=1):
        hint = typing.get_type_hints(kind).get(name)
        if hint is None:
            return
        if not dataclasses.is_dataclass(hint):
            path = ".".join(parents[:depth])
            raise SettingsError(f"`{path}` is {type_name(hint)} and has no keys of its own, got `{key}`.")
        kind = typing.cast(type, hint)


def _nested(parents: Sequence[str], tree: dict[str, Any]) -> dict[str, Any]:
    for name in reversed(parents):
        tree = {name: tree}
    return tree


def _fitted(kind: type, tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The tree with single values where lists are expected as lists of one, and numbers as such; null only stands where
    it may."""
    fitted: dict[str, Any] = {}
    for key, value in tree.items():
        hint = typing.get_type_hints(kind)[key]
        if dataclasses.is_dataclass(hint):
            value = _fitted(typing.cast(type, hint), value, f"{prefix}{key}.")
        elif value is None and (hint in (int, float, str, bool) or typing.get_origin(hint) is typing.Literal):
            raise SettingsError(f"`{prefix}{key}` must be {type_name(hint)}, got null.")
        elif typing.get_origin(hint) is tuple and not isinstance(value, list | tuple):
            value = [] if value is None else [value]
        fitted[key] = _with_numbers(hint, value, f"{prefix}{key}")
    return fitted


def _with_numbers(hint: Any, value: Any, key: str, whole: Any = None) -> Any:
    """The value with every number in it read, which must be finite and, if it is an integer, have 64 bits.

    `whole` is the type of the setting, where the value is a part of it.
    """
    whole = hint if whole is None else whole
    inner = next((one for one in typing.get_args(hint) if one is not type(None)), hint) if _is_optional(hint) else hint
    if inner in (int, float):
        return _number(inner, value, f"`{key}` must be {type_name(whole)}")
    if not isinstance(value, list | tuple):
        return value
    parts = typing.get_args(inner) if typing.get_origin(inner) is tuple else ()
    each = parts[:1] * len(value) if ... in parts else parts
    if len(each) != len(value):
        return list(value)  # the parser says how many there must be
    return [_with_numbers(part, item, key, whole) for part, item in zip(each, value, strict=True)]


def _is_optional(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return is_union and len(arguments) == 2 and type(None) in arguments


def _number(hint: type, value: Any, must: str) -> Any:
    if isinstance(value, str):
        if not _NUMBERS[hint].fullmatch(value):
            raise SettingsError(f"{must}, got {shown(value)}.")
        value = _read_number(hint, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value  # the parser says what it must be
    if isinstance(value, int) and abs(value) >= 2**63:
        raise SettingsError(f"{must} of at most 64 bits (below 9.2e18), got {shown(value)}.")
    if not math.isfinite(value):
        raise SettingsError(f"{must} and finite, got {value}.")
    return value


def _read_number(hint: type, text: str) -> int | float:
    """A number of any length; one of thousands of digits is as good as infinite."""
    return float(text) if hint is float or len(text) > _MOST_DIGITS else int(text)


def _type_message(kind: type, tree: Mapping[str, Any], error: str) -> str:
    match = re.search(r'key "([^"]+)"', error)
    if match is None:
        return " ".join(error.split())
    hint, value = kind, tree
    for name in match[1].split("."):
        hint, value = typing.get_type_hints(hint)[name], value[name]
    is_other = isinstance(value, bool | int | float | datetime.date)
    quotes = " In quotes it is text." if "text" in type_name(hint).split() and is_other else ""
    return f"`{match[1]}` must be {type_name(hint)}, got {shown(value)}.{quotes}"


def _nearest_key(root: type, key: str) -> str:
    """A hint for an unknown key: the same name elsewhere, else the nearest of its own group."""
    paths = list(_paths(root))
    group, _, leaf = key.rpartition(".")
    same = [path for path in paths if path.rpartition(".")[2] == leaf]
    if same:
        return "Did you mean " + " or ".join(f"`{path}`" for path in same) + "?"
    siblings = [path for path in paths if path.rpartition(".")[0] == group]
    return nearest(key, siblings)


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _paths(typing.cast(type, hint), f"{prefix}{name}.")
        yield prefix + name


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
