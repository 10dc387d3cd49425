"""What a local checkpoint's JSON files and safetensors headers tell, without PyTorch.

In: a folder. Out: plain data. A safetensors file is eight bytes with the length of its header, the header (JSON: type,
shape and place of every tensor) and the tensors' bytes; so everything but the values can be known from its first few
kilobytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import CheckpointError

_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_FILE, FACTS_FILE = "adapter_model.safetensors", "diffusion.json"
"""An adapter's weights, and its `diffusion` entry."""


def read_json(folder: Path, file: str) -> dict[str, Any] | None:
    """The object in a JSON file of a folder, or None where there is no such file."""
    path = folder / file
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Copy the checkpoint again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(content).__name__}. Copy it again.")
    return content


def weight_files(folder: Path, *, must_exist: bool = True) -> list[Path]:
    """The safetensors files of a checkpoint: those that its index names, else `model.safetensors`."""
    index = read_json(folder, INDEX)
    places = {} if index is None else index.get("weight_map", {})
    if not isinstance(places, dict):
        raise CheckpointError(f"The weight_map of {folder / INDEX} must be an object, got {places!r}. Copy it again.")
    names = [_WEIGHTS] if index is None else sorted(set(places.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if must_exist and (missing or not names):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        hint = f" It has pickled weights ({pickled[0]}), which Unmask does not open." if pickled else ""
        raise CheckpointError(f"{folder} has no {', '.join(missing) or 'weights in its index'}.{hint} Copy it again.")
    return [folder / name for name in names]


@dataclass(frozen=True)
class StoredWeights:
    """What the headers of a checkpoint's files say.

    Attributes:
        values: how many numbers are stored, by type as safetensors names it (`BF16`, `F32`, ...).
        size: bytes of the tensors.
        files: number of files.
        truncated: names of files that end before their last tensor.
    """

    values: dict[str, int]
    size: int
    files: int
    truncated: tuple[str, ...]


def counted(files: Sequence[Path]) -> StoredWeights:
    """What the headers of safetensors files say.

    Raises:
        CheckpointError: one is damaged.
    """
    values: Counter[str] = Counter()
    size, truncated = 0, []
    for file in files:
        start, tensors = _header(file)
        ends = [0]
        for kind, shape, (begin, end) in tensors:
            values[kind] += math.prod(shape)
            ends.append(end)
            size += end - begin
        if start + max(ends) > file.stat().st_size:
            truncated.append(file.name)
    return StoredWeights(dict(values), size, len(files), tuple(truncated))


def _header(file: Path) -> tuple[int, list[tuple[str, list[int], tuple[int, int]]]]:
    """Where the values of a safetensors file begin, and of each tensor its type, shape and place behind that."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError(f"a header of {length} bytes in a file of {file.stat().st_size}")
            header = json.loads(stream.read(length))
        entries = [entry for key, entry in header.items() if key != "__metadata__"]
        return 8 + length, [(one["dtype"], list(one["shape"]), _pair(one["data_offsets"])) for one in entries]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"The header of {file} is damaged: {error}. Copy it again.") from None


def _pair(offsets: list[int]) -> tuple[int, int]:
    begin, end = offsets
    return begin, end
