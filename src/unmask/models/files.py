"""What lies in a checkpoint: JSON files, safetensors headers, and tensors that are read only when they are used.

In: a folder or hub id. Out: a local folder, plain data, slices of mapped files. Nothing here builds a network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, NotASafetensorsRepoError, SafetensorsParsingError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from unmask.errors import CheckpointError
from unmask.models.headers import WEIGHTS_FILE, StoredWeights, counted, weight_files, weight_map
from unmask.models.reach import silence

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
_SMALL = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_GIVE = "Give a model folder, a run folder, or a hub id such as Qwen/Qwen3-0.6B."
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # that of whichever httpx huggingface_hub is built on
TENSOR_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def fetched(name: str | Path, *, weights: bool = False) -> Path:
    """The local folder of a checkpoint; of a hub id, its configuration and tokenizer, and with `weights` its tensors.

    Raises:
        CheckpointError: there is no such folder, and no such repository within reach.
    """
    if os.path.isdir(name):
        return Path(name)
    folder = _snapshot(str(name), list(_SMALL))
    if weights:
        shards = [file.name for file in weight_files(folder, must_exist=False)]
        folder = _snapshot(str(name), [*_SMALL, *shards, WEIGHTS_FILE])
    return folder


def _snapshot(name: str, patterns: list[str]) -> Path:
    """The local copy of a hub repository's files, fetched if need be."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(
            f"There is no folder {name} with a config.json, and it is no hub id either: {error} {_GIVE}"
        ) from None
    silent = silence()
    try:
        # A hub that is out of reach would be asked again and again for half a minute.
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=silent is not None))
    except (OSError, ValueError, _HTTP_ERROR) as error:
        reason = " ".join(str(error).split())
        if silent:
            reason = f"it is not in the local cache, and {silent}."
        raise CheckpointError(
            f"There is no folder {name}, and its config.json was not found on the hub: {reason} {_GIVE}"
        ) from None


@contextlib.contextmanager
def opened_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Every tensor of a checkpoint by name, as a slice of its mapped file: `[...]` reads it, nothing before does.

    Raises:
        CheckpointError: a file is missing or damaged, or lacks a tensor that the index promises.
    """
    tensors: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for file in weight_files(folder):
            try:
                shard = stack.enter_context(safe_open(file, framework="pt"))
                tensors |= {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 - no mapping
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} cannot be loaded: {error}. Copy it again.") from None
        _check_promised(folder, set(tensors))
        yield tensors


def _check_promised(folder: Path, found: set[str]) -> None:
    promised = weight_map(folder)
    lacking = sorted(name for name in promised if name not in found)
    if lacking:
        raise CheckpointError(
            f"The index of {folder} promises tensors that are not in its files: "
            f"{', '.join(f'{name} ({promised[name]})' for name in lacking[:8])}. Copy the checkpoint again."
        )


def stored_weights(name: str | Path) -> StoredWeights:
    """Sizes and types of a checkpoint's tensors, from the headers alone; of a hub id without a download.

    Raises:
        CheckpointError: there are no safetensors files, or a header is damaged.
    """
    folder = fetched(name)
    files = weight_files(folder, must_exist=os.path.isdir(name))
    if not all(file.is_file() for file in files):
        return _stored_on_hub(str(name))
    return counted(files)


def _stored_on_hub(name: str) -> StoredWeights:
    silent = silence()
    if silent and not constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"The safetensors headers of {name} are not in the local cache, and {silent}.")
    try:
        metadata = get_safetensors_metadata(name)
    except (OSError, ValueError, NotASafetensorsRepoError, SafetensorsParsingError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"The safetensors headers of {name} cannot be read from the hub: {reason}") from None
    tensors = [tensor for file in metadata.files_metadata.values() for tensor in file.tensors.values()]
    size = sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in tensors)
    values = {str(key): count for key, count in metadata.parameter_count.items()}
    return StoredWeights(values, size, len(metadata.files_metadata), ())
