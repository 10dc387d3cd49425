"""Texts: one string per document, from JSON rows, plain-text files or Python's documentation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from unmask.data import python_docs
from unmask.data.sources import PYTHON_DOCS, Sources, read_file, short
from unmask.errors import DataError


class Corpus(Sources[str]):
    """The texts of some sources that hold more than white space."""

    remedy = "Mend the row, set data.text_field, or skip such rows: data.malformed=skip"

    def from_row(self, row: Any, where: str) -> Iterator[str]:
        """The text in the row's text_field."""
        name = self.settings.text_field
        if not isinstance(row, dict):
            raise DataError(f"expected an object with the field `{name}`, got {short(row)}")
        if name not in row:
            raise DataError(f"there is no field `{name}`; the row has {', '.join(row) or 'none'}")
        if not isinstance(row[name], str):
            raise DataError(f"the field `{name}` must be text, got {short(row[name])}")
        yield from _filled([row[name]])

    def from_text(self, source: str) -> Iterator[str]:
        """The file's text, split at the separator if there is one."""
        if source == PYTHON_DOCS:
            yield from _python_docs()
            return
        text = read_file(source)
        yield from _filled(text.split(self.settings.separator) if self.settings.separator else [text])


def _filled(texts: list[str]) -> Iterator[str]:
    return (text for text in texts if text.strip())


@functools.cache
def _python_docs() -> tuple[str, ...]:
    """Python's documentation, 2.6 MB that take two seconds to collect."""
    return tuple(text for _, text in python_docs.documents())
