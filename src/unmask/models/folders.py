"""A folder that a model is written into, which may hold other things already: nothing is lost that is not ours.

In: a folder and, inside the block, the files of a model. Out: the folder holds that model and whatever else it held.
Files of an earlier model of ours make way, as its shards or adapter would be taken for the new one's; those of any
other model are a reason to refuse. A model counts once its `config.json` (or `adapter_config.json`) is there, so that
goes first and comes last: what a kill leaves is no model, never a mixture of two.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from unmask.errors import CheckpointError
from unmask.models.headers import FACTS_FILE, INDEX, WEIGHTS_FILE, indexed_files
from unmask.models.json_files import read_json
from unmask.runs import ADAPTER_FILE
from unmask.writing import flush, flush_folder, remove_leftovers, temporary_beside, written_folder

_CONFIG = "config.json"
_HEADS = (_CONFIG, ADAPTER_FILE)
# What readers of a model folder look for by name, besides the shards that an index names.
_PARTS = (
    *_HEADS,
    FACTS_FILE,
    WEIGHTS_FILE,
    INDEX,
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_OF_OTHERS = ("model-*.safetensors", "*.bin", "*.bin.index.json", "*.gguf", "spiece.model")


def check_new(folder: Path) -> None:
    """Refuse a folder that holds anything, or a file in its place.

    Raises:
        CheckpointError: it does.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists already and is not overwritten. Name another folder.")


@contextlib.contextmanager
def written_model(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, to be filled in the block, whose files are a model's in `folder` when it ends.

    On an error, `folder` stays as it was.

    Raises:
        CheckpointError: the folder is a file, or holds files of a model that is not ours, or of the names that the new
            one has.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, and a model is a folder. Name another one.")
    if not folder.exists():
        with written_folder(folder) as partial:
            yield partial
        return
    replaced = _replaced(folder)
    remove_leftovers(folder)
    partial = temporary_beside(folder / "model")
    partial.mkdir()
    try:
        yield partial
        flush_folder(partial)
        _put(partial, folder, replaced)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replaced(folder: Path) -> set[str] | None:
    """Names of the files of our model that is in a folder; None where there is none."""
    there = {path.name for path in folder.iterdir()}
    if _is_ours(folder):
        return {name for name in (*_PARTS, *indexed_files(folder)) if name in there}
    foreign = sorted(name for name in there if any(fnmatch.fnmatch(name, part) for part in (*_PARTS, *_OF_OTHERS)))
    if foreign:
        raise CheckpointError(
            f"{folder} holds files of another model, which Unmask did not write and does not replace: "
            f"{', '.join(foreign[:8])}. Name another folder."
        )
    return None


def _is_ours(folder: Path) -> bool:
    """Whether the model in a folder has our entry. A damaged one is nobody's."""
    file = FACTS_FILE if (folder / ADAPTER_FILE).is_file() else _CONFIG
    try:
        return isinstance((read_json(folder, file) or {}).get("diffusion"), dict)
    except CheckpointError:
        return False


def _put(partial: Path, folder: Path, replaced: set[str] | None) -> None:
    """Move the files of `partial` into `folder`, those that make it a model last."""
    names = [str(file.relative_to(partial)) for file in sorted(partial.rglob("*")) if not file.is_dir()]
    taken = [name for name in names if os.path.lexists(folder / name)]
    if replaced is None and taken:
        raise CheckpointError(
            f"{folder} holds files of the names that the model's have, which Unmask did not write: "
            f"{', '.join(taken[:8])}. Name another folder."
        )
    # A kill from here on leaves no configuration before the last file.
    for name in sorted(replaced or (), key=lambda name: name not in _HEADS):
        if name in _HEADS or name not in names:
            (folder / name).unlink()
    for name in sorted(names, key=lambda name: name in _HEADS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, folder / name)
    flush(folder)
