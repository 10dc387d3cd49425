"""The text of the data-constrained study, in three parts that share nothing: to learn from, to select on, to report.

In: Python's own documentation, or files. Out: `train.jsonl`, `select.jsonl` and `report.jsonl` in a folder. A line is a
document: a paragraph of the documentation, or as many paragraphs of a file one behind the other as make a document of
the least length. Which budget and which checkpoint are best is decided on the selection part, and what is reported is
measured on the other one, so that no minimum is taken over the figures that are reported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from unmask.data import python_docs
from unmask.data.text import Corpus
from unmask.settings.data import DataSettings
from unmask.writing import write_text

PARTS = ("train", "select", "report")
# Characters of a paragraph of the documentation: shorter ones are headings and signatures, longer ones tables.
_PARAGRAPH = (150, 1000)


def python_paragraphs() -> list[str]:
    """The prose of Python's documentation: paragraphs of lower-case words (a-z and spaces, as in text8), shuffled.

    The order is that of a hash of each paragraph. No paragraph occurs twice.
    """
    found = set()
    for _, text in python_docs.documents():
        for paragraph in _paragraphs(text):
            words = re.sub(r"[^a-z]+", " ", paragraph.lower()).strip()
            if _PARAGRAPH[0] <= len(words) <= _PARAGRAPH[1]:
                found.add(words)
    return sorted(found, key=lambda words: hashlib.blake2b(words.encode(), digest_size=16).digest())


def file_documents(sources: Sequence[str], *, least: int) -> list[str]:
    """The text of files in its order, in documents of `least` characters or a paragraph more; none spans two texts."""
    made = []
    for text in Corpus(sources, DataSettings()):
        kept: list[str] = []
        for paragraph in _paragraphs(text):
            kept.append(paragraph)
            if sum(map(len, kept)) >= least:
                made.append("\n\n".join(kept))
                kept = []
        if kept:
            made.append("\n\n".join(kept))
    return made


def written(documents: Sequence[str], folder: Path, *, select: int, report: int) -> dict[str, int | str]:
    """Write the three parts; what they hold.

    The last documents, of `report` characters or one more, are reported on, those before them selected on.

    Raises:
        SystemExit: nothing is left to learn from, or other parts lie there.
    """
    rest = list(documents)
    parts = {"report": _last(rest, report), "select": _last(rest, select), "train": rest}
    if not rest or not all(parts.values()):
        raise SystemExit(
            f"The text has {sum(map(len, documents)):,} characters, and {select + report:,} of them are held out. Give "
            "more text with --text."
        )
    facts: dict[str, int | str] = {}
    for name in PARTS:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in parts[name])
        file = folder / f"{name}.jsonl"
        # Tokenised text is found again by its file's time of change, so a file that is right stays as it is.
        if not file.is_file():
            write_text(file, lines)
        elif file.read_text(encoding="utf-8") != lines:
            raise SystemExit(f"{file} holds another text than this study's. Choose another folder with --output.")
        facts[f"{name}_documents"] = len(parts[name])
        facts[f"{name}_bytes"] = sum(len(text.encode()) for text in parts[name])
        facts[f"{name}_digest"] = hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()
    return facts


def read(file: Path) -> list[str]:
    """The documents of a part."""
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _last(documents: list[str], characters: int) -> list[str]:
    """Take documents away from the end until they have so many characters; they keep their order."""
    taken: list[str] = []
    while documents and sum(map(len, taken)) < characters:
        taken.insert(0, documents.pop())
    return taken


def _paragraphs(text: str) -> Iterator[str]:
    parts: Iterable[str] = re.split(r"\n[^\S\n]*\n\s*", text)
    return (part.strip() for part in parts if part.strip())
