"""YAML as plain data, within limits: files of settings, and the values of `key=value`.

In: a file, or the text of a value. Out: dictionaries, lists and scalars, or a `SettingsError` of one line. What YAML
allows and no settings need is refused while it is read, before it takes time or memory: keys that stand twice, anchors
that multiply or hold themselves, depth without end, tags, keys that are no text. Numbers may be written as 1e-3, as
YAML 1.2 has it and PyYAML has not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from unmask.errors import SettingsError

LARGEST_FILE = 64 * 1024
"""Bytes of a file of settings, at most; the longest recipe has 4 thousand."""
DEEPEST, MOST_VALUES = 16, 4_000
"""Levels and values of what is read, anchors expanded."""
_LONGEST_SHOWN = 100
_MERGE = "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_INTEGERS = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)$", re.ASCII)
"""PyYAML's, without those that nobody means: 010 is 8 there, and 1:30 is 90."""
_EXPONENTS = re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$", re.ASCII)
_SIGNS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a zip archive",
}
"""How files begin that are no UTF-8 text."""


class _Refused(yaml.MarkedYAMLError):
    """YAML that no settings need."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader under the limits; every node's size and depth is known when it is complete."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []
        self._measured: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node, and refuse what goes beyond the limits."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise _Refused(problem=f"`*{event.anchor}` stands inside what it stands for", problem_mark=self._mark())
            return super().compose_node(parent, index)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", _TEXT):
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise _Refused(problem=f"the tag `{shown}` is not used in settings", problem_mark=self._mark())
        self._open.append(getattr(event, "anchor", None))
        if len(self._open) > DEEPEST:
            raise _Refused(problem=f"it is nested more than {DEEPEST} levels deep", problem_mark=self._mark())
        node = super().compose_node(parent, index)
        self._open.pop()
        self._measure(node)
        return node

    def _measure(self, node: yaml.Node | None) -> None:
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        sizes = [self._measured[id(child)] for child in children]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > MOST_VALUES or depth > DEEPEST:
            raise _Refused(
                problem=f"with its anchors expanded it has more than {MOST_VALUES:,} values or {DEEPEST} levels",
                problem_mark=self._mark(),
            )
        self._measured[id(node)] = (size, depth)

    def _mark(self) -> yaml.Mark:
        return self.peek_event().start_mark


class Dumper(yaml.SafeDumper):
    """Writes what `read_yaml` reads back: texts that look like numbers stand in quotes."""


_KEPT = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _INTEGER]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (_Loader, Dumper):
    _kind.yaml_implicit_resolvers = {first: [*resolvers] for first, resolvers in _KEPT.items()}
    _kind.add_implicit_resolver(_INTEGER, _INTEGERS, list("-+0123456789"))
    _kind.add_implicit_resolver(_FLOAT, _EXPONENTS, list("-+0123456789"))


def read_yaml(file: Path) -> dict[str, Any]:
    """The key-value pairs of a YAML file.

    Raises:
        SettingsError: the file is missing, no text, not YAML, beyond the limits, or holds something else.
    """
    text = _text_of(file)
    try:
        tree = _loaded(text)
    except _Refused as error:
        raise SettingsError(f"{file} cannot be used: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not valid YAML: {_reason(error)}") from None
    if not isinstance(tree, dict | None):
        raise SettingsError(f"{file} must hold `key: value` pairs, got {shown(tree)}.")
    return tree or {}


def read_value(text: str) -> Any:
    """What the value of `key=value` means: a number, a list, true, or null, as where there is none.

    Text stays as it is, white space included.

    Raises:
        SettingsError: it is YAML beyond the limits.
    """
    if text.startswith("!"):
        return text
    try:
        value = _loaded(text)
    except _Refused as error:
        raise SettingsError(f"`{text[:80]}` cannot be a value: {_reason(error)}") from None
    except yaml.YAMLError:
        return text
    is_quoted = text.lstrip()[:1] in ('"', "'")
    if isinstance(value, str):
        return value if is_quoted else text
    if value is None and text and text.strip().lower() not in ("null", "~"):
        return text  # a comment, an anchor, white space: nothing in YAML, but something was written
    return value


def _text_of(file: Path) -> str:
    try:
        is_file, size = file.is_file(), file.stat().st_size if file.exists() else 0
        content = file.read_bytes() if is_file and size <= LARGEST_FILE else b""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"The recipe file `{str(file)[:80]}` cannot be read: {reason}.") from None
    if not is_file:
        raise SettingsError(_missing(file))
    if size > LARGEST_FILE:
        raise SettingsError(f"{file} has {size:,} bytes, and a file of settings at most {LARGEST_FILE:,}. Is it data?")
    for sign, what in _SIGNS.items():
        if content.startswith(sign):
            raise SettingsError(f"{file} is not valid YAML: it is {what}. Save it as plain UTF-8 text.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise SettingsError(
            f"{file} is not valid YAML: it is not UTF-8, line {line} has the byte 0x{byte:02x}. Save it as UTF-8."
        ) from None


def _missing(file: Path) -> str:
    """Why a path is no file that could be read, and what lies where it was looked for."""
    folder = file if file.is_dir() else file.parent
    beside = sorted(str(other) for other in folder.glob("*.yaml")) if folder.is_dir() else []
    there = f"Recipes there: {', '.join(beside[:20])}." if beside else "There are no .yaml files in that folder."
    if file.is_dir():
        return f"{file} is a folder, and a recipe is a file. {there}"
    if file.is_symlink():
        return f"{file} is a link whose target does not exist. {there}"
    if file.exists():
        return f"{file} is no regular file, so it is not read as a recipe. Save the recipe and name its file."
    return f"There is no recipe file {file}. {there}"


def _loaded(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except ValueError as error:  # a date that does not exist, a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise _Refused(problem=f"it holds a number or date that cannot be read ({reason})") from None
    finally:
        loader.dispose()


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TEXT, _MERGE):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or a group"
            raise _Refused(problem=f"the key `{shown}` is not text", problem_mark=key.start_mark)
        line = key.start_mark.line + 1
        if key.value in lines:
            raise _Refused(
                problem=f"the key `{key.value}` stands twice, in lines {lines[key.value]} and {line}; only one of them "
                "would count. Put them together",
            )
        lines[key.value] = line


def _reason(error: yaml.YAMLError) -> str:
    """One line for an error of PyYAML, which has several."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    said = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
    return f"{said}." if error.problem_mark is None else f"{said} (line {error.problem_mark.line + 1})."


def shown(value: object) -> str:
    """A value as it is written in YAML, text in quotes, cut where it is long."""
    text = (
        repr(value)
        if isinstance(value, str)
        else yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=1000)
    )
    text = " ".join(text.removesuffix("...\n").split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
