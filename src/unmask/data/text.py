"""Texts: one string per document, from rows, plain-text files or Python's documentation."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from unmask.data import python_docs
from unmask.data.files import PYTHON_DOCS
from unmask.data.opening import read_text
from unmask.data.sources import Sources, listed, short
from unmask.errors import DataError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class Corpus(Sources[str]):
    """The texts of some sources that hold more than white space."""

    remedy = "Fix the row, set data.text_field, or skip such rows: data.malformed=skip"

    @property
    def fields(self) -> tuple[str, ...]:
        """The text alone."""
        return (self.settings.text_field,)

    def words(self, document: str) -> str:
        """The text itself."""
        return document

    def from_row(self, row: Any, where: str) -> Iterator[str]:
        """The text in the row's text_field."""
        name = self.settings.text_field
        if not isinstance(row, dict):
            raise DataError(f"expected an object with the field `{name}`, got {short(row)}")
        if name not in row:
            raise DataError(f"there is no field `{name}`; the row has {listed(row) or 'none'}")
        if not isinstance(row[name], str):
            raise DataError(f"the field `{name}` must be text, got {short(row[name])}")
        return _filled([row[name]])

    def from_text(self, source: str) -> Iterator[str]:
        """The file's text, split at the separator if there is one."""
        if source == PYTHON_DOCS:
            return iter(_python_docs())
        text, separator = read_text(source, self.settings), self.settings.separator
        return _filled(text.split(unescaped(separator)) if separator else [text])


def unescaped(separator: str) -> str:
    r"""A separator as it is meant: a shell hands `"\n\n"` over as backslashes and letters."""
    return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], separator)


def _filled(texts: list[str]) -> Iterator[str]:
    return (text for text in texts if text.strip())


@functools.cache
def _python_docs() -> tuple[str, ...]:
    """Python's documentation, 2.6 MB that take two seconds to collect."""
    return tuple(text for _, text in python_docs.documents())
