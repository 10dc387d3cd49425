"""What a local checkpoint's index and safetensors headers tell, without PyTorch.

In: a folder. Out: plain data. A safetensors file is eight bytes with the length of its header, the header (JSON: type,
shape and place of every tensor) and the tensors' bytes; so everything but the values can be known from its first few
kilobytes. Pickled weights are found by name, and never opened.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from unmask.errors import CheckpointError
from unmask.models.json_files import check_pointer, is_plain_file, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_FILE, FACTS_FILE = "adapter_model.safetensors", "diffusion.json"
"""An adapter's weights, and its `diffusion` entry."""
_SUFFIX = ".safetensors"
_LARGEST_HEADER = 100 * 2**20  # the format's own limit is 100 MB
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# Weights that other programs read, by how their names end.
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER = (".gguf", ".h5", ".msgpack", ".onnx", ".npz")


def indexed_files(folder: Path) -> list[str]:
    """Names of the files that a checkpoint's index names, sorted; none where there is no index.

    Raises:
        CheckpointError: the index is damaged, or names what is no safetensors file of this folder.
    """
    return sorted(set(weight_map(folder).values()))


def weight_map(folder: Path) -> dict[str, str]:
    """Which file holds a tensor, as the index says; empty where there is no index."""
    index = read_json(folder, INDEX)
    if index is None:
        return {}
    places = index.get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(
            f"The weight_map of {folder / INDEX} must be an object of tensor names and files, got "
            f"{type(places).__name__}. Copy it again."
        )
    for tensor, name in places.items():
        if not isinstance(name, str) or not name.endswith(_SUFFIX) or name != Path(name).name or "\0" in name:
            raise CheckpointError(
                f"The index {folder / INDEX} says that {tensor} is in {name!r}, which must be the name of a "
                f"{_SUFFIX} file in its own folder. {_advice(folder)}"
            )
    return places


def weight_files(folder: Path, *, must_exist: bool = True) -> list[Path]:
    """The safetensors files of a checkpoint: those that its index names, else `model.safetensors`.

    Raises:
        CheckpointError: they are not there, or something else is in their place.
    """
    is_sharded = is_plain_file(folder / INDEX)
    names = indexed_files(folder) if is_sharded else [WEIGHTS]
    missing = [name for name in names if not is_plain_file(folder / name)]
    if must_exist and (missing or not names):
        refuse_missing(folder, ", ".join(missing) or "weights in its index")
    if is_sharded and WEIGHTS not in names and is_plain_file(folder / WEIGHTS):
        raise CheckpointError(
            f"{folder} holds two models: {WEIGHTS}, and that of {INDEX} ({', '.join(names[:3])}). Take one of them "
            "away."
        )
    return [folder / name for name in names]


def refuse_missing(folder: Path, file: str) -> NoReturn:
    """Raise the CheckpointError of a folder that lacks `file`; pickled weights come with the command that converts."""
    raise CheckpointError(f"{folder} has no {file}. {_advice(folder, is_adapter=file == WEIGHTS_FILE)}")


def _advice(folder: Path, *, is_adapter: bool = False) -> str:
    """What to do about missing safetensors files, by what is there instead."""
    there = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in there if name.endswith(_PICKLED) and not name.startswith("training_args")]
    other = [name for name in there if name.endswith(_OTHER)]
    if pickled:
        if is_adapter:
            convert = (
                "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
                f"torch.load('{folder / pickled[0]}', weights_only=True).items()}}, '{folder / WEIGHTS_FILE}')"
            )
        else:
            convert = (
                "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
                f"M.from_pretrained('{folder}', dtype='auto', use_safetensors=False).save_pretrained('OUT'); "
                f"T.from_pretrained('{folder}').save_pretrained('OUT')"
            )
        return (
            f"It has pickled weights ({pickled[0]}), which Unmask does not open, as they can run code. If you trust "
            f'them, convert them: python -c "{convert}"'
        )
    if other:
        return f"It has {other[0]}, which is for another program. Get the checkpoint's safetensors files."
    return "Copy it again."


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
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            beginning = stream.read(64)
            check_pointer(file, beginning)
            length = int.from_bytes(beginning[:8], "little")
            if len(beginning) < 8 or length > min(size, _LARGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            stream.seek(8)
            header = json.loads(stream.read(length))
        return 8 + length, [_entry(name, entry) for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. Give yourself the permission.") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"The header of {file} is damaged, so that it cannot be loaded: {error}. Copy it again."
        ) from None


def _entry(name: str, entry: dict[str, Any]) -> tuple[str, list[int], tuple[int, int]]:
    """Type, shape and place of a tensor. Raises ValueError where they do not fit one another."""
    kind, shape, (begin, end) = entry["dtype"], list(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, begin, end)
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in numbers):
        raise ValueError(f"the shape or place of {name} is no list of sizes")
    if not isinstance(kind, str) or kind not in _BITS:
        raise ValueError(f"{name} has the unknown type {kind!r}")
    if math.prod(shape) * _BITS[kind] != 8 * (end - begin):
        raise ValueError(f"{name} has {end - begin} bytes, which is not what its shape {shape} in {kind} takes")
    return kind, shape, (begin, end)
