"""The files of a tokenizer: whether there are any, and whether they are what their names say.

The libraries that read them give errors of every class for damaged ones, a bare `Exception` among them; here each
becomes one that names the folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError
from unmask.models.json_files import check_pointer, is_plain_file, read_json

_WHOLE = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_CONFIG = "tokenizer_config.json"
_JSON = ("tokenizer.json", _CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json")
_TEXT = ("tokenizer.model", "vocab.txt", "merges.txt", "chat_template.jinja")
_LARGEST = 512 * 2**20  # the vocabularies of a million tokens


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer.

    Raises:
        CheckpointError: something else is in the place of one.
    """
    return any(is_plain_file(folder / name) for name in (*_WHOLE, _CONFIG))


def check_tokenizer_files(folder: Path) -> None:
    """Refuse files that cannot be a tokenizer's, before a library reads them.

    Raises:
        CheckpointError: one is damaged, or none holds a vocabulary.
    """
    found = {name: one for name in _JSON if (one := read_json(folder, name, largest=_LARGEST)) is not None}
    for name in _TEXT:
        if is_plain_file(folder / name):
            with (folder / name).open("rb") as stream:
                check_pointer(folder / name, stream.read(64))
    if not any(is_plain_file(folder / name) for name in _WHOLE):
        raise CheckpointError(
            f"There is no usable tokenizer in {folder}: it has none of {', '.join(_WHOLE)}. Copy them from the "
            "checkpoint that it belongs to."
        )
    if "tokenizer.json" in found:
        _check_whole(found["tokenizer.json"], folder)


def _check_whole(tokenizer: dict[str, Any], folder: Path) -> None:
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not model.get("vocab"):
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} holds no `model` with a vocabulary. Copy it from the checkpoint that it "
            "belongs to."
        )


@contextlib.contextmanager
def damage(name: str | Path) -> Iterator[None]:
    """Turn every error that reading a tokenizer ends in into one that names it.

    Raises:
        CheckpointError: something was raised in the block.
    """
    try:
        yield
    except Exception as error:
        # `tokenizers` raises Exception itself; a subclass that says something about this machine goes on its way.
        if type(error) is not Exception and not isinstance(error, _OF_DAMAGE):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"There is no usable tokenizer in {name}: {reason.rstrip('.')}. Copy its files from the checkpoint that "
            "they belong to."
        ) from None


_OF_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, ImportError)
