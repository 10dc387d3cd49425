"""Typed settings from YAML files and `key=value` overrides; this module knows no setting by name.

In: a frozen dataclass type, a file, overrides. Out: an instance, or a `SettingsError` that names the key, the value,
what is allowed and the nearest known name. Precedence: defaults < files in their order < overrides. `jsonargparse` does
the typing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from unmask.errors import SettingsError, nearest

T = TypeVar("T")
set_parsing_settings(docstring_parse_attribute_docstrings=True)


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
    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False, allow_unicode=True)


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
        raise SettingsError(f"{where} must hold `key: value` pairs, got {tree!r}. See `unmask train --help`.")
    hints = typing.get_type_hints(kind)
    for key, value in tree.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise SettingsError(f"Unknown key `{full}` in {source}. {_nearest_key(root, full)}")
        if dataclasses.is_dataclass(hints[key]):
            check_keys(typing.cast(type, hints[key]), value, source=source, path=full, root=root)


def documented(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every leaf setting of `kind`: its key path, type, default and description."""
    from docstring_parser import parse_from_object

    hints = typing.get_type_hints(kind)
    homes = [one for one in reversed(kind.__mro__) if dataclasses.is_dataclass(one)]
    texts = {one.arg_name: one.description or "" for home in homes for one in parse_from_object(home).params}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from documented(typing.cast(type, hint), f"{prefix}{field.name}.")
        else:
            default = "" if field.default is None else _plain(field.default)
            yield f"{prefix}{field.name}", type_name(hint), str(default), texts.get(field.name, "")


def type_name(hint: Any) -> str:
    """A type as users write it: `int`, `a number`, `one of a, b`, `a list of text`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(one) for one in arguments if one is not type(None)) + " or null"
    if origin is tuple:
        if ... in arguments:
            return f"a list of {type_name(arguments[0])}"
        return f"[{', '.join(map(type_name, arguments))}]"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def read_yaml(file: Path) -> dict[str, Any]:
    """The key-value pairs of a YAML file.

    Raises:
        SettingsError: the file is missing, not YAML, or holds something else.
    """
    if not file.is_file():
        beside = sorted(str(one) for one in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        there = f"Recipes there: {', '.join(beside)}." if beside else "There are no .yaml files in that folder."
        raise SettingsError(f"There is no recipe file {file}. {there}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict | None):
        raise SettingsError(f"{file} must hold `key: value` pairs, got {type(tree).__name__}.")
    return tree or {}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of settings as one new tree, in which the second one wins."""
    found = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(found.get(key, {}), Mapping)
        found[key] = merged(found.get(key, {}), value) if nested else value
    return found


def _apply(kind: type, tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"An override has the form key=value, got `{override}`. Example: training.steps=100")
    key = key.removeprefix("--")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, leaf = key.split(".")
    check_keys(kind, _nested(parents, {leaf: value}), source="the command line")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[leaf] = value


def _nested(parents: Sequence[str], tree: dict[str, Any]) -> dict[str, Any]:
    for name in reversed(parents):
        tree = {name: tree}
    return tree


def _fitted(kind: type, tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A single value where a list is expected becomes a list of one; null only stands where it may."""
    fitted: dict[str, Any] = {}
    for key, value in tree.items():
        hint = typing.get_type_hints(kind)[key]
        if dataclasses.is_dataclass(hint):
            value = _fitted(typing.cast(type, hint), value, f"{prefix}{key}.")
        elif value is None and (hint in (int, float, str, bool) or typing.get_origin(hint) is typing.Literal):
            raise SettingsError(f"`{prefix}{key}` must be {type_name(hint)}, got null.")
        elif typing.get_origin(hint) is tuple and not isinstance(value, list | tuple):
            value = [] if value is None else [value]
        fitted[key] = list(value) if isinstance(value, tuple) else value
    return fitted


def _type_message(kind: type, tree: Mapping[str, Any], error: str) -> str:
    match = re.search(r'key "([^"]+)"', error)
    if match is None:
        return error
    hint, value = kind, tree
    for name in match[1].split("."):
        hint, value = typing.get_type_hints(hint)[name], value[name]
    return f"`{match[1]}` must be {type_name(hint)}, got {value!r}."


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
