"""Where text comes from, how it is tokenised and cut into rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask.settings.checks import at_least, in_range, is_true


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Text, tokenizer and packing.

    A source is a path or glob of `.txt`, `.md`, `.jsonl`, `.json` files (also `.gz`), a folder of them, `hf:NAME` or
    `hf:NAME:CONFIG` for a dataset of the Hugging Face hub or a local dataset folder, or `python-docs` for the
    documentation that comes with Python.
    """

    train: tuple[str, ...] = ()
    """Sources of the training text."""
    validation: tuple[str, ...] = ()
    """Sources of the held-out text; default: `validation_fraction` of the training documents."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out when no validation source is given; equal documents stay together."""
    split: str = "train"
    """Split to read from a Hugging Face dataset."""
    text_field: str = "text"
    """Field of a JSON row or dataset row that holds the text."""
    separator: str | None = None
    """Text between two documents of a plain-text file; default: a file is one document."""
    malformed: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read: stop and name the line, or skip and count them."""
    tokenizer: str | None = None
    """`bpe` or `byte` (trained on, or made for, the text), a folder or hub id; default: the model's, else `bpe`."""
    vocabulary_size: int = 4096
    """Size of a trained BPE vocabulary, special tokens included."""
    context_length: int = 256
    """Tokens per row, the leading BOS included."""
    cache_dir: str | None = None
    """Folder that keeps tokenised text between runs; default: the run folder."""

    def __post_init__(self) -> None:
        at_least(2, context_length=self.context_length)
        at_least(300, vocabulary_size=self.vocabulary_size)
        in_range(0, 0.9, validation_fraction=self.validation_fraction)
        is_true(self.separator != "", "separator must not be empty. Leave it out if a file is one document.")
