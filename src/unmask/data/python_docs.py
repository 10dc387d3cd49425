"""Python's own documentation as an English corpus that every machine already has.

Nothing enters; `documents()` leaves (name, text) pairs, more than 2 MB of UTF-8 in all: the topics of
`help()`, one document of docstrings per standard-library module, one per C module.
Python sources are parsed with `ast`, never imported: importing prints, opens browsers or patches the
process (`this`, `antigravity`, `turtle`), and `-OO` would remove every docstring.

Run `python python_docs.py` to see how much the present interpreter yields.
"""

import ast
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

MIN_DOCUMENT_CHARACTERS = 200
MIN_UNIQUE_CHARACTERS = 40

# Folders that are no documentation of the library. `site-packages` and `config-3.12-...` need no
# entry: a name that is no identifier is no package.
_SKIPPED_FOLDERS = frozenset({"__pycache__", "idlelib", "test", "tests", "turtledemo"})

# Extension modules outside `sys.builtin_module_names` (in some builds inside) that only define things when
# imported.
_EXTENSION_MODULES = (
    *("_asyncio", "_bisect", "_bz2", "_contextvars", "_csv", "_curses", "_datetime", "_decimal"),
    *("_elementtree", "_heapq", "_json", "_lzma", "_pickle", "_queue", "_random", "_socket", "_statistics"),
    *("_struct", "_zoneinfo", "array", "binascii", "cmath", "fcntl", "math", "mmap", "resource", "select"),
    *("termios", "unicodedata", "zlib"),
)

# `readline` may write to the terminal; `_ssl` and `_ctypes` load libraries from outside Python. Some
# distributions build them into the interpreter.
_UNSAFE_MODULES = frozenset({"_ctypes", "_ssl", "readline"})

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class _Section(NamedTuple):
    heading: str
    text: str


def documents() -> Iterator[tuple[str, str]]:
    """Yield (name, text) in an order fixed by the interpreter version and build.

    Names are `topic/...`, `module/...` or `builtin/...`; text is at least 200 characters long.

    No paragraph of 40 characters or more (white space collapsed) is in two documents, so a split by document
    puts none on both sides: its first occurrence is kept. A shorter one ("For example:") may recur, unless
    all paragraphs of its docstring have been seen: then the docstring and its heading are dropped.

    A Python that ships without sources (zipped or frozen standard library) yields less, not an error.

    Raises:
        SyntaxError: a source file of the standard library is damaged; the message names the file.
    """
    seen: set[str] = set()
    for name, sections in _all_sections():
        paragraphs, keys = _unseen(sections, seen)
        text = "\n\n".join(paragraphs)
        if len(text) >= MIN_DOCUMENT_CHARACTERS:
            seen |= keys
            yield name, text + "\n"


def _all_sections() -> Iterator[tuple[str, Iterator[_Section]]]:
    for topic, text in sorted(_topics().items()):
        yield f"topic/{topic}", iter([_Section("", text)])
    for module, path in _sources(Path(sysconfig.get_paths()["stdlib"])):
        yield f"module/{module}", _source_sections(module, path)
    for module in sorted({*sys.builtin_module_names, *_EXTENSION_MODULES} - _UNSAFE_MODULES):
        yield f"builtin/{module}", _c_sections(module)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship the help texts as a separate package
        return {}
    return topics


def _unseen(sections: Iterator[_Section], seen: set[str]) -> tuple[list[str], set[str]]:
    """Return the paragraphs that the rule of `documents` keeps, and their keys."""
    kept: list[str] = []
    new: set[str] = set()
    for heading, text in sections:
        # Line ends are stripped because cleandoc() does so only from Python 3.13 on.
        lines = (line.rstrip() for line in inspect.cleandoc(text).splitlines())
        keyed = {" ".join(part.split()): part for part in re.split(r"\n{2,}", "\n".join(lines))}
        fresh = {key for key in keyed if key and key not in seen and key not in new}
        if fresh:
            body = [part for key, part in keyed.items() if key in fresh or len(key) < MIN_UNIQUE_CHARACTERS]
            if heading and heading not in seen:  # the topic on pdb has headings of its docstrings
                kept.append(heading)
            kept += body
            new |= fresh
    return kept, new


def _sources(folder: Path, package: str = "") -> Iterator[tuple[str, Path]]:
    """Yield (dotted module name, path) below `folder`, in order of file name."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir() and path.name.isidentifier() and path.name not in _SKIPPED_FOLDERS:
            yield from _sources(path, f"{package}{path.name}.")
        elif path.suffix == ".py" and path.stem.isidentifier():
            yield (package.rstrip(".") if path.stem == "__init__" else package + path.stem), path


def _source_sections(module: str, path: Path) -> Iterator[_Section]:
    tree = ast.parse(path.read_bytes(), filename=str(path))  # bytes: ast honours the coding cookie
    if text := ast.get_docstring(tree):
        yield _Section(module, text)
    for name, node in _definitions(tree, module):
        if text := ast.get_docstring(node):
            signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield _Section(name + signature, text)


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, _Definition]]:
    """Yield classes and functions in source order, also those under `if`, `try` and `with`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            qualified = f"{name}.{child.name}"
            yield qualified, child
            yield from _definitions(child, qualified)
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _definitions(child, name)


def _c_sections(name: str) -> Iterator[_Section]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a deprecated module has documentation too
            module = importlib.import_module(name)
    except ImportError:  # which extension modules exist depends on the build
        return
    for qualified, value in _members(module, name):
        text = getattr(value, "__doc__", None)
        if isinstance(text, str):
            yield _Section(qualified, text)


def _members(module: ModuleType, name: str) -> Iterator[tuple[str, object]]:
    """Yield the module, its functions and classes, and their methods and attributes, by name.

    Only functions written in C: `builtins` may hold others, such as the `_` that gettext installs.
    """
    yield name, module
    for key, value in sorted(vars(module).items()):
        if inspect.isbuiltin(value):
            yield f"{name}.{key}", value
        elif inspect.isclass(value):
            yield f"{name}.{key}", value
            for attribute, member in sorted(vars(value).items()):
                if inspect.isroutine(member) or inspect.isdatadescriptor(member):
                    yield f"{name}.{key}.{attribute}", member


def main() -> None:
    """Print how many documents and bytes this interpreter yields, per kind."""
    sizes: dict[str, list[int]] = {}
    for name, text in documents():
        sizes.setdefault(name.partition("/")[0], []).append(len(text.encode()))
    for kind, values in sizes.items():
        print(f"{kind:8} {len(values):5} documents {sum(values):10,} bytes, largest {max(values):,}")
    num_documents, num_bytes = sum(map(len, sizes.values())), sum(map(sum, sizes.values()))
    print(f"{'total':8} {num_documents:5} documents {num_bytes:10,} bytes")


if __name__ == "__main__":
    main()
