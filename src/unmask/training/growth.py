"""Text that has grown or changed between the start of a run and its resume: noticed, reported, and never mixed up.

In: the rows of a run. Out: what identifies them, which the run folder keeps. A resumed run goes on over text that has
grown, with the tokenizer that it has. Its held-out text may have grown too: scores of another text do not compare, so
the best checkpoint is then chosen anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from unmask.data.rows import Rows
from unmask.runs import RunFolder
from unmask.training.preparation import TrainingText
from unmask.writing import write_text

_FILE = "text.json"
_ENDS = (
    64  # rows at each end that are looked at; rows in between lie between the same ones, if their number is the same
)


@dataclass(frozen=True)
class TextFacts:
    """What identifies the text of a run.

    Attributes:
        train_rows: to learn from, by their number.
        train: hash of rows at both ends.
        held_out_rows: to score, by their number.
        held_out: hash of rows at both ends; None where none is held out.
    """

    train_rows: int
    train: str
    held_out_rows: int
    held_out: str | None


def facts_of(text: TrainingText) -> TextFacts:
    """What identifies rows to learn from and to score."""
    held_out = text.held_out
    return TextFacts(
        len(text.train),
        _hash(text.train),
        0 if held_out is None else len(held_out),
        None if held_out is None else _hash(held_out),
    )


def noted(run: RunFolder, facts: TextFacts) -> list[str]:
    """How the text differs from that of the run so far, for a person to read; nothing where that is not known."""
    try:
        before = TextFacts(**json.loads((run.root / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return []
    notes = []
    if (before.train_rows, before.train) != (facts.train_rows, facts.train):
        notes.append(
            f"changed: the training text: {before.train_rows:,} -> {facts.train_rows:,} rows; the tokenizer stays, the "
            "order of the rows is drawn anew from here"
        )
    if (before.held_out_rows, before.held_out) != (facts.held_out_rows, facts.held_out):
        notes.append(
            f"changed: the held-out text: {before.held_out_rows:,} -> {facts.held_out_rows:,} rows; its scores do not "
            "compare with those before, so the best checkpoint is chosen anew from here"
        )
    return notes


def write(run: RunFolder, facts: TextFacts) -> None:
    """Keep what identifies the text of a run."""
    write_text(run.root / _FILE, json.dumps(asdict(facts), indent=2) + "\n")


def _hash(rows: Rows) -> str:
    number = len(rows)
    found = hashlib.blake2b(str(number).encode(), digest_size=8)
    ends = np.unique(np.concatenate([np.arange(min(_ENDS, number)), np.arange(max(0, number - _ENDS), number)]))
    for row in ends:
        batch = rows.batch(np.array([row], dtype=np.int64), 0, 1, step=0)
        found.update(batch.ids_BL.numpy().tobytes())
    return found.hexdigest()
