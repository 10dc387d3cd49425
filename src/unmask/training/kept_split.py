"""The split that a run keeps: what it holds out stays held out, and what it has learned from is never scored.

In: a run folder and its data settings. Out: the rule by which the run's documents were split when it started, which
`split.json` holds. New documents are learned from. Where a document that the rule names is not among the sources any
more, nobody can say which part of its text was held out, so that is an error.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask.data.sources import word_hash
from unmask.data.splitting import Split
from unmask.errors import CheckpointError, DataError
from unmask.runs import RunFolder
from unmask.settings.data import DataSettings
from unmask.training.parts import KeptSplit, basis_of, has_split, read_in_order, sources_of
from unmask.writing import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDIES = {
    "resume": "Put the text back as it was and new text into a file of its own (a folder or glob as source takes it "
    "up), or start another run from these weights with a new split: --fork NEW_NAME",
    "evaluate": "The held-out text of the run is gone. Name a text to score: --data FILE",
    "compare": "The held-out text of the run is gone.",
}


def of_run(
    run: RunFolder,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    purpose: Literal["resume", "evaluate", "compare"],
) -> KeptSplit | None:
    """The split that a run keeps; None where it keeps none, or one of other sources than those of `data`.

    Args:
        run: its folder.
        data: the settings of its text.
        tokenizer: for rows of tokens, which are read with one.
        purpose: what the split is for, which decides what an error advises.

    Raises:
        CheckpointError: the file is damaged.
        DataError: a document that the rule names is not among the sources any more.
    """
    kept = _read(run.split)
    if kept is None or kept.train != data.train or not has_split(data):
        return None
    sources = sources_of(data, tokenizer, is_validation=False)
    if kept.basis == basis_of(sources, data):
        return kept
    missing = dict(kept.files)
    for _, text in read_in_order(sources) if missing else ():
        missing.pop(word_hash(text), None)
        if not missing:
            break
    if missing:
        files = sorted(set(missing.values()))
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more files" if len(files) > 3 else "")
        raise DataError(
            f"{shown}: text that the run {run.root} holds out is not there as it was when the run started (it was "
            "edited, appended to or removed), so held-out and training text cannot be told apart. "
            f"{_REMEDIES[purpose]}"
        )
    return kept


def write(run: RunFolder, kept: KeptSplit, *, is_start: bool) -> None:
    """Keep the split of a run that starts, or that has kept none."""
    if not is_start and run.split.exists():
        return
    split = kept.split
    content = {
        "train": list(kept.train),
        "basis": kept.basis,
        "fraction": split.fraction,
        "chosen": None if split.chosen is None else [_hex(one) for one in sorted(split.chosen)],
        "cut": None if split.cut is None else _hex(split.cut),
        "share": split.share,
        "files": {_hex(number): kept.files[number] for number in sorted(kept.files)},
    }
    write_json(run.split, content)


def _read(path: Path) -> KeptSplit | None:
    if not path.exists():
        return None
    try:
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}), so it is not known what the run holds out. Put the file back, or start "
            "another run from its weights: --fork NEW_NAME"
        ) from None


def _parsed(entry: Any) -> KeptSplit:
    """What a file holds. Raises ValueError, TypeError or KeyError with what is wrong with it."""
    if not isinstance(entry, dict):
        raise TypeError("it is no JSON object")
    train, basis, chosen, cut, files = (entry[name] for name in ("train", "basis", "chosen", "cut", "files"))
    if not _are_texts(train) or not isinstance(basis, str):
        raise TypeError("its `train` must be a list of sources and its `basis` text")
    if not (chosen is None or _are_texts(chosen)) or not isinstance(files, dict) or not _are_texts([*files.values()]):
        raise TypeError("its `chosen` must be null or a list of hashes, and its `files` name the file of each")
    fraction, share = (_number(entry, name) for name in ("fraction", "share"))
    if not 0 < fraction < 1 or share < 0:
        raise ValueError("its `fraction` must lie between 0 and 1 and its `share` must be at least 0")
    held = None if chosen is None else frozenset(map(_unhex, chosen))
    split = Split(fraction, held, None if cut is None else _unhex(cut), share)
    named = {_unhex(number): file for number, file in files.items()}
    if named.keys() != split.documents:
        raise ValueError("its `files` must name the file of each document of `chosen` and `cut`, and of no other")
    return KeptSplit(split, tuple(train), basis, named)


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number(entry: dict[str, Any], name: str) -> float:
    value = entry[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"its `{name}` must be a finite number and is {value!r}")
    return float(value)


def _hex(number: int) -> str:
    """A hash as text, since many readers of JSON round whole numbers of 64 bits."""
    return f"{number:016x}"


def _unhex(text: object) -> int:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{16}", text):
        raise ValueError(f"a hash must have 16 hexadecimal digits and is {text!r}")
    return int(text, 16)
