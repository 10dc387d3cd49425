"""The documentation corpus: large enough, repeatable, free of repeated paragraphs, free of side effects."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.data.python_docs import MIN_DOCUMENT_CHARACTERS, MIN_UNIQUE_CHARACTERS, documents

Documents = list[tuple[str, str]]

# Prints the digest of the corpus and the modules that building it left imported.
PROBE = """
import hashlib, sys
from unmask.data.python_docs import documents
digest = hashlib.sha256(repr(list(documents())).encode()).hexdigest()
print(digest, *sorted({"this", "antigravity", "turtle", "tkinter", "readline"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def corpus() -> Documents:
    return list(documents())


def test_the_corpus_exceeds_two_megabytes(corpus: Documents) -> None:
    assert sum(len(text.encode()) for _, text in corpus) > 2_000_000


def test_names_are_unique_and_cover_every_source(corpus: Documents) -> None:
    names = {name for name, _ in corpus}
    assert len(names) == len(corpus)
    assert {"topic/assert", "module/json", "module/email.message", "builtin/builtins"} <= names
    skipped = ("module/test.", "module/idlelib", "module/turtledemo")
    assert not [name for name in names if name.startswith(skipped)]


def test_no_paragraph_is_in_two_documents(corpus: Documents) -> None:
    seen: set[str] = set()
    repeated: list[str] = []
    for _, text in corpus:
        keys = {" ".join(paragraph.split()) for paragraph in text.split("\n\n")}
        long_keys = {key for key in keys if len(key) >= MIN_UNIQUE_CHARACTERS}
        repeated += long_keys & seen
        seen |= long_keys
    assert repeated == []


def test_no_document_is_tiny(corpus: Documents) -> None:
    assert min(len(text) for _, text in corpus) >= MIN_DOCUMENT_CHARACTERS


def test_prose_is_kept_as_written(corpus: Documents) -> None:
    text = dict(corpus)["module/textwrap"]
    assert "textwrap.dedent(text)\n\nRemove any common leading whitespace from every line in `text`." in text


def test_a_fresh_process_with_another_hash_seed_and_no_docstrings_yields_the_same(corpus: Documents) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-OO", "-W", "error", "-c", PROBE]
    probe = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert probe.stdout.split() == [hashlib.sha256(repr(corpus).encode()).hexdigest()]
